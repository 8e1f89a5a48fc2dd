// TensorBoard's event files: scalars over steps.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ff {

/// Named values of one step.
using Scalars = std::vector<std::pair<std::string, double>>;

/// One event as protobuf: tensorflow.Event with a Summary of simple values. `wall_time` in seconds
/// since 1970.
std::string scalar_event(double wall_time, int64_t step, const Scalars& scalars);
/// `data` in TFRecord's frame: length, its masked CRC-32C, data, its masked CRC-32C.
std::string tf_record(const std::string& data);

/// events.out.tfevents.SECONDS.HOST.PID.N in a folder, for `tensorboard --logdir FOLDER`.
class EventFile {
 public:
  /// Begins a new file. TensorBoard then forgets what older files of the folder hold of steps after
  /// `first_step`. Throws Exit::kUsage where the file cannot be made.
  EventFile(const std::string& folder, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// Throws Exit::kDevice when writing fails.
  void write(int64_t step, const Scalars& scalars);
  const std::string& path() const { return path_; }

 private:
  void append(const std::string& record);
  std::string path_;
  int fd_ = -1;
};

}  // namespace ff
