// Ranks of one run: how they start, and how they end together when one of them fails.
#include "app/ranks.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>

#include "comm/launch.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/base/timeline.h"
#include "io/file.h"

namespace ff {
namespace {

void write_profile(const Group& world, const std::string& path) {
  // rank 1 of trace.json writes trace.rank1.json.
  const size_t dot = path.rfind('.'), slash = path.rfind('/');
  const bool has_ending = dot != std::string::npos && (slash == std::string::npos || dot > slash);
  const std::string stem = has_ending ? path.substr(0, dot) : path,
                    ending = has_ending ? path.substr(dot) : "";
  write_file(world.rank() == 0 ? path : cat(stem, ".rank", world.rank(), ending),
             timeline_json(world.rank()));
  if (world.rank() != 0) return;
  Exposure all;
  std::printf("%-58s %10s %10s\n", "communication of rank 0", "seconds", "exposed");
  for (const auto& [name, e] : exposures()) {
    all.communication += e.communication;
    all.exposed += e.exposed;
    std::printf("%-58s %10.4f %10.4f\n", name.c_str(), e.communication, e.exposed);
  }
  std::printf("%-58s %10.4f %10.4f\n", "all", all.communication, all.exposed);
}

}  // namespace

void RankOptions::add_to(CLI::App& app, bool with_dap) {
  if (with_dap)
    app.add_option("--dap", dap, "ranks that share one protein (under mpirun; default 1)")
        ->check(CLI::Range(1, 1 << 20));
  app.add_option("--comm-timeout", timeout,
                 "seconds that one collective may wait for another rank (default 600)")
      ->check(CLI::PositiveNumber);
  app.add_option("--profile", profile,
                 "write a timeline of computing and communication here, for chrome://tracing");
}

int on_ranks(const RankOptions& options, const std::function<int(const Group&)>& f) {
  const Group world = launch_ranks(options.timeout);
  if (!options.profile.empty()) start_timeline();
  const auto run = [&] {
    const int code = f(world);
    world.settle();
    if (!options.profile.empty()) write_profile(world, options.profile);
    return code;
  };
  if (world.size() == 1) return run();
  try {
    return run();
  } catch (const SharedError&) {
    return tell_error();
  } catch (...) {
    const int code = tell_error(cat("rank ", world.rank(), " (", world.host(world.rank()), "): "));
    abort_all_ranks(code);
    return code;
  }
}

int tell_error(const std::string& where) {
  const auto tell = [&](Exit code, const std::string& what) {
    log_line(cat("fastfold: ", where, what));
    return int(code);
  };
  try {
    throw;
  } catch (const Stopped& stopped) {
    return stopped.exit_code();
  } catch (const SharedError& e) {
    if (e.tell) tell(e.code(), e.what());
    return int(e.code());
  } catch (const Error& e) {
    if (e.code() == Exit::kUsage && where.empty() && launched().rank != 0) return int(e.code());
    return tell(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return tell(Exit::kDevice,
                "out of memory; use fewer residues or MSA rows, or a machine with more memory");
  } catch (const std::exception& e) {
    return tell(Exit::kBug, cat(e.what(), " (this is a bug of ours; please report it)"));
  }
}

}  // namespace ff
