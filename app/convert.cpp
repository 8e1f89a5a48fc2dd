// fastfold convert: parameters between .npz and our HDF5 checkpoint, bit for bit.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "app/commands.h"
#include "app/model_file.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "io/checkpoint.h"
#include "io/npz.h"

namespace ff {
namespace {

struct Options {
  std::string input, output;
};

int run(const Options& o) {
  const std::string extension = std::filesystem::path(o.output).extension();
  if (extension != ".npz" && extension != ".h5")
    fail(Exit::kUsage, o.output, ": the extension tells the format; expected .npz or .h5");
  const Arrays arrays = read_parameters(o.input);
  throw_if_stopped();
  if (extension == ".npz")
    write_npz(o.output, arrays, /*compress=*/false);
  else
    write_checkpoint(o.output, arrays);
  log_notice(o.output, ": ", arrays.size(), " arrays");
  return int(Exit::kDone);
}

}  // namespace

Command add_convert(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("convert", "parameters between .npz and .h5");
  app->add_option("input", o->input, "parameters, .npz or .h5")->required();
  app->add_option("output", o->output, "the file to write, .npz or .h5")->required();
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
