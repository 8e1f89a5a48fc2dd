// Rigid motions: Gram-Schmidt and its inverse reading, rotations as quaternions.
#include "core/geometry/rigid.h"

#include <cmath>

namespace ff {
namespace {

double dot(const Vec3& a, const Vec3& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

Vec3 normalized(const Vec3& v, double epsilon) {
  const double length = std::sqrt(dot(v, v) + epsilon);
  return {v[0] / length, v[1] / length, v[2] / length};
}

}  // namespace

Vec3 operator-(const Vec3& a, const Vec3& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }

Rigid frame_from_vectors(const Vec3& along_x, const Vec3& in_xy, const Vec3& origin,
                         double epsilon) {
  const Vec3 x = normalized(along_x, epsilon);
  const double c = dot(in_xy, x);
  const Vec3 y = normalized(in_xy - Vec3{c * x[0], c * x[1], c * x[2]}, epsilon);
  const Vec3 z = {x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]};
  return {{x[0], y[0], z[0], x[1], y[1], z[1], x[2], y[2], z[2]}, origin};
}

Vec3 to_local(const Rigid& frame, const Vec3& p) {
  const Vec3 d = p - frame.trans;
  const auto& r = frame.rot;
  return {r[0] * d[0] + r[3] * d[1] + r[6] * d[2], r[1] * d[0] + r[4] * d[1] + r[7] * d[2],
          r[2] * d[0] + r[5] * d[1] + r[8] * d[2]};
}

Vec3 to_global(const Rigid& frame, const Vec3& x) {
  const auto& r = frame.rot;
  return {r[0] * x[0] + r[1] * x[1] + r[2] * x[2] + frame.trans[0],
          r[3] * x[0] + r[4] * x[1] + r[5] * x[2] + frame.trans[1],
          r[6] * x[0] + r[7] * x[1] + r[8] * x[2] + frame.trans[2]};
}

std::array<double, 4> largest_eigenvector(std::array<std::array<double, 4>, 4> m) {
  constexpr int kSweeps = 50;  // it converges quadratically, in under ten
  std::array<std::array<double, 4>, 4> v{};
  for (size_t i = 0; i < 4; ++i) v[i][i] = 1;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool rotated = false;
    for (size_t p = 0; p < 3; ++p)
      for (size_t q = p + 1; q < 4; ++q) {
        const double apq = m[p][q];
        if (std::abs(apq) <= 1e-17 * (std::abs(m[p][p]) + std::abs(m[q][q]))) continue;
        rotated = true;
        const double theta = (m[q][q] - m[p][p]) / (2 * apq);
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::hypot(t, 1.0), s = t * c;
        for (size_t k = 0; k < 4; ++k) {
          const double kp = m[k][p], kq = m[k][q];
          m[k][p] = c * kp - s * kq;
          m[k][q] = s * kp + c * kq;
        }
        for (size_t k = 0; k < 4; ++k) {
          const double pk = m[p][k], qk = m[q][k], vp = v[k][p], vq = v[k][q];
          m[p][k] = c * pk - s * qk;
          m[q][k] = s * pk + c * qk;
          v[k][p] = c * vp - s * vq;
          v[k][q] = s * vp + c * vq;
        }
        m[p][q] = m[q][p] = 0;
      }
    if (!rotated) break;
  }
  size_t best = 0;
  for (size_t i = 1; i < 4; ++i)
    if (m[i][i] > m[best][best]) best = i;
  return {v[0][best], v[1][best], v[2][best], v[3][best]};
}

std::array<double, 4> quaternion(const std::array<double, 9>& r) {
  // The quaternion maximises the agreement of its rotation with r: Bar-Itzhack 2000.
  std::array<double, 4> q =
      largest_eigenvector({{{r[0] + r[4] + r[8], r[7] - r[5], r[2] - r[6], r[3] - r[1]},
                            {r[7] - r[5], r[0] - r[4] - r[8], r[1] + r[3], r[2] + r[6]},
                            {r[2] - r[6], r[1] + r[3], r[4] - r[0] - r[8], r[5] + r[7]},
                            {r[3] - r[1], r[2] + r[6], r[5] + r[7], r[8] - r[0] - r[4]}}});
  if (q[0] < 0)
    for (double& x : q) x = -x;
  return q;
}

std::array<double, 9> rotation(const std::array<double, 4>& q) {
  const double w = q[0], x = q[1], y = q[2], z = q[3];
  return {
      w * w + x * x - y * y - z * z, 2 * (x * y - w * z),           2 * (x * z + w * y),
      2 * (x * y + w * z),           w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
      2 * (x * z - w * y),           2 * (y * z + w * x),           w * w - x * x - y * y + z * z};
}

}  // namespace ff
