// Backward of the structure module's small kernels on the CPU. All gradients are contiguous and
// added to; an undefined one is not wanted.
#include "core/ops/cpu/rigid.h"

namespace ff::cpu::FF_ISA {
namespace {

constexpr int kGroups = 8, kAtoms14 = 14, kAtoms37 = 37;

template <class T>
T* row(const Tensor& t, int64_t offset) {
  return t.defined() ? t.data<T>() + offset : nullptr;
}

/// da += d(a b) b^T, db += a^T d(a b) for frames of 12.
template <class T>
void compose_backward(const T* a, const T* b, const T* d, T* da, T* db) {
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) {
      T left = d[9 + r] * b[9 + c], right = 0;
      for (int k = 0; k < 3; ++k) {
        left += d[3 * r + k] * b[3 * c + k];
        right += a[3 * k + r] * d[3 * k + c];
      }
      da[3 * r + c] += left;
      db[3 * r + c] += right;
      db[9 + r] += a[3 * c + r] * d[9 + c];
    }
  for (int r = 0; r < 3; ++r) da[9 + r] += d[9 + r];
}

}  // namespace

void apply_rigids_backward(const Tensor& affine, const Tensor& points, const Tensor& dout,
                           const Tensor& daffine, const Tensor& dpoints) {
  by_real_type(dout, [&](auto t) {
    using T = decltype(t);
    const int64_t n = points.size(0), count = points.size(1) / 3;
    for (int64_t i = 0; i < n; ++i) {
      const T *a = affine.data<T>() + 7 * i, *p = points.data<T>() + 3 * count * i,
              *d = dout.data<T>() + 3 * count * i;
      T *da = row<T>(daffine, 7 * i), *dp = row<T>(dpoints, 3 * count * i);
      T r[9], dr[9] = {};
      quat_to_rot(a, r);
      for (int x = 0; x < 3; ++x)
        for (int64_t k = 0; k < count; ++k) {
          const T g = d[x * count + k];
          if (da) da[4 + x] += g;
          for (int y = 0; y < 3; ++y) {
            if (dp) dp[y * count + k] += r[3 * x + y] * g;
            dr[3 * x + y] += g * p[y * count + k];
          }
        }
      if (da) quat_to_rot_backward(a, dr, da);
    }
  });
}

void update_backbone_backward(const Tensor& affine, const Tensor& update, const Tensor& dout,
                              const Tensor& daffine, const Tensor& dupdate) {
  by_real_type(dout, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < affine.size(0); ++i) {
      const T *a = affine.data<T>() + 7 * i, *u = update.data<T>() + 6 * i,
              *d = dout.data<T>() + 7 * i;
      T *da = row<T>(daffine, 7 * i), *du = row<T>(dupdate, 6 * i);
      T q[4], r[9], dq[4], dr[9] = {};
      times_one_plus(a, u, q);
      quat_to_rot(a, r);
      const T square = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
      const T norm = T(__builtin_sqrt(square));
      T along = 0;
      for (int k = 0; k < 4; ++k) along += q[k] * d[k];
      for (int k = 0; k < 4; ++k) dq[k] = (d[k] - q[k] * along / square) / norm;
      for (int x = 0; x < 3; ++x)
        for (int y = 0; y < 3; ++y) {
          dr[3 * x + y] = d[4 + x] * u[3 + y];
          if (du) du[3 + y] += r[3 * x + y] * d[4 + x];
        }
      if (du) {
        du[0] += -a[1] * dq[0] + a[0] * dq[1] + a[3] * dq[2] - a[2] * dq[3];
        du[1] += -a[2] * dq[0] - a[3] * dq[1] + a[0] * dq[2] + a[1] * dq[3];
        du[2] += -a[3] * dq[0] + a[2] * dq[1] - a[1] * dq[2] + a[0] * dq[3];
      }
      if (!da) continue;
      da[0] += dq[0] + u[0] * dq[1] + u[1] * dq[2] + u[2] * dq[3];
      da[1] += dq[1] - u[0] * dq[0] - u[2] * dq[2] + u[1] * dq[3];
      da[2] += dq[2] - u[1] * dq[0] + u[2] * dq[1] - u[0] * dq[3];
      da[3] += dq[3] - u[2] * dq[0] - u[1] * dq[1] + u[0] * dq[2];
      for (int x = 0; x < 3; ++x) da[4 + x] += d[4 + x];
      quat_to_rot_backward(a, dr, da);
    }
  });
}

void affine_frames_backward(const Tensor& affine, const Tensor& dout, const Tensor& daffine) {
  by_real_type(dout, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < affine.size(0); ++i) {
      const T* d = dout.data<T>() + 12 * i;
      T* da = daffine.data<T>() + 7 * i;
      quat_to_rot_backward(affine.data<T>() + 7 * i, d, da);
      for (int x = 0; x < 3; ++x) da[4 + x] += d[9 + x];
    }
  });
}

void normalize_pairs_backward(const Tensor& x, const Tensor& y, const Tensor& dy,
                              const Tensor& dx) {
  by_real_type(x, [&](auto t) {
    using T = decltype(t);
    const T *from = x.data<T>(), *unit = y.data<T>(), *d = dy.data<T>();
    T* to = dx.data<T>();
    for (int64_t i = 0; i < x.numel(); i += 2) {
      const T square = from[i] * from[i] + from[i + 1] * from[i + 1];
      const bool tiny = !(square > T(1e-12));
      const T length = T(__builtin_sqrt(tiny ? T(1e-12) : square));
      const T along = tiny ? T(0) : unit[i] * d[i] + unit[i + 1] * d[i + 1];
      for (int k = 0; k < 2; ++k) to[i + k] += (d[i + k] - unit[i + k] * along) / length;
    }
  });
}

void torsions_to_frames_backward(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                                 const Tensor& default_frames, const Tensor& dframes,
                                 const Tensor& daffine, const Tensor& dangles) {
  by_real_type(dframes, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < affine.size(0); ++i) {
      const T *a = affine.data<T>() + 7 * i, *sin_cos = angles.data<T>() + 14 * i,
              *d = dframes.data<T>() + i * kGroups * 12;
      const float* table = default_frames.data<float>() + aatype.data<int32_t>()[i] * kGroups * 16;
      T *da = row<T>(daffine, 7 * i), *dangle = row<T>(dangles, 14 * i);
      T backbone[12], turned[kGroups][12], local[kGroups][12];
      local_frames(a, sin_cos, table, backbone, turned, local);
      T dbackbone[12] = {}, dlocal[kGroups][12] = {};
      for (int g = 0; g < kGroups; ++g)
        compose_backward(backbone, local[g], d + g * 12, dbackbone, dlocal[g]);
      for (int g = kGroups - 1; g > 0; --g) {
        T dturned[12] = {};
        if (g > 4) compose_backward(local[g - 1], turned[g], dlocal[g], dlocal[g - 1], dturned);
        const T* dt = g > 4 ? dturned : dlocal[g];
        if (!dangle) continue;
        const float* m = table + g * 16;
        for (int r = 0; r < 3; ++r) {
          const T dy = dt[3 * r + 1], dz = dt[3 * r + 2];
          dangle[2 * g - 2] += dy * m[4 * r + 2] - dz * m[4 * r + 1];
          dangle[2 * g - 1] += dy * m[4 * r + 1] + dz * m[4 * r + 2];
        }
      }
      if (!da) continue;
      quat_to_rot_backward(a, dbackbone, da);
      for (int x = 0; x < 3; ++x) da[4 + x] += dbackbone[9 + x];
    }
  });
}

void frames_to_atom14_backward(const Tensor& aatype, const Tensor& group, const Tensor& positions,
                               const Tensor& mask, const Tensor& dout, const Tensor& dframes) {
  by_real_type(dout, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < dframes.size(0); ++i)
      for (int atom = 0; atom < kAtoms14; ++atom) {
        const int64_t at = aatype.data<int32_t>()[i] * kAtoms14 + atom;
        T* frame = dframes.data<T>() + (i * kGroups + group.data<int32_t>()[at]) * 12;
        const float* p = positions.data<float>() + 3 * at;
        const T keep = T(mask.data<float>()[at]);
        const T* d = dout.data<T>() + (i * kAtoms14 + atom) * 3;
        for (int x = 0; x < 3; ++x) {
          for (int y = 0; y < 3; ++y) frame[3 * x + y] += keep * d[x] * T(p[y]);
          frame[9 + x] += keep * d[x];
        }
      }
  });
}

void atom14_to_atom37_backward(const Tensor& index, const Tensor& mask, const Tensor& dout,
                               const Tensor& datoms) {
  by_real_type(dout, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < datoms.size(0); ++i)
      for (int atom = 0; atom < kAtoms37; ++atom) {
        const int64_t at = i * kAtoms37 + atom;
        T* to = datoms.data<T>() + (i * kAtoms14 + index.data<int32_t>()[at]) * 3;
        for (int x = 0; x < 3; ++x) to[x] += dout.data<T>()[3 * at + x] * T(mask.data<float>()[at]);
      }
  });
}

}  // namespace ff::cpu::FF_ISA
