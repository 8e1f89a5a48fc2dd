// Violations of bond lengths, angles and distances: in f64 as on the CPU, each atom's gradient
// gathered by itself.
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 128, kAtoms = 14, kN = 0, kCa = 1, kC = 2, kSg = 5;  // SG is cysteine's

struct Vec {
  double x[3];
};
__device__ __forceinline__ Vec minus(const Vec& a, const Vec& b) {
  return {a.x[0] - b.x[0], a.x[1] - b.x[1], a.x[2] - b.x[2]};
}
__device__ __forceinline__ double dot(const Vec& a, const Vec& b) {
  return a.x[0] * b.x[0] + a.x[1] * b.x[1] + a.x[2] * b.x[2];
}
__device__ __forceinline__ void add(Vec& to, double factor, const Vec& v) {
#pragma unroll
  for (int k = 0; k < 3; ++k) to.x[k] += factor * v.x[k];
}
__device__ __forceinline__ double length(const Vec& a) { return sqrt(1e-6 + dot(a, a)); }

struct Protein {
  const float* atoms;
  const double *exists, *radius, *index;
  const int32_t* types;
  const float *lower, *upper;
  int64_t n;
  int32_t proline;
  __device__ Vec at(int64_t atom) const {
    return {double(atoms[3 * atom]), double(atoms[3 * atom + 1]), double(atoms[3 * atom + 2])};
  }
  __device__ Vec atom(int64_t i, int a) const { return at(i * kAtoms + a); }
  __device__ double has(int64_t i, int a) const { return exists[i * kAtoms + a]; }
};

/// The bond and the two angles between residues i and i + 1.
struct Connection {
  Vec c_n, ca_c, n_c, ca_n;  // C - N', CA - C, N' - C, CA' - N'
  double value[3], mean[3], deviation[3], mask[3];

  __device__ Connection(const Protein& p, int64_t i) {
    const Vec ca = p.atom(i, kCa), c = p.atom(i, kC), n = p.atom(i + 1, kN),
              ca_next = p.atom(i + 1, kCa);
    c_n = minus(c, n);
    ca_c = minus(ca, c);
    n_c = minus(n, c);
    ca_n = minus(ca_next, n);
    const bool proline = p.types[i + 1] == p.proline;
    const double joined = p.index[i + 1] - p.index[i] == 1 ? 1 : 0,
                 both = p.has(i, kC) * p.has(i + 1, kN) * joined;
    set(0, length(c_n), proline ? 1.341 : 1.329, proline ? 0.016 : 0.014, both);
    set(1, dot(ca_c, n_c) / length(ca_c) / length(n_c), -0.4473, 0.0311, p.has(i, kCa) * both);
    set(2, dot(c_n, ca_n) / length(c_n) / length(ca_n), -0.5203, 0.0353, both * p.has(i + 1, kCa));
  }
  __device__ void set(int k, double v, double m, double d, double keep) {
    value[k] = v;
    mean[k] = m;
    deviation[k] = d;
    mask[k] = keep;
  }
  __device__ double error(int k) const {
    const double gap = value[k] - mean[k];
    return sqrt(1e-6 + gap * gap);
  }
  __device__ double loss(int k, double tolerance) const {
    return fmax(0.0, error(k) - tolerance * deviation[k]);
  }
  __device__ double slope(int k, double tolerance, const double* counts) const {
    return loss(k, tolerance) > 0 ? mask[k] * (value[k] - mean[k]) / error(k) / (counts[k] + 1e-6)
                                  : 0;
  }
  /// Gradients of the three means' sum: of CA and C, and of N and CA of the next residue.
  __device__ void gradient(double tolerance, const double* counts, Vec& ca, Vec& c, Vec& n,
                           Vec& ca_next) const {
    const double bond = slope(0, tolerance, counts) / length(c_n);
    add(c, bond, c_n);
    add(n, -bond, c_n);
    Vec du, dv;
    cosine(1, ca_c, n_c, tolerance, counts, du, dv);
    add(ca, 1, du);
    add(n, 1, dv);
    add(c, -1, du);
    add(c, -1, dv);
    cosine(2, c_n, ca_n, tolerance, counts, du, dv);
    add(c, 1, du);
    add(ca_next, 1, dv);
    add(n, -1, du);
    add(n, -1, dv);
  }
  __device__ void cosine(int k, const Vec& u, const Vec& v, double tolerance, const double* counts,
                         Vec& du, Vec& dv) const {
    const double s = slope(k, tolerance, counts), p = length(u), q = length(v);
    du = dv = {};
    add(du, s / (p * q), v);
    add(du, -s * value[k] / (p * p), u);
    add(dv, s / (p * q), u);
    add(dv, -s * value[k] / (q * q), v);
  }
};

/// Room of the kernels: connections' masks' sums, the atoms' number (1e-6 more), and for each atom
/// how many others it was held against.
struct Room {
  double counts[3], atoms;
  double pairs[1];
};

/// One block: the connections, and the number of atoms.
__global__ void __launch_bounds__(1024)
    connections_kernel(const __grid_constant__ Protein p, double tolerance, double* connections,
                       double* means, Room* room) {
  after_earlier();
  __shared__ double counts[3];
  double mask[3] = {}, sum[3] = {}, atoms = 0;
  for (int64_t i = threadIdx.x; i + 1 < p.n; i += blockDim.x) {
    const Connection c(p, i);
    for (int k = 0; k < 3; ++k) {
      const double loss = c.loss(k, tolerance);
      connections[k * p.n + i] = loss;
      connections[(3 + k) * p.n + i] = c.error(k) > tolerance * c.deviation[k] ? c.mask[k] : 0;
      mask[k] += c.mask[k];
      sum[k] += c.mask[k] * loss;
    }
  }
  if (threadIdx.x < 6 && p.n) connections[threadIdx.x * p.n + p.n - 1] = 0;  // after the last
  for (int64_t a = threadIdx.x; a < p.n * kAtoms; a += blockDim.x) atoms += p.exists[a];
  for (int k = 0; k < 3; ++k) {
    const double all = block_sum(mask[k]);
    if (threadIdx.x == 0) counts[k] = all;
    __syncthreads();
    const double total = block_sum(sum[k]);
    if (threadIdx.x == 0) {
      room->counts[k] = counts[k];
      means[k] = total / (counts[k] + 1e-6);
    }
    __syncthreads();
  }
  atoms = block_sum(atoms);
  if (threadIdx.x == 0) room->atoms = 1e-6 + atoms;
}

/// A block an atom, held against all others; AlphaFold sums a pair within a residue four times.
__global__ void __launch_bounds__(kThreads)
    atoms_kernel(const __grid_constant__ Protein p, double tolerance, double overlap, Room* room,
                 double* clashes, double* within, float* datoms) {
  after_earlier();
  const int64_t at = blockIdx.x, i = at / kAtoms;
  const int a = int(at % kAtoms);
  const double factor = 1 / room->atoms;
  const Vec x = p.at(at);
  double clash = 0, bent = 0, pairs = 0;
  Vec d{};
  if (p.exists[at] != 0) {
    for (int64_t other = threadIdx.x; other < p.n * kAtoms; other += kThreads) {
      const int64_t j = other / kAtoms;
      const int b = int(other % kAtoms);
      if (p.exists[other] == 0 || other == at) continue;
      const Vec gap = minus(x, p.at(other));
      const double square = 1e-10 + dot(gap, gap);
      if (j == i) {
        const int64_t bound = (p.types[i] * kAtoms + a) * kAtoms + b;
        const double low = p.lower[bound], high = p.upper[bound], distance = sqrt(square);
        if (distance >= low && distance <= high) continue;
        bent += 2 * (distance < low ? low - distance : distance - high);
        add(d, 4 * factor * (distance < low ? -1 : 1) / distance, gap);
        continue;
      }
      const double step = p.index[j] - p.index[i];
      const bool bond = (step == 1 && a == kC && b == kN) || (step == -1 && a == kN && b == kC);
      if (step == 0 || bond || (a == kSg && b == kSg)) continue;
      pairs += 0.5;
      const double bound = p.radius[at] + p.radius[other] - overlap;
      if (bound <= 0 || square >= bound * bound) continue;
      const double distance = sqrt(square);
      clash += bound - distance;
      add(d, -2 * factor / distance, gap);
    }
    if (threadIdx.x == 0) {
      Vec ca{}, c{}, n{}, ca_next{}, none{};
      if (i + 1 < p.n) Connection(p, i).gradient(tolerance, room->counts, ca, c, none, none);
      if (i > 0) Connection(p, i - 1).gradient(tolerance, room->counts, none, none, n, ca_next);
      if (a == kN) add(d, 1, n);
      if (a == kCa) add(d, 1, ca), add(d, 1, ca_next);
      if (a == kC) add(d, 1, c);
    }
  }
  double sums[] = {clash, bent, pairs, d.x[0], d.x[1], d.x[2]};
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    sums[k] = block_sum(sums[k]);
    __syncthreads();
  }
  if (threadIdx.x) return;
  const int64_t all = p.n * kAtoms;
  clashes[at] = sums[0];
  clashes[all + at] = sums[0] > 0 ? 1 : 0;
  within[at] = sums[1];
  within[all + at] = sums[1] > 0 ? 1 : 0;
  room->pairs[at] = sums[2];
  if (datoms)
    for (int k = 0; k < 3; ++k) datoms[3 * at + k] += float(sums[3 + k]);
}

__global__ void __launch_bounds__(1024)
    finish_kernel(int64_t atoms, const Room* room, const double* clashes, const double* within,
                  double* means, double* loss) {
  after_earlier();
  double clash = 0, bent = 0, pairs = 0;
  for (int64_t a = threadIdx.x; a < atoms; a += blockDim.x) {
    clash += clashes[a];
    bent += within[a];
    pairs += room->pairs[a];
  }
  clash = block_sum(clash);
  __syncthreads();
  bent = block_sum(bent);
  __syncthreads();
  pairs = block_sum(pairs);
  if (threadIdx.x) return;
  means[3] = 0.5 * clash / (1e-6 + pairs);
  *loss = means[0] + means[1] + means[2] + (clash + bent) / room->atoms;
}

}  // namespace

void violations(const ViolationTensors& in, double tolerance, double overlap, const Tensor& loss,
                const ViolationResults& results, const Tensor& datoms) {
  const int64_t n = in.index.numel();
  const Scratch scratch(int64_t(sizeof(Room)) + n * kAtoms * 8);
  auto* room = scratch.data<Room>();
  const Protein p{in.atoms.data<float>(),
                  in.exists.data<double>(),
                  in.radius.data<double>(),
                  in.index.data<double>(),
                  in.types.data<int32_t>(),
                  in.lower.data<float>(),
                  in.upper.data<float>(),
                  n,
                  in.proline};
  double *clashes = results.clashes.data<double>(), *within = results.within.data<double>(),
         *means = results.means.data<double>();
  start_kernel(connections_kernel, 1, 1024, 0, p, tolerance, results.connections.data<double>(),
               means, room);
  check_launch("violations", in.atoms.shape());
  if (n) {
    start_kernel(atoms_kernel, n * kAtoms, kThreads, 0, p, tolerance, overlap, room, clashes,
                 within, data_or_null<float>(datoms));
    check_launch("violations", in.atoms.shape());
  }
  start_kernel(finish_kernel, 1, 1024, 0, n * kAtoms, room, clashes, within, means,
               loss.data<double>());
  check_launch("violations", in.atoms.shape());
}

}  // namespace ff::cuda
