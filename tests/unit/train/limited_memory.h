// A CPU whose memory ends where a test wants it to.
#pragma once

#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/tensor/tensor.h"

namespace ff::test {

/// No more than `most` bytes of tensors, and `free` as what the device says it has.
struct LimitedMemory {
  static inline int64_t most, free;

  LimitedMemory() {
    most = free = std::numeric_limits<int64_t>::max();
    DeviceMemory memory{};
    memory.allocate = [](int64_t bytes, int) {
      return memory_count().current + bytes > most
                 ? nullptr
                 : std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64);
    };
    memory.release = [](void* p, int64_t, int) { std::free(p); };
    memory.zero = [](void* p, int64_t bytes) { std::memset(p, 0, size_t(bytes)); };
    memory.synchronize = [] {};
    memory.available = [](int) { return free; };
    register_memory(Device::cpu, memory);
  }
  ~LimitedMemory() { most = free = std::numeric_limits<int64_t>::max(); }
};

}  // namespace ff::test
