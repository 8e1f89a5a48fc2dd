// What every kernel needs: element types, rows of strided tensors, sums over a warp.
#pragma once

#include <cuda_bf16.h>

#include <tuple>

#include "cuda/runtime.h"

namespace ff::cuda {

/// Blocks or threads of a launch; one number is of x.
struct Extent : dim3 {
  Extent(dim3 n) : dim3(n) {}
  Extent(int64_t n) : dim3(unsigned(n)) { check(n < int64_t(1) << 31, "a launch of ", n); }
};

/// Starts a kernel on the stream. On Hopper its blocks come as the launch before it ends, not a
/// microsecond later (programmatic dependent launch), so that a kernel begins with after_earlier();
/// newer GPUs run the code of sm_80, which cannot wait.
template <class... Params, class... Args>
void start_kernel(void (*kernel)(Params...), Extent blocks, Extent threads, int64_t shared,
                  const Args&... args) {
  Recorder* const recorder = Recorder::current();
  if (recorder) [[unlikely]] {
    const std::tuple<Params...> values(args...);
    const auto asks = [&](const Params&... all) {
      const void* const at[] = {&all...};
      static constexpr size_t kSizes[] = {sizeof(Params)...};
      return recorder->launch({reinterpret_cast<const void*>(kernel), blocks, threads,
                               size_t(shared), at, kSizes, sizeof...(Params)});
    };
    if (!std::apply(asks, values)) return;
  }
  cudaLaunchConfig_t config{};
  config.stream = stream();
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = size_t(shared);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = device_info().hopper();
  cudaLaunchKernelEx(&config, kernel, Params(args)...);  // check_launch follows
  if (recorder) [[unlikely]]
    recorder->asked();
}

/// First in every kernel: what earlier launches wrote is there.
__device__ __forceinline__ void after_earlier() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

constexpr float kLog2e = 1.44269504088896f;
constexpr float kNormEpsilon = 1e-5f;  ///< what layer norms add to a variance

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 2)
    return __float2bfloat16_rn(x);
  else
    return x;
}

/// First element; __nv_bfloat16 has ff::bf16's bits.
template <class T>
T* data(const Tensor& t) {
  if constexpr (sizeof(T) == 2)
    return reinterpret_cast<T*>(t.data<bf16>());
  else
    return t.data<T>();
}
/// The same, nullptr for an absent operand.
template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? data<T>(t) : nullptr;
}

/// Calls f with a value of the element type of the tensor: float or __nv_bfloat16.
template <class F>
void by_type(const Tensor& t, F f) {
  switch (t.dtype()) {
    case Dtype::f32:
      return f(float());
    case Dtype::bf16:
      return f(__nv_bfloat16());
    case Dtype::f64:
    case Dtype::i32:
      break;
  }
  fail(Exit::kBug, "no such GPU kernel for ", name_of(t.dtype()));
}

/// n / m of n below 2^31, by a product.
struct Division {
  explicit Division(int64_t m_) : m(int(m_)) {
    while (int64_t(1) << (shift - 31) < m_) ++shift;
    times = uint32_t(((uint64_t(1) << shift) + uint64_t(m_) - 1) / uint64_t(m_));
  }
  __device__ __forceinline__ int of(int n) const {
    return int(uint64_t(uint32_t(n)) * times >> shift);
  }
  int m, shift = 31;
  uint32_t times;
};

/// The rows of a tensor, everything but its last axis, by one number: for kernels, passed by value.
/// Neighbouring axes whose strides chain are merged, so that a contiguous tensor costs no division.
struct Rows {
  explicit Rows(const Tensor& t) : c(t.rank() ? t.size(-1) : 1) {
    check(c <= 1 || t.stride(-1) == 1, "a tensor of shape ", t.shape(),
          " whose last axis is strided");
    for (int i = t.rank() - 2; i >= 0; --i) {
      n *= t.size(i);
      if (t.size(i) == 1) continue;
      if (axes && t.stride(i) == stride[axes - 1] * size[axes - 1]) {
        size[axes - 1] *= t.size(i);
        continue;
      }
      size[axes] = t.size(i);
      stride[axes++] = t.stride(i);
    }
  }
  /// Elements from the tensor's first to the first of row r.
  __device__ __forceinline__ int64_t offset(int64_t r) const {
    if (axes <= 1) return axes ? r * stride[0] : 0;
    int64_t at = 0;
    int i = 0;
#pragma unroll 1
    for (; i + 1 < axes; ++i) {
      const int64_t q = n <= INT32_MAX ? uint32_t(r) / uint32_t(size[i]) : r / size[i];
      at += (r - q * size[i]) * stride[i];
      r = q;
    }
    return at + r * stride[i];
  }
  static constexpr int kMost = Dims::kMax - 1;
  int64_t c = 1, n = 1;  ///< elements of a row, rows
  int axes = 0;
  int64_t size[kMost] = {}, stride[kMost] = {};  ///< innermost first
};

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

}  // namespace ff::cuda
