// Vectors of the instruction set that this file is compiled for, and the few functions on them.
// Everything in core/ops/cpu is compiled once per instruction set, in a namespace of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/tensor/tensor.h"

namespace ff::cpu::FF_ISA {

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 6;  ///< rows of a register tile: 6 x 4 accumulators of 32 registers
#else
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 3;  ///< 3 x 4 accumulators of 16 registers
#endif

template <class A>
struct Simd {
  typedef A V __attribute__((vector_size(kVectorBytes)));
  typedef A Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  static constexpr int kWidth = kVectorBytes / int(sizeof(A));
  static inline V load(const A* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void store(A* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline V broadcast(A x) { return V{} + x; }
};

/// e^x within 2 ulp; 0 below -87.3, and large but finite above 88.
inline Simd<float>::V exp(Simd<float>::V x) {
  using S = Simd<float>;
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  const S::V low = S::broadcast(-87.3f), high = S::broadcast(88.3f);
  const auto tiny = x < low;
  x = tiny ? low : x;
  x = x > high ? high : x;
  // n = round(x / ln 2) by adding 1.5 * 2^23, whose low bits then hold n.
  const S::V shifted = x * 1.44269504088896f + 12582912.0f;
  const S::V n = shifted - 12582912.0f;
  const S::V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  S::V p = S::broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I scale = ((I)shifted << 23) + 0x3f800000;
  const S::V y = p * (S::V)scale;
  return tiny ? S::V{} : y;
}

inline Simd<double>::V exp(Simd<double>::V x) {
  for (int i = 0; i < Simd<double>::kWidth; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

template <class V>
inline V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

template <class A>
inline A sum(typename Simd<A>::V v) {
  A s = 0;
  for (int i = 0; i < Simd<A>::kWidth; ++i) s += v[i];
  return s;
}

/// Arithmetic type of a storage type.
template <class T>
struct AccOf {
  using Type = float;
};
template <>
struct AccOf<double> {
  using Type = double;
};
template <class T>
using Acc = typename AccOf<T>::Type;

/// Loads kWidth elements of any storage type as arithmetic vectors.
template <class T>
inline typename Simd<Acc<T>>::V load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    typedef uint16_t H __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
    typedef uint32_t U __attribute__((vector_size(kVectorBytes)));
    return (Simd<float>::V)(__builtin_convertvector(*reinterpret_cast<const H*>(p), U) << 16);
  } else {
    return Simd<T>::load(p);
  }
}

template <class T>
inline void store(T* p, typename Simd<Acc<T>>::V v) {
  if constexpr (sizeof(T) == 2) {
    for (int i = 0; i < Simd<float>::kWidth; ++i) p[i] = T(v[i]);
  } else {
    Simd<T>::store(p, v);
  }
}

/// Transposes a square of vectors: log2(width) rounds that swap blocks across the diagonal.
template <class A>
inline void transpose(typename Simd<A>::V (&rows)[Simd<A>::kWidth]) {
  using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef Index I __attribute__((vector_size(kVectorBytes)));
  constexpr int kWidth = Simd<A>::kWidth;
  for (int step = 1; step < kWidth; step *= 2) {
    I low, high;
    for (int j = 0; j < kWidth; ++j) {
      low[j] = j & step ? kWidth + j - step : j;
      high[j] = j & step ? kWidth + j : j + step;
    }
    for (int i = 0; i < kWidth; ++i)
      if (!(i & step)) {
        const auto a = rows[i], b = rows[i + step];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + step] = __builtin_shuffle(a, b, high);
      }
  }
}

/// f(offset, width) over [0, n) in whole vectors, then element by element: `V(j)` says how many.
template <class A, class Whole, class Single>
inline void vector_loop(int64_t n, Whole whole, Single single) {
  int64_t j = 0;
  for (; j + Simd<A>::kWidth <= n; j += Simd<A>::kWidth) whole(j);
  for (; j < n; ++j) single(j);
}

/// Rows of a tensor: everything but its last axis, which is contiguous.
template <class T>
struct Rows {
  explicit Rows(const Tensor& t)
      : base(t.data<T>()), c(t.size(-1)), n(1), shape(t.shape()), stride(t.strides()) {
    check(c <= 1 || t.stride(-1) == 1, "a tensor of shape ", shape, " whose last axis is strided");
    for (int i = 0; i + 1 < t.rank(); ++i) n *= t.size(i);
    for (int i = 0; i + 2 < t.rank(); ++i) even &= stride[i] == shape[i + 1] * stride[i + 1];
    if (t.rank() > 1) step = t.stride(-2);
  }
  T* operator[](int64_t r) const {
    if (even) return base + r * step;  // without divisions, which cost more than a short row
    int64_t offset = 0;
    for (int i = shape.size() - 2; i > 0; --i) {
      offset += r % shape[i] * stride[i];
      r /= shape[i];
    }
    return base + offset + (shape.size() > 1 ? r * stride[0] : 0);
  }
  T* base;
  int64_t c, n, step = 0;
  bool even = true;  ///< one step leads from each row to the next
  Dims shape, stride;
};

/// Sums of [n, columns]; `row(r, sums)` adds row r to sums [columns]. Their order is the same for
/// any number of threads: parts, in each a few rows in A and these in f64.
template <class A, class F>
inline std::vector<double> sum_rows(int64_t n, int64_t columns, F row) {
  constexpr int64_t kParts = 64, kFew = 64;
  const int64_t parts = n < kParts ? n : kParts;
  std::vector<double> sums(static_cast<size_t>((parts ? parts : 1) * columns));
#pragma omp parallel
  {
    std::vector<A> few(static_cast<size_t>(columns));
#pragma omp for
    for (int64_t part = 0; part < parts; ++part) {
      double* to = sums.data() + part * columns;
      const int64_t end = (part + 1) * n / parts;
      for (int64_t r = part * n / parts; r < end;) {
        std::fill(few.begin(), few.end(), A(0));
        for (const int64_t stop = std::min(end, r + kFew); r < stop; ++r) row(r, few.data());
        for (int64_t j = 0; j < columns; ++j) to[j] += double(few[size_t(j)]);
      }
    }
  }
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t j = 0; j < columns; ++j) sums[size_t(j)] += sums[size_t(part * columns + j)];
  sums.resize(size_t(columns));
  return sums;
}

/// Calls f with a value of the tensor's type: f32, bf16 or f64.
template <class F>
inline void by_type(const Tensor& t, F f) {
  switch (t.dtype()) {
    case Dtype::f32:
      return f(float());
    case Dtype::bf16:
      return f(bf16());
    case Dtype::f64:
      return f(double());
    case Dtype::i32:
      break;
  }
  fail(Exit::kBug, "no such kernel for i32");
}

}  // namespace ff::cpu::FF_ISA
