// Views of Vars: no copy, and the tape will know where the gradient goes.
#pragma once

#include <algorithm>

#include "core/autograd/tape.h"

namespace ff {

inline Var narrow(const Var& x, int axis, int64_t start, int64_t length) {
  return result("narrow", x.value().narrow(axis, start, length), {&x});
}
inline Var select(const Var& x, int axis, int64_t index) {
  return result("select", x.value().select(axis, index), {&x});
}
inline Var transpose(const Var& x, int a, int b) { return result("transpose", x.value().transpose(a, b), {&x}); }
inline Var view(const Var& x, const Dims& shape) { return result("view", x.value().view(shape), {&x}); }
/// x with a new leading axis of size n along which it repeats (stride 0).
inline Var repeat(const Var& x, int64_t n) { return result("repeat", x.value().unsqueeze(0).expand(0, n), {&x}); }

/// The tensors' rows one after the other along axis 0; a new tensor.
Var concat_rows(const Var& a, const Var& b);

/// A copy in another dtype; itself when it is that already.
Var cast(const Var& x, Dtype dtype);

/// Runs f(rows, start) on ranges of `rows_per_call` of x's axis and returns x updated by it. f returns its rows
/// plus an update that depends on no other row. Under NoGrad f works in place, so that only one range's
/// temporaries exist; with a tape, f sees x whole.
template <class F>
Var by_rows(const Var& x, int axis, int64_t rows_per_call, F f) {
  const int64_t n = x.size(axis);
  if (!NoGrad::active()) return f(x, int64_t(0));
  for (int64_t start = 0; start < n; start += rows_per_call)
    f(narrow(x, axis, start, std::min(rows_per_call, n - start)), start);
  return x;
}

}  // namespace ff
