// Rotations and frames, for the kernels of the structure module.
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

/// dq += the gradient of quat_to_rot's r.
template <class T>
inline void quat_to_rot_backward(const T* q, const T* dr, T* dq) {
  const T w = q[0], x = q[1], y = q[2], z = q[3];
  dq[0] += 2 * (w * (dr[0] + dr[4] + dr[8]) + x * (dr[7] - dr[5]) + y * (dr[2] - dr[6]) +
                z * (dr[3] - dr[1]));
  dq[1] += 2 * (w * (dr[7] - dr[5]) + x * (dr[0] - dr[4] - dr[8]) + y * (dr[1] + dr[3]) +
                z * (dr[2] + dr[6]));
  dq[2] += 2 * (w * (dr[2] - dr[6]) + x * (dr[1] + dr[3]) + y * (dr[4] - dr[0] - dr[8]) +
                z * (dr[5] + dr[7]));
  dq[3] += 2 * (w * (dr[3] - dr[1]) + x * (dr[2] + dr[6]) + y * (dr[5] + dr[7]) +
                z * (dr[8] - dr[0] - dr[4]));
}

/// Quaternion a (1, u): a plus its product with the vector.
template <class T>
inline void times_one_plus(const T* a, const T* u, T* q) {
  q[0] = a[0] - a[1] * u[0] - a[2] * u[1] - a[3] * u[2];
  q[1] = a[1] + a[0] * u[0] + a[2] * u[2] - a[3] * u[1];
  q[2] = a[2] + a[0] * u[1] - a[1] * u[2] + a[3] * u[0];
  q[3] = a[3] + a[0] * u[2] + a[1] * u[1] - a[2] * u[0];
}

/// out = a b for frames of 12.
template <class T>
inline void compose(const T* a, const T* b, T* out) {
  const T zero[3] = {};
  for (int c = 0; c < 3; ++c) {
    T column[3];
    transform(a, zero, b[c], b[3 + c], b[6 + c], column);
    for (int r = 0; r < 3; ++r) out[3 * r + c] = column[r];
  }
  transform(a, a + 9, b[9], b[10], b[11], out + 9);
}

/// A residue's backbone frame and, relative to it, its groups': `turned` by their angle in the
/// frame that the table gives them in, `local` in the backbone's. table [8, 4, 4]
template <class T>
inline void local_frames(const T* affine, const T* sin_cos, const float* table, T* backbone,
                         T (*turned)[12], T (*local)[12]) {
  quat_to_rot(affine, backbone);
  for (int x = 0; x < 3; ++x) backbone[9 + x] = affine[4 + x];
  for (int g = 0; g < 8; ++g) {
    const float* m = table + g * 16;
    const T s = g ? sin_cos[2 * g - 2] : T(0), c = g ? sin_cos[2 * g - 1] : T(1);
    for (int r = 0; r < 3; ++r) {
      turned[g][3 * r] = m[4 * r];
      turned[g][3 * r + 1] = m[4 * r + 1] * c + m[4 * r + 2] * s;
      turned[g][3 * r + 2] = m[4 * r + 2] * c - m[4 * r + 1] * s;
      turned[g][9 + r] = m[4 * r + 3];
    }
    // chi2, chi3 and chi4 turn in the frame of the angle before; the others in the backbone's.
    if (g > 4)
      compose(local[g - 1], turned[g], local[g]);
    else
      for (int k = 0; k < 12; ++k) local[g][k] = turned[g][k];
  }
}

/// Calls f with a zero of the tensor's type: f32 or f64.
template <class F>
void by_real_type(const Tensor& t, F f) {
  if (t.dtype() == Dtype::f64) return f(double());
  f(float());
}

}  // namespace ff::cpu::FF_ISA
