// The program: its command line, its exit codes, and what goes wrong said in one clear message.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "app/commands.h"
#include "app/foreign_flags.h"
#include "app/ranks.h"
#include "comm/launch.h"
#include "core/base/log.h"
#include "core/base/nearest.h"
#include "core/base/stop.h"

namespace ff {
namespace {

/// Waiting threads that spin take the processor from those that work: libgomp reads this when it is
/// loaded, so it has to be there before the program starts.
void restart_with_passive_threads(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execv("/proc/self/exe", argv);  // where it fails the program only runs a little slower
}

/// Flags may be written with `_` or `-`.
std::vector<std::string> normalised(int argc, char** argv) {
  std::vector<std::string> args(argv + 1, argv + argc);
  for (std::string& arg : args) {
    if (arg == "--") break;
    if (arg.rfind("--", 0) != 0) continue;
    for (size_t i = 2; i < arg.size() && arg[i] != '='; ++i)
      if (arg[i] == '_') arg[i] = '-';
  }
  return args;
}

/// Throws for the first argument that no option of `app` took.
void refuse_unknown(const CLI::App& app, const std::string& command) {
  const std::vector<std::string> extras = app.remaining();
  if (extras.empty()) return;
  const std::string& first = extras.front();
  if (first.rfind("-", 0) != 0)
    fail(Exit::kUsage, command, ": unexpected argument '", first, "'; see ", command, " --help");
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  const std::string flag = first.substr(0, first.find('='));
  if (const std::string instead = instead_of(flag); !instead.empty())
    fail(Exit::kUsage, command, ": ", flag, ": ", instead);
  fail(Exit::kUsage, command, ": unknown flag '", flag, "'", did_you_mean(flag, known), "; see ",
       command, " --help");
}

const Command* chosen(const std::vector<Command>& commands) {
  for (const Command& command : commands)
    if (command.app->parsed()) return &command;
  return nullptr;
}

int run(int argc, char** argv) {
  CLI::App root("fastfold: AlphaFold 2 in one program", "fastfold");
  root.set_version_flag("--version", "fastfold " FASTFOLD_VERSION);
  root.footer(
      "Exit codes: 0 done, 1 a bug of ours, 2 usage or configuration, 3 input data, 4 device or "
      "memory, 5 some targets failed, 75 training checkpointed, start it again.");
  std::vector<Command> commands;
  for (const auto add : {add_predict, add_features, add_parity, add_init, add_convert, add_bench,
                         add_doctor, add_evaluate, add_report, add_prepare, add_train}) {
    commands.push_back(add(root));
    commands.back().app->allow_extras();
  }
  root.allow_extras();

  std::vector<std::string> args = normalised(argc, argv);
  std::reverse(args.begin(), args.end());  // CLI11 takes them off the end
  std::string parse_error;
  try {
    root.parse(args);
  } catch (const CLI::CallForHelp& e) {
    return root.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return root.exit(e);
  } catch (const CLI::ParseError& e) {
    parse_error = e.what();
  }

  const Command* command = chosen(commands);
  if (!command) {
    const std::vector<std::string> extras = root.remaining();
    if (!extras.empty() && extras.front().rfind("-", 0) != 0) {
      std::vector<std::string> names;
      for (const Command& c : commands) names.push_back(c.app->get_name());
      fail(Exit::kUsage, "unknown command '", extras.front(), "'",
           did_you_mean(extras.front(), names), "; see fastfold --help");
    }
    refuse_unknown(root, "fastfold");
    if (!parse_error.empty()) fail(Exit::kUsage, parse_error);
    std::fputs(root.help().c_str(), stdout);
    return int(Exit::kUsage);
  }
  std::string name = "fastfold " + command->app->get_name();
  for (const CLI::App* action : command->app->get_subcommands()) {
    name += " " + action->get_name();
    refuse_unknown(*action, name);
  }
  refuse_unknown(*command->app, name);
  // A mistyped flag before the command is left with the root.
  refuse_unknown(root, "fastfold");
  if (!parse_error.empty()) fail(Exit::kUsage, name, ": ", parse_error);
  if (const Launched ranks = launched(); ranks.size > 1 && !command->many_ranks) {
    if (ranks.rank != 0) return int(Exit::kUsage);
    fail(Exit::kUsage, name, " works with one rank and was started as ", ranks.size,
         "; start it without mpirun or srun");
  }
  watch_stop_signals();
  const int code = command->run();
  if (code == int(Exit::kRequeue)) return code;  // stopped, and nothing lost
  // What failed on several ranks is told; mpirun then ends those that are still about to leave.
  if (code != int(Exit::kDone) && launched().size > 1) return code;
  throw_if_stopped();  // a signal that came too late to stop anything is still told
  return code;
}

}  // namespace
}  // namespace ff

int main(int argc, char** argv) {
  using namespace ff;
  restart_with_passive_threads(argv);
  try {
    return run(argc, argv);
  } catch (...) {
    return tell_error();
  }
}
