// Rotations and frames, for the kernels of the structure module. A frame is 12 numbers (rotation
// row-major, translation) or 7 (unit quaternion w, x, y, z, translation).
#pragma once

namespace ff::cuda {

/// Rotation r of a unit quaternion; not normalised here.
__device__ __forceinline__ void quat_to_rot(const float* q, float* r) {
  const float w = q[0], x = q[1], y = q[2], z = q[3];
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

/// dq += the gradient of quat_to_rot's r.
__device__ __forceinline__ void quat_to_rot_backward(const float* q, const float* dr, float* dq) {
  const float w = q[0], x = q[1], y = q[2], z = q[3];
  dq[0] += 2 * (w * (dr[0] + dr[4] + dr[8]) + x * (dr[7] - dr[5]) + y * (dr[2] - dr[6]) +
                z * (dr[3] - dr[1]));
  dq[1] += 2 * (w * (dr[7] - dr[5]) + x * (dr[0] - dr[4] - dr[8]) + y * (dr[1] + dr[3]) +
                z * (dr[2] + dr[6]));
  dq[2] += 2 * (w * (dr[2] - dr[6]) + x * (dr[1] + dr[3]) + y * (dr[4] - dr[0] - dr[8]) +
                z * (dr[5] + dr[7]));
  dq[3] += 2 * (w * (dr[3] - dr[1]) + x * (dr[2] + dr[6]) + y * (dr[5] + dr[7]) +
                z * (dr[8] - dr[0] - dr[4]));
}

/// out = r v + t.
__device__ __forceinline__ void transform(const float* r, const float* t, float x, float y, float z,
                                          float* out) {
#pragma unroll
  for (int i = 0; i < 3; ++i) out[i] = r[3 * i] * x + r[3 * i + 1] * y + r[3 * i + 2] * z + t[i];
}

/// Quaternion a (1, u): a plus its product with the vector.
__device__ __forceinline__ void times_one_plus(const float* a, const float* u, float* q) {
  q[0] = a[0] - a[1] * u[0] - a[2] * u[1] - a[3] * u[2];
  q[1] = a[1] + a[0] * u[0] + a[2] * u[2] - a[3] * u[1];
  q[2] = a[2] + a[0] * u[1] - a[1] * u[2] + a[3] * u[0];
  q[3] = a[3] + a[0] * u[2] + a[1] * u[1] - a[2] * u[0];
}

/// out = a b for frames of 12.
__device__ __forceinline__ void compose(const float* a, const float* b, float* out) {
  const float zero[3] = {};
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    float column[3];
    transform(a, zero, b[c], b[3 + c], b[6 + c], column);
#pragma unroll
    for (int r = 0; r < 3; ++r) out[3 * r + c] = column[r];
  }
  transform(a, a + 9, b[9], b[10], b[11], out + 9);
}

/// da += d(a b) b^T, db += a^T d(a b) for frames of 12.
__device__ __forceinline__ void compose_backward(const float* a, const float* b, const float* d,
                                                 float* da, float* db) {
#pragma unroll
  for (int r = 0; r < 3; ++r)
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      float left = d[9 + r] * b[9 + c], right = 0;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        left += d[3 * r + k] * b[3 * c + k];
        right += a[3 * k + r] * d[3 * k + c];
      }
      da[3 * r + c] += left;
      db[3 * r + c] += right;
      db[9 + r] += a[3 * c + r] * d[9 + c];
    }
#pragma unroll
  for (int r = 0; r < 3; ++r) da[9 + r] += d[9 + r];
}

}  // namespace ff::cuda
