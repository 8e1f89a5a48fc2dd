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

Vec3 operator-(const Vec3& a, const Vec3& b);

}  // namespace ff
