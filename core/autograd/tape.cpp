// The walk in reverse, and checkpoints.
#include "core/autograd/tape.h"

#include <optional>

namespace ff {
namespace {

/// While alive no tape listens: what a backward function calls is not recorded.
class Deaf {
 public:
  Deaf() : tape_(Tape::current()) { Tape::current() = nullptr; }
  ~Deaf() { Tape::current() = tape_; }
  Deaf(const Deaf&) = delete;
  Deaf& operator=(const Deaf&) = delete;

 private:
  Tape* tape_;
};

/// to += from, of any strides and devices. Only seeds and what came from other ranks take this way.
void accumulate(const Tensor& from, const Tensor& to) {
  const Tensor parts[] = {to, from.to(to.device())};
  add_up(parts, to);
}

}  // namespace

bool recording(std::initializer_list<const Var*> inputs) {
  if (NoGrad::active()) return false;
  for (const Var* v : inputs)
    if (v && v->requires_grad()) {
      check(Tape::current() != nullptr, "a gradient is wanted but no tape records");
      return true;
    }
  return false;
}

void Var::add_grad(const Tensor& dy) const {
  if (!slot_) return;
  GradSlot& owner = slot_->owner();
  if (!owner.base && !owner.grad.defined() && dy.is_contiguous()) {
    owner.grad = dy.view(owner.shape);
    if (FiniteWatch* watch = FiniteWatch::active()) watch->adds_into(dy);
  } else {
    accumulate(dy, slot_->into());
  }
}

void Tape::record(Vars& outputs, Backward backward, const char* name) {
  Node node{name,
            Span::current(),
            FiniteWatch::active() ? FiniteWatch::place() : "",
            {},
            std::move(backward)};
  for (Var& output : outputs) {
    output = Var(output.value(), Var::new_slot(output.value()));
    node.outputs.push_back(output.slot());
  }
  nodes_.push_back(std::move(node));
}

void Tape::record_collective(Vars& outputs, Backward backward) {
  record(outputs, std::move(backward), "collective");
  nodes_.back().collective = true;
}

void Tape::backward(const Vars& outputs, const std::vector<Tensor>& seeds) {
  check(!NoGrad::active(), "backward under NoGrad, where checkpoints cannot record");
  check(seeds.empty() || seeds.size() == outputs.size(), seeds.size(), " seeds for ",
        outputs.size(), " outputs");
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Var& output = outputs[i];
    check(output.requires_grad(), "output ", i,
          " does not depend on anything that wants a gradient");
    const Tensor seed = seeds.empty() ? Tensor::scalar(1).to(output.value().dtype()) : seeds[i];
    if (!seed.defined()) continue;
    check(seed.numel() == output.value().numel() && seed.dtype() == output.value().dtype(), "seed ",
          seed.shape(), " for output ", output.shape());
    // A copy, which the first backward function may write over.
    const Tensor own = Tensor::empty(output.shape(), output.slot()->dtype, output.slot()->device);
    own.copy_from(seed.view(output.shape()));
    output.add_grad(own);
  }
  const Deaf deaf;
  std::optional<Span> span;  // of the nodes that one module recorded
  while (!nodes_.empty()) {
    const Node node = std::move(nodes_.back());
    nodes_.pop_back();
    std::vector<Tensor> dy;
    bool any = node.collective;
    for (const auto& slot : node.outputs) {
      dy.push_back(std::move(slot->grad));
      slot->grad = Tensor();
      any |= dy.back().defined();
    }
    if (!span || Span::current() != node.module) {
      span.reset();
      if (*node.module) span.emplace(node.module);
    }
    if (any) node.backward(dy);
    if (FiniteWatch* watch = FiniteWatch::active()) watch->ran_backward(node.name, node.place);
  }
}

Vars checkpoint(const std::function<Vars(const Vars&)>& fn, const Vars& inputs) {
  if (NoGrad::active() || !Tape::current()) return fn(inputs);
  Vars outputs;
  const int64_t collectives = Tape::collectives();
  {
    const NoGrad no_grad;
    Vars copies;
    for (const Var& input : inputs)
      copies.push_back(input.defined() ? Var(input.value().clone()) : Var());
    outputs = fn(copies);
  }
  const auto replay = [fn, inputs](const std::vector<Tensor>& dy) {
    Tape tape;
    const Vars again = fn(inputs);
    check(again.size() == dy.size(), "checkpoint: ", again.size(), " outputs instead of ",
          dy.size());
    Vars reached;
    for (size_t i = 0; i < again.size(); ++i) {
      if (!dy[i].defined() || !again[i].requires_grad()) continue;
      reached.push_back(again[i]);
      again[i].add_grad(dy[i]);  // the node's own: no seed, which would be copied
    }
    tape.backward(reached, std::vector<Tensor>(reached.size()));
  };
  if (Tape::collectives() != collectives)
    Tape::current()->record_collective(outputs, replay);
  else
    Tape::current()->record(outputs, replay, "checkpoint");
  return outputs;
}

}  // namespace ff
