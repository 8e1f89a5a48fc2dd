// The structure module's operations against their plain composition in f64, at odd sizes and with
// masks, in both types and instruction sets. The module's parity with AlphaFold is tested in
// model/.
#include <catch2/catch.hpp>
#include <cmath>
#include <random>
#include <vector>

#include "core/ops/invariant_point_attention.h"
#include "core/ops/kernels.h"
#include "core/ops/rigid_ops.h"
#include "tests/unit/compare.h"

using namespace ff;

namespace ff::cpu::v3 {
extern const Kernels kTable;
}

namespace {

struct Random {
  std::mt19937 engine{11};
  Tensor operator()(const Dims& shape) {
    std::normal_distribution<double> normal;
    const Tensor t = Tensor::empty(shape, Dtype::f64);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = normal(engine);
    return t;
  }
  Tensor affines(int64_t n) {
    const Tensor t = (*this)({n, 7});
    for (int64_t i = 0; i < n; ++i) {
      double* q = t.data<double>() + 7 * i;
      const double length = std::hypot(std::hypot(q[0], q[1]), std::hypot(q[2], q[3]));
      for (int k = 0; k < 4; ++k) q[k] /= length;
    }
    return t;
  }
};

using Matrix = std::array<std::array<double, 3>, 3>;

/// The rotation by its action on the axes: q e q*.
Matrix rotation(const double* q) {
  Matrix r;
  for (int axis = 0; axis < 3; ++axis) {
    // v' = v + 2 w (u x v) + 2 u x (u x v)
    double v[3] = {}, c[3], d[3];
    v[axis] = 1;
    const double* u = q + 1;
    const auto cross = [&](const double* a, const double* b, double* out) {
      out[0] = a[1] * b[2] - a[2] * b[1];
      out[1] = a[2] * b[0] - a[0] * b[2];
      out[2] = a[0] * b[1] - a[1] * b[0];
    };
    cross(u, v, c);
    cross(u, c, d);
    for (int k = 0; k < 3; ++k) r[size_t(k)][size_t(axis)] = v[k] + 2 * q[0] * c[k] + 2 * d[k];
  }
  return r;
}

struct Case {
  int64_t n, h, qk, v, point_qk, point_v, c_z;
};

struct Operands {
  Tensor q, kv, q_point, kv_point, affine, bias, z, weights, mask;
};

Operands operands(const Case& s, Random& random) {
  Operands o{random({s.n, s.h * s.qk}),
             random({s.n, s.h * (s.qk + s.v)}),
             random({s.n, 3 * s.h * s.point_qk}),
             random({s.n, 3 * s.h * (s.point_qk + s.point_v)}),
             random.affines(s.n),
             random({s.n, s.n, s.h}),
             random({s.n, s.n, s.c_z}),
             random({s.h}),
             random({s.n})};
  // One residue in four is masked, but never all.
  for (int64_t i = 0; i < s.n; ++i) o.mask.data<double>()[i] = i % 4 != 3;
  return o;
}

Tensor attend(const Operands& o, Dtype dtype) {
  const NoGrad no_grad;
  const auto as = [&](const Tensor& t) { return Var(t.to(dtype)); };
  return invariant_point_attention({.q_scalar = as(o.q),
                                    .kv_scalar = as(o.kv),
                                    .q_point = as(o.q_point),
                                    .kv_point = as(o.kv_point),
                                    .affine = as(o.affine),
                                    .bias = as(o.bias),
                                    .z = as(o.z),
                                    .point_weights = as(o.weights),
                                    .query_mask = o.mask.to(dtype),
                                    .mask = o.mask.to(dtype)})
      .value();
}

/// Suppl. Alg. 22 line by line.
Tensor plain(const Operands& o, const Case& s) {
  const int64_t points = s.point_qk + s.point_v, scalars = s.qk + s.v;
  const Tensor out = Tensor::zeros({s.n, s.h * (s.v + 4 * s.point_v + s.c_z)}).to(Dtype::f64);
  const double *q = o.q.data<double>(), *kv = o.kv.data<double>(), *qp = o.q_point.data<double>(),
               *kvp = o.kv_point.data<double>(), *m = o.mask.data<double>();
  const auto key_point = [&](int64_t j, int64_t x, int64_t h, int64_t p) {
    return kvp[((j * 3 + x) * s.h + h) * points + p];
  };
  for (int64_t i = 0; i < s.n; ++i) {
    const double* affine = o.affine.data<double>() + 7 * i;
    const Matrix r = rotation(affine);
    double* to = out.data<double>() + i * out.size(1);
    for (int64_t h = 0; h < s.h; ++h) {
      std::vector<double> a;
      double high = -1e300, total = 0;
      const double gamma = std::log1p(std::exp(o.weights.data<double>()[h]));
      for (int64_t j = 0; j < s.n; ++j) {
        double dot = 0, dist2 = 0;
        for (int64_t c = 0; c < s.qk; ++c)
          dot += q[(i * s.h + h) * s.qk + c] * kv[(j * s.h + h) * scalars + c];
        for (int64_t x = 0; x < 3; ++x)
          for (int64_t p = 0; p < s.point_qk; ++p)
            dist2 +=
                std::pow(qp[((i * 3 + x) * s.h + h) * s.point_qk + p] - key_point(j, x, h, p), 2);
        a.push_back(std::sqrt(1.0 / 3) *
                        (dot / std::sqrt(double(s.qk)) +
                         o.bias.data<double>()[(i * s.n + j) * s.h + h] -
                         gamma * std::sqrt(2.0 / (9 * double(s.point_qk))) / 2 * dist2) -
                    1e5 * (1 - m[i] * m[j]));
        high = std::max(high, a.back());
      }
      for (double& x : a) total += x = std::exp(x - high);
      for (int64_t j = 0; j < s.n; ++j) {
        const double w = a[size_t(j)] / total;
        for (int64_t c = 0; c < s.v; ++c)
          to[h * s.v + c] += w * kv[(j * s.h + h) * scalars + s.qk + c];
        for (int64_t c = 0; c < s.c_z; ++c)
          to[s.h * (s.v + 4 * s.point_v) + h * s.c_z + c] +=
              w * o.z.data<double>()[(i * s.n + j) * s.c_z + c];
        for (int64_t p = 0; p < s.point_v; ++p)
          for (size_t x = 0; x < 3; ++x)
            for (size_t y = 0; y < 3; ++y)
              to[s.h * s.v + (int64_t(x) * s.h + h) * s.point_v + p] +=
                  w * r[y][x] * (key_point(j, int64_t(y), h, s.point_qk + p) - affine[4 + y]);
      }
      for (int64_t p = 0; p < s.point_v; ++p) {
        double square = 1e-8;
        for (int64_t x = 0; x < 3; ++x)
          square += std::pow(to[s.h * s.v + (x * s.h + h) * s.point_v + p], 2);
        to[s.h * (s.v + 3 * s.point_v) + h * s.point_v + p] = std::sqrt(square);
      }
    }
  }
  return out;
}

/// f32 rows of the residues that count: a masked query's logits are near -1e5, where f32 has steps
/// of 0.008 (in AlphaFold too).
void compare_kept_rows(const Operands& o, const Tensor& got, const Tensor& want) {
  for (int64_t i = 0; i < want.size(0); ++i)
    if (o.mask.select(0, i).item() != 0)
      test::compare(cat("row ", i, " of ", want.size(0)), got.select(0, i), want.select(0, i),
                    test::Tolerance::of(Dtype::f32));
}

}  // namespace

TEST_CASE("invariant point attention equals its plain composition", "[structure]") {
  Random random;
  for (const Case& s : {Case{37, 12, 16, 16, 4, 8, 128}, Case{5, 3, 5, 6, 3, 4, 19},
                        Case{1, 1, 1, 1, 1, 1, 1}, Case{64, 7, 4, 8, 2, 3, 33}}) {
    const Operands o = operands(s, random);
    const Tensor want = plain(o, s);
    test::compare(cat("n = ", s.n, " f64"), attend(o, Dtype::f64), want,
                  test::Tolerance::of(Dtype::f64));
    compare_kept_rows(o, attend(o, Dtype::f32), want);
  }
}

TEST_CASE("invariant point attention reads a strided pair representation", "[structure]") {
  Random random;
  const Case s{9, 2, 4, 4, 2, 2, 24};
  Operands o = operands(s, random);
  const Tensor want = attend(o, Dtype::f64), wide = random({s.n, s.n + 3, s.c_z});
  wide.narrow(1, 0, s.n).copy_from(o.z);
  o.z = wide.narrow(1, 0, s.n);
  test::compare("strided", attend(o, Dtype::f64), want, 0);
}

TEST_CASE("invariant point attention does not see a motion of the whole chain", "[structure]") {
  Random random;
  const Case s{21, 4, 8, 8, 4, 8, 32};
  Operands o = operands(s, random);
  const Tensor want = attend(o, Dtype::f64), motion = random.affines(1);
  const Matrix r = rotation(motion.data<double>());
  const auto move = [&](const Tensor& points, int64_t count, int64_t stride) {
    const Tensor out = points.clone();
    for (int64_t i = 0; i < s.n; ++i)
      for (int64_t p = 0; p < count; ++p)
        for (size_t x = 0; x < 3; ++x) {
          double v = motion.data<double>()[4 + x];
          for (size_t y = 0; y < 3; ++y)
            v += r[x][y] * points.data<double>()[i * points.size(1) + p + int64_t(y) * stride];
          out.data<double>()[i * points.size(1) + p + int64_t(x) * stride] = v;
        }
    return out;
  };
  o.q_point = move(o.q_point, s.h * s.point_qk, s.h * s.point_qk);
  o.kv_point = move(o.kv_point, s.h * (s.point_qk + s.point_v), s.h * (s.point_qk + s.point_v));
  const Tensor moved = o.affine.clone();
  for (int64_t i = 0; i < s.n; ++i) {
    const double *a = motion.data<double>(), *b = o.affine.data<double>() + 7 * i;
    double* to = moved.data<double>() + 7 * i;
    to[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3];
    to[1] = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2];
    to[2] = a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1];
    to[3] = a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0];
    for (size_t x = 0; x < 3; ++x) {
      to[4 + x] = a[4 + x];
      for (size_t y = 0; y < 3; ++y) to[4 + x] += r[x][y] * b[4 + y];
    }
  }
  o.affine = moved;
  test::compare("moved", attend(o, Dtype::f64), want, 1e-11);
}

TEST_CASE("invariant point attention of some of the residues gives their rows", "[structure]") {
  Random random;
  const Case s{21, 3, 8, 8, 4, 4, 20};
  const Operands o = operands(s, random);
  const auto rows = [](const Tensor& t) { return Var(t.narrow(0, 5, 9)); };
  const Tensor got = invariant_point_attention({.q_scalar = rows(o.q),
                                                .kv_scalar = o.kv,
                                                .q_point = rows(o.q_point),
                                                .kv_point = o.kv_point,
                                                .affine = rows(o.affine),
                                                .bias = rows(o.bias),
                                                .z = rows(o.z),
                                                .point_weights = o.weights,
                                                .query_mask = rows(o.mask).value(),
                                                .mask = o.mask})
                         .value();
  test::compare("rows", got, attend(o, Dtype::f64).narrow(0, 5, 9).contiguous(), 1e-14);
}

TEST_CASE("the AVX2 kernel of invariant point attention equals the chosen one", "[structure]") {
  Random random;
  const Case s{45, 5, 16, 16, 4, 8, 70};
  const Operands o = operands(s, random);
  const auto f32 = [](const Tensor& t) { return t.to(Dtype::f32); };
  const Tensor want = attend(o, Dtype::f32), got = Tensor::empty(want.shape());
  cpu::v3::kTable.invariant_point_attention(
      {f32(o.q), f32(o.kv), f32(o.q_point), f32(o.kv_point), f32(o.affine), f32(o.bias), f32(o.z),
       f32(o.mask), f32(o.mask), f32(o.weights)},
      got);
  compare_kept_rows(o, got, want);
}

TEST_CASE("a backbone update composes with the small motion on the right", "[structure]") {
  Random random;
  const int64_t n = 6;
  const Tensor affine = random.affines(n), update = random({n, 6});
  const Tensor got = update_backbone(affine, update).value();
  for (int64_t i = 0; i < n; ++i) {
    const double *u = update.data<double>() + 6 * i, *a = affine.data<double>() + 7 * i;
    const double length = std::sqrt(1 + u[0] * u[0] + u[1] * u[1] + u[2] * u[2]);
    const double small[4] = {1 / length, u[0] / length, u[1] / length, u[2] / length};
    const Matrix ra = rotation(a), rs = rotation(small), r = rotation(got.data<double>() + 7 * i);
    for (size_t x = 0; x < 3; ++x) {
      double t = a[4 + x];
      for (size_t y = 0; y < 3; ++y) {
        double product = 0;
        for (size_t k = 0; k < 3; ++k) product += ra[x][k] * rs[k][y];
        REQUIRE(r[x][y] == Approx(product).margin(1e-12));
        t += ra[x][y] * u[3 + y];
      }
      REQUIRE(got.data<double>()[7 * i + 4 + int64_t(x)] == Approx(t).margin(1e-12));
    }
  }
}

TEST_CASE("normalised angles survive a zero pair", "[structure]") {
  const double x[14] = {3, 4, 0, 0, 1e-9, 0};
  const Tensor got = normalize_angles(Tensor::of({1, 14}, x)).value();
  const double want[14] = {0.6, 0.8, 0, 0, 1e-3, 0};
  test::compare("angles", got, Tensor::of({1, 7, 2}, want), 1e-15);
}

TEST_CASE("structure operations refuse shapes that do not fit", "[structure]") {
  Random random;
  REQUIRE_THROWS_AS(update_backbone(random.affines(3), random({2, 6})), Error);
  REQUIRE_THROWS_AS(apply_rigids(random.affines(3), random({3, 7})), Error);
  REQUIRE_THROWS_AS(apply_rigids(random.affines(3), random({3, 6}).to(Dtype::f32)), Error);
  Operands o = operands({5, 3, 5, 6, 3, 4, 19}, random);
  o.kv = random({5, 7});
  REQUIRE_THROWS_WITH(attend(o, Dtype::f64), Catch::Contains("invariant point attention"));
}
