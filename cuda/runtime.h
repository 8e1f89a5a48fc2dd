// The GPU module's runtime: the stream, checked calls, temporary memory, what the device is. The
// program exports core's symbols, so that Tensor and ff::Error are the same on both sides.
#pragma once

#include <cuda_runtime_api.h>

#include "core/tensor/tensor.h"
#include "cuda/recorder.h"

namespace ff::cuda {

/// The stream of all work of this process, in order whatever thread gives it; in a Lane, the
/// lane's. Also makes the process's GPU current on the calling thread: ask for it before any other
/// CUDA call.
cudaStream_t stream();

/// The stream of communication beside it, ordered with it by events alone; its kernels go first
/// where both have some. Makes the GPU current, too.
cudaStream_t communication_stream();

/// While one is alive stream() is this one, on its thread. Memory is still given and taken back in
/// the order of the stream of all work, or of the lane.
class OnStream {
 public:
  explicit OnStream(cudaStream_t s);
  ~OnStream();
  OnStream(const OnStream&) = delete;
  OnStream& operator=(const OnStream&) = delete;

 private:
  cudaStream_t before_;
};

/// The GPU in use.
struct DeviceInfo {
  int index = 0, major = 0, minor = 0;
  int sm_count = 0;
  int64_t l2_bytes = 0;
  int64_t shared_bytes = 0;  ///< of a block at most, after cudaFuncSetAttribute
  /// Whether code of sm_90a (wgmma, TMA, setmaxnreg) runs on it.
  bool hopper() const { return major == 9 && minor == 0; }
};
const DeviceInfo& device_info();

/// Throws Exit::kDevice with the call, `what` of it (sizes) and the device's free memory.
[[noreturn]] void fail_cuda(cudaError_t status, const char* call, const std::string& what);

/// check_cuda(cudaMemcpyAsync(...), "cudaMemcpyAsync", bytes, " bytes").
template <class... What>
void check_cuda(cudaError_t status, const char* call, const What&... what) {
  if (status != cudaSuccess) [[unlikely]]
    fail_cuda(status, call, cat("", what...));
}

/// After every launch: check_launch("layer_norm", x.shape()).
template <class... What>
void check_launch(const char* kernel, const What&... what) {
  if (!Recorder::current()) count_launch();
  if (const cudaError_t status = cudaGetLastError()) [[unlikely]]
    fail_cuda(status, kernel, cat("", what...));
}

/// Temporary device memory for the kernels of one operation, aligned to 256 bytes, uninitialised
/// and counted. Freed in stream order: it may go out of scope right after the launches that use it.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  template <class T>
  T* data() const {
    return memory_.defined() ? static_cast<T*>(memory_.raw()) : nullptr;
  }

 private:
  Tensor memory_;
};

/// The device's memory, in the order of the stream of all work or of the lane; nullptr where there
/// is none left.
void* allocate_memory(int64_t bytes);
void release_memory(void* p);
/// Page-locked memory of the host; cudaFreeHost frees it.
void* locked_memory(int64_t bytes);

/// Fills memory that begins at a multiple of 16 bytes (cuda/copy.cu).
void zero(void* p, int64_t bytes);

/// ceil(a / b)
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace ff::cuda
