// The ranks of a run as a grid: neighbours share a sample (DAP), groups of them take samples of
// their own (DP).
#pragma once

#include "comm/dap.h"

namespace ff {

struct Grid {
  Group world;
  Dap dap;   ///< the ranks that share this one's sample
  Group dp;  ///< the ranks at this one's place in every group
};

/// Of ranks that compute on such devices. Throws Exit::kUsage, alike on all ranks, where `dap` does
/// not divide their number.
Grid make_grid(const Group& world, int dap, Device::Kind kind);

/// Begins the sums of arrays over a group: packed into buckets, so that many small ones are one
/// exchange. f32 or f64, contiguous, all of one type; every rank adds the same in the same order.
class BucketedSum {
 public:
  explicit BucketedSum(Group group) : group_(std::move(group)) {}
  void add(const Tensor& array);
  /// Begins what was added since the last call.
  void flush();
  /// Waits for all; then the arrays hold the sums.
  void finish();

 private:
  struct Bucket {
    std::vector<Tensor> arrays, places;  ///< of each in `packed`
    Tensor packed;
    Pending pending;
  };
  Group group_;
  std::vector<Tensor> waiting_;
  int64_t bytes_ = 0;
  std::vector<Bucket> begun_;
};

}  // namespace ff
