// Dropout: its masks, the CPU's numbers from the same counters; and where they are applied.
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread the four elements of one block of words.
__global__ void __launch_bounds__(kThreads)
    draw_kernel(const __grid_constant__ Rng rng, double rate, float keep, int64_t n,
                float* factors) {
  after_earlier();
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (4 * b >= n) return;
  const auto words = rng.block(uint64_t(b));
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (4 * b + k < n) factors[4 * b + k] = double(unit_float(words[k])) < rate ? 0.0f : keep;
}

/// [batch, n, c] whose last axis is contiguous.
template <class T>
struct Slices {
  explicit Slices(const Tensor& t)
      : base(data_or_null<T>(t)), batch(t ? t.stride(0) : 0), row(t ? t.stride(1) : 0) {}
  __device__ __forceinline__ T* at(int b, int i, int j) const {
    return base + b * batch + i * row + j;
  }
  T* base;
  int64_t batch, row;
};

constexpr int kBatch = 4;  ///< rows of the batch, of a thread: they share the factors

/// y = x factors, + base where kAdds. A thread V channels of kBatch rows that drop the same.
template <class T, int V, bool kAdds>
__global__ void __launch_bounds__(kThreads)
    add_dropped_kernel(const __grid_constant__ Slices<T> x, const float* factors,
                       const __grid_constant__ Slices<T> base, const __grid_constant__ Slices<T> y,
                       int batch, int n, int packs) {
  after_earlier();
  const unsigned place = blockIdx.x * kThreads + threadIdx.x;
  const int i = int(place / unsigned(packs)), j = int(place % unsigned(packs)) * V;
  if (i >= n) return;
  for (int b0 = int(blockIdx.y) * kBatch; b0 < batch; b0 += int(gridDim.y) * kBatch) {
    // All are on their way at once; what does not exist is read from where something does.
    Raw<T, V> from[kBatch], old[kBatch];
    float factor[V];
#pragma unroll
    for (int q = 0; q < kBatch; ++q) {
      const int b = min(b0 + q, batch - 1);
      from[q] = load_raw<V>(x.at(b, i, j));
      if (kAdds) old[q] = load_raw<V>(base.at(b, i, j));
    }
    load_floats<V>(factors + (int64_t(i) * packs * V + j), factor);
#pragma unroll
    for (int q = 0; q < kBatch; ++q) {
      if (b0 + q >= batch) break;
      float out[V];
#pragma unroll
      for (int e = 0; e < V; ++e)
        out[e] =
            (kAdds ? unpacked<T, V>(old[q], e) : 0.0f) + unpacked<T, V>(from[q], e) * factor[e];
      store_floats<V>(y.at(b0 + q, i, j), out);
    }
  }
}

}  // namespace

void add_dropped(const Tensor& x, const Tensor& factors, const Tensor& base, const Tensor& y) {
  if (!y.numel()) return;
  if (y.rank() != 3) {
    const auto sliced = [](const Tensor& t) {
      return t ? t.view({-1, t.size(-2), t.size(-1)}) : t;
    };
    return add_dropped(sliced(x), factors, sliced(base), sliced(y));
  }
  const int64_t batch = y.size(0), n = y.size(1), c = y.size(2);
  check(n * c <= INT32_MAX && batch <= INT32_MAX, "dropout of ", y.shape());
  const bool packed = in_packs(x) && in_packs(y) && in_packs(base) &&
                      reinterpret_cast<uintptr_t>(factors.raw()) % 16 == 0;
  by_type(y, [&](auto zero) {
    using T = decltype(zero);
    const auto start = [&](auto width) {
      constexpr int V = decltype(width)::value;
      const dim3 blocks(unsigned(ceil_div(n * (c / V), kThreads)),
                        unsigned(std::min<int64_t>(ceil_div(batch, kBatch), 65535)));
      const auto kernel = base ? add_dropped_kernel<T, V, true> : add_dropped_kernel<T, V, false>;
      start_kernel(kernel, blocks, kThreads, 0, Slices<T>(x), factors.data<float>(),
                   Slices<T>(base), Slices<T>(y), int(batch), int(n), int(c / V));
    };
    packed ? start(std::integral_constant<int, 16 / int(sizeof(T))>())
           : start(std::integral_constant<int, 1>());
  });
  check_launch("add_dropped", y.shape());
}

void draw_dropout(const Rng& rng, double rate, const Tensor& factors) {
  const int64_t n = factors.numel();
  if (!n) return;
  start_kernel(draw_kernel, ceil_div(n, 4 * kThreads), kThreads, 0, rng, rate,
               float(1 / (1 - rate)), n, factors.data<float>());
  check_launch("draw_dropout", factors.shape());
}

}  // namespace ff::cuda
