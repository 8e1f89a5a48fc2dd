// Dropout: the masks' statistics and names, its gradient, and that a whole model with it is what
// AlphaFold's formula gives, whatever the threads and however often a block is computed.
#include "core/ops/dropout.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "core/base/machine.h"
#include "core/model/evoformer.h"
#include "core/ops/views.h"
#include "tests/norm_error.h"
#include "tests/unit/gradcheck.h"
#include "tests/unit/model/fixture.h"

namespace ff::test {
namespace {

const DropoutStream kStream{.active = true, .seed = 7, .step = 3, .sample = 1};

std::vector<float> values(const Tensor& t) {
  const Tensor x = t.to(Dtype::f32).contiguous();
  return {x.data<float>(), x.data<float>() + x.numel()};
}

bool same_bits(const Outputs& a, const Outputs& b) {
  return values(a.logits.distogram.value()) == values(b.logits.distogram.value()) &&
         values(a.fold.layers.back().atoms.value()) == values(b.fold.layers.back().atoms.value());
}

}  // namespace

TEST_CASE("dropout's factors: rate, scale, names and index") {
  for (const double rate : {0.1, 0.15, 0.25}) {
    INFO(rate);
    constexpr int64_t kN = 500, kC = 201;
    const std::vector<float> f = values(kStream.factors(rate, 2, kN, kC, Dtype::bf16));
    double kept = 0;
    for (const float x : f) {
      REQUIRE((x == 0 || x == float(1 / (1 - rate))));
      kept += x != 0;
    }
    const double deviation = std::sqrt(rate * (1 - rate) * double(f.size()));
    CHECK(std::abs(kept - (1 - rate) * double(f.size())) < 5 * deviation);
    // A longer axis begins with the same numbers: padding changes nothing.
    const std::vector<float> longer = values(kStream.factors(rate, 2, kN + 3, kC, Dtype::f32));
    CHECK(std::equal(f.begin(), f.end(), longer.begin()));
  }
  const auto drawn = [](const DropoutStream& s, uint64_t place) {
    return values(s.factors(0.5, place, 8, 16, Dtype::f32));
  };
  const auto base = drawn(kStream, 0);
  CHECK(drawn(kStream, 0) == base);
  CHECK(drawn(kStream, 1) != base);
  for (uint64_t DropoutStream::*part :
       {&DropoutStream::seed, &DropoutStream::step, &DropoutStream::sample, &DropoutStream::recycle,
        &DropoutStream::stack, &DropoutStream::block}) {
    DropoutStream other = kStream;
    ++(other.*part);
    CHECK(drawn(other, 0) != base);
  }
  CHECK_FALSE(kStream.factors(0, 0, 8, 16, Dtype::f32).defined());
  CHECK_FALSE(DropoutStream().factors(0.5, 0, 8, 16, Dtype::f32).defined());
  CHECK_THROWS(kStream.factors(1, 0, 8, 16, Dtype::f32));
}

TEST_CASE("dropout's gradients") {
  const Tensor f = kStream.factors(0.25, 0, 4, 11, Dtype::f64);
  gradcheck([=](const Vars& v) { return dropout(v[0], f); }, {random_f64({3, 4, 11}, 1)});
  gradcheck([=](const Vars& v) { return dropout(v[0], f); }, {random_f64({4, 11}, 1)});
  gradcheck([=](const Vars& v) { return dropout_add(v[0], v[1], f); },
            {random_f64({3, 4, 11}, 1), random_f64({3, 4, 11}, 2)});
  gradcheck([=](const Vars& v) { return dropout_add(transpose(v[0], 0, 1), v[1], f); },
            {random_f64({4, 3, 11}, 1), random_f64({3, 4, 11}, 2)});
}

TEST_CASE("each module drops its update as AlphaFold's formula does") {
  const Fixture fixture("tiny");
  const Params params = fixture.params().in_precision(Dtype::f64);
  const Scope scope =
      Scope(params, "alphafold/alphafold_iteration/evoformer/evoformer_iteration").block(0);
  const int64_t n = 7, c_m = fixture.config.msa_channel, c_z = fixture.config.pair_channel;
  const Tensor m = random_f64({5, n, c_m}, 1), z = random_f64({n, n, c_z}, 2);
  Tensor msa_mask = Tensor::zeros({5, n}), pair_mask = Tensor::zeros({n, n});
  for (int64_t i = 0; i < 5 * n; ++i) msa_mask.data<float>()[i] = i % 6 != 0;
  for (int64_t i = 0; i < n * n; ++i) pair_mask.data<float>()[i] = i % 5 != 0;
  using Module = std::function<Var(const Var&, const ModuleDropout&)>;
  // `axis` that shares the mask: modules.py's broadcast_dim, from `orientation` in config.py.
  const auto check_module = [&](const Tensor& x, int axis, double rate, uint64_t place,
                                const Module& module) {
    const ModuleDropout none, some{kStream, rate, place};
    Var v(x);
    v.want_grad();  // with a tape, which works on copies
    const Tape tape;
    const Tensor plain = module(v, none).value().contiguous(),
                 got = module(v, some).value().contiguous();
    const Tensor keep = kStream.factors(rate, place, x.size(1 - axis), x.size(2), Dtype::f64);
    const int64_t c = x.size(2);
    double worst = 0;
    int64_t dropped = 0;
    for (int64_t i = 0; i < x.size(0); ++i)
      for (int64_t j = 0; j < x.size(1); ++j)
        for (int64_t k = 0; k < c; ++k) {
          const int64_t at = (i * x.size(1) + j) * c + k;
          const bool kept = keep.data<double>()[(axis == 0 ? j : i) * c + k] != 0;
          const double before = x.data<double>()[at], update = plain.data<double>()[at] - before;
          worst = std::max(
              worst, std::abs(before + (kept ? update / (1 - rate) : 0) - got.data<double>()[at]));
          dropped += !kept;
        }
    INFO("largest difference " << worst);
    CHECK(worst < 1e-12);
    CHECK(dropped > 0);
    // The same in place, range by range, as in the passes without gradients.
    const NoGrad no_grad;
    CHECK(largest_gap(module(Var(x.clone()), some).value(), got) < 1e-12);
  };
  check_module(m, 0, .15, 0, [&](const Var& x, const ModuleDropout& d) {
    return msa_row_attention(scope / "msa_row_attention_with_pair_bias", x, z, msa_mask, d);
  });
  for (const bool outgoing : {true, false})
    check_module(z, 0, .25, 1, [&](const Var& x, const ModuleDropout& d) {
      return triangle_multiplication(scope / (outgoing ? "triangle_multiplication_outgoing"
                                                       : "triangle_multiplication_incoming"),
                                     x, pair_mask, outgoing, d);
    });
  for (const bool starting : {true, false})
    check_module(z, starting ? 0 : 1, .25, 2, [&](const Var& x, const ModuleDropout& d) {
      return triangle_attention(scope / (starting ? "triangle_attention_starting_node"
                                                  : "triangle_attention_ending_node"),
                                x, pair_mask, starting, d);
    });
}

TEST_CASE("a model's gradient with dropout, replayed by checkpoints, against differences") {
  Fixture fixture("tiny");
  // AlphaFold stops the rotations' gradient between layers, which differences do not.
  fixture.config.structure.num_layer = 1;
  const auto features = [&](int64_t i) { return fixture.slice(i); };
  Params params = fixture.params().in_precision(Dtype::f64);
  params.want_grads();
  const AlphaFold model(fixture.config, params, Dtype::f64);
  // A sum of all that follows the trunk and the structure module.
  const auto outputs_of = [](const Outputs& o) {
    return Vars{o.fold.act, o.logits.distogram, o.fold.layers.back().unnormalized_angles};
  };
  std::vector<Tensor> seeds;
  {
    Tape tape;
    const Vars outputs = outputs_of(model.forward(features, 0, kStream));
    for (const Var& v : outputs) seeds.push_back(random_f64(v.shape(), unsigned(seeds.size()), .1));
    tape.backward(outputs, seeds);
  }
  const Arrays grads = params.take_grads();
  REQUIRE(grads.size() > 50);
  const auto total = [&](const Params& p) {
    const NoGrad no_grad;
    const Vars outputs =
        outputs_of(AlphaFold(fixture.config, p, Dtype::f64).forward(features, 0, kStream));
    double sum = 0;
    for (size_t i = 0; i < outputs.size(); ++i) sum += dot(outputs[i].value(), seeds[i]);
    return sum;
  };
  for (unsigned direction = 0; direction < 3; ++direction) {
    double want = 0;
    const auto moved = [&](double step) {
      Arrays arrays;
      unsigned k = 1000 * direction;
      want = 0;
      for (const ParamSpec& spec : param_specs(fixture.config)) {
        const Tensor base = fixture_parameter(spec.name, spec.shape, fixture.seed).to(Dtype::f64);
        const Tensor d = random_f64(spec.shape, ++k);
        if (const auto g = grads.find(spec.name); g != grads.end())
          want += dot(g->second.to(Dtype::f64), d);
        for (int64_t i = 0; i < base.numel(); ++i)
          base.data<double>()[i] += step * d.data<double>()[i];
        arrays[spec.name] = base;
      }
      return total(Params(fixture.config, std::move(arrays), "moved"));
    };
    // So short that no relu of the model changes its side; what rounding leaves is 1e-6.
    constexpr double kStep = 1e-9;
    const double got = (moved(kStep) - moved(-kStep)) / (2 * kStep);
    INFO("direction " << direction << ": " << want << ", by differences " << got);
    CHECK(std::abs(want - got) <= 1e-5 * std::abs(got) + 1e-6);
  }
}

TEST_CASE("a model with dropout: the same bits for any threads, others for another step") {
  const Fixture fixture("tiny");
  const AlphaFold model(fixture.config, fixture.params());
  const auto features = [&](int64_t i) { return fixture.slice(i); };
  const auto run = [&](const DropoutStream& stream, int threads) {
    set_threads(threads);
    const NoGrad no_grad;
    return model.forward(features, 1, stream);
  };
  const Outputs one = run(kStream, 1), two = run(kStream, 2);
  CHECK(same_bits(one, two));
  DropoutStream next = kStream;
  ++next.step;
  CHECK_FALSE(same_bits(one, run(next, 1)));
  // Without a stream the rates of the configuration do nothing.
  ModelConfig dry = fixture.config;
  dry.evoformer.msa_dropout = dry.evoformer.pair_dropout = 0;
  dry.templates.pair_stack.pair_dropout = dry.structure.dropout = 0;
  const Outputs plain = run({}, 1);
  CHECK_FALSE(same_bits(one, plain));
  CHECK(same_bits(plain, [&] {
    const NoGrad no_grad;
    return AlphaFold(dry, fixture.params()).forward(features, 1, kStream);
  }()));
  // Each of the rates is felt.
  for (double* rate : {&dry.evoformer.msa_dropout, &dry.evoformer.pair_dropout,
                       &dry.templates.pair_stack.pair_dropout, &dry.structure.dropout}) {
    *rate = 0.2;
    const NoGrad no_grad;
    CHECK_FALSE(same_bits(plain, AlphaFold(dry, fixture.params()).forward(features, 1, kStream)));
    *rate = 0;
  }
}

}  // namespace ff::test
