// What went wrong first: a watch for values and gradients that are not finite.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor/tensor.h"

namespace ff {

/// While one is alive it looks at the result of every operation, on all threads, and at every
/// gradient. Slow: for a pass that is known to go wrong. One at a time.
class FiniteWatch {
 public:
  FiniteWatch();
  ~FiniteWatch();
  FiniteWatch(const FiniteWatch&) = delete;
  FiniteWatch& operator=(const FiniteWatch&) = delete;
  /// The one that is alive, or nullptr.
  static FiniteWatch* active() { return g_active.load(std::memory_order_relaxed); }

  /// Where in the model this thread is: the parameter that it read last.
  static std::string& place();

  void value(std::string_view operation, const Tensor& value);
  /// A backward function adds into this gradient; looked at once that has run.
  void adds_into(const Tensor& gradient);
  void ran_backward(std::string_view operation, const std::string& place);

  /// "attention at .../msa_row_attention_with_pair_bias/attention//query_w, block 3", or
  /// "backward of ..."; "" where all was finite.
  std::string found() const;

 private:
  void blame(std::string_view operation, const std::string& place);

  static inline std::atomic<FiniteWatch*> g_active = nullptr;
  mutable std::mutex mutex_;
  std::string found_;
  std::vector<Tensor> gradients_;
};

}  // namespace ff
