// fastfold convert: parameters between .npz and our HDF5 checkpoint, bit for bit or in bf16.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "app/commands.h"
#include "app/model_file.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/train/train_config.h"
#include "io/checkpoint.h"
#include "io/npz.h"

namespace ff {
namespace {

struct Options {
  std::string input, output;
  bool bf16 = false;
};

/// What of a run's configuration others need: not where its files were.
std::string without_paths(const std::string& json, const std::string& path) {
  TrainConfig config = parse_train_config(json, path);
  config.train.shards.clear();
  config.validation_shards.clear();
  config.filter.cluster_file.clear();
  config.run.logdir.clear();
  return train_config_json(config);
}

int run(const Options& o) {
  const std::string extension = std::filesystem::path(o.output).extension();
  if (extension != ".npz" && extension != ".h5")
    fail(Exit::kUsage, o.output, ": the extension tells the format; expected .npz or .h5");
  if (o.bf16 && extension == ".npz")
    fail(Exit::kUsage, "--bf16: .npz has no bf16; expected an output that ends in .h5");
  std::string config;
  Arrays arrays = read_parameters(o.input, &config);
  throw_if_stopped();
  if (o.bf16)
    for (auto& [name, t] : arrays) t = t.to(Dtype::bf16);
  if (extension == ".npz")
    write_npz(o.output, arrays, /*compress=*/false);
  else
    write_checkpoint(
        o.output, arrays,
        config.empty() ? Attributes{} : Attributes{{"config", without_paths(config, o.input)}});
  log_notice(o.output, ": ", arrays.size(), " arrays");
  return int(Exit::kDone);
}

}  // namespace

Command add_convert(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("convert", "parameters between .npz and .h5");
  app->add_option("input", o->input, "parameters, .npz or .h5")->required();
  app->add_option("output", o->output, "the file to write, .npz or .h5")->required();
  app->add_flag("--bf16", o->bf16, "values in bf16, half the size; .h5 alone");
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
