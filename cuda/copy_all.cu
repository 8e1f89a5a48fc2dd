// Copies of many arrays at once: gradients into the buckets that ranks exchange, and back.
#include "cuda/device.cuh"
#include "cuda/lists.cuh"
#include "cuda/module_parts.h"

namespace ff::cuda {
namespace {

__global__ void __launch_bounds__(kListThreads)
    copy_all_kernel(const __grid_constant__ Lists<2> lists) {
  after_earlier();
  each_pack(lists, [&](float* const* p, int64_t i, auto width) {
    constexpr int V = decltype(width)::value;
    store_pack(p[1] + i, load_pack<V>(static_cast<const float*>(p[0]) + i));
  });
}

}  // namespace

void copy_all(std::span<const Tensor> from, std::span<const Tensor> to) {
  each_launch<2>({from, to}, [&](const Lists<2>& lists, int64_t blocks) {
    start_kernel(copy_all_kernel, blocks, kListThreads, 0, lists);
  });
  check_launch("copy_all", from.size(), " arrays");
}

}  // namespace ff::cuda
