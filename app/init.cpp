// fastfold init: fresh parameters in the format of DeepMind's files.
#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>

#include "app/commands.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/rng.h"
#include "core/base/stop.h"
#include "core/model/params.h"
#include "io/npz.h"

namespace ff {
namespace {

struct Options {
  std::string preset, output;
  uint64_t seed = 0;
  bool no_zeros = false;
};

/// Draws the layers that begin as zero, with variance 1 / fan in.
void fill_zero_layers(const ModelConfig& config, uint64_t seed, const Arrays& arrays) {
  uint64_t number = 0;
  for (const ParamSpec& spec : param_specs(config)) {
    const Rng rng(seed, {++number});
    const bool is_layer = spec.fan_in > 1;  // a bias has none
    if (!is_layer || spec.init != ParamSpec::Init::kZeros) continue;
    const double limit = std::sqrt(3.0 / double(spec.fan_in));
    const Tensor& t = arrays.at(spec.name);
    for (int64_t i = 0; i < t.numel(); ++i)
      t.data<float>()[i] = float(limit * (2.0 * unit_float(rng.word(uint64_t(i))) - 1));
  }
}

int run(const Options& o) {
  const ModelConfig config = preset_config(o.preset);
  set_threads(available_threads());
  const Arrays arrays = initial_params(config, o.seed);
  if (o.no_zeros) fill_zero_layers(config, o.seed, arrays);
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
  app->add_flag(
      "--no-zeros", o->no_zeros,
      "draw the layers that begin as zero too: outputs depend on the alignment before any "
      "training; to try things, not to train from");
  app->add_option("-o,--output", o->output, "the file to write, .npz")->required();
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
