// Messages to the user on standard error: one line each, never in the middle of a progress bar.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace ff {

/// Notices are left out while quiet; warnings and errors never are.
void set_quiet(bool quiet);
bool is_quiet();

enum class Level { kProgress, kNotice, kWarning, kError };

/// One line on standard error (progress and notices not while quiet), and in the JSON log, but for
/// progress, which has events of its own there. A leading "fastfold: " is added here.
void log_message(Level level, const std::string& text);

/// An error's line as it is, with its "fastfold: ".
void log_line(const std::string& line);

/// "fastfold: ..."
template <class... Parts>
void log_notice(const Parts&... parts) {
  log_message(Level::kNotice, cat(parts...));
}
/// "fastfold: warning: ..."
template <class... Parts>
void log_warning(const Parts&... parts) {
  log_message(Level::kWarning, cat(parts...));
}

/// From now on each notice, warning, error and event is appended to the file as one line of JSON:
/// {"time": "2026-01-31T12:00:00.000Z", "level": "notice", "message": "...", ...}. "" ends it.
/// Throws Exit::kUsage where the file cannot be opened; when writing fails later, one warning is
/// given and the run goes on without the log.
void set_json_log(const std::string& path);
bool has_json_log();

/// A name and its value as JSON.
struct LogField {
  LogField(std::string_view name, std::string_view value);
  LogField(std::string_view name, const char* value) : LogField(name, std::string_view(value)) {}
  LogField(std::string_view name, double value);  ///< null where it is not finite
  LogField(std::string_view name, int64_t value);

  std::string name, json;
};

/// A line of the JSON log alone: `level` "progress", "target", ...
void log_event(std::string_view level, std::string_view message,
               std::initializer_list<LogField> fields);

/// `text` as a JSON string with its quotes; bytes that are no UTF-8 become U+FFFD.
std::string json_string(std::string_view text);

/// What stands below all messages on a terminal, redrawn after each; "" takes it away. The progress
/// bar uses it.
void set_status_line(const std::string& line);

/// "75 MB", "5.21 GiB": bytes for people.
std::string show_bytes(int64_t bytes);
/// "4.2 s", "3 min 20 s", "2 h 5 min".
std::string show_seconds(double seconds);

}  // namespace ff
