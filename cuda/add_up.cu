// Sums of parts in their order, all read in one pass: what comes from other ranks.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/module_parts.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMostParts = 64;  // of a launch

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
struct Parts {
  const T* p[kMostParts];
  int count;
};

/// sum = before + parts; `before` may be sum.
template <class T, class Out, int V>
__global__ void __launch_bounds__(kThreads)
    add_up_kernel(const __grid_constant__ Parts<T> parts, const Wide<T>* before, Out* sum,
                  int64_t packs) {
  after_earlier();
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < packs;
       i += gridDim.x * int64_t(kThreads)) {
    Wide<T> total[V];
#pragma unroll 4
    for (int k = before ? -1 : 0; k < parts.count; ++k) {
      Pack<T, V> x;
      if (k >= 0) x = load_pack<V>(parts.p[k] + i * V);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (k < 0)
          total[j] = before[i * V + j];
        else if (k == 0 && !before)
          total[j] = Wide<T>(x.at[j]);
        else
          total[j] += Wide<T>(x.at[j]);
      }
    }
    Pack<Out, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = Out(total[j]);
    store_pack(sum + i * V, out);
  }
}

template <class T, class Out, int V>
void launch(const Parts<T>& parts, const Wide<T>* before, Out* sum, int64_t n) {
  const int64_t packs = n / V;
  const auto blocks =
      unsigned(std::min<int64_t>(ceil_div(packs, kThreads), 16 * device_info().sm_count));
  start_kernel(add_up_kernel<T, Out, V>, blocks, kThreads, 0, parts, before, sum, packs);
  check_launch("add_up", parts.count, " parts of ", n);
}

template <class T, class Out>
void add_some(std::span<const Tensor> tensors, const Wide<T>* before, Out* sum, int64_t n) {
  constexpr int kPack = 16 / int(sizeof(T));
  Parts<T> parts;
  parts.count = int(tensors.size());
  bool packed = n % kPack == 0 && reinterpret_cast<uintptr_t>(sum) % 16 == 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    parts.p[k] = data<T>(tensors[k]);
    packed = packed && reinterpret_cast<uintptr_t>(parts.p[k]) % 16 == 0;
  }
  packed ? launch<T, Out, kPack>(parts, before, sum, n) : launch<T, Out, 1>(parts, before, sum, n);
}

/// Of one dtype, contiguous.
template <class T>
void add_all(std::span<const Tensor> parts, const Tensor& sum) {
  const int64_t n = sum.numel();
  const Wide<T>* before = nullptr;
  if (parts.size() > kMostParts) {
    const Scratch room(std::is_same_v<T, Wide<T>> ? 0 : n * int64_t(sizeof(Wide<T>)));
    auto* total = room.data<Wide<T>>();
    if constexpr (std::is_same_v<T, Wide<T>>) total = data<T>(sum);
    for (; parts.size() > kMostParts; parts = parts.subspan(kMostParts), before = total)
      add_some<T>(parts.first(kMostParts), before, total, n);
    return add_some<T>(parts, before, data<T>(sum), n);
  }
  add_some<T>(parts, before, data<T>(sum), n);
}

bool rows_are_contiguous(const Tensor& t) {
  return t.rank() > 0 && (t.size(-1) == 1 || t.stride(-1) == 1);
}

}  // namespace

void add_up(std::span<const Tensor> parts, const Tensor& sum) {
  if (!sum.numel()) return;
  const Tensor& first = parts[0];
  const bool grows = parts.size() == 2 && first.raw() == sum.raw() &&
                     first.strides() == sum.strides() && first.dtype() == sum.dtype();
  if (grows && sum.dtype() != Dtype::f64 && parts[1].dtype() == sum.dtype() &&
      rows_are_contiguous(sum) && rows_are_contiguous(parts[1]))
    return add(parts[1], sum);
  Dtype dtype = sum.dtype();
  for (const Tensor& part : parts)
    if (size_of(part.dtype()) > size_of(dtype)) dtype = part.dtype();
  std::vector<Tensor> ready;
  for (const Tensor& part : parts) ready.push_back(part.to(dtype).contiguous());
  const bool in_place = dtype == sum.dtype() && sum.is_contiguous();
  const Tensor total = in_place ? sum : Tensor::empty(sum.shape(), dtype, sum.device());
  if (dtype == Dtype::f64)
    add_all<double>(ready, total);
  else
    by_type(total, [&](auto zero) { add_all<decltype(zero)>(ready, total); });
  if (!in_place) sum.copy_from(total);
}

}  // namespace ff::cuda
