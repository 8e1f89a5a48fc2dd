// Rotations from quaternions, for the kernels of the structure module.
#pragma once

#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {

/// Rotation r (row-major) of a unit quaternion q (w, x, y, z); not normalised here.
template <class T>
inline void quat_to_rot(const T* q, T* r) {
  const T w = q[0], x = q[1], y = q[2], z = q[3];
  r[0] = w * w + x * x - y * y - z * z;
  r[1] = 2 * (x * y - w * z);
  r[2] = 2 * (x * z + w * y);
  r[3] = 2 * (x * y + w * z);
  r[4] = w * w - x * x + y * y - z * z;
  r[5] = 2 * (y * z - w * x);
  r[6] = 2 * (x * z - w * y);
  r[7] = 2 * (y * z + w * x);
  r[8] = w * w - x * x - y * y + z * z;
}

/// y = r v + t.
template <class T>
inline void transform(const T* r, const T* t, T x, T y, T z, T* out) {
  for (int i = 0; i < 3; ++i) out[i] = r[3 * i] * x + r[3 * i + 1] * y + r[3 * i + 2] * z + t[i];
}

}  // namespace ff::cpu::FF_ISA
