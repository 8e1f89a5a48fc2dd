// Rigid motions of one frame at a time, in double: for features and labels, which carry no
// gradient.
#pragma once

#include <array>

namespace ff {

using Vec3 = std::array<double, 3>;

/// x -> rot x + trans. rot row-major; its columns are the frame's axes.
struct Rigid {
  std::array<double, 9> rot{};
  Vec3 trans{};
};

/// The frame at `origin` with `along_x` on its x axis and `in_xy` (both relative to the origin) in
/// its xy plane, y > 0. Each axis is divided by sqrt(|.|^2 + epsilon), so that points which
/// coincide give zero axes. Jumper et al. 2021, Suppl. Alg. 21.
Rigid frame_from_vectors(const Vec3& along_x, const Vec3& in_xy, const Vec3& origin,
                         double epsilon);

/// The point seen from the frame: rot^T (p - trans).
Vec3 to_local(const Rigid& frame, const Vec3& p);

/// rot x + trans.
Vec3 to_global(const Rigid& frame, const Vec3& x);

/// The rotation as a unit quaternion (w, x, y, z), w >= 0; that of no rotation where `rot` is none
/// (all zero).
std::array<double, 4> quaternion(const std::array<double, 9>& rot);

/// The eigenvector of a symmetric matrix's largest eigenvalue, of length 1. Jacobi's method.
std::array<double, 4> largest_eigenvector(std::array<std::array<double, 4>, 4> m);

/// The rotation of a unit quaternion (w, x, y, z).
std::array<double, 9> rotation(const std::array<double, 4>& q);

Vec3 operator-(const Vec3& a, const Vec3& b);

}  // namespace ff
