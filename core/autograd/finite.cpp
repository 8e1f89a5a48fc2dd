// The watch's bookkeeping: the first fault stays.
#include "core/autograd/finite.h"

#include <cmath>

namespace ff {
namespace {

bool all_finite(const Tensor& t) {
  if (t.dtype() == Dtype::i32) return true;
  const Tensor host = t.to(Device{}),
               x = host.to(t.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32).contiguous();
  const auto look = [&](const auto* p) {
    for (int64_t i = 0; i < x.numel(); ++i)
      if (!std::isfinite(p[i])) return false;
    return true;
  };
  return x.dtype() == Dtype::f64 ? look(x.data<double>()) : look(x.data<float>());
}

}  // namespace

FiniteWatch::FiniteWatch() {
  check(active() == nullptr, "two watches at once");
  g_active = this;
}

FiniteWatch::~FiniteWatch() { g_active = nullptr; }

std::string& FiniteWatch::place() {
  thread_local std::string place;
  return place;
}

void FiniteWatch::value(std::string_view operation, const Tensor& value) {
  if (found().empty() && !all_finite(value)) blame(operation, place());
}

void FiniteWatch::adds_into(const Tensor& gradient) {
  const std::lock_guard lock(mutex_);
  gradients_.push_back(gradient);
}

void FiniteWatch::ran_backward(std::string_view operation, const std::string& place) {
  std::vector<Tensor> gradients;
  {
    const std::lock_guard lock(mutex_);
    gradients.swap(gradients_);
  }
  if (!found().empty()) return;
  for (const Tensor& g : gradients)
    if (!all_finite(g)) return blame(cat("backward of ", operation), place);
}

std::string FiniteWatch::found() const {
  const std::lock_guard lock(mutex_);
  return found_;
}

void FiniteWatch::blame(std::string_view operation, const std::string& place) {
  const std::lock_guard lock(mutex_);
  if (found_.empty()) found_ = cat(operation, place.empty() ? "" : " at ", place);
}

}  // namespace ff
