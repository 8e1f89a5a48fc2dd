// Expectations over rows of softmaxed logits, in f64 as the CPU computes them.
#include "cuda/device.cuh"
#include "cuda/table.h"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

/// A warp a row.
__global__ void __launch_bounds__(kThreads)
    expectations_kernel(const float* logits, const double* values, int64_t rows, int bins,
                        double* out) {
  after_earlier();
  const int64_t r = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (r >= rows) return;
  const int lane = threadIdx.x % 32;
  const float* row = logits + r * bins;
  float high = -INFINITY;
  for (int b = lane; b < bins; b += 32) high = fmaxf(high, row[b]);
  high = warp_max(high);
  double total = 0, sum = 0;
  for (int b = lane; b < bins; b += 32) {
    const double e = exp(double(row[b]) - double(high));
    total += e;
    sum += e * values[b];
  }
  total = warp_sum(total);
  sum = warp_sum(sum);
  if (lane == 0) out[r] = sum / total;
}

}  // namespace

void expectations(const Tensor& logits, const Tensor& values, const Tensor& out) {
  const int64_t rows = out.numel();
  if (!rows) return;
  start_kernel(expectations_kernel, ceil_div(rows, kThreads / 32), kThreads, 0,
               logits.data<float>(), values.data<double>(), rows, int(logits.size(-1)),
               out.data<double>());
  check_launch("expectations", logits.shape());
}

}  // namespace ff::cuda
