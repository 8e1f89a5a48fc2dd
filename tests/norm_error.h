// The error that results are judged by as a whole.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "core/tensor/tensor.h"

namespace ff::test {

/// |got - want| / |want| in f64; infinite for a NaN.
inline double norm_error(const Tensor& got, const Tensor& want) {
  REQUIRE(got.shape() == want.shape());
  const Tensor a = got.to(Device{}).to(Dtype::f64).contiguous(),
               b = want.to(Device{}).to(Dtype::f64).contiguous();
  double gap = 0, norm = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    gap += std::pow(a.data<double>()[i] - b.data<double>()[i], 2);
    norm += std::pow(b.data<double>()[i], 2);
  }
  if (std::isnan(gap)) return std::numeric_limits<double>::infinity();
  return norm > 0 ? std::sqrt(gap / norm) : std::sqrt(gap);
}

}  // namespace ff::test
