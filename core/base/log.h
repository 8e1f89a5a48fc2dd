// Messages to the user on standard error: one line each, never in the middle of a progress bar.
#pragma once

#include <string>

#include "core/base/error.h"

namespace ff {

/// Notices are left out while quiet; warnings and errors never are.
void set_quiet(bool quiet);
bool is_quiet();

void log_line(const std::string& line);

/// "fastfold: ..."
template <class... Parts>
void log_notice(const Parts&... parts) {
  if (!is_quiet()) log_line(cat("fastfold: ", parts...));
}
/// "fastfold: warning: ..."
template <class... Parts>
void log_warning(const Parts&... parts) {
  log_line(cat("fastfold: warning: ", parts...));
}

/// What stands below all messages on a terminal, redrawn after each; "" takes it away. The progress
/// bar uses it.
void set_status_line(const std::string& line);

/// "75 MB", "5.21 GiB": bytes for people.
std::string show_bytes(int64_t bytes);
/// "4.2 s", "3 min 20 s", "2 h 5 min".
std::string show_seconds(double seconds);

}  // namespace ff
