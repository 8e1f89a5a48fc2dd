// Rigid motions: Gram-Schmidt and its inverse reading.
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

}  // namespace ff
