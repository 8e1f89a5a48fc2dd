// The GPU module's one entry point. The program opens libfastfold_cuda.so only when a GPU is asked
// for, so that one binary starts everywhere; module and program come from one build, and the module
// uses the program's own Tensor and Error, which the program exports to it.
#pragma once

#include <cstdint>
#include <string>

namespace ff {

class DeviceComm;

/// One GPU as the driver describes it.
struct GpuInfo {
  char name[256];
  char id[40];  ///< tells all GPUs apart
  int compute_major, compute_minor;
  int64_t total_bytes, free_bytes;
};

/// What the module found.
struct GpuReport {
  static constexpr int kMaxGpus = 64;
  char reason[512];  ///< one sentence on why no GPU can be used; empty if one can
  int first, count;  ///< number of the first described GPU, entries of `gpus`
  GpuInfo gpus[kMaxGpus];
};

struct GpuModule {
  char version[32];  ///< the module's FASTFOLD_VERSION; first, so that any version can be read
  /// Describes all GPUs, or GPU `only` alone where that is not negative (each costs a context on
  /// it); never throws and never prints.
  void (*report)(GpuReport* report, int only);
  /// Takes GPU `index` for this process: makes its stream, finds cuBLASLt, registers its memory and
  /// kernels. Throws Exit::kDevice with one sentence on what is missing.
  void (*use)(int index);
  /// How many there are, at no cost; 0 where there is no driver.
  int (*count)();
  /// What ranks exchange by, once a GPU is in use.
  DeviceComm& (*communication)();
  /// cuBLASLt's version and file, or false and where it was looked for.
  bool (*find_blas)(std::string& text);
  /// NCCL's version and file, or false and why there is none.
  bool (*find_nccl)(std::string& text);
};

inline constexpr char kGpuEntryPoint[] = "fastfold_cuda";
using GpuEntryPoint = const GpuModule* (*)();

}  // namespace ff
