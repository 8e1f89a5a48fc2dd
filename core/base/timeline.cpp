// Spans of a process, and what of its communication was hidden.
#include "core/base/timeline.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace ff {
namespace {

struct Recorded {
  Row row;
  std::string name;
  int64_t begin, end;
};

std::atomic<bool> g_active{false};
std::atomic<const SpanHook*> g_hook{nullptr};
std::mutex g_mutex;
std::vector<Recorded> g_spans;
int64_t g_start = 0;

}  // namespace

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void start_timeline() {
  const std::lock_guard lock(g_mutex);
  g_spans.clear();
  g_start = now_ns();
  g_active = true;
}

bool timeline_active() { return g_active.load(std::memory_order_relaxed); }

void record_span(Row row, const std::string& name, int64_t begin, int64_t end) {
  if (!timeline_active()) return;
  const std::lock_guard lock(g_mutex);
  g_spans.push_back({row, name, begin, end});
}

const SpanHook* hook_spans(const SpanHook* hook) { return g_hook.exchange(hook); }

const char*& Span::current() {
  thread_local const char* name = "";
  return name;
}

Span::Span(const char* name) : outer_(current()), begin_(timeline_active() ? now_ns() : 0) {
  current() = name;
  if (const SpanHook* hook = g_hook.load(std::memory_order_relaxed)) hook->begin(name);
}

Span::~Span() {
  if (const SpanHook* hook = g_hook.load(std::memory_order_relaxed)) hook->end();
  if (begin_) record_span(Row::kCompute, current(), begin_, now_ns());
  current() = outer_;
}

std::string timeline_json(int rank) {
  const std::lock_guard lock(g_mutex);
  nlohmann::json events = nlohmann::json::array();
  constexpr const char* kRows[] = {"computing", "communication", "waits of the GPU"};
  for (int row = 0; row < 3; ++row)
    events.push_back({{"ph", "M"},
                      {"name", "thread_name"},
                      {"pid", rank},
                      {"tid", row},
                      {"args", {{"name", kRows[row]}}}});
  events.push_back({{"ph", "M"},
                    {"name", "process_name"},
                    {"pid", rank},
                    {"args", {{"name", cat("rank ", rank)}}}});
  for (const Recorded& s : g_spans)
    events.push_back({{"ph", "X"},
                      {"name", s.name},
                      {"pid", rank},
                      {"tid", int(s.row)},
                      {"ts", 1e-3 * double(s.begin - g_start)},
                      {"dur", 1e-3 * double(s.end - s.begin)}});
  return nlohmann::json{{"traceEvents", events}}.dump();
}

std::map<std::string, Exposure> exposures() {
  const std::lock_guard lock(g_mutex);
  std::map<std::string, Exposure> out;
  constexpr std::string_view kWait = "wait: ";
  for (const Recorded& s : g_spans) {
    const double seconds = 1e-9 * double(s.end - s.begin);
    if (s.row == Row::kCommunication)
      out[s.name].communication += seconds;
    else if (s.name.starts_with(kWait))
      out[s.name.substr(kWait.size())].exposed += seconds;
  }
  return out;
}

}  // namespace ff
