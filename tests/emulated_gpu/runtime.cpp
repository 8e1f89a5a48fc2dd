// CUDA's runtime on the CPU: everything has happened when a call returns. Memory is the heap's, of
// exact sizes, so that the address sanitizer finds what is out of bounds, and holds NaN at first.
#include "runtime.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
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
cudaError_t cudaFreeHost(void* p) { return std::free(p), cudaSuccess; }

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

// A graph's nodes are done one after another, as they were captured. Memory is no node.
struct CUgraphNode_st {
  const void* kernel = nullptr;
  Launch launch;
  dim3 blocks, threads;
  size_t shared = 0;
  std::vector<std::vector<char>> arguments;
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
  std::function<void()> work;

  void run() {
    if (work) return work();
    if (!kernel) return void(std::memmove(to, from, bytes));
    std::vector<void*> at;
    for (std::vector<char>& argument : arguments) at.push_back(argument.data());
    launch(blocks, threads, shared, at.data());
  }
};
struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};
struct CUgraphExec_st {
  std::map<cudaGraphNode_t, CUgraphNode_st> nodes;
  std::vector<cudaGraphNode_t> order;
};
namespace {
thread_local std::unique_ptr<CUgraph_st> t_captured;
CUgraphNode_st& new_node() {
  return *t_captured->nodes.emplace_back(std::make_unique<CUgraphNode_st>());
}
}  // namespace
bool ff::emulated::captures() { return t_captured != nullptr; }
void ff::emulated::capture(const void* kernel, Launch launch, dim3 blocks, dim3 threads,
                           size_t shared, const std::vector<std::vector<char>>& arguments) {
  CUgraphNode_st& node = new_node();
  node.kernel = kernel;
  node.launch = std::move(launch);
  node.blocks = blocks;
  node.threads = threads;
  node.shared = shared;
  node.arguments = arguments;
}
void ff::emulated::capture(std::function<void()> work) { new_node().work = std::move(work); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (!captures()) return std::memmove(to, from, bytes), cudaSuccess;
  CUgraphNode_st& node = new_node();
  node.to = to;
  node.from = from;
  return node.bytes = bytes, cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  t_captured = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* to) {
  return *to = t_captured.release(), cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                     unsigned long long*, cudaGraph_t*,
                                     const cudaGraphNode_t** last, const cudaGraphEdgeData**,
                                     size_t* count) {
  thread_local cudaGraphNode_t node;
  node = t_captured->nodes.back().get();
  *status = cudaStreamCaptureStatusActive;
  *last = &node;
  return *count = 1, cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* to, cudaGraph_t graph, unsigned long long) {
  *to = new CUgraphExec_st;
  for (const auto& node : graph->nodes) {
    (*to)->nodes[node.get()] = *node;
    (*to)->order.push_back(node.get());
  }
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
  for (const cudaGraphNode_t node : ready->order) ready->nodes.at(node).run();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) { return delete ready, cudaSuccess; }
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t ready, cudaGraphNode_t which,
                                             const cudaKernelNodeParams* params) {
  CUgraphNode_st& node = ready->nodes.at(which);
  if (params->func != node.kernel) return failed(cudaErrorInvalidValue);
  node.blocks = params->gridDim;
  node.threads = params->blockDim;
  node.shared = params->sharedMemBytes;
  for (size_t i = 0; i < node.arguments.size(); ++i)
    std::memcpy(node.arguments[i].data(), params->kernelParams[i], node.arguments[i].size());
  return cudaSuccess;
}
cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t ready, cudaGraphNode_t which,
                                               void* to, const void* from, size_t bytes,
                                               cudaMemcpyKind) {
  CUgraphNode_st& node = ready->nodes.at(which);
  node.to = to;
  node.from = from;
  return node.bytes = bytes, cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
/// A pool that gives back at once: what it has reserved is in use.
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  const std::lock_guard lock(g_memory_mutex);
  *static_cast<uint64_t*>(value) = uint64_t(g_used);
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
