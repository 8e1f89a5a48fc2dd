// CUDA's runtime on the CPU: everything has happened when a call returns. Memory is the heap's, of
// exact sizes, so that the address sanitizer finds what is out of bounds, and holds NaN at first.
#include "runtime.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

struct CUevent_st {
  std::chrono::steady_clock::time_point at;
};

namespace ff::emulated {
namespace {

constexpr size_t kMemory = size_t(16) << 30;
thread_local cudaError_t t_last = cudaSuccess;
std::mutex g_memory_mutex;
std::map<void*, size_t>& g_memory = *new std::map<void*, size_t>;
size_t g_used = 0;

/// 90 (a Hopper), or FASTFOLD_EMULATED_SM.
int from_environment(const char* name, int otherwise) {
  const char* given = std::getenv(name);
  return given ? std::atoi(given) : otherwise;
}
int compute_capability() { return from_environment("FASTFOLD_EMULATED_SM", 90); }

cudaError_t failed(cudaError_t status) { return t_last = status; }

}  // namespace

void set_last_error(cudaError_t status) { t_last = status; }
size_t shared_bytes() { return size_t(compute_capability() >= 90 ? 227 : 163) << 10; }

}  // namespace ff::emulated

using namespace ff::emulated;

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* to, int) {
  *to = {};
  const int sm = compute_capability();
  std::snprintf(to->name, sizeof to->name, "emulated GPU of sm_%d", sm);
  to->major = sm / 10;
  to->minor = sm % 10;
  to->multiProcessorCount = from_environment("FASTFOLD_EMULATED_PROCESSORS", 132);
  to->l2CacheSize = 50 << 20;
  to->sharedMemPerBlockOptin = shared_bytes();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const std::lock_guard lock(g_memory_mutex);
  *total_bytes = kMemory;
  *free_bytes = kMemory - g_used;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(t_last, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorMemoryAllocation       ? "out of memory"
         : status == cudaErrorInvalidConfiguration ? "invalid configuration argument"
         : status == cudaErrorInvalidValue         ? "invalid argument"
                                                   : "an error of the emulated GPU";
}

cudaError_t cudaMallocAsync(void** to, size_t bytes, cudaStream_t) {
  const std::lock_guard lock(g_memory_mutex);
  if (bytes > kMemory - g_used || posix_memalign(to, 256, bytes))
    return failed(cudaErrorMemoryAllocation);
  g_used += bytes;
  g_memory[*to] = bytes;
  std::memset(*to, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
  const std::lock_guard lock(g_memory_mutex);
  const auto known = g_memory.find(p);
  if (known == g_memory.end()) return failed(cudaErrorInvalidValue);
  g_used -= known->second;
  g_memory.erase(known);
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) {
  *to = std::malloc(bytes);
  return *to ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

// One stream is as good as another.
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned) {
  *to = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* to, unsigned flags, int) {
  return cudaStreamCreateWithFlags(to, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  return *lowest = 0, *highest = -5, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned) {
  *to = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
  e->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* to, int) {
  return *to = nullptr, cudaSuccess;
}
// There are no graphs here: what would be recorded is an error, at once.
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  return cudaErrorNotSupported;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) {
  return cudaErrorNotSupported;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaErrorNotSupported; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
/// A pool that gives back at once: what it has reserved is in use.
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  const std::lock_guard lock(g_memory_mutex);
  *static_cast<uint64_t*>(value) = uint64_t(g_used);
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
