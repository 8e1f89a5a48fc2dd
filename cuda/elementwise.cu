// Element-wise kernels.
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

struct Add {
  static constexpr bool kByRow = false;
  template <int V>
  __device__ void operator()(float (&v)[2][V], int64_t, int64_t) const {
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] += v[1][i];
  }
};

/// Into parts that are `width` columns wide each.
struct AddColumns {
  static constexpr bool kByRow = true;
  static constexpr size_t kMost = 8;
  float* part[kMost];
  int64_t width;
  template <int V>
  __device__ void operator()(float (&v)[1][V], int64_t r, int64_t j) const {
    float* to = part[j / width];
    if (!to) return;
    to += r * width + j % width;
    float sum[V];
    load_floats<V>(to, sum);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += v[0][i];
    store_floats<V>(to, sum);
  }
};

/// dy, y = act(x)
struct Slope {
  static constexpr bool kByRow = false;
  Activation act;
  template <int V>
  __device__ void operator()(float (&v)[2][V], int64_t, int64_t) const {
#pragma unroll
    for (int i = 0; i < V; ++i)
      v[0][i] *= act == Activation::kRelu ? float(v[1][i] > 0) : v[1][i] * (1 - v[1][i]);
  }
};

/// y, x, gate
struct AddGated {
  static constexpr bool kByRow = false;
  template <int V>
  __device__ void operator()(float (&v)[3][V], int64_t, int64_t) const {
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] += v[1][i] * sigmoid(v[2][i]);
  }
};

/// dx, dgate, x, gate, dy
struct AddGatedBackward {
  static constexpr bool kByRow = false;
  template <int V>
  __device__ void operator()(float (&v)[5][V], int64_t, int64_t) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float s = sigmoid(v[3][i]), g = v[4][i] * s;
      v[0][i] += g;
      v[1][i] += g * v[2][i] * (1 - s);
    }
  }
};

struct ScaleRows {
  static constexpr bool kByRow = true;
  View<float> mask;  ///< its last axis is one long
  __device__ float of_row(int64_t r) const { return *mask.row(r); }
  template <int V>
  __device__ void operator()(float (&v)[1][V], float factor) const {
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] *= factor;
  }
};

/// out, x
struct Relu {
  static constexpr bool kByRow = false;
  template <int V>
  __device__ void operator()(float (&v)[2][V], int64_t, int64_t) const {
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = v[1][i] > 0 ? v[1][i] : 0.0f;
  }
};

/// out, x
struct Symmetrize {
  static constexpr bool kByRow = true;
  const float* x;
  int64_t n, c;
  template <int V>
  __device__ void operator()(float (&v)[2][V], int64_t r, int64_t j) const {
    float mirrored[V];
    load_floats<V>(x + (r % n * n + r / n) * c + j, mirrored);
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = v[1][i] + mirrored[i];
  }
};

}  // namespace

void add(const Tensor& x, const Tensor& y) { walk<1, 0, Add, 2>("add", {y, x}, {}); }

void add_columns(const Tensor& x, TensorList parts) {
  check(parts.size() <= AddColumns::kMost, "columns of ", parts.size(), " parts: at most ",
        AddColumns::kMost);
  AddColumns f{{}, x.size(1) / int64_t(parts.size())};
  bool packed = f.width % 4 == 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    f.part[i] = data_or_null<float>(parts[i]);
    packed = packed && reinterpret_cast<uintptr_t>(f.part[i]) % 16 == 0;
  }
  walk<0, 0, AddColumns, 1>("add_columns", {x}, f, packed);
}

void activation_backward(const Tensor& y, Activation act, const Tensor& dy) {
  walk<1, 0, Slope, 2>("activation_backward", {dy, y}, {act});
}

void add_gated(const Tensor& x, const Tensor& gate, const Tensor& y) {
  walk<1, 0, AddGated, 3>("add_gated", {y, x, gate}, {});
}

void add_gated_backward(const Tensor& x, const Tensor& gate, const Tensor& dy, const Tensor& dx,
                        const Tensor& dgate) {
  walk<2, 0, AddGatedBackward, 5>("add_gated_backward", {dx, dgate, x, gate, dy}, {});
}

void scale_rows(const Tensor& mask, const Tensor& y) {
  walk<1, 0, ScaleRows, 1>("scale_rows", {y}, {View<float>(mask.unsqueeze(-1))});
}

void relu(const Tensor& x, const Tensor& out) { walk<1, 1, Relu, 2>("relu", {out, x}, {}); }

void symmetrize(const Tensor& x, const Tensor& out) {
  const Symmetrize f{x.data<float>(), x.size(0), x.size(2)};
  walk<1, 1, Symmetrize, 2>("symmetrize", {out, x}, f);
}

}  // namespace ff::cuda
