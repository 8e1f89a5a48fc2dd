// cuDNN's attention as an oracle: what it gave on an H200 for bf16 values, forward and backward
// (scripts/make_attention_oracle.py).
#pragma once

#include <catch2/catch.hpp>

#include "core/ops/kernels.h"
#include "io/npz.h"
#include "tests/norm_error.h"

namespace ff::test {

/// The largest error of cuDNN's result itself, whose weights and their gradients are rounded to
/// bf16 before they are multiplied, as is the result.
inline constexpr double kCudnnOutput = 3e-3, kCudnnGradient = 5e-3;

inline void compare_attention_with_cudnn(Device device, Dtype dtype) {
  const Arrays arrays = read_npz(TEST_DATA "/attention_cudnn.npz");
  for (const char* name : {"triangle", "row", "wide", "column", "narrow"}) {
    INFO(name << " in " << name_of(dtype));
    const auto get = [&](const char* key) { return arrays.at(cat(name, "/", key)); };
    const auto there = [&](const char* key) { return get(key).to(dtype).to(device); };
    const Tensor q = there("q"), k = there("k"), v = there("v"),
                 bias = arrays.contains(cat(name, "/bias")) ? get("bias").to(device) : Tensor(),
                 o = Tensor::empty(q.shape(), dtype, device),
                 lse = Tensor::empty({q.size(0), q.size(2), q.size(1)}, Dtype::f32, device);
    const Kernels& kernels = ff::kernels(device);
    kernels.attention(q, k, v, {}, bias, {}, o, device.kind == Device::cuda ? lse : Tensor());
    CHECK(norm_error(o, get("o")) < kCudnnOutput);
    const auto zeros = [&](const Tensor& of) { return Tensor::zeros(of.shape(), dtype, device); };
    const Tensor dq = zeros(q), dk = zeros(k), dv = zeros(v);
    kernels.attention_backward(q, k, v, {}, bias, {}, o, lse, there("dy"), dq, dk, dv, {}, {}, {});
    CHECK(norm_error(dq, get("dq")) < kCudnnGradient);
    CHECK(norm_error(dk, get("dk")) < kCudnnGradient);
    CHECK(norm_error(dv, get("dv")) < kCudnnGradient);
  }
}

}  // namespace ff::test
