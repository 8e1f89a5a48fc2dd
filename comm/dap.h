// Dynamic axial parallelism: the activations of one sample split over a group of ranks along one
// axis, and the collectives that change that axis, as operations that the tape knows.
//
// Rank r holds a run of rows of an axis; where the ranks do not divide it the first ones hold one
// more, so that nothing is padded. Gradients: every rank holds its share of the loss's gradient,
// for what is split the whole of its own rows, for what all ranks hold alike a part that their sum
// completes. So a gradient of a parameter is right once it is summed over the group, whatever the
// parameter was used for, and what was gathered takes back the sum of what all ranks made of it.
//
// A collective is begun and awaited. In reverse the await begins the mirrored collective and the
// begin waits for it: what ran between them hides both.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "comm/group.h"
#include "core/autograd/tape.h"

namespace ff {

struct Range {
  int64_t start = 0, count = 0;
  int64_t end() const { return start + count; }
  bool operator==(const Range&) const = default;
};

/// Part `i` of `n` things dealt to `parts`: runs whose lengths differ by one at most.
inline Range deal(int64_t n, int64_t parts, int64_t i) {
  const int64_t each = n / parts, more = n % parts;
  return {i * each + std::min(i, more), each + (i < more ? 1 : 0)};
}

/// The ranks that share one sample. A default one is a single rank: everything is whole, and the
/// operations below are the identity.
class Dap {
 public:
  Dap() = default;
  /// `part`: so many bytes of a rank are worth a message of their own.
  explicit Dap(Group group, int64_t part = worth_a_message(Device::cpu))
      : group_(std::move(group)), part_(part) {}
  /// NVLink takes 16 MiB in a tenth of a millisecond: what the launches of one more part take.
  static constexpr int64_t worth_a_message(Device::Kind kind) {
    return kind == Device::cpu ? 256 << 10 : 16 << 20;
  }
  const Group& group() const { return group_; }
  int rank() const { return group_.rank(); }
  int size() const { return group_.size(); }
  bool single() const { return group_.size() == 1; }
  /// Rows of rank r of an axis of n.
  Range rows(int64_t n, int r) const { return deal(n, size(), r); }
  Range mine(int64_t n) const { return rows(n, rank()); }
  std::vector<Range> all(int64_t n) const;
  /// In how many parts, `most` at most, to send what has this many bytes on all ranks together.
  int64_t parts(int64_t bytes, int64_t most) const {
    return std::clamp<int64_t>(bytes / size() / part_, 1, most);
  }
  /// Whether these rows have the axis's first one, which is rank 0's.
  bool holds_first(Range rows) const { return rank() == 0 && rows.count > 0; }

 private:
  Group group_;
  int64_t part_ = 1;
};

/// x's own rows of an axis that all ranks hold whole. Backward: a share of x's gradient.
Var shard(const Dap& dap, const Var& x, int axis);

/// Every rank's rows of an axis, joined on all ranks: begun when it is made.
/// Backward: reduce-scatter, the sum of what all ranks made of these rows.
class Gathering {
 public:
  Gathering() = default;
  /// x [.., own rows of `axis`, ..]; the axis has n rows in all, dealt as Dap::rows.
  Gathering(const Dap& dap, const Var& x, int axis, int64_t n);
  /// The same for rows dealt otherwise: by_rank[r] is rank r's range.
  Gathering(const Dap& dap, const Var& x, int axis, std::vector<Range> by_rank);
  bool defined() const { return state_ != nullptr; }
  /// May be called again, and under NoGrad by several threads: all get the same.
  Var await() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// Gathering, awaited at once.
Var gather(const Dap& dap, const Var& x, int axis, int64_t n);

/// The same for a consumer that is the same on all ranks, each with its share of the gradient: the
/// backward takes the own rows, times the number of ranks, and sends nothing. Wrong where ranks use
/// different parts of the result.
Var unshard(const Dap& dap, const Var& x, int axis, int64_t n);

/// Rank 0's x, n rows of axis 0, on all ranks; others pass a tensor with none. Backward: the sum.
Var broadcast(const Dap& dap, const Var& x, int64_t n);

/// The sum over the ranks, on all. Backward: the same sum of the gradients.
Var reduce(const Dap& dap, const Var& x);

/// A tensor split along one axis becomes split along another, an all-to-all, in parts: part k of
/// every rank's rows of `from` may be sent as soon as it is made.
class Relayout {
 public:
  /// [.., whole sizes ..]: `shape` is that of the tensor without any split.
  Relayout(const Dap& dap, const Dims& shape, int from, int to);
  /// by_part[k][r]: rank r's range of `from` in part k; all of them cover the axis once.
  Relayout(const Dap& dap, const Dims& shape, int from, int to,
           std::vector<std::vector<Range>> by_part);

  /// x: the next part's own rows of `from`, all of `to`. `from` of other sizes is a bug.
  void begin(const Var& x);
  /// [.., all of `from`, own rows of `to`, ..], contiguous.
  Var await();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// One part, awaited at once. x: own rows of `from`, which has n rows in all.
Var relayout(const Dap& dap, const Var& x, int from, int to, int64_t n);

/// Every rank's own rows of `from`, dealt to k parts.
std::vector<std::vector<Range>> parts_of_rows(const Dap& dap, int64_t n, int64_t k);

}  // namespace ff
