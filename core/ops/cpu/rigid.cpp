// The structure module's small kernels on the CPU: frames, torsions and atoms of one residue at a
// time. A frame is 12 numbers (rotation row-major, translation) or 7 (quaternion, translation).
#include "core/ops/cpu/rigid.h"

namespace ff::cpu::FF_ISA {
namespace {

constexpr int kGroups = 8, kAtoms14 = 14, kAtoms37 = 37;

/// Calls f with a zero of the tensor's type: f32 or f64.
template <class F>
void by_real_type(const Tensor& t, F f) {
  if (t.dtype() == Dtype::f64) return f(double());
  f(float());
}

/// out = a b for frames of 12.
template <class T>
void compose(const T* a, const T* b, T* out) {
  const T zero[3] = {};
  for (int c = 0; c < 3; ++c) {
    T column[3];
    transform(a, zero, b[c], b[3 + c], b[6 + c], column);
    for (int r = 0; r < 3; ++r) out[3 * r + c] = column[r];
  }
  transform(a, a + 9, b[9], b[10], b[11], out + 9);
}

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
      // a (1, b, c, d): the quaternion plus its product with the vector.
      T q[4] = {a[0] - a[1] * u[0] - a[2] * u[1] - a[3] * u[2],
                a[1] + a[0] * u[0] + a[2] * u[2] - a[3] * u[1],
                a[2] + a[0] * u[1] - a[1] * u[2] + a[3] * u[0],
                a[3] + a[0] * u[2] + a[1] * u[1] - a[2] * u[0]};
      const T norm = T(__builtin_sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]));
      T r[9];
      quat_to_rot(a, r);
      transform(r, a + 4, u[3], u[4], u[5], to + 4);
      for (int k = 0; k < 4; ++k) to[k] = q[k] / norm;
    }
  });
}

void scale_translation(const Tensor& affine, double factor, const Tensor& out) {
  by_real_type(out, [&](auto t) {
    using T = decltype(t);
    const T* from = affine.data<T>();
    T* to = out.data<T>();
    for (int64_t i = 0; i < affine.size(0); ++i)
      for (int k = 0; k < 7; ++k) to[7 * i + k] = from[7 * i + k] * (k < 4 ? T(1) : T(factor));
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
      T backbone[12], local[kGroups][12];
      quat_to_rot(a, backbone);
      for (int x = 0; x < 3; ++x) backbone[9 + x] = a[4 + x];
      for (int g = 0; g < kGroups; ++g) {
        const float* m = table + g * 16;
        const T s = g ? sin_cos[2 * g - 2] : T(0), c = g ? sin_cos[2 * g - 1] : T(1);
        T turned[12];
        for (int r = 0; r < 3; ++r) {
          turned[3 * r] = m[4 * r];
          turned[3 * r + 1] = m[4 * r + 1] * c + m[4 * r + 2] * s;
          turned[3 * r + 2] = m[4 * r + 2] * c - m[4 * r + 1] * s;
          turned[9 + r] = m[4 * r + 3];
        }
        // chi2, chi3 and chi4 turn in the frame of the angle before; the others in the backbone's.
        if (g > 4)
          compose(local[g - 1], turned, local[g]);
        else
          for (int k = 0; k < 12; ++k) local[g][k] = turned[k];
        compose(backbone, local[g], frames.data<T>() + (i * kGroups + g) * 12);
      }
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
