// The structure module's small kernels on the CPU: frames, torsions and atoms of one residue at a
// time. A frame is 12 numbers (rotation row-major, translation) or 7 (quaternion, translation).
#include "core/ops/cpu/rigid.h"

namespace ff::cpu::FF_ISA {
namespace {

constexpr int kGroups = 8, kAtoms14 = 14, kAtoms37 = 37;

}  // namespace

void apply_rigids(const Tensor& affine, const Tensor& points, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    const int64_t n = points.size(0), count = points.size(1) / 3;
    for (int64_t i = 0; i < n; ++i) {
      const T *a = affine.data<T>() + 7 * i, *p = points.data<T>() + 3 * count * i;
      T* to = out.data<T>() + 3 * count * i;
      T r[9], q[3];
      quat_to_rot(a, r);
      for (int64_t k = 0; k < count; ++k) {
        transform(r, a + 4, p[k], p[count + k], p[2 * count + k], q);
        for (int x = 0; x < 3; ++x) to[x * count + k] = q[x];
      }
    }
  });
}

void update_backbone(const Tensor& affine, const Tensor& update, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < affine.size(0); ++i) {
      const T *a = affine.data<T>() + 7 * i, *u = update.data<T>() + 6 * i;
      T* to = out.data<T>() + 7 * i;
      T q[4];
      times_one_plus(a, u, q);
      const T norm = T(__builtin_sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]));
      T r[9];
      quat_to_rot(a, r);
      transform(r, a + 4, u[3], u[4], u[5], to + 4);
      for (int k = 0; k < 4; ++k) to[k] = q[k] / norm;
    }
  });
}

void scale_affine(const Tensor& affine, double rotation, double translation, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    const T* from = affine.data<T>();
    T* to = out.data<T>();
    for (int64_t i = 0; i < affine.size(0); ++i)
      for (int k = 0; k < 7; ++k)
        to[7 * i + k] = from[7 * i + k] * T(k < 4 ? rotation : translation);
  });
}

void affine_frames(const Tensor& affine, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < affine.size(0); ++i) {
      const T* a = affine.data<T>() + 7 * i;
      T* frame = out.data<T>() + 12 * i;
      quat_to_rot(a, frame);
      for (int x = 0; x < 3; ++x) frame[9 + x] = a[4 + x];
    }
  });
}

void normalize_pairs(const Tensor& x, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    const T* from = x.data<T>();
    T* to = out.data<T>();
    for (int64_t i = 0; i < x.numel(); i += 2) {
      const T square = from[i] * from[i] + from[i + 1] * from[i + 1];
      const T length = T(__builtin_sqrt(square > T(1e-12) ? square : T(1e-12)));
      to[i] = from[i] / length;
      to[i + 1] = from[i + 1] / length;
    }
  });
}

void torsions_to_frames(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                        const Tensor& default_frames, const Tensor& frames) {
  by_real_type(frames, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < affine.size(0); ++i) {
      const T *a = affine.data<T>() + 7 * i, *sin_cos = angles.data<T>() + 14 * i;
      const float* table = default_frames.data<float>() + aatype.data<int32_t>()[i] * kGroups * 16;
      T backbone[12], turned[kGroups][12], local[kGroups][12];
      local_frames(a, sin_cos, table, backbone, turned, local);
      for (int g = 0; g < kGroups; ++g)
        compose(backbone, local[g], frames.data<T>() + (i * kGroups + g) * 12);
    }
  });
}

void frames_to_atom14(const Tensor& frames, const Tensor& aatype, const Tensor& group,
                      const Tensor& positions, const Tensor& mask, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < frames.size(0); ++i)
      for (int atom = 0; atom < kAtoms14; ++atom) {
        const int64_t row = aatype.data<int32_t>()[i] * kAtoms14 + atom;
        const T* frame = frames.data<T>() + (i * kGroups + group.data<int32_t>()[row]) * 12;
        const float* p = positions.data<float>() + 3 * row;
        T* to = out.data<T>() + (i * kAtoms14 + atom) * 3;
        transform(frame, frame + 9, T(p[0]), T(p[1]), T(p[2]), to);
        for (int x = 0; x < 3; ++x) to[x] *= T(mask.data<float>()[row]);
      }
  });
}

void atom14_to_atom37(const Tensor& atoms, const Tensor& index, const Tensor& mask,
                      const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < atoms.size(0); ++i)
      for (int atom = 0; atom < kAtoms37; ++atom) {
        const int64_t row = i * kAtoms37 + atom;
        const T* from = atoms.data<T>() + (i * kAtoms14 + index.data<int32_t>()[row]) * 3;
        for (int x = 0; x < 3; ++x)
          out.data<T>()[3 * row + x] = from[x] * T(mask.data<float>()[row]);
      }
  });
}

void relu(const Tensor& x, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    const T* from = x.data<T>();
    T* to = out.data<T>();
    for (int64_t i = 0; i < x.numel(); ++i) to[i] = from[i] > 0 ? from[i] : T(0);
  });
}

void symmetrize(const Tensor& x, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    const int64_t n = x.size(0), c = x.size(2);
    const T* from = x.data<T>();
    T* to = out.data<T>();
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < c; ++k)
          to[(i * n + j) * c + k] = from[(i * n + j) * c + k] + from[(j * n + i) * c + k];
  });
}

}  // namespace ff::cpu::FF_ISA
