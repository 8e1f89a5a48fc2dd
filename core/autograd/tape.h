// Var and the tape: what was computed, so that its gradient can be.
//
// The model's text is written against Var. While a Tape is alive on a thread, an operation that has
// an input whose gradient is wanted appends a node to it; backward() walks the nodes strictly in
// reverse and frees each as soon as it has run. Backward functions add into gradients, they never
// overwrite. A view's gradient is the same view of its base's gradient.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/autograd/finite.h"
#include "core/base/timeline.h"
#include "core/tensor/tensor.h"

namespace ff {

/// Where the gradient of one Var is summed.
struct GradSlot {
  Dims shape;
  Dtype dtype = Dtype::f32;
  Device device;
  Tensor grad;                                ///< undefined as long as nothing was added
  std::shared_ptr<GradSlot> base;             ///< of a view
  std::function<Tensor(const Tensor&)> view;  ///< of the base's gradient
  bool reshaped = false;                      ///< a view of all of its base, in the same order
  std::function<Tensor()> again;              ///< makes the value once more; empty: it is kept
  Tensor made;                                ///< what that gave, from its first use on

  /// Whose gradient it is, if only in another shape.
  GradSlot& owner() { return reshaped ? base->owner() : *this; }
  /// Whether nothing was added yet.
  bool untouched() const { return base ? base->untouched() : !grad.defined(); }
  /// The gradient to add into, zeros at first.
  Tensor into() {
    if (base) return view(base->into());
    if (!grad.defined()) grad = Tensor::zeros(shape, dtype, device);
    if (FiniteWatch* watch = FiniteWatch::active()) watch->adds_into(grad);
    return grad;
  }
};

/// A tensor and, where its gradient is wanted, the slot that the gradient is summed in.
class Var {
 public:
  Var() = default;
  Var(Tensor value) : value_(std::move(value)) {}  // NOLINT: a constant is a Var
  Var(Tensor value, std::shared_ptr<GradSlot> slot)
      : value_(std::move(value)), slot_(std::move(slot)) {}
  const Tensor& value() const { return value_; }
  bool defined() const { return value_.defined(); }
  explicit operator bool() const { return defined(); }
  int rank() const { return value_.rank(); }
  int64_t size(int axis) const { return value_.size(axis); }
  const Dims& shape() const { return value_.shape(); }
  bool requires_grad() const { return slot_ != nullptr; }
  /// Asks for the gradient of this leaf.
  void want_grad() { slot_ = new_slot(value_); }
  /// What has been summed so far; undefined for nothing.
  Tensor grad() const { return slot_ ? slot_->grad : Tensor(); }
  /// For backward functions: the gradient to add into, undefined where it is not wanted.
  Tensor grad_into() const { return slot_ ? slot_->into() : Tensor(); }
  const std::shared_ptr<GradSlot>& slot() const { return slot_; }
  /// For backward functions: adds dy, which nobody else may read afterwards, where it is wanted.
  void add_grad(const Tensor& dy) const;
  /// For backward functions that need no value: the slot alone, so that the value can be freed.
  Var gradient_only() const { return {Tensor(), slot_}; }

  static std::shared_ptr<GradSlot> new_slot(const Tensor& value) {
    auto slot = std::make_shared<GradSlot>();
    slot->shape = value.shape();
    slot->dtype = value.dtype();
    slot->device = value.device();
    return slot;
  }

 private:
  Tensor value_;
  std::shared_ptr<GradSlot> slot_;
};

/// An input as a backward function keeps it: without its value where that can be made again.
class Kept {
 public:
  Kept(const Var& x)  // NOLINT: is the Var
      : var_(x.requires_grad() && x.slot()->again ? x.gradient_only() : x) {}
  /// With its value, which all that kept it share.
  Var get() const {
    if (var_ || !var_.requires_grad()) return var_;
    GradSlot& slot = *var_.slot();
    if (!slot.made.defined()) slot.made = slot.again();
    return {slot.made, var_.slot()};
  }

 private:
  Var var_;
};

using Vars = std::vector<Var>;

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

/// Whether an operation's result may take x's place: under NoGrad, where x must not be recorded.
inline bool may_overwrite(const Var& x) {
  check(!NoGrad::active() || !x.requires_grad(), "a recorded tensor would be overwritten");
  return NoGrad::active();
}

/// Where an operation may write a result of x's shape: in x's place, or anew.
inline Tensor place_for_result(const Var& x) {
  const Tensor& t = x.value();
  return may_overwrite(x) ? t : Tensor::empty(t.shape(), t.dtype(), t.device());
}

/// Records what happens on this thread while it is the innermost one alive.
class Tape {
 public:
  /// Gets the gradients of a node's outputs; an undefined one is zero.
  using Backward = std::function<void(const std::vector<Tensor>& dy)>;

  Tape() : outer_(current()) { current() = this; }
  ~Tape() { current() = outer_; }
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// The tape that records now, nullptr for none.
  static Tape*& current() {
    thread_local Tape* tape = nullptr;
    return tape;
  }

  /// Gives the outputs slots of their own and appends the node; `name` says what it is of.
  void record(Vars& outputs, Backward backward, const char* name = "operation");
  /// The same for a node that talks to other ranks: its backward runs whether a gradient came or
  /// not, since theirs wait for it.
  void record_collective(Vars& outputs, Backward backward);

  /// Where a tape records: f runs in the backward once all that is recorded later has run.
  static void on_backward(std::function<void()> f) {
    Vars none;
    if (!NoGrad::active() && current())
      current()->record_collective(none, [f = std::move(f)](const std::vector<Tensor>&) { f(); });
  }

  /// Collectives begun on this thread, recorded or not: a checkpoint around some is one itself.
  static int64_t& collectives() {
    thread_local int64_t count = 0;
    return count;
  }

  /// Adds d(sum of output * seed) into the gradient of every leaf, and forgets the nodes. Without
  /// seeds the outputs are single numbers and their seeds 1.
  void backward(const Vars& outputs, const std::vector<Tensor>& seeds = {});

  size_t size() const { return nodes_.size(); }

 private:
  struct Node {
    const char* name;
    const char* module;  ///< the Span that it was recorded in
    std::string place;   ///< FiniteWatch's, while one is active
    std::vector<std::shared_ptr<GradSlot>> outputs;
    Backward backward;
    bool collective = false;
  };
  std::vector<Node> nodes_;
  Tape* outer_;
};

/// Whether the gradient of any of these is wanted and a tape listens. Throws Exit::kBug where it is
/// wanted and there is neither a tape nor a NoGrad.
bool recording(std::initializer_list<const Var*> inputs);

/// Wraps what operation `name` computed from `inputs`; `backward(dy)` adds to the inputs'
/// gradients.
template <class F>
Var result(const char* name, Tensor value, std::initializer_list<const Var*> inputs, F backward) {
  if (FiniteWatch* watch = FiniteWatch::active()) watch->value(name, value);
  if (!recording(inputs)) return Var(std::move(value));
  Vars out{Var(std::move(value))};
  Tape::current()->record(
      out, [backward = std::move(backward)](const std::vector<Tensor>& dy) { backward(dy[0]); },
      name);
  return out[0];
}

/// The same for an operation that has no backward yet: asking for its gradient is an error, never a
/// silent zero.
inline Var result(const char* name, Tensor value, std::initializer_list<const Var*> inputs) {
  if (!NoGrad::active())
    for (const Var* v : inputs)
      check(!v || !v->requires_grad(), "operation ", name, " has no backward");
  if (FiniteWatch* watch = FiniteWatch::active()) watch->value(name, value);
  return Var(std::move(value));
}

/// A view of x: `view` makes it of the value and, later, of the gradient.
template <class F>
Var view_of(const Var& x, F view) {
  Tensor value = view(x.value());
  if (!recording({&x})) return Var(std::move(value));
  auto slot = Var::new_slot(value);
  slot->base = x.slot();
  slot->view = std::move(view);
  return {std::move(value), std::move(slot)};
}

/// fn(inputs), of which the tape keeps the inputs alone: the backward runs fn once more, recording,
/// and goes through it. fn must give the same for the same inputs and return none of them.
/// Gradients of other Vars that fn uses (parameters) are summed as well. fn first runs under NoGrad
/// on copies of the inputs, which it may overwrite.
Vars checkpoint(const std::function<Vars(const Vars&)>& fn, const Vars& inputs);

}  // namespace ff
