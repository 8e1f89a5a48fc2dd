// Cross-entropy of rows of logits in f32, a warp a row, with its gradient.
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRowsEach = 8;  // rows of a warp

__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const float* logits, const int32_t* classes, const double* weights,
                         double norm, int64_t rows, int n, double* partial, float* gradient) {
  after_earlier();
  const int lane = threadIdx.x % 32;
  const int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * kRowsEach;
  double sum = 0;
  for (int64_t r = first; r < min(first + kRowsEach, rows); ++r) {
    const double weight = weights[r];
    if (weight == 0) continue;
    const float* row = logits + r * n;
    float high = -INFINITY, total = 0;
    for (int k = lane; k < n; k += 32) high = fmaxf(high, row[k]);
    high = warp_max(high);
    for (int k = lane; k < n; k += 32) total += expf(row[k] - high);
    total = warp_sum(total);
    const int truth = classes[r];
    if (lane == 0) sum += weight * (double(logf(total)) + double(high) - double(row[truth]));
    if (!gradient) continue;
    const auto factor = float(weight * norm), each = float(weight * norm / double(total));
    for (int k = lane; k < n; k += 32)
      gradient[r * n + k] = each * expf(row[k] - high) - (k == truth ? factor : 0.0f);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024)
    sum_kernel(const double* partial, int64_t count, double factor, double* loss) {
  after_earlier();
  double sum = 0;
  for (int64_t k = threadIdx.x; k < count; k += 1024) sum += partial[k];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = sum * factor;
}

}  // namespace

void cross_entropy(const Tensor& logits, const Tensor& classes, const Tensor& weights, double norm,
                   const Tensor& loss, const Tensor& gradient) {
  const int64_t rows = classes.numel(), blocks = ceil_div(rows, kWarps * kRowsEach);
  const Scratch partial(blocks * 8);
  if (blocks)
    start_kernel(cross_entropy_kernel, blocks, kThreads, 0, logits.data<float>(),
                 classes.data<int32_t>(), weights.data<double>(), norm, rows, int(logits.size(-1)),
                 partial.data<double>(), data_or_null<float>(gradient));
  start_kernel(sum_kernel, 1, 1024, 0, partial.data<double>(), blocks, norm, loss.data<double>());
  check_launch("cross_entropy", logits.shape());
}

}  // namespace ff::cuda
