// Stands in for CUDA's header where kernels run on the CPU: the runtime's calls that cuda/ uses,
// vector types, and what nvcc gives to a kernel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define CUDART_VERSION 13000

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemPoolAttr {
  cudaMemPoolReuseAllowInternalDependencies = 3,
  cudaMemPoolAttrReleaseThreshold = 4,
  cudaMemPoolAttrReservedMemCurrent = 5,
  cudaMemPoolAttrUsedMemCurrent = 7,
};
enum : unsigned {
  cudaHostAllocDefault = 0,
  cudaStreamNonBlocking = 1,
  cudaEventDefault = 0,
  cudaEventBlockingSync = 1,
  cudaEventDisableTiming = 2
};
struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  int major, minor, multiProcessorCount, l2CacheSize;
  size_t sharedMemPerBlockOptin;
};
using cudaStream_t = struct CUstream_st*;
using cudaMemPool_t = struct CUmemPoolHandle_st*;
using cudaEvent_t = struct CUevent_st*;

cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* to, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaMallocAsync(void** to, size_t bytes, cudaStream_t);
cudaError_t cudaFreeAsync(void* p, cudaStream_t);
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* to, unsigned flags, int priority);
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventQuery(cudaEvent_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* to, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t bytes);
template <class T>
cudaError_t cudaFuncSetAttribute(T*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 {
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
  unsigned x, y, z;
};

#include "emulated.h"

enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
using cudaGraphNode_t = struct CUgraphNode_st*;
struct cudaGraphEdgeData {};
struct cudaKernelNodeParams {
  void* func;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
};
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus*, unsigned long long* id,
                                     cudaGraph_t*, const cudaGraphNode_t** last,
                                     const cudaGraphEdgeData** edges, size_t* count);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t, cudaGraphNode_t,
                                             const cudaKernelNodeParams*);
cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t, cudaGraphNode_t, void* to,
                                               const void* from, size_t bytes, cudaMemcpyKind);
namespace ff::emulated {
/// A launch whose arguments are known by their addresses alone.
using Launch = std::function<void(dim3 blocks, dim3 threads, size_t shared, void** arguments)>;
/// While the calling thread captures: keeps a kernel's launch, or anything else that is to be done.
bool captures();
void capture(const void* kernel, Launch launch, dim3 blocks, dim3 threads, size_t shared,
             const std::vector<std::vector<char>>& arguments);
void capture(std::function<void()> work);
}  // namespace ff::emulated

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class... Params>
void cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                        const Params&... args) {
  const auto launch = [kernel](dim3 blocks, dim3 threads, size_t shared, const Params&... all) {
    auto thread = [&] { kernel(all...); };
    ff::emulated::run(
        blocks, threads, shared, [](void* t) { (*static_cast<decltype(thread)*>(t))(); }, &thread);
  };
  if (!ff::emulated::captures())
    return launch(config->gridDim, config->blockDim, config->dynamicSmemBytes, args...);
  const auto bytes = [](const auto& arg) {
    const auto* p = reinterpret_cast<const char*>(&arg);
    return std::vector<char>(p, p + sizeof arg);
  };
  ff::emulated::capture(reinterpret_cast<const void*>(kernel),
                        [launch](dim3 blocks, dim3 threads, size_t shared, void** at) {
                          [&]<size_t... I>(std::index_sequence<I...>) {
                            launch(blocks, threads, shared, *static_cast<const Params*>(at[I])...);
                          }
                          (std::index_sequence_for<Params...>());
                        },
                        config->gridDim, config->blockDim, config->dynamicSmemBytes,
                        {bytes(args)...});
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __syncthreads() { ff::emulated::barrier(0, 0, true); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned* to, unsigned n) {
  return __atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}
/// Blocks run one after another: what one waits for must be there.
inline void __nanosleep(unsigned) { ff::emulated::fail("waits for what no earlier block does"); }
inline void __syncwarp(unsigned mask = ~0u) {
  ff::emulated::meet(mask, "__syncwarp", nullptr, [](void**) {});
}
namespace ff::emulated {
template <class T>
T shuffle(unsigned mask, T x, int from, const char* what) {
  struct Lane {
    T x;
    int from;
  } mine{x, from};
  meet(mask, what, &mine, [](void** lanes) {
    T all[32];
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) all[i] = static_cast<Lane*>(lanes[i])->x;
    for (int i = 0; i < 32; ++i) {
      if (!lanes[i]) continue;
      auto* to = static_cast<Lane*>(lanes[i]);
      // What a lane that does not take part would give is undefined.
      lanes[to->from] ? void(to->x = all[to->from]) : void(std::memset(&to->x, 0xff, sizeof(T)));
    }
  });
  return mine.x;
}
inline unsigned ballot(unsigned mask, bool x, const char* what) {
  struct Lane {
    bool x;
    unsigned all;
  } mine{x, 0};
  meet(mask, what, &mine, [](void** lanes) {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) all |= unsigned(static_cast<Lane*>(lanes[i])->x) << i;
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) static_cast<Lane*>(lanes[i])->all = all;
  });
  return mine.all;
}
}  // namespace ff::emulated

/// Shuffles of lanes in groups of `width`; one that would reach beyond its group gives the lane's
/// own value.
template <class T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
  const int lane = ff::emulated::lane();
  return ff::emulated::shuffle(mask, x, (lane & -width) | (from & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int flip, int width = 32) {
  const int lane = ff::emulated::lane(), from = lane ^ flip;
  return ff::emulated::shuffle(mask, x, (lane & -width) + width > from ? from : lane,
                               "__shfl_xor_sync");
}
inline unsigned __ballot_sync(unsigned mask, int x) {
  return ff::emulated::ballot(mask, x != 0, "__ballot_sync");
}
inline int __any_sync(unsigned mask, int x) {
  return ff::emulated::ballot(mask, x != 0, "__any_sync") != 0;
}
inline int __all_sync(unsigned mask, int x) {
  return ff::emulated::ballot(mask, x == 0, "__all_sync") == 0;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline size_t __cvta_generic_to_shared(const void* p) { return ff::emulated::shared_address(p); }
template <class To, class From>
To ff_bits(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline float __uint_as_float(unsigned x) { return ff_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return ff_bits<unsigned>(x); }

/// Keeps the compiler from joining a product with what is added to it.
template <class T>
T ff_rounded(T x) {
  asm("" : "+x"(x));
  return x;
}
inline float __fadd_rn(float a, float b) { return ff_rounded(a + b); }
inline float __fmul_rn(float a, float b) { return ff_rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline double __dadd_rn(double a, double b) { return ff_rounded(a + b); }
inline double __dsub_rn(double a, double b) { return ff_rounded(a - b); }
inline double __dmul_rn(double a, double b) { return ff_rounded(a * b); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::isfinite;
using std::max;
using std::min;
