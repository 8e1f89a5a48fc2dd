// fastfold init: fresh parameters in the format of DeepMind's files.
#include <CLI/CLI.hpp>
#include <memory>

#include "app/commands.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/stop.h"
#include "core/model/params.h"
#include "io/npz.h"

namespace ff {
namespace {

struct Options {
  std::string preset, output;
  uint64_t seed = 0;
};

int run(const Options& o) {
  const ModelConfig config = preset_config(o.preset);
  set_threads(available_threads());
  const Arrays arrays = initial_params(config, o.seed);
  throw_if_stopped();
  write_npz(o.output, arrays, /*compress=*/false);
  int64_t count = 0;
  for (const auto& [name, value] : arrays) count += value.numel();
  log_notice(o.output, ": ", count, " untrained parameters of preset ", o.preset, ", seed ",
             o.seed);
  return int(Exit::kDone);
}

}  // namespace

Command add_init(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("init", "write fresh, untrained parameters");
  app->add_option("--preset", o->preset, "model_1..5, model_1..5_ptm, demo")->required();
  app->add_option("--seed,--random-seed", o->seed, "default 0");
  app->add_option("-o,--output", o->output, "the file to write, .npz")->required();
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
