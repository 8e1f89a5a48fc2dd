// The optimizer's passes over all parameters.
#include "cuda/device.cuh"
#include "cuda/lists.cuh"
#include "cuda/table.h"

namespace ff::cuda {
namespace {

__global__ void __launch_bounds__(kListThreads)
    squares_kernel(const __grid_constant__ Lists<1> lists, double* partial) {
  after_earlier();
  double sum = 0;
  each_pack(lists, [&](float* const* p, int64_t i, auto width) {
    constexpr int V = decltype(width)::value;
    float v[V];
    load_floats<V>(p[0] + i, v);
    // In f64, so that squares of large values stay finite.
#pragma unroll
    for (int k = 0; k < V; ++k) sum += double(v[k]) * double(v[k]);
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024)
    norm_kernel(const double* partial, int64_t count, double* norm) {
  after_earlier();
  double sum = 0;
  for (int64_t k = threadIdx.x; k < count; k += 1024) sum += partial[k];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

__global__ void __launch_bounds__(kListThreads)
    add_clipped_kernel(const __grid_constant__ Lists<2> lists, const double* norm,
                       const float* loss, double limit, float* skipped, bool counts) {
  after_earlier();
  const double length = *norm;
  if (!isfinite(length) || !isfinite(*loss)) {
    if (counts && blockIdx.x == 0 && threadIdx.x == 0) *skipped += 1;
    return;
  }
  const float scale = limit > 0 && length > limit ? float(limit / length) : 1.0f;
  each_pack(lists, [&](float* const* p, int64_t i, auto width) {
    constexpr int V = decltype(width)::value;
    float x[V], sum[V];
    load_floats<V>(p[0] + i, x);
    load_floats<V>(p[1] + i, sum);
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] += scale * x[k];
    store_floats<V>(p[1] + i, sum);
  });
}

__global__ void __launch_bounds__(kListThreads)
    adam_kernel(const __grid_constant__ Lists<5> lists, const __grid_constant__ AdamNumbers c,
                const float* skipped) {
  after_earlier();
  if (*skipped != 0) return;
  each_pack(lists, [&](float* const* p, int64_t i, auto width) {
    constexpr int V = decltype(width)::value;
    float g[V], x[V], m[V], v[V], average[V];
    load_floats<V>(p[0] + i, g);
    load_floats<V>(p[1] + i, x);
    load_floats<V>(p[2] + i, m);
    load_floats<V>(p[3] + i, v);
    if (p[4]) load_floats<V>(p[4] + i, average);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const float mean = c.mean * g[k];
      m[k] = c.beta1 * m[k] + c.keep1 * mean;
      v[k] = c.beta2 * v[k] + c.keep2 * (mean * mean);
      x[k] -= c.step * m[k] / (sqrtf(v[k]) * c.root + c.eps);
      average[k] += c.follow * (x[k] - average[k]);
    }
    store_floats<V>(p[1] + i, x);
    store_floats<V>(p[2] + i, m);
    store_floats<V>(p[3] + i, v);
    if (p[4]) store_floats<V>(p[4] + i, average);
  });
}

}  // namespace

void global_norm(TensorList arrays, const Tensor& norm) {
  int64_t blocks = 0;
  for (const Tensor& t : arrays) blocks += ceil_div(t.numel(), kPiece);
  const Scratch room(blocks * 8);
  double* partial = room.data<double>();
  each_launch<1>({arrays}, [&](const Lists<1>& lists, int64_t count) {
    start_kernel(squares_kernel, count, kListThreads, 0, lists, partial);
    partial += count;
  });
  start_kernel(norm_kernel, 1, 1024, 0, room.data<double>(), blocks, norm.data<double>());
  check_launch("global_norm", arrays.size(), " arrays");
}

void add_clipped(TensorList gradient, const Tensor& norm, const Tensor& loss, double limit,
                 TensorList sum, const Tensor& skipped) {
  bool first = true;
  each_launch<2>({gradient, sum}, [&](const Lists<2>& lists, int64_t blocks) {
    start_kernel(add_clipped_kernel, blocks, kListThreads, 0, lists, norm.data<double>(),
                 loss.data<float>(), limit, skipped.data<float>(), first);
    first = false;
  });
  check_launch("add_clipped", gradient.size(), " arrays");
}

void adam_step(const AdamNumbers& numbers, const AdamLists& a, const Tensor& skipped) {
  each_launch<5>(
      {a.gradient, a.params, a.m, a.v, a.ema}, [&](const Lists<5>& lists, int64_t blocks) {
        start_kernel(adam_kernel, blocks, kListThreads, 0, lists, numbers, skipped.data<float>());
      });
  check_launch("adam_step", a.gradient.size(), " arrays");
}

}  // namespace ff::cuda
