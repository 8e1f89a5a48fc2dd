// Frames, torsions and atoms: checks and dispatch.
#include "core/ops/rigid_ops.h"

#include "core/ops/gradient.h"
#include "core/ops/kernels.h"
#include "core/ops/linear.h"

namespace ff {
namespace {

void check_shape(const char* operation, const Tensor& x, const Dims& want) {
  check(x.shape() == want, operation, ": ", x.shape().str(), " where ", want.str(), " belongs");
  check(x.is_contiguous(), operation, ": ", x.shape().str(), " is not contiguous");
}

Tensor like(const char* operation, const Var& x, const Dims& shape) {
  const Dtype dtype = x.value().dtype();
  check(dtype == Dtype::f32 || dtype == Dtype::f64, operation, " of ", name_of(dtype));
  check(x.value().is_contiguous(), operation, ": ", x.shape().str(), " is not contiguous");
  return Tensor::empty(shape, dtype, x.value().device());
}

void check_same_type(const char* operation, const Var& a, const Var& b) {
  check(a.value().dtype() == b.value().dtype(), operation, " of ", name_of(a.value().dtype()),
        " and ", name_of(b.value().dtype()));
}

}  // namespace

Var apply_rigids(const Var& affine, const Var& points) {
  const int64_t n = affine.size(0);
  check_shape("apply_rigids", affine.value(), {n, 7});
  check_shape("apply_rigids", points.value(), {n, points.size(1) / 3 * 3});
  check_same_type("apply_rigids", affine, points);
  const Tensor out = like("apply_rigids", affine, points.shape());
  kernels(out.device()).apply_rigids(affine.value(), points.value(), out);
  return result("apply_rigids", out, {&affine, &points}, [=](const Tensor& dy) {
    const Gradient da(affine), dp(points);
    kernels(dy.device()).apply_rigids_backward(affine.value(), points.value(), dy, da, dp);
  });
}

Var update_backbone(const Var& affine, const Var& update) {
  const int64_t n = affine.size(0);
  check_shape("update_backbone", affine.value(), {n, 7});
  check_shape("update_backbone", update.value(), {n, 6});
  check_same_type("update_backbone", affine, update);
  const Tensor out = like("update_backbone", affine, {n, 7});
  kernels(out.device()).update_backbone(affine.value(), update.value(), out);
  return result("update_backbone", out, {&affine, &update}, [=](const Tensor& dy) {
    const Gradient da(affine), du(update);
    kernels(dy.device()).update_backbone_backward(affine.value(), update.value(), dy, da, du);
  });
}

Var scale_translation(const Var& affine, double factor) {
  check_shape("scale_translation", affine.value(), {affine.size(0), 7});
  const Tensor out = like("scale_translation", affine, affine.shape());
  kernels(out.device()).scale_affine(affine.value(), 1, factor, out);
  return result("scale_translation", out, {&affine},
                [factor, to = affine.gradient_only()](const Tensor& dy) {
                  kernels(dy.device()).scale_affine(dy, 1, factor, dy);
                  hand_over(to, dy);
                });
}

Var stop_rotation_gradient(const Var& affine) {
  return result("stop_rotation_gradient", affine.value(), {&affine},
                [to = affine.gradient_only()](const Tensor& dy) {
                  kernels(dy.device()).scale_affine(dy, 0, 1, dy);
                  hand_over(to, dy);
                });
}

Var affine_frames(const Var& affine) {
  check_shape("affine_frames", affine.value(), {affine.size(0), 7});
  const Tensor out = like("affine_frames", affine, {affine.size(0), 12});
  kernels(out.device()).affine_frames(affine.value(), out);
  return result("affine_frames", out, {&affine}, [=](const Tensor& dy) {
    const Gradient da(affine);
    kernels(dy.device()).affine_frames_backward(affine.value(), dy, da);
  });
}

Var normalize_angles(const Var& x) {
  check_shape("normalize_angles", x.value(), {x.size(0), 14});
  const Tensor out = like("normalize_angles", x, {x.size(0), 7, 2});
  kernels(out.device()).normalize_pairs(x.value(), out);
  return result("normalize_angles", out, {&x}, [=](const Tensor& dy) {
    const Gradient dx(x);
    kernels(dy.device()).normalize_pairs_backward(x.value(), out, dy, dx);
  });
}

Var torsions_to_frames(const Var& affine, const Var& angles, const Tensor& aatype,
                       const AtomTables& tables) {
  const int64_t n = affine.size(0);
  check_shape("torsions_to_frames", affine.value(), {n, 7});
  check_shape("torsions_to_frames", angles.value(), {n, 7, 2});
  check_shape("torsions_to_frames", aatype, {n});
  check_same_type("torsions_to_frames", affine, angles);
  const Tensor out = like("torsions_to_frames", affine, {n, 8, 12});
  kernels(out.device())
      .torsions_to_frames(affine.value(), angles.value(), aatype, tables.default_frames, out);
  return result("torsions_to_frames", out, {&affine, &angles}, [=](const Tensor& dy) {
    const Gradient da(affine), dt(angles);
    kernels(dy.device())
        .torsions_to_frames_backward(affine.value(), angles.value(), aatype, tables.default_frames,
                                     dy, da, dt);
  });
}

Var frames_to_atom14(const Var& frames, const Tensor& aatype, const AtomTables& tables) {
  const int64_t n = frames.size(0);
  check_shape("frames_to_atom14", frames.value(), {n, 8, 12});
  check_shape("frames_to_atom14", aatype, {n});
  const Tensor out = like("frames_to_atom14", frames, {n, 14, 3});
  kernels(out.device())
      .frames_to_atom14(frames.value(), aatype, tables.atom14_group, tables.atom14_positions,
                        tables.atom14_mask, out);
  return result("frames_to_atom14", out, {&frames},
                [aatype, tables, to = frames.gradient_only()](const Tensor& dy) {
                  const Gradient df(to);
                  kernels(dy.device())
                      .frames_to_atom14_backward(aatype, tables.atom14_group,
                                                 tables.atom14_positions, tables.atom14_mask, dy,
                                                 df);
                });
}

Var atom14_to_atom37(const Var& atoms, const Tensor& index, const Tensor& mask) {
  const int64_t n = atoms.size(0);
  check_shape("atom14_to_atom37", atoms.value(), {n, 14, 3});
  check_shape("atom14_to_atom37", index, {n, 37});
  check_shape("atom14_to_atom37", mask, {n, 37});
  const Tensor out = like("atom14_to_atom37", atoms, {n, 37, 3});
  kernels(out.device()).atom14_to_atom37(atoms.value(), index, mask, out);
  return result("atom14_to_atom37", out, {&atoms},
                [index, mask, to = atoms.gradient_only()](const Tensor& dy) {
                  const Gradient da(to);
                  kernels(dy.device()).atom14_to_atom37_backward(index, mask, dy, da);
                });
}

Var relu(const Var& x) {
  const Tensor out = like("relu", x, x.shape());
  kernels(out.device()).relu(x.value(), out);
  return result("relu", out, {&x}, [=](const Tensor& dy) {
    kernels(dy.device()).activation_backward(out, Activation::kRelu, dy);
    hand_over(x, dy);
  });
}

Var symmetrize(const Var& x) {
  check_shape("symmetrize", x.value(), {x.size(0), x.size(0), x.size(2)});
  const Tensor out = like("symmetrize", x, x.shape());
  kernels(out.device()).symmetrize(x.value(), out);
  return result("symmetrize", out, {&x}, [=](const Tensor& dy) {
    kernels(dy.device()).add(dy, x.grad_into());
    kernels(dy.device()).add(dy.transpose(0, 1), x.grad_into());
  });
}

}  // namespace ff
