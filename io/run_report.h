// A training run as one self-contained page: its curves.
#pragma once

#include <string>

namespace ff {

/// Draws RUN/metrics.jsonl (io/training_log.h); long curves as means over neighbouring steps.
/// Lines that are no records are counted and named on the page. Throws Exit::kInput where there is
/// no such file or no record in it.
std::string run_report_html(const std::string& run);

}  // namespace ff
