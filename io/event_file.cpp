// Protobuf and TFRecord by hand: an event is five fields.
#include "io/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr std::array<uint32_t, 256> crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
    table[i] = c;
  }
  return table;
}

uint32_t masked_crc32c(const std::string& data) {
  static constexpr std::array<uint32_t, 256> kTable = crc32c_table();
  uint32_t c = 0xffffffffu;
  for (const unsigned char byte : data) c = kTable[(c ^ byte) & 0xff] ^ c >> 8;
  c = ~c;
  return (c >> 15 | c << 17) + 0xa282ead8u;
}

/// Little-endian bytes.
template <class T>
std::string bytes(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += char(value | 0x80);
  return out + char(value);
}

enum Wire { kVarint = 0, kFixed64 = 1, kText = 2, kFixed32 = 5 };
std::string key(int field, Wire wire) { return std::string(1, char(field << 3 | wire)); }
std::string text(int field, const std::string& value) {
  return key(field, kText) + varint(value.size()) + value;
}

std::string event(double wall_time, int64_t step, const std::string& what) {
  std::string out = key(1, kFixed64) + bytes(wall_time);
  if (step != 0) out += key(2, kVarint) + varint(uint64_t(step));
  return out + what;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string scalar_event(double wall_time, int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars)
    summary += text(1, text(1, tag) + key(2, kFixed32) + bytes(float(value)));
  return event(wall_time, step, text(5, summary));
}

std::string tf_record(const std::string& data) {
  const std::string length = bytes(uint64_t(data.size()));
  return length + bytes(masked_crc32c(length)) + data + bytes(masked_crc32c(data));
}

EventFile::EventFile(const std::string& folder, int64_t first_step) {
  static std::atomic<int> count{0};
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const double time = now();
  path_ = cat(folder, "/events.out.tfevents.", int64_t(time), ".", host, ".", getpid(), ".",
              count.fetch_add(1));
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0)
    fail(Exit::kUsage, path_, ": cannot write there: ", std::strerror(errno),
         "; check that the folder exists and may be written");
  constexpr char kStart = 1;  // SessionLog.START
  append(tf_record(event(time, 0, text(3, "brain.Event:2"))) +
         tf_record(event(time, first_step, text(7, key(1, kVarint) + kStart))));
}

EventFile::~EventFile() {
  if (fd_ >= 0) close(fd_);
}

void EventFile::write(int64_t step, const Scalars& scalars) {
  append(tf_record(scalar_event(now(), step, scalars)));
}

void EventFile::append(const std::string& record) { append_to(fd_, path_, record); }

}  // namespace ff
