// Backward of attention, triangle multiplication, outer product mean and the pair embedding against
// finite differences.
#include "core/ops/ops.h"
#include "core/ops/rigid_ops.h"
#include "tests/unit/gradcheck.h"

using namespace ff;
using test::gradcheck;
using test::random_f64;

namespace {

Tensor mask_of(const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = i % 3 != 1;
  return t;
}

}  // namespace

TEST_CASE("attention: gate, bias, mask, without each, and strided heads") {
  constexpr int64_t b = 2, n = 3, m = 5, h = 2, c = 3, d = 4;
  const std::vector<Tensor> all{random_f64({b, n, h, c}, 1), random_f64({b, m, h, c}, 2),
                                random_f64({b, m, h, d}, 3), random_f64({b, n, h, d}, 4),
                                random_f64({h, n, m}, 5)};
  const Tensor mask = mask_of({b, m});
  gradcheck([=](const Vars& v) { return attention(v[0], v[1], v[2], v[3], v[4], mask); }, all);
  gradcheck([=](const Vars& v) { return attention(v[0], v[1], v[2], {}, {}, {}); },
            {all[0], all[1], all[2]});
  // Of one shape their gradients are written into one tensor; an operand that is there twice.
  gradcheck([=](const Vars& v) { return attention(v[0], v[1], v[2], v[3], {}, {}); },
            {all[0], random_f64({b, n, h, c}, 6), random_f64({b, n, h, c}, 7),
             random_f64({b, n, h, c}, 8)});
  gradcheck([=](const Vars& v) { return attention(v[0], v[1], v[0], {}, {}, {}); },
            {all[0], random_f64({b, n, h, c}, 6)});
  // A row whose keys are all masked: the plain mean, with a gradient for the values alone.
  const Tensor none = Tensor::zeros({b, m});
  gradcheck([=](const Vars& v) { return attention(v[0], v[1], v[2], v[3], v[4], none); }, all);
  gradcheck(
      [=](const Vars& v) {
        return attention(transpose(v[0], 0, 1), transpose(v[1], 0, 1), transpose(v[2], 0, 1), {},
                         {}, {});
      },
      {random_f64({n, b, h, c}, 1), random_f64({m, b, h, c}, 2), random_f64({m, b, h, d}, 3)});
}

TEST_CASE("global attention and the masked mean") {
  constexpr int64_t b = 2, n = 4, h = 3, c = 2, d = 3;
  const Tensor mask = mask_of({b, n});
  gradcheck([=](const Vars& v) { return global_attention(v[0], v[1], v[2], v[3], mask); },
            {random_f64({b, h, c}, 1), random_f64({b, n, c}, 2), random_f64({b, n, d}, 3),
             random_f64({b, n, h * d}, 4)});
  gradcheck([=](const Vars& v) { return masked_mean(v[0], mask); }, {random_f64({b, n, 5}, 1)});
}

TEST_CASE("triangle multiplication") {
  const Tensor mask = mask_of({9});
  gradcheck([=](const Vars& v) { return triangle_gate(v[0], v[1], v[2], v[3], mask); },
            {random_f64({4, 9}, 1), random_f64({4}, 2), random_f64({4, 9}, 3), random_f64({4}, 4)});
  for (const bool outgoing : {true, false})
    gradcheck([=](const Vars& v) { return triangle_product(v[0], v[1], outgoing); },
              {random_f64({2, 3, 3}, 1), random_f64({2, 3, 3}, 2)});
}

TEST_CASE("outer product mean, relu and symmetrisation") {
  const Tensor norm = Tensor::zeros({3, 4}, Dtype::f64);
  for (int64_t i = 0; i < 12; ++i) norm.data<double>()[i] = double(i % 4);
  gradcheck(
      [=](const Vars& v) {
        return outer_product_mean(v[0], {v[1], v[2]}, v[3], v[4], norm);
      },
      {random_f64({3, 4, 2}, 1), random_f64({5, 3, 2}, 2), random_f64({5, 4, 3}, 3),
       random_f64({2, 3, 2}, 4), random_f64({2}, 5)});
  const Tensor square = norm.narrow(1, 0, 3);
  gradcheck([=](const Vars& v) { return outer_product_mean(v[0], {v[1]}, v[2], v[3], square); },
            {random_f64({3, 3, 2}, 1), random_f64({5, 3, 2, 2}, 2), random_f64({2, 2, 2}, 4),
             random_f64({2}, 5)});
  gradcheck([](const Vars& v) { return relu(v[0]); }, {random_f64({3, 5}, 1)});
  gradcheck([](const Vars& v) { return symmetrize(v[0]); }, {random_f64({3, 3, 2}, 1)});
}

TEST_CASE("gradients of bf16 activations are summed before they are rounded") {
  constexpr int64_t n = 600, c = 8;
  const auto ones = [](const Dims& shape) {
    const Tensor t = Tensor::empty(shape);
    std::fill_n(t.data<float>(), t.numel(), 1.0f);
    return t;
  };
  const auto all_are = [](const Var& x, float value) {
    const Tensor g = x.grad().to(Dtype::f32);
    for (int64_t i = 0; i < g.numel(); ++i)
      if (g.data<float>()[i] != value) return false;
    return true;
  };
  // A sum in bf16 stands still at 256 ones; n is a bf16 number.
  Var bias(ones({c}));
  bias.want_grad();
  {
    Tape tape;
    const Var y = repeat(cast(bias, Dtype::bf16), n);
    tape.backward({y}, {ones({n, c}).to(Dtype::bf16)});
  }
  CHECK(all_are(bias, n));

  Var x(ones({n, c}).to(Dtype::bf16)), w(ones({c, c}).to(Dtype::bf16), Var::new_slot(ones({c, c})));
  {
    Tape tape;
    const Var y = linear(x, w, {});
    tape.backward({y}, {ones({n, c}).to(Dtype::bf16)});
  }
  CHECK(w.grad().dtype() == Dtype::f32);
  CHECK(all_are(w, n));

  Var left(ones({n, c}).to(Dtype::bf16)), right = left, table(ones({1, c}).to(Dtype::bf16));
  for (Var* v : {&left, &right, &table}) v->want_grad();
  const Tensor index = Tensor::zeros({n}, Dtype::i32), breaks = Tensor::zeros({1});
  {
    Tape tape;
    const Var z =
        pair_embed(left, right, index, table, {}, Var(ones({1, c}).to(Dtype::bf16)), breaks);
    tape.backward({z}, {ones({n, n, c}).to(Dtype::bf16)});
  }
  CHECK(all_are(left, n));
  CHECK(all_are(right, n));
  CHECK(all_are(table, float(bf16(float(n * n)))));

  // One query a column attends to n keys alike, and every head to the same ones.
  Var q(ones({1, 2, c}).to(Dtype::bf16)), k(ones({1, n, c}).to(Dtype::bf16)), v = k, gate;
  gate = Var(Tensor::zeros({1, n, 2 * c}).to(Dtype::bf16));
  for (Var* a : {&q, &k, &v, &gate}) a->want_grad();
  {
    Tape tape;
    const Var o = global_attention(q, k, v, gate, ones({1, n}));
    tape.backward({o}, {ones(o.shape()).to(Dtype::bf16)});
  }
  CHECK(all_are(v, 1));  // two heads, n queries with open halves, weights of 1 / n
}

TEST_CASE("layer norm over leading channels, and the pair embedding") {
  gradcheck([](const Vars& v) { return layer_norm_channels_first(v[0], v[1], v[2]); },
            {random_f64({4, 2, 3}, 1), random_f64({4}, 2), random_f64({4}, 3)});

  const std::vector<int32_t> numbers{1, 2, 3, 9, 4};
  const Tensor index = Tensor::of<int32_t>({5}, numbers.data());
  const std::vector<float> edges{1, 4, 9};
  const Tensor breaks = Tensor::of<float>({3}, edges.data());
  const Tensor beta = random_f64({5, 3}, 7, 2).to(Dtype::f32);
  for (const Tensor& positions : {beta, Tensor()})
    for (const int64_t rows : {5, 2})
      gradcheck(
          [&](const Vars& v) {
            return pair_embed(v[0], v[1], index, v[2], positions, v[3], breaks, 5 - rows);
          },
          {random_f64({rows, 18}, 1), random_f64({5, 18}, 2), random_f64({7, 18}, 3),
           random_f64({3, 18}, 4)});
}
