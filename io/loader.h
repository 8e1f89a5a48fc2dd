// The loader: samples made ahead by threads, handed out in order.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "io/sampling.h"

namespace ff {

/// Of each step's samples the `count` from `first` on, from the step `first_step` on. At most
/// `ahead` are held at a time. The sampler must outlive it.
class Loader {
 public:
  Loader(const Sampler& sampler, int64_t first, int64_t count, int64_t first_step, int threads,
         int64_t ahead);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next sample; throws what making it threw.
  TrainingSample next();

  int64_t delivered() const { return given_; }
  int64_t skipped() const { return skipped_; }
  /// Seconds that next() has waited in all, and that threads spent on making samples.
  double stalled_seconds() const { return stalled_; }
  double working_seconds() const { return double(working_us_) * 1e-6; }

 private:
  struct Made {
    TrainingSample sample;
    std::exception_ptr error;
  };
  void work();

  const Sampler& sampler_;
  const int64_t first_, count_, first_step_, ahead_;
  std::mutex mutex_;
  std::condition_variable ready_, room_;
  std::map<int64_t, Made> made_;
  int64_t taken_ = 0, given_ = 0, skipped_ = 0;
  double stalled_ = 0;
  std::atomic<int64_t> working_us_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ff
