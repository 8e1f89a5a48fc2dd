// Opens the GPU module when a GPU is asked for, and says in one sentence why none can be used.
#pragma once

#include "comm/group.h"
#include "core/tensor/tensor.h"
#include "cuda/module.h"

namespace ff {

/// What the GPU module found, of all GPUs or of one. Where the module is missing or cannot be
/// opened, an empty report with the reason. Looks beside the program, then in ../lib/fastfold (an
/// installed program).
GpuReport find_gpus(int only = -1);

/// Takes a GPU for this process: from then on tensors can live on the returned device. Throws
/// Exit::kDevice with one sentence on why `--device cuda` cannot be had.
Device use_gpu(int index = 0);

/// Takes a GPU on every rank: those of a host in turn, so that each rank has its own where there
/// are enough. The ranks may exchange tensors of it from then on. Throws alike on all ranks.
Device use_gpu(const Group& world);

/// What ranks on GPUs exchange by, once this process uses one.
DeviceComm& gpu_communication();

/// NCCL's version and file, or false and why it cannot be had.
bool find_nccl(std::string& text);
/// The same of cuBLASLt, which the GPU module computes with.
bool find_blas(std::string& text);

}  // namespace ff
