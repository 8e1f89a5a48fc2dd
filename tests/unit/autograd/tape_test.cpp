// The tape: order, sums, views, checkpoints, memory; and the backward of the basic operations
// against finite differences.
#include "core/autograd/tape.h"

#include "core/ops/elementwise.h"
#include "core/ops/layer_norm.h"
#include "core/ops/linear.h"
#include "core/ops/views.h"
#include "tests/unit/gradcheck.h"

using namespace ff;
using test::gradcheck;
using test::gradients;
using test::random_f64;

namespace {

Tensor mask_of(const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = i % 3 != 0;
  return t;
}

/// x + relu(x w1 + b1) w2 + b2 of a layer-normed x: a transition.
Var block(const Vars& v) {
  const Var h = linear(layer_norm(v[0], v[1], v[2]), v[3], v[4], Activation::kRelu);
  return linear_add(v[0], h, v[5], v[6]);
}

std::vector<Tensor> block_inputs(int64_t rows, int64_t c, int64_t hidden) {
  return {random_f64({rows, c}, 1),    random_f64({c}, 2),
          random_f64({c}, 3),          random_f64({c, hidden}, 4, .3),
          random_f64({hidden}, 5, .3), random_f64({hidden, c}, 6, .3),
          random_f64({c}, 7)};
}

void require_equal(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t k = 0; k < a.size(); ++k) {
    REQUIRE(a[k].defined() == b[k].defined());
    if (!a[k].defined()) continue;
    const Tensor x = a[k].contiguous(), y = b[k].contiguous();
    for (int64_t i = 0; i < x.numel(); ++i)
      REQUIRE(x.data<double>()[i] == Approx(y.data<double>()[i]).epsilon(1e-12).margin(1e-13));
  }
}

}  // namespace

TEST_CASE("linear, with activations, bias and strided inputs") {
  for (const Activation act : {Activation::kNone, Activation::kSigmoid, Activation::kRelu}) {
    INFO(int(act));
    gradcheck([=](const Vars& v) { return linear(v[0], v[1], v[2], act); },
              {random_f64({3, 5, 7}, 1), random_f64({7, 4}, 2), random_f64({4}, 3)});
  }
  gradcheck([](const Vars& v) { return linear(v[0], v[1]); },
            {random_f64({5, 7}, 1), random_f64({7, 2, 3}, 2)});
  // Columns as rows, a part of the rows, and one that no product can write directly.
  gradcheck([](const Vars& v) { return linear(transpose(v[0], 0, 1), v[1]); },
            {random_f64({3, 5, 7}, 1), random_f64({7, 4}, 2)});
  gradcheck([](const Vars& v) { return linear(narrow(v[0], 0, 1, 2), v[1]); },
            {random_f64({4, 5, 7}, 1), random_f64({7, 4}, 2)});
  gradcheck([](const Vars& v) { return linear(transpose(v[0], 0, 2), v[1]); },
            {random_f64({2, 3, 4, 5}, 1), random_f64({5, 2}, 2)});
  gradcheck([](const Vars& v) { return linear_channels_first(v[0], v[1]); },
            {random_f64({3, 2, 5}, 1), random_f64({5, 4}, 2)});
  gradcheck([](const Vars& v) { return linear_add(v[0], v[1], v[2], v[3]); },
            {random_f64({3, 5, 4}, 1), random_f64({3, 5, 6}, 2), random_f64({2, 3, 4}, 3),
             random_f64({4}, 4)});
  gradcheck(
      [](const Vars& v) {
        return linear_add(transpose(v[0], 0, 1), transpose(v[1], 0, 1), v[2], {});
      },
      {random_f64({3, 5, 4}, 1), random_f64({3, 5, 6}, 2), random_f64({6, 4}, 3)});
  const auto of_transition = [](const Var& residual, const Var& x, const Vars& v) {
    return transition(residual, x, v[2], v[3], v[4], v[5]);
  };
  const std::vector<Tensor> inputs = {random_f64({3, 5, 4}, 1), random_f64({3, 5, 6}, 2),
                                      random_f64({6, 8}, 3),    random_f64({8}, 4),
                                      random_f64({8, 4}, 5),    random_f64({4}, 6)};
  gradcheck([&](const Vars& v) { return of_transition(v[0], v[1], v); }, inputs);
  gradcheck([&](const Vars& v) { return of_transition(v[0], linear(v[1], v[6], {}), v); },
            {inputs[0], random_f64({3, 5, 7}, 8), inputs[2], inputs[3], inputs[4], inputs[5],
             random_f64({7, 6}, 9)});
}

TEST_CASE("a tensor and itself in another shape have one gradient, whichever is written first") {
  for (const bool first : {false, true})
    gradcheck(
        [=](const Vars& v) {
          const Var x = linear(v[0], v[1]), flat = view(view(x, {5, 3, 4}), {15, 4}),
                    a = view(linear(first ? flat : x, v[2]), {15, 2}),
                    b = view(linear(first ? x : flat, v[3]), {15, 2});
          return add(a, b);
        },
        {random_f64({3, 5, 7}, 1), random_f64({7, 4}, 2), random_f64({4, 2}, 3),
         random_f64({4, 2}, 4)});
}

TEST_CASE("layer norm") {
  for (const Dims& shape : {Dims{1, 2}, Dims{3, 5, 17}, Dims{130, 3}})
    gradcheck([](const Vars& v) { return layer_norm(v[0], v[1], v[2]); },
              {random_f64(shape, 1, 2), random_f64({shape[shape.size() - 1]}, 2),
               random_f64({shape[shape.size() - 1]}, 3)});
  gradcheck([](const Vars& v) { return layer_norm(transpose(v[0], 0, 1), v[1], v[2]); },
            {random_f64({3, 4, 5}, 1), random_f64({5}, 2), random_f64({5}, 3)});
}

TEST_CASE("a layer norm that is made again leaves nothing behind the forward, and the same bits") {
  const std::vector<Tensor> inputs = {random_f64({9, 7, 16}, 1), random_f64({16}, 2),
                                      random_f64({16}, 3),       random_f64({16, 63}, 4),
                                      random_f64({16, 63}, 5),   random_f64({63}, 6)};
  std::vector<Tensor> grads[2];
  int64_t kept[2];
  for (const bool again : {false, true}) {
    const auto fn = [&](const Vars& v) {
      const int64_t before = memory_count().current;
      Var y;
      {
        const Var x = again ? layer_norm_again(v[0], v[1], v[2]) : layer_norm(v[0], v[1], v[2]);
        y = add(linear_channels_first(x, v[3]), view(linear(x, v[4], v[5]), {63, 63}));
      }
      kept[again] = memory_count().current - before;
      return y;
    };
    grads[again] = gradients(fn, inputs, random_f64({63, 63}, 7));
  }
  CHECK(kept[0] - kept[1] == 9 * 7 * 16 * 8);
  require_equal(grads[0], grads[1]);
}

TEST_CASE("element-wise operations and views") {
  const Dims shape{3, 4, 5};
  const std::vector<Tensor> two{random_f64(shape, 1), random_f64(shape, 2)};
  gradcheck([](const Vars& v) { return add(v[0], v[1]); }, two);
  gradcheck([](const Vars& v) { return add(v[0], v[0]); }, {two[0]});
  gradcheck([](const Vars& v) { return add_gated(v[0], v[1], v[2]); },
            {two[0], two[1], random_f64(shape, 3, 3)});
  const Tensor mask = mask_of({3, 4});
  gradcheck([=](const Vars& v) { return scale_rows(v[0], mask); }, {two[0]});
  gradcheck([](const Vars& v) { return concat_rows(v[0], v[1]); }, two);
  gradcheck([](const Vars& v) { return cast(add(v[0], v[1]), Dtype::f64); }, two);
  gradcheck([](const Vars& v) { return repeat(v[0], 3); }, {two[0]});
  for (const int axis : {0, 1, 2})
    gradcheck([=](const Vars& v) { return stack({v[0], v[1], v[0]}, axis); }, two);
  gradcheck(
      [](const Vars& v) {
        const Var x = view(transpose(narrow(v[0], 1, 1, 2), 0, 1), {2, 3, 5});
        return add(select(x, 0, 1), select(v[1], 1, 0));
      },
      two);
}

TEST_CASE("a block, and the same behind checkpoints") {
  const std::vector<Tensor> inputs = block_inputs(4, 5, 6);
  gradcheck(block, inputs);
  const Tensor seed = random_f64({4, 5}, 11);
  // Three blocks with the same parameters: their gradients are summed.
  const auto chain = [](bool checkpointed, bool nested) {
    return [=](const Vars& v) {
      const auto one = [=](const Vars& x) {
        Vars all = v;
        all[0] = x[0];
        return Vars{block(all)};
      };
      const auto three = [=](const Vars& x) {
        Vars y = x;
        for (int k = 0; k < 3; ++k) y = checkpointed ? checkpoint(one, y) : one(y);
        return y;
      };
      return nested ? checkpoint(three, {v[0]})[0] : three({v[0]})[0];
    };
  };
  const auto plain = gradients(chain(false, false), inputs, seed);
  require_equal(gradients(chain(true, false), inputs, seed), plain);
  require_equal(gradients(chain(true, true), inputs, seed), plain);
  require_equal(gradients(chain(false, true), inputs, seed), plain);
}

TEST_CASE("a checkpoint with several outputs, of which one is not used") {
  const auto fn = [](const Vars& v) {
    const Vars y = checkpoint(
        [](const Vars& x) {
          return Vars{add(x[0], x[1]), add_gated(x[0], x[1], x[1]), scale_rows(x[1], mask_of({3}))};
        },
        v);
    return add(y[0], y[2]);
  };
  gradcheck(fn, {random_f64({3, 4}, 1), random_f64({3, 4}, 2)});
}

TEST_CASE("an output named twice, and checkpoints that return an input or a view of it") {
  const Tensor x = random_f64({3, 2, 2}, 1), seed = random_f64({3, 2, 2}, 2);
  Var v(x);
  v.want_grad();
  Tape tape;
  const Var y = add(v, v);
  tape.backward({y, y}, {seed, seed});
  for (int64_t i = 0; i < 12; ++i)
    CHECK(v.grad().data<double>()[i] == Approx(4 * seed.data<double>()[i]));

  const auto fn = [](const Vars& in) {
    const Vars out = checkpoint(
        [](const Vars& a) {
          const Var sum = add(Var(a[0].value().clone(), a[0].slot()), a[1]);
          return Vars{sum, a[1], transpose(a[1], 0, 1), sum};
        },
        in);
    return add(add(out[0], out[1]), add(transpose(out[2], 0, 1), out[3]));
  };
  gradcheck(fn, {x, random_f64({3, 2, 2}, 3)});
}

TEST_CASE("what is not wanted is not computed, and mistakes are told") {
  Var x(random_f64({2, 3}, 1)), w(random_f64({3, 2}, 2));
  {
    Tape tape;
    CHECK_FALSE(linear(x, w).requires_grad());
    CHECK(tape.size() == 0);
  }
  w.want_grad();
  CHECK_THROWS_WITH(linear(x, w), Catch::Contains("no tape"));
  {
    const NoGrad no_grad;
    CHECK_FALSE(linear(x, w).requires_grad());
    // Writing in place what a tape may still need.
    CHECK_THROWS_WITH(add(w, Var(random_f64({3, 2}, 3))), Catch::Contains("overwritten"));
  }
  Tape tape;
  const Var y = linear(x, w);
  CHECK_THROWS_WITH(tape.backward({x}), Catch::Contains("does not depend"));
  tape.backward({y}, {random_f64({2, 2}, 4)});
  CHECK_FALSE(x.grad().defined());
  CHECK(w.grad().defined());
}

TEST_CASE("a stacked parameter's slices sum into its gradient") {
  Var stack(random_f64({3, 4, 2}, 1));
  stack.want_grad();
  const Var x(random_f64({5, 4}, 2));
  Tape tape;
  const Var y = add(linear(x, select(stack, 0, 2)), linear(x, select(stack, 0, 0)));
  tape.backward({y}, {random_f64({5, 2}, 3)});
  const Tensor g = stack.grad();
  REQUIRE(g.shape() == Dims{3, 4, 2});
  for (int64_t i = 0; i < 8; ++i) {
    CHECK(g.data<double>()[8 + i] == 0);
    CHECK(g.data<double>()[i] == g.data<double>()[16 + i]);
    CHECK(g.data<double>()[i] != 0);
  }
}

TEST_CASE("a watch names the first operation whose value or gradient is not finite") {
  const auto filled = [](float value) {
    const Tensor t = Tensor::empty({2, 2});
    std::fill_n(t.data<float>(), 4, value);
    return t;
  };
  // Zeros through large weights are finite; the gradient that comes back is not.
  Var x(filled(0)), w(filled(1e30f));
  const auto pass = [&](float more) {
    x.want_grad();
    FiniteWatch::place() = "here";
    const FiniteWatch watch;
    Tape tape;
    const Vars y = checkpoint(
        [&](const Vars& in) {
          FiniteWatch::place() = "first";
          const Var hidden = linear(in[0], w, {});
          FiniteWatch::place() = "second";
          return Vars{linear(add(hidden, Var(filled(more))), w, {})};
        },
        {x});
    FiniteWatch::place() = "after";
    const Var z = add(y[0], y[0]);
    tape.backward({z}, {filled(1)});
    return watch.found();
  };
  CHECK(pass(0) == "backward of linear at first");
  CHECK(pass(1e10f) == "linear at second");
  CHECK(FiniteWatch::active() == nullptr);
  w = Var(filled(1));
  CHECK(pass(0).empty());
}

TEST_CASE("memory of a checkpointed chain is its inputs and one block") {
  constexpr int64_t kRows = 256, kChannels = 32, kHidden = 128, kBlocks = 8;
  std::vector<Tensor> inputs = block_inputs(kRows, kChannels, kHidden);
  Vars v(inputs.begin(), inputs.end());
  for (Var& x : v) x.want_grad();
  const Tensor seed = random_f64({kRows, kChannels}, 11);
  const int64_t before = memory_count().current;
  reset_memory_peak();
  {
    Tape tape;
    Vars y{v[0]};
    for (int64_t k = 0; k < kBlocks; ++k)
      y = checkpoint(
          [&v](const Vars& x) {
            Vars all = v;
            all[0] = x[0];
            return Vars{block(all)};
          },
          y);
    CHECK(tape.size() == kBlocks);
    tape.backward(y, {seed});
  }
  const int64_t item = 8, x = kRows * kChannels * item, h = kRows * kHidden * item;
  const int64_t params = (3 * kChannels + 2 * kChannels * kHidden + kHidden) * item;
  // The blocks' inputs; in the block at work its output, the normed x, h, their gradients and that
  // of x; the parameters' gradients, and the layer norm's sums in 64 parts.
  const int64_t most = kBlocks * x + 5 * x + 2 * h + params + 64 * 2 * kChannels * 8;
  const int64_t peak = memory_count().peak - before;
  INFO("peak " << peak << ", at most " << most);
  CHECK(peak <= most);
  CHECK(peak >= (kBlocks - 1) * x);
}
