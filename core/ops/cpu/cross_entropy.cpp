// Cross-entropy of rows of logits on the CPU, with its gradient.
#include <algorithm>
#include <vector>

#include "core/ops/cpu/rigid.h"

namespace ff::cpu::FF_ISA {

void cross_entropy(const Tensor& logits, const Tensor& classes, const Tensor& weights, double norm,
                   const Tensor& loss, const Tensor& gradient) {
  const int64_t rows = classes.numel(), n = logits.size(-1);
  std::vector<double> sums(static_cast<size_t>(rows));
  by_real_type(logits, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for
    for (int64_t r = 0; r < rows; ++r) {
      const double weight = weights.data<double>()[r];
      if (weight == 0) continue;
      const T* row = logits.data<T>() + r * n;
      const T high = *std::max_element(row, row + n);
      double total = 0;
      for (int64_t k = 0; k < n; ++k) total += double(std::exp(row[k] - high));
      const int32_t truth = classes.data<int32_t>()[r];
      sums[size_t(r)] = weight * (std::log(total) + double(high) - double(row[truth]));
      if (!gradient.defined()) continue;
      T* to = gradient.data<T>() + r * n;
      const T factor = T(weight * norm), each = T(weight * norm / total);
      for (int64_t k = 0; k < n; ++k) to[k] = each * std::exp(row[k] - high);
      to[truth] -= factor;
    }
  });
  double sum = 0;
  for (const double x : sums) sum += x;
  *loss.data<double>() = sum * norm;
}

}  // namespace ff::cpu::FF_ISA
