// The losses: each value with its gradient, sums in a fixed order, nothing of the size of frames
// times points or of pairs of atoms in memory. Labels are f64 where the CPU's are, and classes are
// computed in f64 without contraction, so that they are the CPU's.
#include <algorithm>

#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 128, kAtoms = 14;

/// Sum over the block of a thread's f(i) for i < n, for thread 0.
template <class F>
__device__ __forceinline__ double sum_of(int64_t n, F f) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += f(i);
  return block_sum(sum);
}

/// loss = (or +=) factor times the sum of the parts.
__global__ void __launch_bounds__(1024)
    join_kernel(const double* partial, int64_t count, const double* factor, double* loss) {
  after_earlier();
  const double sum = sum_of(count, [&](int64_t k) { return partial[k]; });
  if (threadIdx.x == 0) *loss = sum * *factor;
}

struct Fape {
  const float *frames, *target_frames, *frame_mask;
  const float *points, *target_points, *point_mask;
  int64_t n_frame, n_point;
  float clamp, unclamped;
  const double* norm;

  /// One frame (a, b) and one point: what it adds to the loss, and with it the gradient's parts g
  /// (of the local error, times the frame's axes: w) and the point from the predicted origin.
  __device__ __forceinline__ float pair(const float* a, const float* b, int64_t j, float factor,
                                        float (&x)[3], float (&g)[3], float (&w)[3]) const {
    float u[3], square = 1e-4f;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      x[k] = points[3 * j + k] - a[9 + k];
      u[k] = target_points[3 * j + k] - b[9 + k];
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      g[k] = a[k] * x[0] + a[3 + k] * x[1] + a[6 + k] * x[2] -
             (b[k] * u[0] + b[3 + k] * u[1] + b[6 + k] * u[2]);
      square += g[k] * g[k];
    }
    const float error = sqrtf(square), mask = point_mask[j];
    const bool inside = error < clamp;
    const float slope = factor * mask * (inside ? 1.0f : unclamped) / error;
#pragma unroll
    for (int k = 0; k < 3; ++k) g[k] *= slope;
#pragma unroll
    for (int k = 0; k < 3; ++k) w[k] = a[3 * k] * g[0] + a[3 * k + 1] * g[1] + a[3 * k + 2] * g[2];
    return mask * (inside ? error : clamp + unclamped * (error - clamp));
  }
};

/// 1 / (scale (1e-4 + frames points)), counted by the masks.
__global__ void __launch_bounds__(1024)
    fape_norm_kernel(const __grid_constant__ Fape f, double scale, double* norm) {
  after_earlier();
  const double frames = sum_of(f.n_frame, [&](int64_t i) { return double(f.frame_mask[i]); });
  __syncthreads();
  const double points = sum_of(f.n_point, [&](int64_t i) { return double(f.point_mask[i]); });
  if (threadIdx.x == 0) *norm = 1 / (scale * (1e-4 + frames * points));
}

/// A block a frame: its part of the loss, and its gradient.
__global__ void __launch_bounds__(kThreads)
    fape_frames_kernel(const __grid_constant__ Fape f, double* partial, float* dframes) {
  after_earlier();
  __shared__ float sums[kThreads / 32][12];
  const int64_t i = blockIdx.x;
  const float mask = f.frame_mask[i];
  if (mask == 0) {
    if (threadIdx.x == 0) partial[i] = 0;
    return;
  }
  float a[12], b[12], d[12] = {};
#pragma unroll
  for (int k = 0; k < 12; ++k) a[k] = f.frames[12 * i + k], b[k] = f.target_frames[12 * i + k];
  const float factor = float(*f.norm) * mask;
  const double loss = sum_of(f.n_point, [&](int64_t j) {
    float x[3], g[3], w[3];
    const float error = f.pair(a, b, j, factor, x, g, w);
#pragma unroll
    for (int r = 0; r < 3; ++r) {
#pragma unroll
      for (int c = 0; c < 3; ++c) d[3 * r + c] += x[r] * g[c];
      d[9 + r] -= w[r];
    }
    return double(error);
  });
  if (threadIdx.x == 0) partial[i] = double(mask) * loss;
  if (!dframes) return;
#pragma unroll
  for (int k = 0; k < 12; ++k) {
    d[k] = warp_sum(d[k]);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][k] = d[k];
  }
  __syncthreads();
  if (threadIdx.x >= 12) return;
  float sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += sums[w][threadIdx.x];
  dframes[12 * i + threadIdx.x] += sum;
}

constexpr int kFramesAtOnce = 32;

/// Block (points, part of the frames), a thread a point: partial [parts, n_point, 3].
__global__ void __launch_bounds__(kThreads)
    fape_points_kernel(const __grid_constant__ Fape f, float* partial) {
  after_earlier();
  __shared__ float a[kFramesAtOnce][12], b[kFramesAtOnce][12], mask[kFramesAtOnce];
  const int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first = f.n_frame * blockIdx.y / gridDim.y,
                last = f.n_frame * (blockIdx.y + 1) / gridDim.y;
  const float norm = float(*f.norm);
  float sum[3] = {};
  for (int64_t i0 = first; i0 < last; i0 += kFramesAtOnce) {
    const int count = int(min(int64_t(kFramesAtOnce), last - i0));
    __syncthreads();
    for (int e = threadIdx.x; e < count * 12; e += kThreads) {
      a[e / 12][e % 12] = f.frames[12 * i0 + e];
      b[e / 12][e % 12] = f.target_frames[12 * i0 + e];
    }
    if (threadIdx.x < count) mask[threadIdx.x] = f.frame_mask[i0 + threadIdx.x];
    __syncthreads();
    if (j >= f.n_point) continue;
    for (int i = 0; i < count; ++i) {
      if (mask[i] == 0) continue;
      float x[3], g[3], w[3];
      f.pair(a[i], b[i], j, norm * mask[i], x, g, w);
#pragma unroll
      for (int k = 0; k < 3; ++k) sum[k] += w[k];
    }
  }
  if (j < f.n_point)
#pragma unroll
    for (int k = 0; k < 3; ++k) partial[(int64_t(blockIdx.y) * f.n_point + j) * 3 + k] = sum[k];
}

/// One block: all residues' angles.
__global__ void __launch_bounds__(1024)
    chi_kernel(const float* angles, const double* chi, const double* mask, const double* periodic,
               int64_t n, double layers, double* loss, float* d) {
  after_earlier();
  __shared__ double norm;
  const double count = sum_of(4 * n, [&](int64_t e) { return mask[e]; });
  if (threadIdx.x == 0) norm = 1 / (count * layers + 1e-10);
  __syncthreads();
  const double sum = sum_of(4 * n, [&](int64_t e) {
    const double weight = mask[e] * norm;
    if (weight == 0) return 0.0;
    const int64_t at = 14 * (e / 4) + 6 + 2 * (e % 4);
    double sine, cosine;
    sincos(chi[e], &sine, &cosine);
    double s = angles[at] - sine, c = angles[at + 1] - cosine;
    const double s2 = angles[at] + sine, c2 = angles[at + 1] + cosine;
    if (periodic[e] != 0 && s2 * s2 + c2 * c2 < s * s + c * c) s = s2, c = c2;
    if (d) {
      d[at] += float(2 * weight * s);
      d[at + 1] += float(2 * weight * c);
    }
    return weight * (s * s + c * c);
  });
  if (threadIdx.x == 0) *loss += sum;
}

__global__ void __launch_bounds__(1024)
    angle_norm_kernel(const float* angles, const double* mask, int64_t n, double layers,
                      double* loss, float* d) {
  after_earlier();
  __shared__ double norm;
  const double count = sum_of(n, [&](int64_t i) { return mask[i]; });
  if (threadIdx.x == 0) norm = 1 / (count * 7 * layers + 1e-10);
  __syncthreads();
  const double sum = sum_of(7 * n, [&](int64_t e) {
    const double weight = mask[e / 7] * norm, a = angles[2 * e], b = angles[2 * e + 1];
    const double length = sqrt(a * a + b * b + 1e-6);
    if (d) {
      const double g = weight * (length > 1 ? 1 : length < 1 ? -1 : 0) / length;
      d[2 * e] += float(g * a);
      d[2 * e + 1] += float(g * b);
    }
    return weight * fabs(length - 1);
  });
  if (threadIdx.x == 0) *loss += sum;
}

__global__ void __launch_bounds__(1024)
    binary_kernel(const float* logits, const double* labels, const double* weights, double norm,
                  int64_t n, double* loss, float* d) {
  after_earlier();
  const double sum = sum_of(n, [&](int64_t i) {
    const double l = logits[i], weight = weights[i] * norm;
    if (d) d[i] += float(weight * (1 / (1 + exp(-l)) - labels[i]));
    return weight * (fmax(l, 0.0) + log1p(exp(-fabs(l))) - labels[i] * l);
  });
  if (threadIdx.x == 0) *loss = sum;
}

constexpr int kMostTerms = 64;
struct Terms {
  const float* term[kMostTerms];
  double weight[kMostTerms];
  int count;
};
__global__ void weighted_sum_kernel(const __grid_constant__ Terms terms, double* loss) {
  after_earlier();
  double sum = 0;
  for (int k = 0; k < terms.count; ++k) sum += terms.weight[k] * double(*terms.term[k]);
  *loss = sum;
}

/// As the CPU rounds it.
template <class T, class U>
__device__ __forceinline__ double distance2(const T* a, const U* b) {
  double sum = 0;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const double gap = __dsub_rn(double(a[k]), double(b[k]));
    sum = __dadd_rn(sum, __dmul_rn(gap, gap));
  }
  return sum;
}
template <class T>
__device__ __forceinline__ double distance(const T* a, const T* b) {
  return __dsqrt_rn(__dadd_rn(1e-10, distance2(a, b)));
}

/// R^T (x - t), as the CPU rounds it.
template <class T>
__device__ __forceinline__ void to_local(const T* frame, const T* x, double (&out)[3]) {
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    out[k] = 0;
#pragma unroll
    for (int r = 0; r < 3; ++r)
      out[k] = __dadd_rn(out[k], __dmul_rn(double(frame[3 * r + k]),
                                           __dsub_rn(double(x[r]), double(frame[9 + r]))));
  }
}

struct Distances {
  const double* points;
  __device__ double operator()(int64_t i, int64_t j) const {
    return distance2(points + 3 * i, points + 3 * j);
  }
};

struct AlignedErrors {
  const float* frames;
  const double* truth;
  __device__ double operator()(int64_t i, int64_t j) const {
    double a[3], b[3];
    to_local(frames + 12 * i, frames + 12 * j + 9, a);
    to_local(truth + 12 * i, truth + 12 * j + 9, b);
    return i == j ? -1.0 : distance2(a, b);
  }
};

template <class F>
__global__ void __launch_bounds__(kThreads)
    classes_kernel(const __grid_constant__ F f, const double* mask, const double* breaks, int count,
                   int64_t first_row, int64_t rows, int64_t n, int32_t* classes, double* weights) {
  after_earlier();
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= rows * n) return;
  const int64_t i = first_row + e / n, j = e % n;
  const double x = f(i, j);
  int low = 0, high = count;  // the first break that is not below x
  while (low < high) {
    const int middle = (low + high) / 2;
    if (breaks[middle] < x)
      low = middle + 1;
    else
      high = middle;
  }
  classes[e] = low;
  weights[e] = mask[i] * mask[j];
}

template <class F>
void classify(const char* name, const F& f, const Tensor& mask, const Tensor& breaks,
              int64_t first_row, const Tensor& classes, const Tensor& weights) {
  if (!classes.numel()) return;
  start_kernel(classes_kernel<F>, ceil_div(classes.numel(), kThreads), kThreads, 0, f,
               mask.data<double>(), breaks.data<double>(), int(breaks.numel()), first_row,
               classes.size(0), classes.size(1), classes.data<int32_t>(), weights.data<double>());
  check_launch(name, classes.shape());
}

/// A block a residue. Counts are exact, so that their order does not matter.
__global__ void __launch_bounds__(kThreads)
    lddt_kernel(const float* points, const double* truth, const double* mask, int64_t n,
                double* score) {
  after_earlier();
  const int64_t i = blockIdx.x;
  int count = 0, quarters = 0;
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    const double real = distance(truth + 3 * i, truth + 3 * j);
    if (i == j || real >= 15 || mask[i] * mask[j] == 0) continue;
    const double gap = fabs(__dsub_rn(real, distance(points + 3 * i, points + 3 * j)));
    ++count;
    quarters += (gap < 0.5) + (gap < 1.0) + (gap < 2.0) + (gap < 4.0);
  }
  const double all = block_sum(double(count));
  __syncthreads();
  const double hits = block_sum(double(quarters));
  if (threadIdx.x) return;
  // The CPU adds to 1e-10 in f32, where one contact already rounds that away.
  const float norm = __fdiv_rn(1.0f, all > 0 ? float(all) : 1e-10f);
  score[i] = double(__fmul_rn(norm, hits > 0 ? float(0.25 * hits) : 1e-10f));
}

__global__ void __launch_bounds__(kThreads)
    score_classes_kernel(const double* score, int64_t n, int32_t bins, int32_t* classes) {
  after_earlier();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) classes[i] = min(bins - 1, int32_t(__dmul_rn(score[i], double(bins))));
}

/// A block a residue.
__global__ void __launch_bounds__(kThreads)
    alternative_kernel(const float* atoms, const double* truth, const double* alternative,
                       const double* exists, const double* ambiguous, int64_t n, float* better) {
  after_earlier();
  const int64_t i = blockIdx.x;
  double sum = 0, other_sum = 0;
  for (int64_t a = i * kAtoms; a < (i + 1) * kAtoms; ++a) {
    if (exists[a] * ambiguous[a] == 0) continue;
    for (int64_t b = threadIdx.x; b < n * kAtoms; b += kThreads) {
      const double weight = exists[b] * (1 - ambiguous[b]);
      if (weight == 0) continue;
      const double here = distance(atoms + 3 * a, atoms + 3 * b),
                   gap = here - distance(truth + 3 * a, truth + 3 * b),
                   other = here - distance(alternative + 3 * a, alternative + 3 * b);
      sum += weight * sqrt(1e-10 + gap * gap);
      other_sum += weight * sqrt(1e-10 + other * other);
    }
  }
  sum = block_sum(sum);
  __syncthreads();
  other_sum = block_sum(other_sum);
  if (threadIdx.x == 0) better[i] = other_sum < sum ? 1 : 0;
}

__global__ void __launch_bounds__(kThreads)
    choose_kernel(const float* choose, const float* a, const float* b, int64_t n, int64_t row,
                  float* out) {
  after_earlier();
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e < n) out[e] = choose[e / row] != 0 ? b[e] : a[e];
}

}  // namespace

void fape(const FapeTensors& in, double clamp, double unclamped, double scale, const Tensor& loss,
          const Tensor& dframes, const Tensor& dpoints) {
  const int64_t n_frame = in.frames.size(0), n_point = in.points.size(0);
  const Scratch room((n_frame + 1) * 8);
  double *norm = room.data<double>(), *partial = norm + 1;
  const Fape f{in.frames.data<float>(),
               in.target_frames.data<float>(),
               in.frame_mask.data<float>(),
               in.points.data<float>(),
               in.target_points.data<float>(),
               in.point_mask.data<float>(),
               n_frame,
               n_point,
               float(clamp),
               float(unclamped),
               norm};
  start_kernel(fape_norm_kernel, 1, 1024, 0, f, scale, norm);
  check_launch("fape", in.frames.shape());
  if (n_frame) {
    start_kernel(fape_frames_kernel, n_frame, kThreads, 0, f, partial,
                 data_or_null<float>(dframes));
    check_launch("fape", in.frames.shape());
  }
  start_kernel(join_kernel, 1, 1024, 0, partial, n_frame, norm, loss.data<double>());
  check_launch("fape", in.frames.shape());
  if (!dpoints.defined() || !n_point) return;
  // About four blocks for each multiprocessor.
  const int64_t tiles = ceil_div(n_point, kThreads);
  const int64_t parts = std::clamp<int64_t>(ceil_div(4 * device_info().sm_count, tiles), 1,
                                            ceil_div(std::max<int64_t>(n_frame, 1), 16));
  const Scratch sums(parts * n_point * 3 * 4);
  start_kernel(fape_points_kernel, dim3(unsigned(tiles), unsigned(parts)), kThreads, 0, f,
               sums.data<float>());
  check_launch("fape", in.points.shape());
  add_partials(sums.data<float>(), parts, 3 * n_point, 3 * n_point, dpoints.view({3 * n_point}));
}

void chi_loss(const Tensor& angles, const Tensor& chi, const Tensor& mask, const Tensor& periodic,
              int64_t layers, const Tensor& loss, const Tensor& dangles) {
  start_kernel(chi_kernel, 1, 1024, 0, angles.data<float>(), chi.data<double>(),
               mask.data<double>(), periodic.data<double>(), chi.size(0), double(layers),
               loss.data<double>(), data_or_null<float>(dangles));
  check_launch("chi_loss", angles.shape());
}

void angle_norm_loss(const Tensor& angles, const Tensor& mask, int64_t layers, const Tensor& loss,
                     const Tensor& dangles) {
  start_kernel(angle_norm_kernel, 1, 1024, 0, angles.data<float>(), mask.data<double>(),
               mask.numel(), double(layers), loss.data<double>(), data_or_null<float>(dangles));
  check_launch("angle_norm_loss", angles.shape());
}

void binary_cross_entropy(const Tensor& logits, const Tensor& labels, const Tensor& weights,
                          double norm, const Tensor& loss, const Tensor& gradient) {
  start_kernel(binary_kernel, 1, 1024, 0, logits.data<float>(), labels.data<double>(),
               weights.data<double>(), norm, logits.numel(), loss.data<double>(),
               data_or_null<float>(gradient));
  check_launch("binary_cross_entropy", logits.shape());
}

void weighted_sum(TensorList terms, std::span<const double> weights, const Tensor& loss) {
  check(terms.size() <= kMostTerms, "a sum of ", terms.size(), " losses on a GPU");
  Terms t{};
  for (; t.count < int(terms.size()); ++t.count) {
    t.term[t.count] = terms[size_t(t.count)].data<float>();
    t.weight[t.count] = weights[size_t(t.count)];
  }
  start_kernel(weighted_sum_kernel, 1, 1, 0, t, loss.data<double>());
  check_launch("weighted_sum", terms.size(), " terms");
}

void distance_classes(const Tensor& points, const Tensor& mask, const Tensor& breaks,
                      int64_t first_row, const Tensor& classes, const Tensor& weights) {
  classify("distance_classes", Distances{points.data<double>()}, mask, breaks, first_row, classes,
           weights);
}

void aligned_error_classes(const Tensor& frames, const Tensor& truth, const Tensor& mask,
                           const Tensor& breaks, int64_t first_row, const Tensor& classes,
                           const Tensor& weights) {
  classify("aligned_error_classes", AlignedErrors{frames.data<float>(), truth.data<double>()}, mask,
           breaks, first_row, classes, weights);
}

void lddt(const Tensor& points, const Tensor& truth, const Tensor& mask, const Tensor& score) {
  const int64_t n = score.numel();
  if (!n) return;
  start_kernel(lddt_kernel, n, kThreads, 0, points.data<float>(), truth.data<double>(),
               mask.data<double>(), n, score.data<double>());
  check_launch("lddt", points.shape());
}

void score_classes(const Tensor& score, int64_t bins, const Tensor& classes) {
  const int64_t n = score.numel();
  if (!n) return;
  start_kernel(score_classes_kernel, ceil_div(n, kThreads), kThreads, 0, score.data<double>(), n,
               int32_t(bins), classes.data<int32_t>());
  check_launch("score_classes", score.shape());
}

void alternative_is_better(const Tensor& atoms, const Tensor& truth, const Tensor& alternative,
                           const Tensor& exists, const Tensor& ambiguous, const Tensor& better) {
  const int64_t n = better.numel();
  if (!n) return;
  start_kernel(alternative_kernel, n, kThreads, 0, atoms.data<float>(), truth.data<double>(),
               alternative.data<double>(), exists.data<double>(), ambiguous.data<double>(), n,
               better.data<float>());
  check_launch("alternative_is_better", atoms.shape());
}

void choose_rows(const Tensor& choose, const Tensor& a, const Tensor& b, const Tensor& out) {
  const int64_t n = out.numel();
  if (!n) return;
  start_kernel(choose_kernel, ceil_div(n, kThreads), kThreads, 0, choose.data<float>(),
               a.data<float>(), b.data<float>(), n, n / choose.numel(), out.data<float>());
  check_launch("choose_rows", out.shape());
}

}  // namespace ff::cuda
