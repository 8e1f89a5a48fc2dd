// Stands in for CUDA's header: a bf16 and its conversions.
#pragma once

#include "cuda_runtime_api.h"

class __nv_bfloat16 {
 public:
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {
    const unsigned u = __float_as_uint(x);
    bits_ = x != x ? 0x7fff : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  operator float() const { return __uint_as_float(unsigned(bits_) << 16); }

 private:
  uint16_t bits_;
};
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
