// The structure module's small kernels in f32: frames, torsions and atoms, a thread for each
// residue, group or atom. Gradients are contiguous and added to; an undefined one is not wanted.
#include "cuda/rigid.cuh"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kGroups = 8, kAtoms14 = 14, kAtoms37 = 37;

/// One thread for each of n items; f(item).
template <class F>
__global__ void __launch_bounds__(128) each_kernel(const __grid_constant__ F f, int64_t n) {
  after_earlier();
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i < n) f(i);
}
template <class F>
void each(const char* name, int64_t n, const F& f) {
  if (!n) return;
  start_kernel(each_kernel<F>, ceil_div(n, 128), 128, 0, f, n);
  check_launch(name, n, " items");
}

struct ApplyRigids {
  const float *affine, *points;
  float* out;
  int64_t count;
  __device__ void operator()(int64_t item) const {
    const int64_t i = item / count, k = item % count;
    const float *a = affine + 7 * i, *p = points + 3 * count * i + k;
    float r[9], q[3];
    quat_to_rot(a, r);
    transform(r, a + 4, p[0], p[count], p[2 * count], q);
#pragma unroll
    for (int x = 0; x < 3; ++x) out[3 * count * i + x * count + k] = q[x];
  }
};

/// One warp a residue.
__global__ void __launch_bounds__(128)
    apply_rigids_backward_kernel(const float* affine, const float* points, const float* dout,
                                 int64_t n, int64_t count, float* daffine, float* dpoints) {
  after_earlier();
  const int64_t i = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
  if (i >= n) return;
  const float *a = affine + 7 * i, *p = points + 3 * count * i, *d = dout + 3 * count * i;
  float r[9], sum[12] = {};  // of the rotation, then of the translation
  quat_to_rot(a, r);
  for (int64_t k = threadIdx.x % 32; k < count; k += 32) {
    float to[3] = {};
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      const float g = d[x * count + k];
      sum[9 + x] += g;
#pragma unroll
      for (int y = 0; y < 3; ++y) {
        to[y] += r[3 * x + y] * g;
        sum[3 * x + y] += g * p[y * count + k];
      }
    }
    if (dpoints)
#pragma unroll
      for (int y = 0; y < 3; ++y) dpoints[3 * count * i + y * count + k] += to[y];
  }
  if (!daffine) return;
#pragma unroll
  for (int k = 0; k < 12; ++k) sum[k] = warp_sum(sum[k]);
  if (threadIdx.x % 32) return;
  float* da = daffine + 7 * i;
#pragma unroll
  for (int x = 0; x < 3; ++x) da[4 + x] += sum[9 + x];
  quat_to_rot_backward(a, sum, da);
}

struct UpdateBackbone {
  const float *affine, *update;
  float* out;
  __device__ void operator()(int64_t i) const {
    const float *a = affine + 7 * i, *u = update + 6 * i;
    float q[4], r[9];
    times_one_plus(a, u, q);
    const float norm = sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    quat_to_rot(a, r);
    transform(r, a + 4, u[3], u[4], u[5], out + 7 * i + 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) out[7 * i + k] = q[k] / norm;
  }
};

struct UpdateBackboneBackward {
  const float *affine, *update, *dout;
  float *daffine, *dupdate;
  __device__ void operator()(int64_t i) const {
    const float *a = affine + 7 * i, *u = update + 6 * i, *d = dout + 7 * i;
    float q[4], r[9], dq[4], dr[9], along = 0;
    times_one_plus(a, u, q);
    quat_to_rot(a, r);
    const float square = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
    const float norm = sqrtf(square);
#pragma unroll
    for (int k = 0; k < 4; ++k) along += q[k] * d[k];
#pragma unroll
    for (int k = 0; k < 4; ++k) dq[k] = (d[k] - q[k] * along / square) / norm;
#pragma unroll
    for (int x = 0; x < 3; ++x)
#pragma unroll
      for (int y = 0; y < 3; ++y) dr[3 * x + y] = d[4 + x] * u[3 + y];
    if (dupdate) {
      float* du = dupdate + 6 * i;
      du[0] += -a[1] * dq[0] + a[0] * dq[1] + a[3] * dq[2] - a[2] * dq[3];
      du[1] += -a[2] * dq[0] - a[3] * dq[1] + a[0] * dq[2] + a[1] * dq[3];
      du[2] += -a[3] * dq[0] + a[2] * dq[1] - a[1] * dq[2] + a[0] * dq[3];
#pragma unroll
      for (int y = 0; y < 3; ++y) du[3 + y] += r[y] * d[4] + r[3 + y] * d[5] + r[6 + y] * d[6];
    }
    if (!daffine) return;
    float* da = daffine + 7 * i;
    da[0] += dq[0] + u[0] * dq[1] + u[1] * dq[2] + u[2] * dq[3];
    da[1] += dq[1] - u[0] * dq[0] - u[2] * dq[2] + u[1] * dq[3];
    da[2] += dq[2] - u[1] * dq[0] + u[2] * dq[1] - u[0] * dq[3];
    da[3] += dq[3] - u[2] * dq[0] - u[1] * dq[1] + u[0] * dq[2];
#pragma unroll
    for (int x = 0; x < 3; ++x) da[4 + x] += d[4 + x];
    quat_to_rot_backward(a, dr, da);
  }
};

struct ScaleAffine {
  const float* affine;
  float rotation, translation;
  float* out;
  __device__ void operator()(int64_t k) const {
    out[k] = affine[k] * (k % 7 < 4 ? rotation : translation);
  }
};

struct AffineFrames {
  const float* affine;
  float* out;
  __device__ void operator()(int64_t i) const {
    quat_to_rot(affine + 7 * i, out + 12 * i);
#pragma unroll
    for (int x = 0; x < 3; ++x) out[12 * i + 9 + x] = affine[7 * i + 4 + x];
  }
};

struct AffineFramesBackward {
  const float *affine, *dout;
  float* daffine;
  __device__ void operator()(int64_t i) const {
    quat_to_rot_backward(affine + 7 * i, dout + 12 * i, daffine + 7 * i);
#pragma unroll
    for (int x = 0; x < 3; ++x) daffine[7 * i + 4 + x] += dout[12 * i + 9 + x];
  }
};

struct NormalizePairs {
  const float* x;
  float* out;
  __device__ void operator()(int64_t pair) const {
    const float a = x[2 * pair], b = x[2 * pair + 1];
    const float length = sqrtf(fmaxf(a * a + b * b, 1e-12f));
    out[2 * pair] = a / length;
    out[2 * pair + 1] = b / length;
  }
};

struct NormalizePairsBackward {
  const float *x, *y, *dy;
  float* dx;
  __device__ void operator()(int64_t pair) const {
    const int64_t i = 2 * pair;
    const float square = x[i] * x[i] + x[i + 1] * x[i + 1];
    const bool tiny = !(square > 1e-12f);
    const float length = sqrtf(tiny ? 1e-12f : square);
    const float along = tiny ? 0.0f : y[i] * dy[i] + y[i + 1] * dy[i + 1];
#pragma unroll
    for (int k = 0; k < 2; ++k) dx[i + k] += (dy[i + k] - y[i + k] * along) / length;
  }
};

/// A group's frame turned by its angle in the frame that the table gives it in. m [4, 4]
__device__ void turned_frame(const float* m, const float* sin_cos, int g, float* turned) {
  const float s = g ? sin_cos[2 * g - 2] : 0.0f, c = g ? sin_cos[2 * g - 1] : 1.0f;
#pragma unroll
  for (int r = 0; r < 3; ++r) {
    turned[3 * r] = m[4 * r];
    turned[3 * r + 1] = m[4 * r + 1] * c + m[4 * r + 2] * s;
    turned[3 * r + 2] = m[4 * r + 2] * c - m[4 * r + 1] * s;
    turned[9 + r] = m[4 * r + 3];
  }
}

__device__ void backbone_frame(const float* a, float* frame) {
  quat_to_rot(a, frame);
#pragma unroll
  for (int x = 0; x < 3; ++x) frame[9 + x] = a[4 + x];
}

struct TorsionsToFrames {
  const float *affine, *angles;
  const int32_t* aatype;
  const float* default_frames;
  float* frames;
  __device__ void operator()(int64_t i) const {
    const float *sin_cos = angles + 14 * i, *table = default_frames + aatype[i] * kGroups * 16;
    float backbone[12], turned[12], local[12];
    backbone_frame(affine + 7 * i, backbone);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      turned_frame(table + g * 16, sin_cos, g, turned);
      // chi2, chi3 and chi4 turn in the frame of the angle before; the others in the backbone's.
      float next[12];
      if (g > 4) compose(local, turned, next);
#pragma unroll
      for (int k = 0; k < 12; ++k) local[k] = g > 4 ? next[k] : turned[k];
      float global[12];
      compose(backbone, local, global);
#pragma unroll
      for (int k = 0; k < 12; ++k) frames[(i * kGroups + g) * 12 + k] = global[k];
    }
  }
};

struct TorsionsToFramesBackward {
  const float *affine, *angles;
  const int32_t* aatype;
  const float *default_frames, *dframes;
  float *daffine, *dangles;

  __device__ void add_angle(int64_t i, int g, const float* m, const float* dturned) const {
    if (!dangles || g == 0) return;
    float ds = 0, dc = 0;
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      const float dy = dturned[3 * r + 1], dz = dturned[3 * r + 2];
      ds += dy * m[4 * r + 2] - dz * m[4 * r + 1];
      dc += dy * m[4 * r + 1] + dz * m[4 * r + 2];
    }
    dangles[14 * i + 2 * g - 2] += ds;
    dangles[14 * i + 2 * g - 1] += dc;
  }

  __device__ void operator()(int64_t i) const {
    const float *sin_cos = angles + 14 * i, *table = default_frames + aatype[i] * kGroups * 16,
                *d = dframes + i * kGroups * 12;
    float backbone[12], dbackbone[12] = {};
    backbone_frame(affine + 7 * i, backbone);
#pragma unroll 1
    for (int g = 0; g < 4; ++g) {
      float local[12], dlocal[12] = {};
      turned_frame(table + g * 16, sin_cos, g, local);
      compose_backward(backbone, local, d + g * 12, dbackbone, dlocal);
      add_angle(i, g, table + g * 16, dlocal);
    }
    // chi1 to chi4, each in the frame of the one before.
    float local[4][12];
    turned_frame(table + 4 * 16, sin_cos, 4, local[0]);
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      float turned[12];
      turned_frame(table + (4 + k) * 16, sin_cos, 4 + k, turned);
      compose(local[k - 1], turned, local[k]);
    }
    float dlocal[12] = {};
#pragma unroll
    for (int k = 3; k >= 0; --k) {
      const int g = 4 + k;
      compose_backward(backbone, local[k], d + g * 12, dbackbone, dlocal);
      if (k == 0) {
        add_angle(i, g, table + g * 16, dlocal);
      } else {
        float turned[12], dturned[12] = {}, before[12] = {};
        turned_frame(table + g * 16, sin_cos, g, turned);
        compose_backward(local[k - 1], turned, dlocal, before, dturned);
        add_angle(i, g, table + g * 16, dturned);
#pragma unroll
        for (int e = 0; e < 12; ++e) dlocal[e] = before[e];
      }
    }
    if (!daffine) return;
    float* da = daffine + 7 * i;
    quat_to_rot_backward(affine + 7 * i, dbackbone, da);
#pragma unroll
    for (int x = 0; x < 3; ++x) da[4 + x] += dbackbone[9 + x];
  }
};

struct FramesToAtom14 {
  const float* frames;
  const int32_t *aatype, *group;
  const float *positions, *mask;
  float* out;
  __device__ void operator()(int64_t item) const {
    const int64_t i = item / kAtoms14, row = aatype[i] * kAtoms14 + item % kAtoms14;
    const float *frame = frames + (i * kGroups + group[row]) * 12, *p = positions + 3 * row;
    float at[3];
    transform(frame, frame + 9, p[0], p[1], p[2], at);
#pragma unroll
    for (int x = 0; x < 3; ++x) out[3 * item + x] = at[x] * mask[row];
  }
};

/// A group of a residue looks for its atoms.
struct FramesToAtom14Backward {
  const int32_t *aatype, *group;
  const float *positions, *mask, *dout;
  float* dframes;
  __device__ void operator()(int64_t item) const {
    const int64_t i = item / kGroups, row = int64_t(aatype[i]) * kAtoms14;
    float sum[12] = {};
    for (int atom = 0; atom < kAtoms14; ++atom) {
      if (group[row + atom] != item % kGroups) continue;
      const float *p = positions + 3 * (row + atom), *d = dout + (i * kAtoms14 + atom) * 3;
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        const float g = mask[row + atom] * d[x];
#pragma unroll
        for (int y = 0; y < 3; ++y) sum[3 * x + y] += g * p[y];
        sum[9 + x] += g;
      }
    }
#pragma unroll
    for (int k = 0; k < 12; ++k) dframes[item * 12 + k] += sum[k];
  }
};

struct Atom14ToAtom37 {
  const float* atoms;
  const int32_t* index;
  const float* mask;
  float* out;
  __device__ void operator()(int64_t row) const {
    const float* from = atoms + (row / kAtoms37 * kAtoms14 + index[row]) * 3;
#pragma unroll
    for (int x = 0; x < 3; ++x) out[3 * row + x] = from[x] * mask[row];
  }
};

/// An atom of the fourteen looks for its places among the 37.
struct Atom14ToAtom37Backward {
  const int32_t* index;
  const float *mask, *dout;
  float* datoms;
  __device__ void operator()(int64_t item) const {
    const int64_t first = item / kAtoms14 * kAtoms37;
    float sum[3] = {};
    for (int64_t at = first; at < first + kAtoms37; ++at) {
      if (index[at] != item % kAtoms14) continue;
#pragma unroll
      for (int x = 0; x < 3; ++x) sum[x] += dout[3 * at + x] * mask[at];
    }
#pragma unroll
    for (int x = 0; x < 3; ++x) datoms[3 * item + x] += sum[x];
  }
};

const float* floats(const Tensor& t) { return t.data<float>(); }
float* maybe(const Tensor& t) { return data_or_null<float>(t); }

}  // namespace

void apply_rigids(const Tensor& affine, const Tensor& points, const Tensor& out) {
  const int64_t count = points.size(1) / 3;
  each("apply_rigids", affine.size(0) * count,
       ApplyRigids{floats(affine), floats(points), out.data<float>(), count});
}

void apply_rigids_backward(const Tensor& affine, const Tensor& points, const Tensor& dout,
                           const Tensor& daffine, const Tensor& dpoints) {
  const int64_t n = points.size(0);
  if (!n) return;
  start_kernel(apply_rigids_backward_kernel, ceil_div(n, 4), 128, 0, floats(affine), floats(points),
               floats(dout), n, points.size(1) / 3, maybe(daffine), maybe(dpoints));
  check_launch("apply_rigids_backward", points.shape());
}

void update_backbone(const Tensor& affine, const Tensor& update, const Tensor& out) {
  each("update_backbone", affine.size(0),
       UpdateBackbone{floats(affine), floats(update), out.data<float>()});
}

void update_backbone_backward(const Tensor& affine, const Tensor& update, const Tensor& dout,
                              const Tensor& daffine, const Tensor& dupdate) {
  each("update_backbone_backward", affine.size(0),
       UpdateBackboneBackward{floats(affine), floats(update), floats(dout), maybe(daffine),
                              maybe(dupdate)});
}

void scale_affine(const Tensor& affine, double rotation, double translation, const Tensor& out) {
  each("scale_affine", affine.numel(),
       ScaleAffine{floats(affine), float(rotation), float(translation), out.data<float>()});
}

void affine_frames(const Tensor& affine, const Tensor& out) {
  each("affine_frames", affine.size(0), AffineFrames{floats(affine), out.data<float>()});
}

void affine_frames_backward(const Tensor& affine, const Tensor& dout, const Tensor& daffine) {
  if (!daffine.defined()) return;
  each("affine_frames_backward", affine.size(0),
       AffineFramesBackward{floats(affine), floats(dout), daffine.data<float>()});
}

void normalize_pairs(const Tensor& x, const Tensor& out) {
  each("normalize_pairs", x.numel() / 2, NormalizePairs{floats(x), out.data<float>()});
}

void normalize_pairs_backward(const Tensor& x, const Tensor& y, const Tensor& dy,
                              const Tensor& dx) {
  if (!dx.defined()) return;
  each("normalize_pairs_backward", x.numel() / 2,
       NormalizePairsBackward{floats(x), floats(y), floats(dy), dx.data<float>()});
}

void torsions_to_frames(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                        const Tensor& default_frames, const Tensor& frames) {
  each("torsions_to_frames", affine.size(0),
       TorsionsToFrames{floats(affine), floats(angles), aatype.data<int32_t>(),
                        floats(default_frames), frames.data<float>()});
}

void torsions_to_frames_backward(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                                 const Tensor& default_frames, const Tensor& dframes,
                                 const Tensor& daffine, const Tensor& dangles) {
  each("torsions_to_frames_backward", affine.size(0),
       TorsionsToFramesBackward{floats(affine), floats(angles), aatype.data<int32_t>(),
                                floats(default_frames), floats(dframes), maybe(daffine),
                                maybe(dangles)});
}

void frames_to_atom14(const Tensor& frames, const Tensor& aatype, const Tensor& group,
                      const Tensor& positions, const Tensor& mask, const Tensor& out) {
  each("frames_to_atom14", frames.size(0) * kAtoms14,
       FramesToAtom14{floats(frames), aatype.data<int32_t>(), group.data<int32_t>(),
                      floats(positions), floats(mask), out.data<float>()});
}

void frames_to_atom14_backward(const Tensor& aatype, const Tensor& group, const Tensor& positions,
                               const Tensor& mask, const Tensor& dout, const Tensor& dframes) {
  if (!dframes.defined()) return;
  each("frames_to_atom14_backward", dframes.size(0) * kGroups,
       FramesToAtom14Backward{aatype.data<int32_t>(), group.data<int32_t>(), floats(positions),
                              floats(mask), floats(dout), dframes.data<float>()});
}

void atom14_to_atom37(const Tensor& atoms, const Tensor& index, const Tensor& mask,
                      const Tensor& out) {
  each("atom14_to_atom37", atoms.size(0) * kAtoms37,
       Atom14ToAtom37{floats(atoms), index.data<int32_t>(), floats(mask), out.data<float>()});
}

void atom14_to_atom37_backward(const Tensor& index, const Tensor& mask, const Tensor& dout,
                               const Tensor& datoms) {
  if (!datoms.defined()) return;
  each("atom14_to_atom37_backward", datoms.size(0) * kAtoms14,
       Atom14ToAtom37Backward{index.data<int32_t>(), floats(mask), floats(dout),
                              datoms.data<float>()});
}

}  // namespace ff::cuda
