// Backward functions against finite differences, in f64.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <random>

#include "core/autograd/tape.h"

namespace ff::test {

inline Tensor random_f64(const Dims& shape, unsigned seed, double spread = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(0, spread);
  const Tensor t = Tensor::empty(shape, Dtype::f64);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = normal(engine);
  return t;
}

inline double dot(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  double sum = 0;
  for (int64_t i = 0; i < x.numel(); ++i) sum += x.data<double>()[i] * y.data<double>()[i];
  return sum;
}

/// Gradients of sum(fn(inputs) * seed) by the tape, one an input.
inline std::vector<Tensor> gradients(const std::function<Var(const Vars&)>& fn,
                                     const std::vector<Tensor>& inputs, const Tensor& seed) {
  Vars vars;
  for (const Tensor& t : inputs) {
    vars.emplace_back(t);
    if (t.defined()) vars.back().want_grad();
  }
  Tape tape;
  const Var y = fn(vars);
  tape.backward({y}, {seed});
  REQUIRE(tape.size() == 0);
  std::vector<Tensor> grads;
  for (const Var& v : vars) grads.push_back(v.grad());
  return grads;
}

/// Fails unless every element of every gradient is within 1e-7 (of its size, at least 1) of the
/// five-point difference with step 1e-3, whose own error is of order 1e-12.
inline void gradcheck(const std::function<Var(const Vars&)>& fn,
                      const std::vector<Tensor>& inputs) {
  constexpr double kStep = 1e-3, kTolerance = 1e-7;
  Vars constants(inputs.begin(), inputs.end());
  Tensor seed;
  {
    const Tensor y = fn(constants).value();
    seed = random_f64(y.shape(), 99);
  }
  const std::vector<Tensor> grads = gradients(fn, inputs, seed);
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (!inputs[k].defined()) continue;
    INFO("input " << k);
    const Tensor& x = inputs[k];
    REQUIRE(x.is_contiguous());
    const Tensor grad =
        grads[k].defined() ? grads[k].contiguous() : Tensor::zeros(x.shape(), Dtype::f64);
    REQUIRE(grad.shape() == x.shape());
    for (int64_t i = 0; i < x.numel(); ++i) {
      double& value = x.data<double>()[i];
      const double kept = value;
      const auto at = [&](double steps) {
        value = kept + steps * kStep;
        return dot(fn(constants).value(), seed);
      };
      const double want = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * kStep);
      value = kept;
      const double got = grad.data<double>()[i];
      INFO("element " << i << ": " << got << ", by differences " << want);
      REQUIRE(std::abs(got - want) <= kTolerance * std::max(1.0, std::abs(want)));
    }
  }
}

}  // namespace ff::test
