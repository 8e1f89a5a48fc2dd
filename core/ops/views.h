// Views of Vars: no copy, and the tape will know where the gradient goes.
#pragma once

#include <algorithm>
#include <functional>
#include <mutex>

#include "core/autograd/tape.h"

namespace ff {

inline Var narrow(const Var& x, int axis, int64_t start, int64_t length) {
  return view_of(x, [=](const Tensor& t) { return t.narrow(axis, start, length); });
}
inline Var select(const Var& x, int axis, int64_t index) {
  return view_of(x, [=](const Tensor& t) { return t.select(axis, index); });
}
inline Var transpose(const Var& x, int a, int b) {
  return view_of(x, [=](const Tensor& t) { return t.transpose(a, b); });
}
inline Var view(const Var& x, const Dims& shape) {
  const Var y = view_of(x, [=](const Tensor& t) { return t.view(shape); });
  if (y.requires_grad()) y.slot()->reshaped = true;
  return y;
}
/// x with a new leading axis of size n along which it repeats (stride 0).
Var repeat(const Var& x, int64_t n);

/// The tensors' rows one after the other along axis 0; a new tensor.
Var concat_rows(const Var& a, const Var& b);

/// The parts beside each other along a new axis; a new tensor.
Var stack(const Vars& parts, int axis);

/// A copy in another dtype; itself when it is that already.
Var cast(const Var& x, Dtype dtype);

/// A row-major copy with two axes exchanged, in another dtype.
Var transpose_cast(const Var& x, int a, int b, Dtype dtype);

/// Calls f(start, count) for ranges of `step` that cover [0, n): on the CPU's threads at once, in
/// order on a GPU. For NoGrad only.
void for_ranges(Device device, int64_t n, int64_t step,
                const std::function<void(int64_t, int64_t)>& f);

/// Rows of x's axis 0 that pass through a module at a time under NoGrad. On the CPU enough for full
/// matrix products, few enough for their temporaries to stay in a core's cache; on a GPU enough to
/// fill it, few enough to bound the temporaries, in ranges of one size.
inline int64_t rows_at_once(const Var& x) {
  const int64_t row = std::max<int64_t>(1, x.size(1)), n = std::max<int64_t>(1, x.size(0));
  if (x.value().device().kind == Device::cpu) return std::max<int64_t>(1, 1024 / row);
  constexpr int64_t kMost = int64_t(1) << 18;  // times 4 x 256 channels of bf16: 512 MiB
  const int64_t most = std::max<int64_t>(1, kMost / row), ranges = (n + most - 1) / most;
  return (n + ranges - 1) / ranges;
}

/// Whether all of x passes through a module at once.
inline bool at_once(const Var& x) {
  return !NoGrad::active() ||
         (x.value().device().kind != Device::cpu && rows_at_once(x) >= x.size(0));
}

/// f(rows, start) returns its rows of x's axis 0 plus an update that depends on no other row; this
/// returns x with all of them updated. Under NoGrad f works in place, range by range; with a tape
/// it sees x whole.
template <class F>
Var by_rows(const Var& x, F f) {
  if (!NoGrad::active()) return f(x, int64_t(0));
  for_ranges(x.value().device(), x.size(0), rows_at_once(x),
             [&](int64_t start, int64_t count) { f(narrow(x, 0, start, count), start); });
  return x;
}

/// f(rows, start) of all rows of x's axis 0, its results joined along `axis`; under NoGrad range by
/// range.
template <class F>
Var map_rows(const Var& x, int axis, F f) {
  if (!NoGrad::active()) return f(x, int64_t(0));
  Tensor all;
  std::once_flag allocated;
  for_ranges(x.value().device(), x.size(0), rows_at_once(x), [&](int64_t start, int64_t count) {
    const Tensor part = f(narrow(x, 0, start, count), start).value();
    if (count == x.size(0)) {
      all = part;
      return;
    }
    std::call_once(allocated, [&] {
      Dims shape = part.shape();
      shape[axis] = x.size(0);
      all = Tensor::empty(shape, part.dtype(), part.device());
    });
    all.narrow(axis, start, count).copy_from(part);
  });
  return all;
}

}  // namespace ff
