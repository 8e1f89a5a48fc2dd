// What cuda/module.cpp puts together.
#pragma once

#include <cuda_runtime_api.h>

#include "comm/device.h"
#include "core/tensor/tensor.h"

namespace ff::cuda {

/// cuda/runtime.cpp: takes GPU `index` and registers its memory.
void start(int index);
/// cuda/copy.cu: copies between tensors on the GPU, any strides and dtypes.
void copy(const Tensor& from, const Tensor& to);
/// cuda/copy_all.cu: many arrays at once, f32 and contiguous.
void copy_all(std::span<const Tensor> from, std::span<const Tensor> to);
/// cuda/add_up.cu: sums of parts in their order.
void add_up(std::span<const Tensor> parts, const Tensor& sum);
/// cuda/blas.cpp: finds and opens cuBLASLt; throws Exit::kDevice with where it was looked for.
void open_blas();
bool find_blas(std::string& text);

/// cuda/communication.cpp: what ranks on GPUs exchange by.
DeviceComm& communication();
/// cuda/spin.cu: lets a stream stand still.
void spin(double microseconds, cudaStream_t at);

}  // namespace ff::cuda
