// Dropout's kernel on the CPU, forward and backward.
#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {

void add_dropped(const Tensor& x, const Tensor& factors, const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> from(x), to(y);
    const int64_t n = factors.size(0);
#pragma omp parallel for
    for (int64_t r = 0; r < from.n; ++r) {
      const T* p = from[r];
      const A* f = factors.data<A>() + r % n * from.c;
      T* q = to[r];
      vector_loop<A>(
          from.c,
          [&](int64_t j) { store(q + j, load(q + j) + load(p + j) * Simd<A>::load(f + j)); },
          [&](int64_t j) { q[j] = T(A(q[j]) + A(p[j]) * f[j]); });
    }
  });
}

}  // namespace ff::cpu::FF_ISA
