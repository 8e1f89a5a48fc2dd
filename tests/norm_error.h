// The errors that results are judged by: as a whole, and of the worst element.
#pragma once

#include <algorithm>
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

/// max |got - want| in f64; infinite for a NaN.
inline double largest_gap(const Tensor& got, const Tensor& want) {
  REQUIRE(got.shape() == want.shape());
  const Tensor a = got.to(Device{}).to(Dtype::f64).contiguous(),
               b = want.to(Device{}).to(Dtype::f64).contiguous();
  double largest = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double gap = std::abs(a.data<double>()[i] - b.data<double>()[i]);
    if (std::isnan(gap)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, gap);
  }
  return largest;
}

/// The root of the mean square, 0 of nothing.
inline double rms(const Tensor& t) {
  const Tensor x = t.to(Device{}).to(Dtype::f64).contiguous();
  double squares = 0;
  for (int64_t i = 0; i < x.numel(); ++i) squares += x.data<double>()[i] * x.data<double>()[i];
  return x.numel() ? std::sqrt(squares / double(x.numel())) : 0;
}

}  // namespace ff::test
