// fastfold report: a training run's curves as one page.
#include <CLI/CLI.hpp>
#include <memory>

#include "app/commands.h"
#include "core/base/log.h"
#include "io/file.h"
#include "io/run_report.h"

namespace ff {
namespace {

struct Options {
  std::string run, output;
};

int run(const Options& o) {
  const std::string path = o.output.empty() ? o.run + "/report.html" : o.output;
  write_file(path, run_report_html(o.run));
  log_notice(path, ": open it in a browser");
  return int(Exit::kDone);
}

}  // namespace

Command add_report(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("report", "draw a training run's curves as one HTML page");
  app->add_option("RUN", o->run, "the run's folder (run.logdir), with its metrics.jsonl")
      ->required();
  app->add_option("-o,--output", o->output, "the page (default: RUN/report.html)");
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
