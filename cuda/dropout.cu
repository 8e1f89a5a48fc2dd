// Dropout's masks: the CPU's numbers, from the same counters.
#include "cuda/device.cuh"
#include "cuda/table.h"

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

}  // namespace

void draw_dropout(const Rng& rng, double rate, const Tensor& factors) {
  const int64_t n = factors.numel();
  if (!n) return;
  start_kernel(draw_kernel, ceil_div(n, 4 * kThreads), kThreads, 0, rng, rate,
               float(1 / (1 - rate)), n, factors.data<float>());
  check_launch("draw_dropout", factors.shape());
}

}  // namespace ff::cuda
