// The options of every command that computes.
#include <CLI/CLI.hpp>

#include "app/commands.h"
#include "app/gpu.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/ops/kernels.h"

namespace ff {

void ComputeOptions::add_to(CLI::App& app, bool with_f64) {
  app.add_option("--threads", threads, "threads (default: what the machine or container allows)")
      ->check(CLI::Range(1, 4096));
  app.add_flag("-q,--quiet", quiet, "no notices and no progress");
  std::vector<std::string> precisions{"f32", "tf32", "bf16"};
  if (with_f64) precisions.push_back("f64");
  app.add_option(
         "--precision", precision,
         "of the activations, f32 or bf16, or tf32: f32, of which a GPU multiplies the first 10 "
         "bits of fractions (default f32)")
      ->check(CLI::IsMember(precisions))
      ->transform([](const std::string& given) { return given == "fp32" ? "f32" : given; });
  app.add_option("--device", device, "cpu or cuda (default cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
}

Device ComputeOptions::apply(const Group& world) const {
  set_quiet(quiet);
  set_threads(threads > 0 ? threads : available_threads());
  tf32_products() = precision == "tf32";
  if (device == "cpu") {
    if (tf32_products()) fail(Exit::kUsage, "--precision tf32 is for --device cuda");
    return {};
  }
  if (precision == "f64") fail(Exit::kUsage, "--precision f64 is for --device cpu");
  return use_gpu(world);
}

}  // namespace ff
