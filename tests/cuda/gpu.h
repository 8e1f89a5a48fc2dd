// What the GPU's tests share: the GPU or a reason to skip, random and poisoned tensors, and the
// norm-wise error that results are judged by.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "app/gpu.h"
#include "core/base/rng.h"
#include "core/ops/kernels.h"
#include "tests/norm_error.h"

namespace ff::test {

/// Whether a GPU can be used; says SKIPPED otherwise. Every test begins with it.
inline bool have_gpu() {
  static const std::string reason = [] {
    try {
      use_gpu();
      return std::string();
    } catch (const Error& e) {
      return std::string(e.what());
    }
  }();
  if (!reason.empty()) std::printf("SKIPPED: %s\n", reason.c_str());
  return reason.empty();
}

inline constexpr Device kGpu{Device::cuda, 0};

/// Uniform in [-spread, spread], f32 on the CPU.
inline Tensor random(const Dims& shape, uint64_t stream, float spread = 1) {
  const Tensor t = Tensor::empty(shape);
  const Rng rng(2026, {stream});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = spread * (2 * unit_float(rng.word(uint64_t(i))) - 1);
  return t;
}

/// 1 with probability `share`, else 0.
inline Tensor random_mask(const Dims& shape, uint64_t stream, float share = 0.8f) {
  const Tensor t = random(shape, stream);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = t.data<float>()[i] < 2 * share - 1;
  return t;
}

/// NaN everywhere, so that what a kernel leaves out is found.
inline Tensor poisoned(const Dims& shape, Dtype dtype) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = std::numeric_limits<float>::quiet_NaN();
  return t.to(dtype).to(kGpu);
}

/// The largest norm_error of one operation against its f64 counterpart on the same values: f32
/// sums of hundreds of terms in another order; bf16 results and what is rounded before them, 2^-9
/// each.
inline double tolerance(Dtype dtype) { return dtype == Dtype::bf16 ? 4e-3 : 5e-6; }

}  // namespace ff::test
