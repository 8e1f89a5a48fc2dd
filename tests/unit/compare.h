// Compares tensors in tests, says which element is worst, and holds the tolerances with their
// reasons.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <string>

#include "core/tensor/tensor.h"
#include "tests/norm_error.h"

namespace ff::test {

/// Tolerances of `compare`, relative to max(1, rms of the expected values).
struct Tolerance {
  /// Our arithmetic against AlphaFold's in f32: AlphaFold's own f32 is 2e-6 from its f64 on the
  /// tiny fixtures (fp64_difference.json); tenfold for another order of summation.
  static constexpr double kOutput = 2e-5;
  /// Torsion angles of the last layers, divided by lengths that may be small: 2e-5 measured there.
  static constexpr double kAngle = 2e-4;
  /// The wide fixtures: coordinates and frames 1.2e-5 measured; sums are longer.
  static constexpr double kWide = 1e-4;
  /// One operation against its plain composition, values near 1: roundoff times the sums' length.
  static constexpr double of(Dtype dtype) {
    return dtype == Dtype::f64 ? 1e-12 : dtype == Dtype::f32 ? 3e-6 : 2e-2;
  }
};

/// Fails unless the shapes agree and max|got - want| <= tol * max(1, rms(want)); NaN fails too.
inline void compare(const std::string& name, const Tensor& got, const Tensor& want, double tol) {
  INFO(name);
  REQUIRE(got.shape() == want.shape());
  const Tensor a = got.to(Dtype::f64).contiguous(), b = want.to(Dtype::f64).contiguous();
  const double *pa = a.data<double>(), *pb = b.data<double>();
  const double mean = rms(want), limit = tol * std::max(1.0, mean);
  int64_t worst = 0, bad = 0;
  double most = -1;
  for (int64_t i = 0; i < b.numel(); ++i) {
    const double difference = std::abs(pa[i] - pb[i]);
    bad += !(difference <= limit);
    if (std::isnan(difference) ? !std::isnan(most) : difference > most) {
      most = difference;
      worst = i;
    }
  }
  if (!bad) {
    SUCCEED();
    return;
  }
  std::string where;
  int64_t rest = worst;
  for (int axis = b.rank() - 1; axis >= 0; --axis) {
    where = cat(rest % b.size(axis), where.empty() ? "" : ", ", where);
    rest /= b.size(axis);
  }
  FAIL("worst element [" << where << "] of " << b.shape().str() << ": " << pa[worst]
                         << ", expected " << pb[worst] << ", off by " << most << " where " << limit
                         << " is allowed (rms " << mean << "); " << bad << " of " << b.numel()
                         << " are off");
}

}  // namespace ff::test
