// One lock around standard error and the JSON log, and numbers for people.
#include "core/base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <mutex>

namespace ff {

namespace {

std::atomic<bool> g_quiet{false};
std::mutex g_mutex;  // of all below
std::string g_status;
std::string g_json_path;
std::atomic<int> g_json{-1};

constexpr const char* kClearLine = "\r\x1b[K";

void show_line(const std::string& line) {
  const std::lock_guard lock(g_mutex);
  std::string out = g_status.empty() ? "" : kClearLine;
  out += line + "\n" + g_status;
  std::fwrite(out.data(), 1, out.size(), stderr);
}

std::string utc_now() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  char text[48];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof text - length, ".%03dZ", int(now.tv_nsec / 1000000));
  return text;
}

/// Bytes of the UTF-8 character that `text` begins with, 0 where it is none (RFC 3629).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : uint8_t(0); };
  const uint8_t first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
  const bool beyond = (first == 0xed && byte(1) > 0x9f) || (first == 0xf4 && byte(1) > 0x8f);
  return overlong || beyond ? 0 : length;
}

/// Appends the line in one write, so that lines of several processes do not mix.
void append_json(const std::string& line) {
  std::string trouble;
  {
    const std::lock_guard lock(g_mutex);
    if (g_json < 0) return;
    size_t done = 0;
    while (done < line.size() && trouble.empty()) {
      const ssize_t n = write(g_json, line.data() + done, line.size() - done);
      if (n > 0)
        done += size_t(n);
      else if (n == 0 || errno != EINTR)
        trouble = cat(g_json_path, ": cannot be written: ", n ? std::strerror(errno) : "no space",
                      "; the run goes on without this log");
    }
    if (!trouble.empty()) close(g_json.exchange(-1));
  }
  if (!trouble.empty()) show_line("fastfold: warning: " + trouble);
}

}  // namespace

void set_json_log(const std::string& path) {
  const std::lock_guard lock(g_mutex);
  if (g_json >= 0) close(g_json.exchange(-1));
  g_json_path = path;
  if (path.empty()) return;
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0)
    fail(Exit::kUsage, path, ": cannot write there: ", std::strerror(errno),
         "; check that the folder exists and may be written");
  g_json = fd;
}

bool has_json_log() { return g_json >= 0; }

std::string json_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    const auto c = uint8_t(text[0]);
    if (length == 0) {
      out += "\xef\xbf\xbd";
    } else if (c < 0x20 || c == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(1, length));
  }
  return out + "\"";
}

LogField::LogField(std::string_view name, std::string_view value)
    : name(name), json(json_string(value)) {}
LogField::LogField(std::string_view name, int64_t value)
    : name(name), json(std::to_string(value)) {}
LogField::LogField(std::string_view name, double value) : name(name), json("null") {
  char text[32];
  if (std::isfinite(value)) json.assign(text, std::to_chars(text, text + sizeof text, value).ptr);
}

void log_event(std::string_view level, std::string_view message,
               std::initializer_list<LogField> fields) {
  if (!has_json_log()) return;
  std::string line = cat("{\"time\": \"", utc_now(), "\", \"level\": ", json_string(level),
                         ", \"message\": ", json_string(message));
  for (const LogField& field : fields) line += cat(", ", json_string(field.name), ": ", field.json);
  append_json(line + "}\n");
}

void log_message(Level level, const std::string& text) {
  constexpr const char* kNames[] = {"progress", "notice", "warning", "error"};
  if (level > Level::kNotice || !is_quiet())
    show_line(cat("fastfold: ", level == Level::kWarning ? "warning: " : "", text));
  if (level != Level::kProgress) log_event(kNames[int(level)], text, {});
}

void set_quiet(bool quiet) { g_quiet = quiet; }
bool is_quiet() { return g_quiet; }

void log_line(const std::string& line) {
  constexpr std::string_view kName = "fastfold: ";
  const bool named = line.starts_with(kName);
  log_message(Level::kError, named ? line.substr(kName.size()) : line);
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
