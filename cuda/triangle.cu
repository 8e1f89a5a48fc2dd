// The triangle multiplication's gate.
#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

/// a, proj, gate; rows are channels.
struct Gate {
  static constexpr bool kByRow = true;
  const float *proj_bias, *gate_bias, *mask;
  template <int V>
  __device__ void operator()(float (&v)[3][V], int64_t c, int64_t j) const {
    float keep[V];
    load_floats<V>(mask + j, keep);
    const float pb = proj_bias[c], gb = gate_bias[c];
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = keep[i] * (v[1][i] + pb) * sigmoid(v[2][i] + gb);
  }
};

template <class T>
struct GateGradients {
  View<T> proj, gate, da, dproj, dgate;
  const float *proj_bias, *gate_bias, *mask;
  float* partial;  ///< [parts, 2, c]
};

/// Block (part, channel).
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    gate_backward_kernel(const __grid_constant__ GateGradients<T> g) {
  after_earlier();
  const int64_t c = blockIdx.y, packs = g.proj.rows.c / V;
  const int64_t first = packs * blockIdx.x / gridDim.x, last = packs * (blockIdx.x + 1) / gridDim.x;
  const T *proj = g.proj.row(c), *gate = g.gate.row(c), *da = g.da.row(c);
  const float pb = g.proj_bias[c], gb = g.gate_bias[c];
  float sum_p = 0, sum_g = 0;
#pragma unroll 2
  for (int64_t k = first + threadIdx.x; k < last; k += kThreads) {
    float p[V], q[V], d[V], keep[V], dp[V] = {}, dq[V] = {};
    load_floats<V>(proj + k * V, p);
    load_floats<V>(gate + k * V, q);
    load_floats<V>(da + k * V, d);
    load_floats<V>(g.mask + k * V, keep);
    if (g.dproj.base) load_floats<V>(g.dproj.row(c) + k * V, dp);
    if (g.dgate.base) load_floats<V>(g.dgate.row(c) + k * V, dq);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float s = sigmoid(q[i] + gb), to_p = d[i] * keep[i] * s,
                  to_g = to_p * (p[i] + pb) * (1 - s);
      dp[i] += to_p;
      dq[i] += to_g;
      sum_p += to_p;
      sum_g += to_g;
    }
    if (g.dproj.base) store_floats<V>(g.dproj.row(c) + k * V, dp);
    if (g.dgate.base) store_floats<V>(g.dgate.row(c) + k * V, dq);
  }
  __shared__ float sums[kThreads / 32][2];
  sum_p = warp_sum(sum_p);
  sum_g = warp_sum(sum_g);
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32][0] = sum_p;
    sums[threadIdx.x / 32][1] = sum_g;
  }
  __syncthreads();
  if (threadIdx.x > 1) return;
  float total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += sums[w][threadIdx.x];
  g.partial[(int64_t(blockIdx.x) * 2 + threadIdx.x) * gridDim.y + c] = total;
}

}  // namespace

void triangle_gate(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                   const Tensor& gate_bias, const Tensor& mask, const Tensor& a) {
  walk<1, 1, Gate, 3>("triangle_gate", {a, proj, gate},
                      {proj_bias.data<float>(), gate_bias.data<float>(), mask.data<float>()},
                      reinterpret_cast<uintptr_t>(mask.raw()) % 16 == 0);
}

void triangle_gate_backward(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                            const Tensor& gate_bias, const Tensor& mask, const Tensor& da,
                            const Tensor& dproj, const Tensor& dproj_bias, const Tensor& dgate,
                            const Tensor& dgate_bias) {
  const int64_t c = proj.size(0), n = proj.size(1);
  if (!proj.numel()) return;
  const int64_t parts = std::clamp<int64_t>(n / (16 * kThreads), 1, 32);
  const Scratch partial(parts * 2 * c * 4);
  bool packed = reinterpret_cast<uintptr_t>(mask.raw()) % 16 == 0;
  for (const Tensor* t : {&proj, &gate, &da, &dproj, &dgate}) packed = packed && in_packs(*t);
  by_type(proj, [&](auto zero) {
    using T = decltype(zero);
    const GateGradients<T> g{View<T>(proj),           View<T>(gate),      View<T>(da),
                             View<T>(dproj),          View<T>(dgate),     proj_bias.data<float>(),
                             gate_bias.data<float>(), mask.data<float>(), partial.data<float>()};
    const dim3 grid{unsigned(parts), unsigned(c)};
    if (packed)
      start_kernel(gate_backward_kernel<T, 16 / int(sizeof(T))>, grid, kThreads, 0, g);
    else
      start_kernel(gate_backward_kernel<T, 1>, grid, kThreads, 0, g);
  });
  check_launch("triangle_gate_backward", proj.shape());
  add_partials(partial.data<float>(), parts, 2 * c, c, dproj_bias, dgate_bias);
}

}  // namespace ff::cuda
