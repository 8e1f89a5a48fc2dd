// Collectives as nodes of the tape.
#include "comm/dap.h"

#include <algorithm>
#include <mutex>

#include "core/base/timeline.h"

namespace ff {
namespace {

Dims with_size(Dims shape, int axis, int64_t size) {
  shape[axis] = size;
  return shape;
}

std::string here(const char* what) { return cat(Span::current(), " ", what); }
std::string mirrored(const std::string& name) { return "backward: " + name; }

/// A Var without a value that ties a begin to its await on the tape.
Var token() { return Var(Tensor::empty({0})); }
/// Lets the begin's backward run, after the await's.
void pass(const Var& token) { token.grad_into(); }

/// Uninitialised, of x's dtype and device.
Tensor like(const Tensor& x, const Dims& shape) {
  return Tensor::empty(shape, x.dtype(), x.device());
}

/// What or_zeros makes zeros of.
struct Kind {
  explicit Kind(const Tensor& t) : shape(t.shape()), dtype(t.dtype()), device(t.device()) {}
  Dims shape;
  Dtype dtype;
  Device device;
};
Tensor or_zeros(const Tensor& dy, const Kind& kind) {
  return dy.defined() ? dy : Tensor::zeros(kind.shape, kind.dtype, kind.device);
}

Tensor sum_of(const std::vector<Tensor>& parts) {
  const Tensor sum = like(parts[0], parts[0].shape());
  add_up(parts, sum);
  return sum;
}

/// Sends every rank its range of x's `axis` and receives theirs of the own range; `received` are
/// tensors to be summed when it is done.
Pending scatter_parts(const Dap& dap, const Tensor& x, int axis, const std::vector<Range>& ranges,
                      std::vector<Tensor>* received, const std::string& what) {
  Route route;
  const int64_t mine = ranges[size_t(dap.rank())].count;
  for (const Range& range : ranges) {
    route.send.push_back(x.narrow(axis, range.start, range.count));
    received->push_back(like(x, with_size(x.shape(), axis, mine)));
  }
  route.recv = *received;
  return dap.group().exchange(std::move(route), what);
}

}  // namespace

std::vector<Range> Dap::all(int64_t n) const {
  std::vector<Range> out;
  for (int r = 0; r < size(); ++r) out.push_back(rows(n, r));
  return out;
}

Var shard(const Dap& dap, const Var& x, int axis) {
  const Range rows = dap.mine(x.size(axis));
  if (dap.single()) return x;
  return view_of(x, [=](const Tensor& t) { return t.narrow(axis, rows.start, rows.count); });
}

struct Gathering::State {
  Dap dap;
  int axis = 0;
  std::vector<Range> ranges;
  std::string name;
  Var out, token;
  Pending forward, backward;
  std::vector<Tensor> received;  // in the backward
  std::once_flag awaited;
};

Gathering::Gathering(const Dap& dap, const Var& x, int axis, int64_t n)
    : Gathering(dap, x, axis, dap.all(n)) {}

Gathering::Gathering(const Dap& dap, const Var& x, int axis, std::vector<Range> by_rank)
    : state_(std::make_shared<State>()) {
  State& s = *state_;
  if (dap.single()) {
    s.out = x;
    std::call_once(s.awaited, [] {});
    return;
  }
  s.dap = dap;
  s.axis = axis;
  s.ranges = std::move(by_rank);
  s.name = here("all-gather");
  const Tensor& value = x.value();
  check(value.size(axis) == s.ranges[size_t(dap.rank())].count, "gathering axis ", axis, " of ",
        value.shape(), ", expected ", s.ranges[size_t(dap.rank())].count, " rows");
  s.out = like(value, with_size(value.shape(), axis, s.ranges.back().end()));
  Route route;
  for (const Range& range : s.ranges) {
    route.send.push_back(value);
    route.recv.push_back(s.out.value().narrow(axis, range.start, range.count));
  }
  s.forward = dap.group().exchange(std::move(route), s.name);
  ++Tape::collectives();
  if (!recording({&x})) return;
  Vars outputs{token()};
  Tape::current()->record_collective(
      outputs, [state = state_, x = x.gradient_only()](const std::vector<Tensor>&) {
        state->backward.wait();
        x.add_grad(sum_of(state->received));
        state->received.clear();
      });
  s.token = outputs[0];
}

Var Gathering::await() const {
  State& s = *state_;
  std::call_once(s.awaited, [&] {
    s.forward.wait();
    if (!s.token.requires_grad()) return;
    Vars outputs{s.out};
    // The state must not hold the node's own output: the tape would keep itself alive.
    Tape::current()->record_collective(
        outputs, [state = state_, kind = Kind(s.out.value())](const std::vector<Tensor>& dy) {
          state->backward = scatter_parts(state->dap, or_zeros(dy[0], kind), state->axis,
                                          state->ranges, &state->received, mirrored(state->name));
          pass(state->token);
        });
    s.out = outputs[0];
  });
  return s.out;
}

Var gather(const Dap& dap, const Var& x, int axis, int64_t n) {
  return Gathering(dap, x, axis, n).await();
}

Var unshard(const Dap& dap, const Var& x, int axis, int64_t n) {
  if (dap.single()) return x;
  Var whole;
  {
    const NoGrad no_grad;
    whole = gather(dap, x, axis, n);
  }
  if (!recording({&x})) return whole;
  Vars outputs{whole};
  Tape::current()->record(outputs, [x = x.gradient_only(), rows = dap.mine(n), axis,
                                    factor = size_t(dap.size())](const std::vector<Tensor>& dy) {
    const Tensor own = dy[0].narrow(axis, rows.start, rows.count);
    x.add_grad(sum_of(std::vector<Tensor>(factor, own)));
  });
  return outputs[0];
}

Var broadcast(const Dap& dap, const Var& x, int64_t n) {
  if (dap.single()) return x;
  std::vector<Range> ranges(size_t(dap.size()), Range{n, 0});
  ranges[0] = {0, n};
  return Gathering(dap, x, 0, std::move(ranges)).await();
}

Var reduce(const Dap& dap, const Var& x) {
  if (dap.single()) return x;
  const std::string name = here("all-reduce");
  const auto sum = [dap](const Tensor& t, const std::string& what) {
    const Tensor all = t.contiguous().clone();
    dap.group().all_reduce(all, what).wait();
    return all;
  };
  ++Tape::collectives();
  const Tensor value = sum(x.value(), name);
  if (!recording({&x})) return value;
  Vars outputs{Var(value)};
  Tape::current()->record_collective(outputs, [sum, x = x.gradient_only(), kind = Kind(value),
                                               name](const std::vector<Tensor>& dy) {
    x.add_grad(sum(or_zeros(dy[0], kind), mirrored(name)));
  });
  return outputs[0];
}

struct Relayout::State {
  Dap dap;
  Dims shape;
  int from, to;
  std::vector<std::vector<Range>> parts;
  std::string name;
  Tensor out;
  Var single;  // for a group of one: the only part, or the parts that await joins
  std::vector<Var> tokens;
  std::vector<Pending> forward, backward;
  std::vector<Tensor> received;  // in the backward, by part

  /// The exchange of part k; mirrored: from the whole-`from` tensor back to the part.
  Pending send(size_t k, const Tensor& part, const Tensor& whole, bool back) const {
    Route route;
    for (int r = 0; r < dap.size(); ++r) {
      const Range to_rows = dap.rows(shape[to], r), from_rows = parts[k][size_t(r)];
      const Tensor ours = part.narrow(to, to_rows.start, to_rows.count),
                   theirs = whole.narrow(from, from_rows.start, from_rows.count);
      route.send.push_back(back ? theirs : ours);
      route.recv.push_back(back ? ours : theirs);
    }
    return dap.group().exchange(std::move(route), back ? mirrored(name) : name);
  }
};

Relayout::Relayout(const Dap& dap, const Dims& shape, int from, int to)
    : Relayout(dap, shape, from, to, parts_of_rows(dap, shape[from], 1)) {}

Relayout::Relayout(const Dap& dap, const Dims& shape, int from, int to,
                   std::vector<std::vector<Range>> by_part)
    : state_(std::make_shared<State>()) {
  State& s = *state_;
  s.dap = dap;
  s.shape = shape;
  s.from = from;
  s.to = to;
  s.parts = std::move(by_part);
  s.name = here("all-to-all");
  check(!dap.single() || s.parts.size() == 1, "a single rank has no parts to send");
}

void Relayout::begin(const Var& x) {
  State& s = *state_;
  if (s.dap.single()) {
    s.single = x;
    return;
  }
  const size_t k = s.forward.size();
  check(k < s.parts.size(), "all ", s.parts.size(), " parts were sent");
  const int64_t rows = s.parts[k][size_t(s.dap.rank())].count;
  check(x.shape() == with_size(s.shape, s.from, rows), "part ", k, " is ", x.shape(), ", expected ",
        rows, " rows of axis ", s.from, " of ", s.shape);
  if (!s.out.defined())
    s.out = like(x.value(), with_size(s.shape, s.to, s.dap.mine(s.shape[s.to]).count));
  s.forward.push_back(s.send(k, x.value(), s.out, false));
  ++Tape::collectives();
  if (!recording({&x})) return;
  Vars outputs{token()};
  Tape::current()->record_collective(
      outputs, [state = state_, k, x = x.gradient_only()](const std::vector<Tensor>&) {
        state->backward[k].wait();
        x.add_grad(state->received[k]);
        state->received[k] = Tensor();
      });
  s.tokens.push_back(outputs[0]);
}

Var Relayout::await() {
  State& s = *state_;
  if (s.dap.single()) return s.single;
  check(s.forward.size() == s.parts.size(), s.forward.size(), " of ", s.parts.size(),
        " parts were begun");
  for (Pending& pending : s.forward) pending.wait();
  const Tensor out = std::move(s.out);
  s.out = Tensor();
  if (s.tokens.empty()) return out;
  check(s.tokens.size() == s.parts.size(), "some parts want a gradient and some do not");
  Vars outputs{Var(out)};
  Tape::current()->record_collective(
      outputs, [state = state_, kind = Kind(out)](const std::vector<Tensor>& dy) {
        State& s = *state;
        const Tensor whole = or_zeros(dy[0], kind);
        s.backward.resize(s.parts.size());
        s.received.resize(s.parts.size());
        for (size_t k = s.parts.size(); k-- > 0;) {
          const int64_t rows = s.parts[k][size_t(s.dap.rank())].count;
          s.received[k] = like(whole, with_size(s.shape, s.from, rows));
          s.backward[k] = s.send(k, s.received[k], whole, true);
          pass(s.tokens[k]);
        }
      });
  return outputs[0];
}

Var relayout(const Dap& dap, const Var& x, int from, int to, int64_t n) {
  if (dap.single()) return x;
  Relayout change(dap, with_size(x.shape(), from, n), from, to);
  change.begin(x);
  return change.await();
}

std::vector<std::vector<Range>> parts_of_rows(const Dap& dap, int64_t n, int64_t k) {
  std::vector<std::vector<Range>> parts(static_cast<size_t>(k));
  for (int64_t p = 0; p < k; ++p)
    for (int r = 0; r < dap.size(); ++r) {
      const Range rows = dap.rows(n, r), part = deal(rows.count, k, p);
      parts[size_t(p)].push_back({rows.start + part.start, part.count});
    }
  return parts;
}

}  // namespace ff
