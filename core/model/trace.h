// Trace: hands intermediate values under hierarchical names to whoever asked for them (tests).
#pragma once

#include <functional>
#include <string>

#include "core/autograd/tape.h"

namespace ff {

class Trace {
 public:
  using Sink = std::function<void(const std::string& name, const Tensor& value)>;
  Trace() = default;
  explicit Trace(Sink sink, std::string path = "")
      : sink_(std::move(sink)), path_(std::move(path)) {}
  Trace operator/(const std::string& name) const {
    return Trace(sink_, sink_ ? path_ + name + "/" : "");
  }
  void operator()(const char* name, const Var& value) const {
    if (sink_) sink_(path_ + name, value.value().to(Device{}));
  }

 private:
  Sink sink_;
  std::string path_;
};

}  // namespace ff
