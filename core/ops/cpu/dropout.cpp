// Dropout's kernel on the CPU, forward and backward.
#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {

void add_dropped(const Tensor& x, const Tensor& factors, const Tensor& base, const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> from(x), old(base ? base : x), to(y);
    const int64_t n = factors.size(0);
#pragma omp parallel for
    for (int64_t r = 0; r < from.n; ++r) {
      const T* p = from[r];
      const A* f = factors.data<A>() + r % n * from.c;
      const T* b = old[r];
      T* q = to[r];
      vector_loop<A>(
          from.c,
          [&](int64_t j) {
            const auto dropped = load(p + j) * Simd<A>::load(f + j);
            store(q + j, base ? load(b + j) + dropped : dropped);
          },
          [&](int64_t j) { q[j] = T((base ? A(b[j]) : A(0)) + A(p[j]) * f[j]); });
    }
  });
}

}  // namespace ff::cpu::FF_ISA
