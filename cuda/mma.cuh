// Tensor-core and copy instructions of sm_80 and newer, as functions; tiles in shared memory.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace ff::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

/// Copies the first `bytes` of 16 (8, 4) to shared memory behind the thread's back; the rest
/// becomes 0.
__device__ __forceinline__ void copy_async16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async8(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async4(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Waits until at most kPending of this thread's groups are on their way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

/// In one instruction: where registers are short, the compiler makes several of an ordinary store.
__device__ __forceinline__ void store_whole(void* to, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void store_whole(void* to, uint2 v) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};\n" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
}

/// Four 8 x 8 matrices of bf16; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// An 8 x 8 matrix of bf16, of which thread (g, t) = (lane / 4, lane % 4) holds row g, columns 2t
/// and 2t + 1, transposed.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
  return y;
}

/// d [16, 8] += a [16, 16] b [16, 8], bf16 with f32 sums. Thread (g, t) = (lane / 4, lane % 4)
/// holds d[g, 2t], d[g, 2t + 1], d[g + 8, 2t], d[g + 8, 2t + 1].
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same in f16 with depth 8: a0 is rows g, a1 rows g + 8, columns 2t and 2t + 1; b rows 2t and
/// 2t + 1, column g.
__device__ __forceinline__ void mma_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

/// d = a b, the same otherwise.
__device__ __forceinline__ void mma_f16_first(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(0.0f));
}

/// The same with depth 16: a2 and a3 are columns 2t + 8 and 2t + 9 of a0's and a1's rows; b1 rows
/// 2t + 8 and 2t + 9.
__device__ __forceinline__ void mma_f16_first(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
}

/// The b of mma_f16 that is the unit matrix: d += a. And the a; of bf16 with its one.
__device__ __forceinline__ uint32_t unit_fragment(int lane, uint32_t one = 0x3c00) {
  const int column = lane / 4 - lane % 4 * 2;
  return column == 0 ? one : column == 1 ? one << 16 : 0u;
}

/// Two numbers as f16, the first in the lower half.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

/// Two numbers as bf16, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

/// 2^x within 2 ulp in one instruction; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / x within 1 ulp in one instruction; 0 of an infinite one.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sigmoid_fast(float x) {
  return reciprocal_fast(1 + exp2_fast(-kLog2e * x));
}

__device__ __forceinline__ void unpack8(uint4 v, float (&to)[8]) {
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    to[2 * l] = low_bf16(pairs[l]);
    to[2 * l + 1] = high_bf16(pairs[l]);
  }
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                    pack_bf16(x[6], x[7]));
}
/// Eight channels from `from`, of which `left` are there; 16-byte loads where kWide.
template <bool kWide, class T>
__device__ __forceinline__ void load8(float (&to)[8], const T* from, int left) {
  if constexpr (kWide && sizeof(T) == 2) {
    unpack8(*reinterpret_cast<const uint4*>(from), to);
  } else {
#pragma unroll
    for (int l = 0; l < 8; ++l) to[l] = l < left ? to_float(from[l]) : 0.0f;
  }
}
template <bool kWide, class T>
__device__ __forceinline__ void store8(T* to, const float (&x)[8], int left) {
  if constexpr (kWide && sizeof(T) == 2) {
    *reinterpret_cast<uint4*>(to) = pack8(x);
  } else {
#pragma unroll
    for (int l = 0; l < 8; ++l)
      if (l < left) to[l] = from_float<T>(x[l]);
  }
}

/// Tiles of bf16 rows of kC channels lie in shared memory in 16-byte chunks, permuted within each
/// 128 bytes' rows so that neither reading nor writing meets a bank twice; the permutation is the
/// one that Hopper's matrix unit expects of rows of 32, 64 or 128 bytes.
template <int kC>
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  static_assert(kC == 16 || kC == 32 || kC == 64);
  constexpr int kChunks = kC / 8, kShift = kC == 64 ? 0 : kC == 32 ? 1 : 2;
  return uint32_t(row * kC * 2 + ((chunk ^ ((row >> kShift) & (kChunks - 1))) << 4));
}

/// The B operands of a 16 x 16 step: two columns of fragments (r[0], r[1] and r[2], r[3]).
/// Columns are 16 rows of the tile from n0, depth is 16 channels of step k.
template <int kC>
__device__ __forceinline__ void load_b_rows(uint32_t (&r)[4], uint32_t tile, int n0, int k,
                                            int lane) {
  load_matrices(
      r, tile + chunk_offset<kC>(n0 + (lane & 7) + (lane >> 4 << 3), 2 * k + (lane >> 3 & 1)));
}
/// Depth is 16 rows of the tile from k0, columns are 16 channels of step n.
template <int kC>
__device__ __forceinline__ void load_b_channels(uint32_t (&r)[4], uint32_t tile, int k0, int n,
                                                int lane) {
  load_matrices_transposed(r, tile + chunk_offset<kC>(k0 + (lane & 15), 2 * n + (lane >> 4)));
}
/// The A operand: 16 rows of the tile from m0, 16 channels of step k.
template <int kC>
__device__ __forceinline__ void load_a_rows(uint32_t (&r)[4], uint32_t tile, int m0, int k,
                                            int lane) {
  load_matrices(r, tile + chunk_offset<kC>(m0 + (lane & 15), 2 * k + (lane >> 4)));
}

/// The channel at place k = 16 s + 8 half + 2 t + e of fragments whose thread t has 8 neighbours of
/// every 32 channels.
__device__ __forceinline__ int channel_at(int k) {
  return k / 32 * 32 + k / 2 % 4 * 8 + k / 16 % 2 * 4 + k / 8 % 2 * 2 + k % 2;
}

/// Sum over the four threads that have a row of a fragment.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/// Launches kKernel on the stream with `shared` bytes of dynamic shared memory; a kernel that asks
/// for more than 48 KiB has no other.
template <auto kKernel, class... Args>
void launch(const char* name, Extent blocks, int threads, int64_t shared, const Args&... args) {
  if (shared > 48 << 10) {
    static const cudaError_t raised = cudaFuncSetAttribute(
        kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(device_info().shared_bytes));
    check_cuda(raised, "cudaFuncSetAttribute", name, ", ", shared, " bytes of shared memory");
  }
  start_kernel(kKernel, blocks, threads, shared, args...);
  check_launch(name, blocks.x, " x ", blocks.y, " x ", blocks.z, " blocks of ", threads,
               " threads, ", shared, " bytes of shared memory");
}

}  // namespace ff::cuda
