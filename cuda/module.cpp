// The GPU module: says which GPUs there are, or why none can be used; takes one.
#include "cuda/module.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/module_parts.h"
#include "cuda/nccl.h"
#include "cuda/table.h"

namespace ff {
namespace {

constexpr int kMinMajor = 8;  // the oldest compute capability that the kernels are compiled for

__attribute__((format(printf, 2, 3))) void explain(GpuReport* report, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(report->reason, sizeof report->reason, format, args);
  va_end(args);
}

void explain_driver(GpuReport* report) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    explain(report, "no NVIDIA driver is installed on this machine");
  } else {
    explain(report,
            "the NVIDIA driver supports CUDA %d.%d, and this build needs %d.%d or newer; "
            "update the driver",
            driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
}

/// Fills one entry; free memory is asked for last, since it makes a context on the device.
cudaError_t describe(int device, GpuInfo* gpu) {
  cudaDeviceProp properties;
  if (cudaError_t e = cudaGetDeviceProperties(&properties, device)) return e;
  std::snprintf(gpu->name, sizeof gpu->name, "%s", properties.name);
  const auto* uuid = reinterpret_cast<const unsigned char*>(properties.uuid.bytes);
  for (int i = 0; i < 16; ++i) std::snprintf(gpu->id + 2 * i, 3, "%02x", uuid[i]);
  gpu->compute_major = properties.major;
  gpu->compute_minor = properties.minor;
  if (gpu->compute_major < kMinMajor) return cudaSuccess;  // it need not take a context, then
  size_t free_bytes = 0, total_bytes = 0;
  if (cudaError_t e = cudaSetDevice(device)) return e;
  if (cudaError_t e = cudaMemGetInfo(&free_bytes, &total_bytes)) return e;
  gpu->free_bytes = static_cast<int64_t>(free_bytes);
  gpu->total_bytes = static_cast<int64_t>(total_bytes);
  return cudaSuccess;
}

void report_gpus(GpuReport* report, int only) {
  std::memset(report, 0, sizeof *report);
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorInsufficientDriver) return explain_driver(report);
  if (found == cudaErrorNoDevice || (found == cudaSuccess && count == 0)) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return explain(report, "the NVIDIA driver shows no GPU%s%s",
                   visible ? "; CUDA_VISIBLE_DEVICES is " : "",
                   visible ? (*visible ? visible : "empty") : "");
  }
  if (found != cudaSuccess) {
    return explain(report, "the NVIDIA driver failed: %s", cudaGetErrorString(found));
  }
  if (only >= count) return explain(report, "GPU %d was asked for, and there are %d", only, count);
  bool usable = false;
  report->first = std::max(only, 0);
  const int end = only < 0 ? std::min(count, GpuReport::kMaxGpus) : only + 1;
  for (int i = report->first; i < end; ++i) {
    GpuInfo* gpu = &report->gpus[report->count++];
    if (const cudaError_t e = describe(i, gpu)) {
      explain(report, "GPU %d failed: %s", i, cudaGetErrorString(e));
    } else if (gpu->compute_major < kMinMajor) {
      explain(report, "GPU %d, %s, has compute capability %d.%d; %d.0 or newer is needed", i,
              gpu->name, gpu->compute_major, gpu->compute_minor, kMinMajor);
    } else {
      usable = true;
    }
  }
  if (usable) report->reason[0] = 0;
}

void use_gpu(int index) {
  cuda::start(index);
  cuda::open_blas();
  register_kernels(Device::cuda, &cuda::kTable);
}

int count_gpus() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

constexpr GpuModule kModule = {FASTFOLD_VERSION,    report_gpus,     use_gpu,        count_gpus,
                               cuda::communication, cuda::find_blas, cuda::find_nccl};

}  // namespace
}  // namespace ff

extern "C" __attribute__((visibility("default"))) const ff::GpuModule* fastfold_cuda() {
  return &ff::kModule;
}
