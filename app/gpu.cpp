// Opens the GPU module when a GPU is asked for, and says in one sentence why none can be used.
#include "app/gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

namespace ff {
namespace {

std::filesystem::path module_path() {
  std::error_code ignored;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const auto& folder : {program, program.parent_path() / "lib" / "fastfold"}) {
    const auto path = folder / "libfastfold_cuda.so";
    if (std::filesystem::exists(path, ignored)) return path;
  }
  return {};
}

/// The module, or nullptr and the reason.
const GpuModule* open_module(std::string& reason) {
  const auto path = module_path();
  if (path.empty()) {
    reason = "this build has no GPU module; build it where nvcc is installed (FASTFOLD_CUDA=ON)";
    return nullptr;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: it holds the device
  if (!library) {
    reason = cat("the GPU module cannot be opened: ", dlerror());
    return nullptr;
  }
  const auto entry = reinterpret_cast<GpuEntryPoint>(dlsym(library, kGpuEntryPoint));
  if (!entry || std::string(entry()->version) != FASTFOLD_VERSION) {
    reason = cat(path.string(), " is not of this program's version, ", FASTFOLD_VERSION,
                 "; build both again");
    return nullptr;
  }
  return entry();
}

}  // namespace

GpuReport find_gpus(int only) {
  GpuReport report{};
  std::string reason;
  if (const GpuModule* module = open_module(reason))
    module->report(&report, only);
  else
    std::snprintf(report.reason, sizeof report.reason, "%s", reason.c_str());
  return report;
}

Device use_gpu(int index) {
  const GpuReport report = find_gpus(index);
  if (*report.reason) fail(Exit::kDevice, "--device cuda cannot be had: ", report.reason);
  std::string reason;
  open_module(reason)->use(index);
  return {Device::cuda, index};
}

Device use_gpu(const Group& world) {
  Device device;
  std::string id;
  together(world, [&] {
    std::string reason;
    const GpuModule* module = open_module(reason);
    const int count = module ? module->count() : 0;
    device = use_gpu(world.rank_on_this_host() % std::max(count, 1));
    if (world.size() > 1) id = find_gpus(device.index).gpus[0].id;
  });
  world.use_device(gpu_communication(), id);
  return device;
}

DeviceComm& gpu_communication() {
  std::string reason;
  return open_module(reason)->communication();
}

bool find_nccl(std::string& text) {
  const GpuModule* module = open_module(text);
  return module && module->find_nccl(text);
}

bool find_blas(std::string& text) {
  const GpuModule* module = open_module(text);
  return module && module->find_blas(text);
}

}  // namespace ff
