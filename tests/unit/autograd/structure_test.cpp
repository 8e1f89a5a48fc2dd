// Backwards of the structure module's operations against finite differences.
#include <array>

#include "core/geometry/residue_constants.h"
#include "core/ops/invariant_point_attention.h"
#include "core/ops/rigid_ops.h"
#include "tests/unit/gradcheck.h"

namespace ff::test {
namespace {

/// Frames whose quaternions are near unit length, as rounding leaves them.
Tensor random_affines(int64_t n, unsigned seed) {
  const Tensor t = random_f64({n, 7}, seed);
  for (int64_t i = 0; i < n; ++i) {
    double* q = t.data<double>() + 7 * i;
    const double length = std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    for (int k = 0; k < 4; ++k) q[k] /= length;
  }
  return t;
}

Tensor residues() {
  const std::array<int32_t, 4> types{1, 14, 20, 11};  // Arg, Phe, unknown, Lys
  return Tensor::of<int32_t>({4}, types.data());
}

AtomTables tables() {
  const ResidueConstants& c = residue_constants();
  return {Tensor::of({21, 8, 4, 4}, &c.rigid_group_default_frame[0][0][0][0]),
          Tensor::of({21, 14}, &c.atom14_to_rigid_group[0][0]),
          Tensor::of({21, 14, 3}, &c.atom14_rigid_group_positions[0][0][0]),
          Tensor::of({21, 14}, &c.atom14_mask[0][0])};
}

TEST_CASE("frames: points, updates and scaling") {
  gradcheck([](const Vars& v) { return apply_rigids(v[0], v[1]); },
            {random_affines(3, 1), random_f64({3, 6}, 2)});
  gradcheck([](const Vars& v) { return update_backbone(v[0], v[1]); },
            {random_affines(3, 3), random_f64({3, 6}, 4)});
  gradcheck([](const Vars& v) { return affine_frames(v[0]); }, {random_affines(3, 6)});
  gradcheck([](const Vars& v) { return scale_translation(v[0], 10); }, {random_affines(3, 5)});
}

TEST_CASE("no gradient passes to a stopped rotation") {
  const Tensor seed = random_f64({2, 7}, 6);
  const Tensor grad = gradients([](const Vars& v) { return stop_rotation_gradient(v[0]); },
                                {random_affines(2, 7)}, seed)[0];
  for (int64_t i = 0; i < 14; ++i)
    CHECK(grad.data<double>()[i] == (i % 7 < 4 ? 0 : seed.data<double>()[i]));
}

TEST_CASE("torsions, frames and atoms") {
  gradcheck([](const Vars& v) { return normalize_angles(v[0]); }, {random_f64({3, 14}, 1)});
  gradcheck([](const Vars& v) { return torsions_to_frames(v[0], v[1], residues(), tables()); },
            {random_affines(4, 2), random_f64({4, 7, 2}, 3)});
  gradcheck([](const Vars& v) { return frames_to_atom14(v[0], residues(), tables()); },
            {random_f64({4, 8, 12}, 4)});
  const ResidueConstants& c = residue_constants();
  const Tensor index = Tensor::empty({4, kAtom37}, Dtype::i32), mask = Tensor::empty({4, kAtom37});
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t a = 0; a < kAtom37; ++a) {
      const int32_t type = residues().data<int32_t>()[i];
      index.data<int32_t>()[i * kAtom37 + a] = c.atom37_to_atom14[type][a];
      mask.data<float>()[i * kAtom37 + a] = c.atom37_mask[type][a];
    }
  gradcheck([=](const Vars& v) { return atom14_to_atom37(v[0], index, mask); },
            {random_f64({4, 14, 3}, 5)});
}

TEST_CASE("invariant point attention") {
  // 3 of 5 residues, 3 heads, 2 scalar and 2 point channels for q and k, 4 and 3 for values, c_z 5.
  const Tensor mask = Tensor::zeros({5}, Dtype::f64);
  for (int i = 0; i < 4; ++i) mask.data<double>()[i] = 1;
  gradcheck(
      [=](const Vars& v) {
        return invariant_point_attention(
            {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], mask.narrow(0, 2, 3), mask});
      },
      {random_f64({3, 6}, 1), random_f64({5, 18}, 2), random_f64({3, 18}, 3),
       random_f64({5, 45}, 4), random_affines(3, 5), random_f64({3, 5, 3}, 6),
       random_f64({3, 5, 5}, 7), random_f64({3}, 8)});
}

}  // namespace
}  // namespace ff::test
