// The grid, and sums in buckets.
#include "comm/grid.h"

namespace ff {

Grid make_grid(const Group& world, int dap, Device::Kind kind) {
  if (world.size() % dap != 0)
    throw SharedError(
        Exit::kUsage,
        cat("started as ", world.size(), " ranks, which ", dap,
            " ranks a protein (dap) do not divide; start a multiple of ", dap, " or change dap"),
        world.rank() == 0);
  const int group = world.rank() / dap, place = world.rank() % dap;
  return {world, Dap(world.part(group * dap, dap, 1), Dap::worth_a_message(kind)),
          world.part(place, world.size() / dap, dap)};
}

void BucketedSum::add(const Tensor& array) {
  constexpr int64_t kBucket = 8 << 20;
  if (group_.size() == 1) return;
  waiting_.push_back(array);
  bytes_ += array.numel() * size_of(array.dtype());
  if (bytes_ >= kBucket) flush();
}

void BucketedSum::flush() {
  if (waiting_.empty()) return;
  Bucket bucket;
  bucket.arrays = std::move(waiting_);
  waiting_.clear();
  const Tensor& first = bucket.arrays[0];
  bucket.packed = Tensor::empty({bytes_ / size_of(first.dtype())}, first.dtype(), first.device());
  bytes_ = 0;
  int64_t at = 0;
  for (const Tensor& array : bucket.arrays) {
    bucket.places.push_back(bucket.packed.narrow(0, at, array.numel()).view(array.shape()));
    at += array.numel();
  }
  copy_all(bucket.arrays, bucket.places);
  bucket.pending = group_.all_reduce(bucket.packed, "sum of gradients");
  begun_.push_back(std::move(bucket));
}

void BucketedSum::finish() {
  flush();
  for (Bucket& bucket : begun_) {
    bucket.pending.wait();
    copy_all(bucket.places, bucket.arrays);
  }
  begun_.clear();
}

}  // namespace ff
