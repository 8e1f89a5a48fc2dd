// CUDA graphs of what a function asks of the GPU, launched again when it asks for the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <initializer_list>

namespace ff::cuda {

/// What stands between a function that is recorded or followed and the GPU: on its thread every
/// launch, copy and piece of memory is asked of current(). Where launch(), fixed() and copy() are
/// true the caller asks the GPU, on stream(), and calls asked() behind it.
class Recorder {
 public:
  /// nullptr where the calling thread asks the GPU itself.
  static Recorder* current() { return t_current; }

  struct Launch {
    const void* kernel;
    dim3 blocks, threads;
    size_t shared;
    const void* const* arguments;
    const size_t* sizes;
    size_t count;
  };
  virtual bool launch(const Launch& launch) = 0;
  /// A matrix product: its operands, which must be the same again, and its plan. Without asked().
  virtual bool fixed(std::initializer_list<const void*> addresses) = 0;
  /// Within the GPU.
  virtual bool copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void asked() = 0;
  /// Of bytes that are kept for it.
  virtual void upload(void* to, const void* from, int64_t bytes) = 0;
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* p) = 0;
  /// The function waits for the GPU: it cannot be recorded.
  [[noreturn]] virtual void refuse_wait() = 0;

 protected:
  ~Recorder() = default;
  static inline thread_local Recorder* t_current = nullptr;
};

// For DeviceMemory.
void* record(const std::function<void()>& f);
void play(void* recording);
bool follow(void* recording, const std::function<void()>& f);
void forget(void* recording);
/// Whether memory is a recording's: what still has it when a function failed gives nothing back.
bool recorded_memory(const void* p);

}  // namespace ff::cuda
