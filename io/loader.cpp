// Threads that make samples ahead.
#include "io/loader.h"

#include <omp.h>

#include <chrono>

namespace ff {

using Clock = std::chrono::steady_clock;

Loader::Loader(const Sampler& sampler, int64_t first, int64_t count, int64_t first_step,
               int threads, int64_t ahead)
    : sampler_(sampler),
      first_(first),
      count_(count),
      first_step_(first_step),
      ahead_(std::max<int64_t>(ahead, threads)) {
  for (int t = 0; t < std::max(1, threads); ++t) threads_.emplace_back([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  room_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void Loader::work() {
  omp_set_num_threads(1);  // samples are what runs in parallel here
  for (;;) {
    int64_t n = 0;
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return stop_ || taken_ < given_ + ahead_; });
      if (stop_) return;
      n = taken_++;
    }
    Made made;
    const auto start = Clock::now();
    try {
      made.sample = sampler_.sample(first_step_ + n / count_, first_ + n % count_);
    } catch (...) {
      made.error = std::current_exception();
    }
    working_us_ +=
        std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
    {
      const std::lock_guard lock(mutex_);
      made_.emplace(n, std::move(made));
    }
    ready_.notify_all();
  }
}

TrainingSample Loader::next() {
  Made made;
  {
    const auto start = Clock::now();
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return made_.count(given_) > 0; });
    made = std::move(made_.extract(given_).mapped());
    ++given_;
    skipped_ += made.sample.skipped;
    stalled_ += std::chrono::duration<double>(Clock::now() - start).count();
  }
  room_.notify_all();
  if (made.error) std::rethrow_exception(made.error);
  return std::move(made.sample);
}

}  // namespace ff
