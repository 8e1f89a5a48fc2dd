// A stream that stands still, for tests.
#include "cuda/device.cuh"
#include "cuda/module_parts.h"
#include "cuda/runtime.h"

namespace ff::cuda {
namespace {

__device__ __forceinline__ int64_t nanoseconds() {
  int64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

__global__ void spin_kernel(int64_t ns) {
  after_earlier();
  const int64_t end = nanoseconds() + ns;
  while (nanoseconds() < end) {
  }
}

}  // namespace

void spin(double microseconds, cudaStream_t at) {
  const OnStream on(at);
  start_kernel(spin_kernel, 1, 1, 0, int64_t(1e3 * microseconds));
  check_launch("spin", microseconds, " us");
}

}  // namespace ff::cuda
