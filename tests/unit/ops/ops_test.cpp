// Every operation of the trunk against its plain composition in f64, at odd sizes, with masks, in
// all dtypes, on strided views, and the two instruction sets against each other.
#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "core/ops/kernels.h"
#include "core/ops/ops.h"
#include "tests/unit/compare.h"

using namespace ff;

namespace ff::cpu::v3 {
extern const Kernels kTable;
}

namespace {

struct Random {
  std::mt19937 engine{7};
  Tensor operator()(const Dims& shape, Dtype dtype = Dtype::f64, double spread = 1) {
    std::normal_distribution<double> normal(0, spread);
    const Tensor t = Tensor::empty(shape, Dtype::f64);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = normal(engine);
    return t.to(dtype);
  }
  Tensor mask(const Dims& shape) {
    const Tensor t = Tensor::empty(shape);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = engine() % 4 != 0;
    return t;
  }
};

double at(const Tensor& t, std::initializer_list<int64_t> index) {
  Tensor x = t;
  for (int64_t i : index) x = x.select(0, i);
  return x.item();
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

const Dtype kTypes[] = {Dtype::f64, Dtype::f32, Dtype::bf16};

/// Statistics, biases and logits keep f32 where activations are bf16.
Dtype wide(Dtype dtype) { return dtype == Dtype::bf16 ? Dtype::f32 : dtype; }

/// Rounds to `dtype` and back, so that the reference sees the numbers that the operation saw.
Tensor rounded(const Tensor& t, Dtype dtype) { return t.to(dtype).to(Dtype::f64); }

}  // namespace

TEST_CASE("layer norm equals its definition", "[ops]") {
  const NoGrad no_grad;
  Random random;
  for (Dtype type : kTypes)
    for (int64_t c : {1, 5, 16, 23, 128, 131}) {
      const Tensor x = rounded(random({7, 5, c}), type), s = rounded(random({c}), wide(type)),
                   o = rounded(random({c}), wide(type));
      const Tensor want = Tensor::empty(x.shape(), Dtype::f64);
      for (int64_t r = 0; r < 35; ++r) {
        const double* p = x.data<double>() + r * c;
        double mean = 0, var = 0;
        for (int64_t j = 0; j < c; ++j) mean += p[j] / double(c);
        for (int64_t j = 0; j < c; ++j) var += (p[j] - mean) * (p[j] - mean) / double(c);
        for (int64_t j = 0; j < c; ++j)
          want.data<double>()[r * c + j] =
              (p[j] - mean) / std::sqrt(var + 1e-5) * s.data<double>()[j] + o.data<double>()[j];
      }
      const Var scale(s.to(wide(type))), offset(o.to(wide(type)));
      test::compare("", layer_norm(x.to(type), scale, offset).value(), want,
                    test::Tolerance::of(type));
      // A transposed view gives the transposed result; channels first gives the same.
      test::compare("", layer_norm(x.to(type).transpose(0, 1), scale, offset).value(),
                    want.transpose(0, 1), test::Tolerance::of(type));
      const Tensor first = x.transpose(1, 2).transpose(0, 1).contiguous().to(type);  // [c, 7, 5]
      test::compare("", layer_norm_channels_first(first, scale, offset).value(), want,
                    test::Tolerance::of(type));
    }
}

TEST_CASE("linear equals its definition", "[ops]") {
  const NoGrad no_grad;
  Random random;
  for (Dtype type : kTypes) {
    const Tensor x = rounded(random({3, 4, 19}), type),
                 w = rounded(random({19, 2, 7}, Dtype::f64, 0.2), type),
                 b = rounded(random({2, 7}), wide(type));
    const Tensor plain = Tensor::empty({3, 4, 14}, Dtype::f64), relu = plain.clone();
    for (int64_t r = 0; r < 12; ++r)
      for (int64_t o = 0; o < 14; ++o) {
        double y = b.data<double>()[o];
        for (int64_t c = 0; c < 19; ++c)
          y += x.data<double>()[r * 19 + c] * w.data<double>()[c * 14 + o];
        plain.data<double>()[r * 14 + o] = y;
        relu.data<double>()[r * 14 + o] = std::max(y, 0.0);
      }
    const Var wv(w.to(type)), bv(b.to(wide(type)));
    test::compare("", linear(x.to(type), wv, bv).value(), plain, test::Tolerance::of(type));
    test::compare("", linear(x.to(type), wv, bv, Activation::kRelu).value(), relu,
                  test::Tolerance::of(type));
    test::compare("", linear(x.to(type).transpose(0, 1), wv, bv).value(), plain.transpose(0, 1),
                  test::Tolerance::of(type));
    // Added into a transposed view of the residual.
    const Tensor residual = Tensor::zeros({3, 4, 14}).to(type);
    linear_add(residual.transpose(0, 1), linear(x.to(type).transpose(0, 1), wv, bv),
               Var(Tensor::zeros({14, 14}).to(type)), bv);
    for (int64_t o = 0; o < 14; ++o)
      REQUIRE(at(residual, {2, 3, o}) == Approx(bf16(float(b.data<double>()[o]))).epsilon(1e-2));
    const Tensor first = linear_channels_first(x.to(type), wv).value();
    const Tensor want = Tensor::empty({14, 12}, Dtype::f64);
    for (int64_t r = 0; r < 12; ++r)
      for (int64_t o = 0; o < 14; ++o)
        want.data<double>()[o * 12 + r] = plain.data<double>()[r * 14 + o] - b.data<double>()[o];
    test::compare("", first, want, test::Tolerance::of(type));
  }
}

TEST_CASE("attention equals its definition", "[ops]") {
  const NoGrad no_grad;
  Random random;
  struct Size {
    int64_t batch, n_query, n_key, h, c, c_v;
  };
  for (Dtype type : kTypes)
    for (const Size& n : {Size{3, 7, 7, 2, 8, 8},
                          {2, 1, 4, 4, 16, 16},
                          {2, 13, 37, 3, 5, 6},
                          {1, 70, 70, 2, 32, 32},
                          {2, 9, 131, 1, 33, 65}}) {
      for (bool with_all : {true, false}) {
        const Tensor q = rounded(random({n.batch, n.n_query, n.h, n.c}), type),
                     k = rounded(random({n.batch, n.n_key, n.h, n.c}), type),
                     v = rounded(random({n.batch, n.n_key, n.h, n.c_v}), type),
                     g = rounded(random({n.batch, n.n_query, n.h, n.c_v}), type),
                     bias = rounded(random({n.h, n.n_query, n.n_key}), wide(type));
        const Tensor mask = random.mask({n.batch, n.n_key});
        for (int64_t j = 0; j < n.n_key; ++j) mask.data<float>()[j] = 0;  // a fully masked row
        const Tensor want = Tensor::empty(g.shape(), Dtype::f64);
        for (int64_t b = 0; b < n.batch; ++b)
          for (int64_t h = 0; h < n.h; ++h)
            for (int64_t i = 0; i < n.n_query; ++i) {
              std::vector<double> p(n.n_key);
              double top = -1e300, total = 0;
              for (int64_t j = 0; j < n.n_key; ++j) {
                double s = 0;
                for (int64_t l = 0; l < n.c; ++l) s += at(q, {b, i, h, l}) * at(k, {b, j, h, l});
                s /= std::sqrt(double(n.c));
                if (with_all) s += at(bias, {h, i, j});
                if (with_all && at(mask, {b, j}) == 0) s = -1e9;
                p[j] = s;
                top = std::max(top, s);
              }
              for (double& s : p) total += s = std::exp(s - top);
              for (int64_t l = 0; l < n.c_v; ++l) {
                double o = 0;
                for (int64_t j = 0; j < n.n_key; ++j) o += p[j] / total * at(v, {b, j, h, l});
                if (with_all) o *= sigmoid(at(g, {b, i, h, l}));
                want.data<double>()[((b * n.n_query + i) * n.h + h) * n.c_v + l] = o;
              }
            }
        const Tensor got =
            attention(q.to(type).clone(), k.to(type), v.to(type),
                      with_all ? Var(g.to(type)) : Var(),
                      with_all ? Var(bias.to(wide(type))) : Var(), with_all ? mask : Tensor())
                .value();
        test::compare("", got, want, test::Tolerance::of(type));
      }
    }
}

TEST_CASE("global attention and masked mean equal their definitions", "[ops]") {
  const NoGrad no_grad;
  Random random;
  const int64_t batch = 4, n = 11, h = 3, c = 5, c_v = 6;
  for (Dtype type : kTypes) {
    const Tensor q = rounded(random({batch, h, c}), type), k = rounded(random({batch, n, c}), type),
                 v = rounded(random({batch, n, c_v}), type),
                 g = rounded(random({batch, n, h * c_v}), type);
    const Tensor mask = random.mask({batch, n});
    for (int64_t s = 0; s < n; ++s) mask.data<float>()[s] = 0;
    const Tensor want = Tensor::empty(g.shape(), Dtype::f64),
                 mean = Tensor::zeros({batch, c_v}, Dtype::f64);
    for (int64_t b = 0; b < batch; ++b) {
      double count = 1e-10;
      for (int64_t s = 0; s < n; ++s) {
        count += at(mask, {b, s});
        for (int64_t l = 0; l < c_v; ++l)
          mean.data<double>()[b * c_v + l] += at(mask, {b, s}) * at(v, {b, s, l});
      }
      for (int64_t l = 0; l < c_v; ++l) mean.data<double>()[b * c_v + l] /= count;
      for (int64_t i = 0; i < h; ++i) {
        std::vector<double> p(n);
        double top = -1e300, total = 0;
        for (int64_t s = 0; s < n; ++s) {
          p[s] = 0;
          for (int64_t l = 0; l < c; ++l)
            p[s] += at(q, {b, i, l}) * at(k, {b, s, l}) / std::sqrt(double(c));
          if (at(mask, {b, s}) == 0) p[s] = -1e9;
          top = std::max(top, p[s]);
        }
        for (double& s : p) total += s = std::exp(s - top);
        for (int64_t l = 0; l < c_v; ++l) {
          double o = 0;
          for (int64_t s = 0; s < n; ++s) o += p[s] / total * at(v, {b, s, l});
          for (int64_t s = 0; s < n; ++s)
            want.data<double>()[(b * n + s) * h * c_v + i * c_v + l] =
                o * sigmoid(at(g, {b, s, i * c_v + l}));
        }
      }
    }
    test::compare("",
                  global_attention(q.to(type), k.to(type), v.to(type), g.to(type), mask).value(),
                  want, test::Tolerance::of(type));
    test::compare("", masked_mean(v.to(type), mask).value(), mean, test::Tolerance::of(type));
  }
}

TEST_CASE("triangle operations equal their definitions", "[ops]") {
  const NoGrad no_grad;
  Random random;
  const int64_t c = 5, n = 21;
  for (Dtype type : kTypes) {
    const Tensor a = rounded(random({c, n, n}), type), b = rounded(random({c, n, n}), type);
    for (bool outgoing : {true, false}) {
      const Tensor want = Tensor::zeros({c, n, n}, Dtype::f64);
      for (int64_t l = 0; l < c; ++l)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < n; ++j)
            for (int64_t k = 0; k < n; ++k)
              want.data<double>()[(l * n + i) * n + j] += outgoing
                                                              ? at(a, {l, i, k}) * at(b, {l, j, k})
                                                              : at(a, {l, k, j}) * at(b, {l, k, i});
      test::compare("", triangle_product(a.to(type), b.to(type), outgoing).value(), want,
                    test::Tolerance::of(type));
    }
    const Tensor pb = rounded(random({c}), wide(type)), gb = rounded(random({c}), wide(type));
    const Tensor mask = random.mask({n * n}), want = Tensor::empty({c, n * n}, Dtype::f64);
    for (int64_t l = 0; l < c; ++l)
      for (int64_t r = 0; r < n * n; ++r)
        want.data<double>()[l * n * n + r] = mask.data<float>()[r] *
                                             (a.data<double>()[l * n * n + r] + at(pb, {l})) *
                                             sigmoid(b.data<double>()[l * n * n + r] + at(gb, {l}));
    test::compare("",
                  triangle_gate(a.view({c, -1}).to(type), pb.to(wide(type)),
                                b.view({c, -1}).to(type), gb.to(wide(type)), mask)
                      .value(),
                  want, test::Tolerance::of(type));
  }
}

TEST_CASE("outer product mean equals its definition", "[ops]") {
  const NoGrad no_grad;
  Random random;
  const int64_t n_seq = 6, n = 9, c = 3, d = 4, c_z = 7;
  for (Dtype type : kTypes) {
    const Tensor left = rounded(random({n_seq, n, c}), type),
                 right = rounded(random({n_seq, n, d}), type),
                 w = rounded(random({c, d, c_z}, Dtype::f64, 0.3), type),
                 b = rounded(random({c_z}), wide(type)), z = rounded(random({n, n, c_z}), type);
    const Tensor mask = random.mask({n_seq, n}), norm = pair_count(mask, mask, type),
                 want = z.clone();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t o = 0; o < c_z; ++o) {
          double y = at(b, {o});
          for (int64_t k = 0; k < c; ++k)
            for (int64_t l = 0; l < d; ++l) {
              double s = 0;
              for (int64_t q = 0; q < n_seq; ++q) s += at(left, {q, i, k}) * at(right, {q, j, l});
              y += s * at(w, {k, l, o});
            }
          want.data<double>()[(i * n + j) * c_z + o] += y / (1e-3 + at(norm, {i, j}));
        }
    // A pair that no sequence covers divides by 1e-3: compare on the scale of the result.
    test::compare("",
                  outer_product_mean(z.to(type), {left.to(type), right.to(type)}, w.to(type),
                                     b.to(wide(type)), norm)
                      .value(),
                  want, test::Tolerance::of(type) * 4);
  }
}

TEST_CASE("the AVX2 kernels agree with the ones chosen at run time", "[ops]") {
  const NoGrad no_grad;
  Random random;
  const Tensor q = random({3, 50, 4, 32}, Dtype::f32), g = random({3, 50, 4, 32}, Dtype::f32),
               bias = random({4, 50, 50}, Dtype::f32), mask = random.mask({3, 50});
  const Tensor a = attention(q.clone(), q, g, g, bias, mask).value();
  const Tensor b = Tensor::empty(a.shape());
  cpu::v3::kTable.attention(q, q, g, g, bias, mask, b, {});
  test::compare("", b, a, 1e-6);
}

TEST_CASE("attention under NoGrad takes the queries' place", "[ops]") {
  Random random;
  for (const int along : {0, 1}) {
    const Tensor all = random({50, 50, 4, 2, 8}, Dtype::f32),
                 bias = random({2, 50, 50}, Dtype::f32), mask = random.mask({50, 50});
    const auto part = [&](int i) { return all.select(2, i).clone(); };
    const Tensor q = part(0),
                 want = attention(q, part(1), part(2), part(3), bias, mask, along).value();
    CHECK(want.raw() != q.raw());
    const NoGrad no_grad;
    const Tensor apart = attention(q, part(1), part(2), part(3), bias, mask, along).value(),
                 got = attention(all, bias, mask, along).value();
    CHECK(apart.raw() == q.raw());
    test::compare("", apart, want, 1e-12);
    CHECK(got.raw() == all.raw());
    test::compare("", got, want, 1e-12);
    Var recorded(part(0));
    recorded.want_grad();
    REQUIRE_THROWS_AS(attention(recorded, part(1), part(2), {}, bias, mask, along), Error);
    // Of other channels than the queries' there is a tensor of its own.
    const Tensor wide = random({50, 50, 2, 9}, Dtype::f32);
    CHECK(attention(q, part(1), wide, {}, bias, mask, along).value().raw() != q.raw());
  }
}

TEST_CASE("operations refuse what does not fit", "[ops]") {
  const NoGrad no_grad;
  const Var x(Tensor::zeros({2, 3})), w(Tensor::zeros({4, 5}));
  REQUIRE_THROWS_AS(linear(x, w), Error);
  REQUIRE_THROWS_AS(layer_norm(x, Var(Tensor::zeros({4})), Var(Tensor::zeros({4}))), Error);
  REQUIRE_THROWS_AS(add(x, w), Error);
}

TEST_CASE("a gradient that no backward gives is an error", "[ops]") {
  Var w(Tensor::zeros({3, 5}));
  w.want_grad();
  REQUIRE_THROWS_AS(linear(Var(Tensor::zeros({2, 3})), w), Error);
}
