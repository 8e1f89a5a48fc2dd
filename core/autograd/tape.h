// Var: a tensor as the model sees it, and the place where the tape hooks in.
//
// The model's text is written against Var. An operation computes its value and hands it to `result`
// with the operation's name and its inputs; that is the one place where a node is recorded. Until
// an operation has a backward, asking for its gradient is an error, never a silent zero.
#pragma once

#include <initializer_list>
#include <memory>

#include "core/tensor/tensor.h"

namespace ff {

/// A tensor and, where its gradient is wanted, the slot that the gradient is accumulated in.
class Var {
 public:
  Var() = default;
  Var(Tensor value) : value_(std::move(value)) {}  // NOLINT: a constant is a Var
  const Tensor& value() const { return value_; }
  bool defined() const { return value_.defined(); }
  explicit operator bool() const { return defined(); }
  int rank() const { return value_.rank(); }
  int64_t size(int axis) const { return value_.size(axis); }
  const Dims& shape() const { return value_.shape(); }
  bool requires_grad() const { return grad_ != nullptr; }
  /// Asks for the gradient of this leaf.
  void want_grad() { grad_ = std::make_shared<Tensor>(); }
  Tensor grad() const { return grad_ ? *grad_ : Tensor(); }

 private:
  Tensor value_;
  std::shared_ptr<Tensor> grad_;
};

/// While one is alive on this thread nothing is recorded and operations may work in place.
class NoGrad {
 public:
  NoGrad() { ++depth(); }
  ~NoGrad() { --depth(); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;
  static bool active() { return depth() > 0; }

 private:
  static int& depth() {
    thread_local int d = 0;
    return d;
  }
};

/// Wraps what operation `name` computed from `inputs`.
inline Var result(const char* name, Tensor value, std::initializer_list<const Var*> inputs) {
  if (!NoGrad::active())
    for (const Var* v : inputs)
      check(!v || !v->requires_grad(), "operation ", name, " has no backward");
  return Var(std::move(value));
}

}  // namespace ff
