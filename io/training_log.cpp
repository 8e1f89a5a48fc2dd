// Appending to metrics.jsonl, and cutting it at the resumed step.
#include "io/training_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

/// Bytes of the records up to `step`: all before the first of a later step.
int64_t kept_bytes(const std::string& path, int64_t step) {
  std::ifstream in(path, std::ios::binary);
  int64_t kept = 0;
  for (std::string line; std::getline(in, line) && !in.eof();) {
    const nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("step") && record["step"].is_number_integer() &&
        record["step"].get<int64_t>() > step)
      break;
    kept += int64_t(line.size()) + 1;
  }
  return kept;
}

}  // namespace

TrainingLog::TrainingLog(const std::string& run, int64_t step) : path_(run + "/metrics.jsonl") {
  const int64_t kept = kept_bytes(path_, step);
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0 || ftruncate(fd_, kept) != 0) {
    const int reason = errno;
    if (fd_ >= 0) close(fd_);
    fail(Exit::kUsage, path_, ": cannot write there: ", std::strerror(reason),
         "; check that the folder exists and may be written");
  }
}

TrainingLog::~TrainingLog() { close(fd_); }

void TrainingLog::write(const std::string& kind, int64_t step, const Scalars& scalars) {
  nlohmann::ordered_json record = {{"kind", kind}, {"step", step}};
  for (const auto& [name, value] : scalars)
    record[name] = std::isfinite(value) ? nlohmann::ordered_json(value) : nullptr;
  append_to(fd_, path_, record.dump() + "\n");
}

}  // namespace ff
