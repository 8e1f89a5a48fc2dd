// One lock around standard error, and numbers for people.
#include "core/base/log.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <mutex>

namespace ff {

namespace {

std::atomic<bool> g_quiet{false};
std::mutex g_mutex;
std::string g_status;

constexpr const char* kClearLine = "\r\x1b[K";

}  // namespace

void set_quiet(bool quiet) { g_quiet = quiet; }
bool is_quiet() { return g_quiet; }

void log_line(const std::string& line) {
  const std::lock_guard lock(g_mutex);
  std::string out = g_status.empty() ? "" : kClearLine;
  out += line + "\n" + g_status;
  std::fwrite(out.data(), 1, out.size(), stderr);
}

void set_status_line(const std::string& line) {
  const std::lock_guard lock(g_mutex);
  const std::string out = kClearLine + line;
  std::fwrite(out.data(), 1, out.size(), stderr);
  g_status = line;
}

std::string show_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double x = double(bytes);
  int unit = 0;
  for (; x >= 1024 && unit < 4; ++unit) x /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit ? "%.2f %s" : "%.0f %s", x, kUnits[unit]);
  return text;
}

std::string show_seconds(double seconds) {
  char text[48];
  const long whole = std::lround(seconds);
  if (seconds < 60 && whole < 60)
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  else if (whole < 3600)
    std::snprintf(text, sizeof text, "%ld min %ld s", whole / 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%ld h %ld min", whole / 3600, whole % 3600 / 60);
  return text;
}

}  // namespace ff
