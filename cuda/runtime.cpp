// The runtime: the process's GPU, its stream, its memory pool.
#include "cuda/runtime.h"

#include "cuda/module_parts.h"

namespace ff::cuda {
namespace {

struct State {
  DeviceInfo info;
  cudaStream_t stream = nullptr, communication = nullptr;
  cudaMemPool_t pool = nullptr;
};
State g_state;
thread_local cudaStream_t t_stream = nullptr;  // OnStream's

/// Makes the process's GPU the calling thread's.
void make_current() {
  thread_local bool done = false;
  if (done) return;
  check_cuda(cudaSetDevice(g_state.info.index), "cudaSetDevice", "GPU ", g_state.info.index);
  done = true;
}

void* allocate(int64_t bytes, int) {
  make_current();
  const cudaStream_t s = g_state.stream;
  void* p = nullptr;
  cudaError_t status = cudaMallocAsync(&p, size_t(bytes), s);
  if (status == cudaErrorMemoryAllocation) {
    // What the pool keeps in pieces may be enough in one.
    cudaGetLastError();
    check_cuda(cudaStreamSynchronize(s), "cudaStreamSynchronize");
    check_cuda(cudaMemPoolTrimTo(g_state.pool, 0), "cudaMemPoolTrimTo");
    status = cudaMallocAsync(&p, size_t(bytes), s);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
  }
  check_cuda(status, "cudaMallocAsync", bytes, " bytes");
  return p;
}

// Runs in destructors, also while the program ends: a failure is shown by the next call.
void release(void* p, int64_t, int) { cudaFreeAsync(p, g_state.stream); }

void zero(void* p, int64_t bytes) {
  check_cuda(cudaMemsetAsync(p, 0, size_t(bytes), stream()), "cudaMemsetAsync", bytes, " bytes");
}

void upload(void* to, const void* from, int64_t bytes) {
  // From pageable memory: it has been read when this returns.
  check_cuda(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyHostToDevice, stream()),
             "cudaMemcpyAsync", bytes, " bytes to the GPU");
}

void synchronize() { check_cuda(cudaStreamSynchronize(stream()), "cudaStreamSynchronize"); }

void download(void* to, const void* from, int64_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDeviceToHost, stream()),
             "cudaMemcpyAsync", bytes, " bytes from the GPU");
  synchronize();
}

}  // namespace

cudaStream_t stream() {
  make_current();
  return t_stream ? t_stream : g_state.stream;
}

cudaStream_t communication_stream() {
  make_current();
  return g_state.communication;
}

OnStream::OnStream(cudaStream_t s) { t_stream = s; }
OnStream::~OnStream() { t_stream = nullptr; }

const DeviceInfo& device_info() { return g_state.info; }

void fail_cuda(cudaError_t status, const char* call, const std::string& what) {
  cudaGetLastError();  // so that the next check does not find it again
  size_t free_bytes = 0, total_bytes = 0;
  const bool known = cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess;
  fail(Exit::kDevice, "GPU ", g_state.info.index, ": ", call, what.empty() ? "" : " (", what,
       what.empty() ? "" : ")", " failed: ", cudaGetErrorString(status),
       known ? cat(" (", free_bytes >> 20, " of ", total_bytes >> 20, " MiB free)") : "");
}

Scratch::Scratch(int64_t bytes)
    : memory_(bytes > 0 ? Tensor::empty({ceil_div(bytes, 4)}, Dtype::i32,
                                        {Device::cuda, g_state.info.index})
                        : Tensor()) {}

void start(int index) {
  g_state.info.index = index;
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties", "GPU ", index);
  g_state.info = {index,
                  properties.major,
                  properties.minor,
                  properties.multiProcessorCount,
                  properties.l2CacheSize,
                  int64_t(properties.sharedMemPerBlockOptin)};
  make_current();
  check_cuda(cudaStreamCreateWithFlags(&g_state.stream, cudaStreamNonBlocking),
             "cudaStreamCreateWithFlags");
  int lowest = 0, highest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
             "cudaDeviceGetStreamPriorityRange");
  check_cuda(cudaStreamCreateWithPriority(&g_state.communication, cudaStreamNonBlocking, highest),
             "cudaStreamCreateWithPriority");
  check_cuda(cudaDeviceGetDefaultMemPool(&g_state.pool, index), "cudaDeviceGetDefaultMemPool");
  // Memory stays with the pool: returning it to the driver and asking again would wait for the GPU.
  uint64_t keep = UINT64_MAX;
  check_cuda(cudaMemPoolSetAttribute(g_state.pool, cudaMemPoolAttrReleaseThreshold, &keep),
             "cudaMemPoolSetAttribute");
  register_memory(Device::cuda,
                  {allocate, release, zero, upload, download, copy, copy_all, add_up, synchronize});
}

}  // namespace ff::cuda
