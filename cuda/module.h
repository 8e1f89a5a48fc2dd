// The GPU module's one entry point. The program opens libfastfold_cuda.so only when a GPU is asked
// for, so that one binary starts everywhere; module and program come from one build.
#pragma once

#include <cstdint>

namespace ff {

/// One GPU as the driver describes it.
struct GpuInfo {
  char name[256];
  int compute_major, compute_minor;
  int64_t total_bytes, free_bytes;
};

/// What the module found.
struct GpuReport {
  static constexpr int kMaxGpus = 64;
  char version[32];  ///< the module's FASTFOLD_VERSION
  char reason[512];  ///< one sentence on why no GPU can be used; empty if one can
  int count;         ///< entries of `gpus`
  GpuInfo gpus[kMaxGpus];
};

inline constexpr char kGpuEntryPoint[] = "fastfold_cuda_report";
using GpuEntryPoint = void (*)(GpuReport* report);

}  // namespace ff
