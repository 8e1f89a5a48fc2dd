// A timeline of what this process did and when, on one row for computing and one for communication:
// `--profile` writes it for chrome://tracing or Perfetto. Off, a span costs one test.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace ff {

/// kDevice: where a device's computing stands still.
enum class Row : uint8_t { kCompute, kCommunication, kDevice };

/// Starts recording; the spans of before are forgotten.
void start_timeline();
bool timeline_active();

/// Nanoseconds of a steady clock.
int64_t now_ns();
/// One finished span.
void record_span(Row row, const std::string& name, int64_t begin_ns, int64_t end_ns);

/// Told where each Span begins and ends, on its thread: a profiler's ranges, a benchmark's clock.
struct SpanHook {
  void (*begin)(const char* name) = nullptr;
  void (*end)() = nullptr;
};
/// Sets the hook of this process, which must outlive its use; returns the one before.
const SpanHook* hook_spans(const SpanHook* hook);

/// The module that this thread works on while a Span is alive: the name of what it waits for.
class Span {
 public:
  explicit Span(const char* name);
  ~Span();
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;
  /// The innermost one's name, "" for none.
  static const char*& current();

 private:
  const char* outer_;
  int64_t begin_;
};

/// What was recorded as Chrome's trace JSON, of process `rank`; microseconds from start_timeline().
std::string timeline_json(int rank);

/// By module: seconds of communication, and of them those that computing waited for.
struct Exposure {
  double communication = 0, exposed = 0;
};
std::map<std::string, Exposure> exposures();

}  // namespace ff
