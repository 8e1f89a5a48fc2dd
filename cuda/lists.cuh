// One launch for hundreds of arrays of f32, whose pointers travel as a kernel parameter.
#pragma once

#include <algorithm>
#include <array>

#include "core/ops/kernels.h"
#include "cuda/walk.cuh"

namespace ff::cuda {

constexpr int kListThreads = 256, kMostArrays = 600;
constexpr int64_t kPiece = 32 * kListThreads;  // elements of a block

/// The same arrays of N lists; nullptr in a list that is left out.
template <int N>
struct Lists {
  float* p[N][kMostArrays];
  int64_t n[kMostArrays];
  int first[kMostArrays + 1];  ///< block of each array, and their number
  int count;
};

/// A block's part of one array: f(i, V) for each pack of V elements.
template <int N, class F>
__device__ __forceinline__ void each_pack(const Lists<N>& lists, F f) {
  int low = 0, high = lists.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (int(blockIdx.x) < lists.first[middle] ? high : low) = middle;
  }
  float* p[N];
  bool packed = true;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    p[k] = lists.p[k][low];
    packed = packed && reinterpret_cast<uintptr_t>(p[k]) % 16 == 0;
  }
  const int64_t first = (blockIdx.x - lists.first[low]) * kPiece,
                last = min(first + kPiece, lists.n[low]);
  if (packed && last == first + kPiece) {
#pragma unroll 2
    for (int64_t i = first + 4 * threadIdx.x; i < last; i += 4 * kListThreads)
      f(p, i, std::integral_constant<int, 4>());
  } else {
    for (int64_t i = first + threadIdx.x; i < last; i += kListThreads)
      f(p, i, std::integral_constant<int, 1>());
  }
}

/// f(lists, blocks) for up to kMostArrays arrays at a time.
template <int N, class F>
void each_launch(const std::array<TensorList, N>& all, F f) {
  for (size_t first = 0; first < all[0].size(); first += kMostArrays) {
    Lists<N> lists;
    lists.count = int(std::min<size_t>(kMostArrays, all[0].size() - first));
    int64_t blocks = 0;
    for (int a = 0; a < lists.count; ++a) {
      lists.n[a] = all[0][first + size_t(a)].numel();
      lists.first[a] = int(blocks);
      blocks += ceil_div(lists.n[a], kPiece);
      for (int k = 0; k < N; ++k)
        lists.p[k][a] = all[size_t(k)].empty()
                            ? nullptr
                            : all[size_t(k)][first + size_t(a)].template data<float>();
    }
    lists.first[lists.count] = int(blocks);
    if (blocks) f(lists, blocks);
  }
}

}  // namespace ff::cuda
