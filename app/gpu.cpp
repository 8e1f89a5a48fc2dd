// Opens the GPU module when a GPU is asked for, and says in one sentence why none can be used.
#include "app/gpu.h"

#include <dlfcn.h>

#include <cstdio>
#include <filesystem>

#include "core/base/error.h"

namespace ff {
namespace {

GpuReport no_gpu(const std::string& reason) {
  GpuReport report{};
  std::snprintf(report.reason, sizeof report.reason, "%s", reason.c_str());
  return report;
}

std::filesystem::path module_path() {
  std::error_code ignored;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const auto& folder : {program, program.parent_path() / "lib" / "fastfold"}) {
    const auto path = folder / "libfastfold_cuda.so";
    if (std::filesystem::exists(path, ignored)) return path;
  }
  return {};
}

}  // namespace

GpuReport find_gpus() {
  const auto path = module_path();
  if (path.empty()) {
    return no_gpu(
        "this build has no GPU module; build it where nvcc is installed (FASTFOLD_CUDA=ON)");
  }
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: it holds driver state
  if (!module) return no_gpu(cat("the GPU module cannot be opened: ", dlerror()));
  const auto entry = reinterpret_cast<GpuEntryPoint>(dlsym(module, kGpuEntryPoint));
  if (!entry) return no_gpu(cat(path.string(), " is no GPU module of fastfold; build it again"));
  GpuReport report;
  entry(&report);
  if (std::string(report.version) != FASTFOLD_VERSION) {
    return no_gpu(cat(path.string(), " is of another version than this program, ", FASTFOLD_VERSION,
                      "; build both again"));
  }
  return report;
}

std::string why_no_gpu() {
  const GpuReport report = find_gpus();
  if (*report.reason) return report.reason;
  return cat("found ", report.gpus[0].name,
             ", but this version computes on the CPU only; use --device cpu");
}

}  // namespace ff
