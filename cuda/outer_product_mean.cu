// Outer product mean, and its gradients: the outer products of some columns j at a time, as [c, d,
// j, i]. So they are one batch of matrix products, whose result the next product reads as it lies,
// with w as it lies. So does their gradient's, as [j, d, c, i]: one product over j and d, and one
// over c and i.
#include <algorithm>

#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

/// z, the residual, update; rows are pairs.
struct AddMean {
  static constexpr bool kByRow = true;
  View<float> norm;  ///< its last axis is one long
  __device__ float of_row(int64_t r) const { return *norm.row(r); }
  template <int V>
  __device__ void operator()(float (&v)[3][V], float norm_of_row) const {
    const float factor = 1 / (1e-3f + norm_of_row);
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = v[1][i] + v[2][i] * factor;
  }
};

constexpr int kThreads = 256, kBlocks = 3;  ///< of a processor

/// The update's gradient from z's, and the sums of its columns on the way, partial [blocks, c].
/// Block: packs of columns, and interleaved runs of its rows.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    divide_kernel(const __grid_constant__ View<T> update, const __grid_constant__ View<T> z,
                  const __grid_constant__ View<float> norm, float* partial) {
  after_earlier();
  constexpr int kRows = 4;  // in flight
  const int64_t n = z.rows.n, c = z.rows.c, first = n * blockIdx.x / gridDim.x,
                last = n * (blockIdx.x + 1) / gridDim.x;
  const int64_t j = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  float sum[V] = {};
  for (int64_t r = first + threadIdx.y; r < last && j < c; r += kRows * blockDim.y) {
    const auto row = [&](int k) { return r + k * blockDim.y; };
    Raw<T, V> raw[kRows];
    float norms[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t at = row(k) < last ? row(k) : r;
      raw[k] = load_raw<V>(z.row(at) + j);
      norms[k] = *norm.row(at);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (row(k) >= last) continue;
      const float factor = 1 / (1e-3f + norms[k]);
      float v[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        v[i] = unpacked<T, V>(raw[k], i) * factor;
        sum[i] += v[i];
      }
      store_floats<V>(update.row(row(k)) + j, v);
    }
  }
  sum_over_y<kThreads>(sum);
  if (threadIdx.y || j >= c) return;
#pragma unroll
  for (int i = 0; i < V; ++i) partial[blockIdx.x * c + j + i] = sum[i];
}

/// update = z / (1e-3 + norm), of pairs' channels; db += the sums of its columns, where it is
/// defined.
void divide_by_norm(const Tensor& update, const Tensor& z, const Tensor& norm, const Tensor& db) {
  const auto go = [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int V = decltype(width)::value;
    const View<T> from(z);
    const int64_t c = from.rows.c, packs = c / V;
    int across = 1;
    while (across < 32 && across < packs) across *= 2;
    const int64_t blocks = std::clamp<int64_t>(from.rows.n / (4 * (kThreads / across)), 1,
                                               device_info().sm_count * kBlocks);
    const Scratch partial(blocks * c * 4);
    start_kernel(divide_kernel<T, V>, dim3(unsigned(blocks), unsigned(ceil_div(packs, across))),
                 dim3(unsigned(across), unsigned(kThreads / across)), 0, View<T>(update), from,
                 View<float>(norm.unsqueeze(-1)), partial.data<float>());
    check_launch("outer_product_mean_backward", z.shape());
    add_partials(partial.data<float>(), blocks, c, c, db);
  };
  by_type(z, [&](auto zero) {
    if (in_packs(z) && in_packs(update))
      go(zero, std::integral_constant<int, 16 / int(sizeof(zero))>());
    else
      go(zero, std::integral_constant<int, 1>());
  });
}

constexpr int kTile = 32, kTurnThreads = 128;

/// The matrices of a batch, nullptr for none.
template <class T>
struct Matrices {
  explicit Matrices(const Tensor& t) : at(data_or_null<T>(t)) {
    if (at) batch = t.stride(-3), row = t.stride(-2);
  }
  T* at;
  int64_t batch = 0, row = 0;
};

/// x [batch, rows, columns] goes transposed to `turned` [batch, columns, rows], or in ranges of
/// rows [ranges, batch, columns, step], and as it is to `same` [batch, rows, columns]; either may
/// be undefined. Where there is room for more rows they are zeros; rows and columns of x that there
/// is no room for are left out.
template <class T, class From>
struct Turn {
  Turn(const Tensor& x, const Tensor& turned, const Tensor& same)
      : from(x), to(turned), straight(same), rows(int(x.size(1))), columns(int(x.size(2))) {
    if (turned.defined()) {
      step = padded = int(turned.size(-1));
      columns = int(turned.size(-2));
      if (turned.rank() == 4) {
        padded *= int(turned.size(0));
        range = turned.stride(0);
      }
    } else if (same.defined()) {
      padded = int(same.size(1));
    }
    down = int(ceil_div(padded, kTile));
    across = int(ceil_div(columns, kTile));
    tiles = x.size(0) * down * across;
  }
  Matrices<From> from;
  Matrices<T> to, straight;
  int rows, columns, step = 1, padded = 0, down, across;
  int64_t range = 0, tiles;
};

/// As many of V neighbours as there are.
template <int V, class T>
__device__ __forceinline__ void load_some(const T* p, int count, float (&v)[V]) {
  if (count >= V && reinterpret_cast<uintptr_t>(p) % 16 == 0) return load_floats<V>(p, v);
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = i < count ? to_float(p[i]) : 0.0f;
}
template <int V, class T>
__device__ __forceinline__ void store_some(T* p, int count, const float (&v)[V]) {
  if (count >= V && reinterpret_cast<uintptr_t>(p) % 16 == 0) return store_floats<V>(p, v);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (i < count) p[i] = from_float<T>(v[i]);
}

template <class T, class From>
__device__ __forceinline__ void turn(const Turn<T, From>& t) {
  constexpr int V = 16 / int(sizeof(T)), kPacks = kTile / V;
  __shared__ T tile[kTile][kTile + 2];
  if (blockIdx.x >= t.tiles) return;
  const int b0 = int(blockIdx.x % t.across) * kTile,
            a0 = int(blockIdx.x / t.across % t.down) * kTile;
  const int64_t batch = blockIdx.x / t.across / t.down;
  for (int e = threadIdx.x; e < kTile * kPacks; e += kTurnThreads) {
    const int y = e / kPacks, x = e % kPacks * V, a = a0 + y, b = b0 + x;
    float v[V];
    load_some(t.from.at + batch * t.from.batch + a * t.from.row + b, a < t.rows ? t.columns - b : 0,
              v);
    if (t.straight.at && a < t.padded)
      store_some(t.straight.at + batch * t.straight.batch + a * t.straight.row + b, t.columns - b,
                 v);
#pragma unroll
    for (int i = 0; i < V; ++i) tile[y][x + i] = from_float<T>(v[i]);
  }
  if (!t.to.at) return;
  __syncthreads();
  for (int e = threadIdx.x; e < kTile * kPacks; e += kTurnThreads) {
    const int y = e / kPacks, x = e % kPacks * V, a = a0 + x, b = b0 + y;
    if (b >= t.columns) continue;
    float v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = to_float(tile[x + i][y]);
    store_some(t.to.at + a / t.step * t.range + batch * t.to.batch + b * t.to.row + a % t.step,
               t.padded - a, v);
  }
}

/// Blocks of a tile each: (x, 0) of the first matrices, (x, 1) of the second.
template <class T, class From>
__global__ void __launch_bounds__(kTurnThreads)
    turn_kernel(const __grid_constant__ Turn<T, From> first,
                const __grid_constant__ Turn<T, T> second) {
  after_earlier();
  if (blockIdx.y)
    turn(second);
  else
    turn(first);
}

template <class T, class From>
void launch_turns(const Turn<T, From>& first, const Turn<T, T>& second) {
  const int64_t blocks = std::max(first.tiles, second.tiles);
  if (!blocks) return;
  start_kernel(turn_kernel<T, From>, dim3(unsigned(blocks), 2), kTurnThreads, 0, first, second);
  check_launch("outer_product_mean", blocks, " tiles");
}

/// The operands, with rows of whole 16 bytes, which the matrix units want, and room for products:
/// `kept`, where it is defined.
struct Operands {
  Operands(const Tensor& left, const Tensor& right, const Tensor& w, bool backward,
           const Tensor& kept = {})
      : n_seq(left.size(0)),
        n_i(left.size(1)),
        n_j(right.size(1)),
        c(left.size(2)),
        d(right.size(2)),
        c_z(w.size(2)),
        padded(ceil_div(n_i, 8) * 8) {
    // Fewer products would stay in the L2 cache, but those of a quarter are slower (4 x 15 us, not
    // 47, of 128 x 256 on an H200; in three parts 512 x 384 takes 1.67 ms with its backward, not
    // 1.55); and the backward rounds its sums once for each range of columns.
    const int64_t most = std::max<int64_t>(1, kGpuOuterProducts / (padded * c * d * 8)) * 8;
    ranges = ceil_div(n_j, most);
    step = ceil_div(ceil_div(n_j, ranges), 8) * 8;
    left_t = like(left, {n_seq, c, padded});
    right_t = like(left, {ranges, n_seq, d, step});
    if (backward) right_flat = like(left, {n_seq, ranges * step, d});
    products = kept.defined() ? kept : like(left, {step * padded * c * d});
    by_type(left, [&](auto zero) {
      using T = decltype(zero);
      launch_turns<T, T>({left, left_t, {}}, {right, right_t, right_flat});
    });
  }
  static Tensor like(const Tensor& t, const Dims& shape) {
    return Tensor::empty(shape, t.dtype(), t.device());
  }
  static Tensor zeros(const Tensor& t, const Dims& shape) {
    return Tensor::zeros(shape, t.dtype(), t.device());
  }
  /// How many columns of range k there are.
  int64_t count(int64_t k) const { return std::min(step, n_j - k * step); }
  /// The outer products of range k: one row for each two channels.
  Tensor multiply(int64_t k) const {
    matmul(right_t.narrow(0, k, 1).view({1, n_seq, d * step}).transpose(1, 2),
           left_t.transpose(0, 1), products.view({c, d * step, padded}));
    return outer();
  }
  Tensor outer() const { return products.view({1, c * d, step * padded}); }

  int64_t n_seq, n_i, n_j, c, d, c_z, padded, ranges, step;
  Tensor left_t, right_t, right_flat, products;
};

}  // namespace

Tensor outer_product_mean(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& b,
                          const Tensor& norm, const Tensor& residual, const Tensor& z, bool keep) {
  if (!z.numel()) return {};
  const Operands o(left, right, w, false);
  const Tensor weights = w.contiguous().view({1, o.c * o.d, o.c_z});
  const Tensor update = o.like(left, {o.step, o.padded, o.c_z});
  for (int64_t k = 0; k < o.ranges; ++k) {
    linear(o.multiply(k).transpose(1, 2), weights, b, Activation::kNone, {},
           update.view({1, o.step * o.padded, o.c_z}));
    const auto columns = [&](const Tensor& t) { return t.narrow(1, k * o.step, o.count(k)); };
    walk<1, 1, AddMean, 3>("outer_product_mean",
                           {columns(z), columns(residual),
                            update.narrow(0, 0, o.count(k)).narrow(1, 0, o.n_i).transpose(0, 1)},
                           {View<float>(columns(norm).unsqueeze(-1))});
  }
  return keep && o.ranges == 1 ? o.products : Tensor();
}

void outer_product_mean_backward(const Tensor& left, const Tensor& right, const Tensor& w,
                                 const Tensor& norm, const Tensor& kept, const Tensor& dout,
                                 const Tensor& dleft, const Tensor& dright, const Tensor& dw,
                                 const Tensor& db) {
  if (!dout.numel()) {
    for (const Tensor& t : {dleft, dright})
      if (t.defined()) t.copy_from(Operands::zeros(t, t.shape()));
    return;
  }
  const Operands o(left, right, w, true, kept);
  const int64_t columns = o.ranges * o.step;
  const Dims pairs{columns, o.padded, o.c_z};
  const Tensor dz =
      columns == o.n_j && o.padded == o.n_i ? o.like(dout, pairs) : o.zeros(dout, pairs);
  divide_by_norm(dz.narrow(0, 0, o.n_j).narrow(1, 0, o.n_i).transpose(0, 1), dout, norm, db);
  const Tensor w_t = w.transpose(0, 1).contiguous().view({1, o.d * o.c, o.c_z});
  // As the products leave them; in f32 where several ranges are summed.
  const Tensor to_left = Tensor::empty({o.n_seq, o.c, o.padded},
                                       o.ranges == 1 ? left.dtype() : Dtype::f32, left.device()),
               to_right = o.like(right, {o.n_seq, columns, o.d});
  const auto flat = [&](const Tensor& t) { return t.view({1, o.n_seq, t.size(1) * t.size(2)}); };
  for (int64_t k = 0; k < o.ranges; ++k) {
    const Tensor g = dz.narrow(0, k * o.step, o.step);
    if (dw.defined()) {
      const Tensor to = dw.view({1, o.c * o.d, o.c_z});
      linear(kept.defined() ? o.outer() : o.multiply(k), g.view({1, o.step * o.padded, o.c_z}), {},
             Activation::kNone, to, to);
    }
    if (!dleft.defined() && !dright.defined()) continue;
    // The gradient of the outer products, in their place.
    const Tensor outer = o.products.view({1, o.step * o.d, o.c * o.padded});
    const auto own = [&](const Tensor& t) {
      return flat(t).narrow(2, k * o.step * o.d, o.step * o.d);
    };
    matmul(w_t, g.transpose(1, 2), outer.view({o.step, o.d * o.c, o.padded}));
    if (dright.defined()) matmul(flat(o.left_t), outer.transpose(1, 2), own(to_right));
    if (dleft.defined())
      linear(own(o.right_flat), outer, {}, Activation::kNone, k ? flat(to_left) : Tensor(),
             flat(to_left));
  }
  by_type(left, [&](auto zero) {
    using T = decltype(zero);
    const auto leave = [&](auto sum) {
      launch_turns<T, decltype(sum)>({to_left, dleft, {}}, {to_right, {}, dright});
    };
    o.ranges == 1 ? leave(zero) : leave(float());
  });
}

}  // namespace ff::cuda
