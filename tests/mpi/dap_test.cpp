// The network on several ranks against one: outputs, losses, every parameter's gradient, memory and
// traffic. PARALLELISM.md: in f64, 1e-9 of a gradient's norm tells a bug from rounding.
#include <catch2/catch.hpp>
#include <cmath>

#include "core/base/rng.h"
#include "core/model/evoformer.h"
#include "core/model/memory_plan.h"
#include "core/train/objective.h"
#include "core/train/trainer.h"
#include "io/features.h"
#include "tests/mpi/ranks.h"
#include "tests/unit/model/fixture.h"
#include "tests/unit/train/limited_memory.h"

namespace ff::test {
namespace {

double norm(const Tensor& t) {
  const Tensor x = t.to(Dtype::f64).contiguous();
  double sum = 0;
  for (int64_t i = 0; i < x.numel(); ++i) sum += x.data<double>()[i] * x.data<double>()[i];
  return std::sqrt(sum);
}

/// |a - b| / |b|; for what is zero in exact arithmetic |a - b|.
double distance(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const Tensor x = a.to(Dtype::f64).contiguous(), y = b.to(Dtype::f64).contiguous(), d = x.clone();
  for (int64_t i = 0; i < d.numel(); ++i) d.data<double>()[i] -= y.data<double>()[i];
  const double size = norm(y);
  return size > 1e-9 ? norm(d) / size : norm(d);
}

void check_close(const Arrays& got, const Arrays& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, value] : want) {
    INFO(name << " on rank " << world().rank());
    const double far = distance(got.at(name), value);
    CHECK(far <= tolerance);
  }
}

struct Pass {
  Arrays losses, gradients;
};

/// One pass of training in f64 with every loss, the rates of dropout as configured.
Pass train(const Fixture& fixture, int64_t recycles, const Dap& dap,
           int64_t recompute = kEveryBlock) {
  Params params = fixture.params().in_precision(Dtype::f64);
  params.want_grads();
  const AlphaFold model(fixture.config, params, Dtype::f64, dap);
  const Arrays all_labels = read_npz(data_path(fixture.name + "/labels.npz"), true);
  Arrays labels;
  for (const auto& [name, value] : all_labels) labels[name] = value.select(0, recycles);
  Tape tape;
  const Outputs outputs =
      model.forward([&](int64_t i) { return fixture.slice(i); }, recycles,
                    {.active = true, .seed = 3, .step = 5, .sample = 7}, {}, recompute);
  const LossConfig weights = alphafold_losses(data_path(fixture.name + "/config.json"));
  const Losses losses =
      objective(weights, fixture.config.heads, outputs, fixture.slice(recycles), labels);
  const double share = 1.0 / dap.size();
  tape.backward({losses.total}, {Tensor::of<double>({}, &share)});
  Pass pass{losses.terms, params.take_grads()};
  for (const auto& [name, g] : pass.gradients) dap.group().all_reduce(g, name).wait();
  return pass;
}

/// With layouts that change in as many parts as they can, of one channel even.
void compare_passes(const char* name, int64_t recycles) {
  const Fixture fixture(name);
  const Pass one = train(fixture, recycles, Dap()),
             many = train(fixture, recycles, Dap(world(), 1));
  check_close(many.losses, one.losses, 1e-9);
  check_close(many.gradients, one.gradients, 1e-9);
}

int64_t peak_of(const std::function<void()>& f) {
  const int64_t before = memory_count().current;
  reset_memory_peak();
  f();
  return memory_count().peak - before;
}

/// A chain of n random residues with an alignment of n_seq rows.
Arrays long_chain(const ModelConfig& config, int64_t n, int64_t n_seq) {
  const Rng rng(1, {});
  Msa msa;
  msa.columns = size_t(n);
  for (int64_t s = 0; s < n_seq; ++s) {
    msa.rows.emplace_back();
    msa.descriptions.emplace_back();
    for (int64_t i = 0; i < n; ++i)
      msa.rows.back() += "ACDEFGHIKLMNPQRSTVWY"[rng.word(uint64_t(s * n + i)) % 20];
  }
  const RawFeatures raw = make_raw_features(msa.rows[0], msa);
  return make_slice(raw, config.data, 1, 0);
}

ModelConfig shallow_demo() {
  ModelConfig config = preset_config("demo");
  config.evoformer_num_block = 2;
  config.extra_msa_stack_num_block = 1;
  config.structure.num_layer = 2;
  return config;
}

}  // namespace

TEST_CASE("losses and gradients with templates and dropout") { compare_passes("tiny", 1); }
TEST_CASE("losses and gradients of a padded batch") { compare_passes("tiny_padded", 1); }
TEST_CASE("losses and gradients, whatever is kept for the backward") {
  const Fixture fixture("tiny");
  const Pass one = train(fixture, 1, Dap());
  for (const int64_t recompute : {0, 1}) {
    const Pass many = train(fixture, 1, Dap(world(), 1), recompute);
    check_close(many.losses, one.losses, 1e-9);
    check_close(many.gradients, one.gradients, 1e-9);
  }
}
TEST_CASE("losses and gradients without templates") { compare_passes("tiny_no_template", 0); }

TEST_CASE("outputs are joined and equal one rank's") {
  for (const char* name : {"tiny", "tiny_shallow", "tiny_ensemble"}) {
    const Fixture fixture(name);
    RunOptions options;
    options.num_recycle = 0;
    options.num_ensemble = fixture.num_ensemble();
    const auto slices = [&](int64_t i) { return fixture.slice(i); };
    const auto outputs = [&](const Dap& dap) {
      Arrays out =
          AlphaFold(fixture.config, fixture.params(), Dtype::f64, dap).run(slices, options);
      out.erase("predicted_aligned_error/logits");  // stays split
      return out;
    };
    check_close(outputs(Dap(world())), outputs(Dap()), 1e-9);
  }
}

TEST_CASE("activations shrink with the ranks") {
  const ModelConfig config = shallow_demo();
  const Arrays slice = long_chain(config, 256, 192), crop = long_chain(config, 112, 192);
  Params params(config, initial_params(config, 1), "fresh");
  RunOptions options;
  options.num_recycle = 0;
  options.keep = [](const std::string&) { return false; };
  const auto predicting = [&](const Dap& dap) {
    const AlphaFold model(config, params, Dtype::f32, dap);
    return peak_of([&] { model.run([&](int64_t) { return slice; }, options); });
  };
  Params wanted(config, initial_params(config, 1), "fresh");
  wanted.want_grads();
  wanted.take_grads();
  const auto training_keeping = [&](const Dap& dap, int64_t recompute) {
    const AlphaFold model(config, wanted, Dtype::f32, dap);
    const int64_t peak = peak_of([&] {
      Tape tape;
      const Outputs out = model.forward([&](int64_t) { return crop; }, 0, {}, {}, recompute);
      const Var logits = out.logits.distogram, atoms = out.fold.layers.back().atoms;
      tape.backward({logits, atoms}, {Tensor::zeros(logits.shape()), Tensor::zeros(atoms.shape())});
    });
    int64_t gradients = 0;
    for (const auto& [name, g] : wanted.take_grads()) gradients += 4 * g.numel();
    return peak - gradients;
  };
  const auto training = [&](const Dap& dap) { return training_keeping(dap, kEveryBlock); };
  const Dap dap(world());
  for (const auto& [name, count] :
       {std::pair("inference", std::function<int64_t(const Dap&)>(predicting)),
        std::pair("training", std::function<int64_t(const Dap&)>(training))}) {
    const double one = double(count(Dap())), many = double(count(dap));
    if (dap.rank() == 0)
      std::printf("%s: %.1f MB on one rank, %.1f MB on each of %d: %.3f\n", name, one * 1e-6,
                  many * 1e-6, dap.size(), many / one);
    CHECK(many <= 1.4 * one / dap.size());
  }
  int64_t gradients = 0;
  for (const auto& [name, var] : wanted.all()) gradients += 4 * var.value().numel();
  const PassSizes sizes{112, crop.at("msa_feat").size(0), crop.at("extra_msa").size(0), 0};
  const PassMemory memory(config, sizes,
                          {.dtype = Dtype::f32,
                           .device = Device::cpu,
                           .dap = dap.size(),
                           .dropout = false,
                           .recycles = false});
  for (const int64_t recompute : {int64_t(0), int64_t(2), kEveryBlock}) {
    const double measured = double(training_keeping(dap, recompute)),
                 predicted = double(memory.peak(recompute) - gradients);
    if (dap.rank() == 0)
      std::printf("training, %lld recomputed: %.1f MB, predicted %.1f\n", (long long)recompute,
                  measured * 1e-6, predicted * 1e-6);
    CHECK(predicted == Approx(measured).epsilon(0.05));
  }
}

TEST_CASE("all ranks keep what the one with the least memory can") {
  const TrainConfig config = read_train_config(
      "demo", {"run.global_batch=64", "run.accumulate=1", "data.train.crop_size=16"});
  const PassMemory pass(
      config.model, {16, 32, 64, 0},
      {.dtype = Dtype::f32, .device = Device::cpu, .dap = world().size(), .recycles = false});
  const LimitedMemory memory;
  // Half of it is planned with, which all of this host share.
  const int64_t free = pass.step_peak(1, 4) * 10 / 9 + 10,
                least = plan_recompute(pass, 1, 0, free, {}).recompute;
  if (world().rank() == world().size() - 1) LimitedMemory::free = 2 * world().size() * free;
  const Trainer trainer(config, initial_state(initial_params(config.model, 1)), 1,
                        make_grid(world(), world().size(), Device::cpu));
  CHECK(least > 0);
  CHECK(trainer.plan().recompute == least);
}

TEST_CASE("a block receives what the formulas of its collectives say") {
  ModelConfig config = shallow_demo();
  config.evoformer.triangle_multiplication_outgoing_channel = 96;
  config.evoformer.triangle_multiplication_incoming_channel = 96;
  const Params params(config, initial_params(config, 1), "fresh");
  const Scope scope =
      (Scope(params, "alphafold/alphafold_iteration/evoformer") / "evoformer_iteration").block(0);
  const int64_t n = 24, s = 12, c_m = config.msa_channel, c_z = config.pair_channel,
                p = world().size();
  const Dap dap(world());
  const NoGrad no_grad;
  const auto ones = [](const Dims& shape) {
    const Tensor t = Tensor::empty(shape);
    std::fill_n(t.data<float>(), t.numel(), 1.0f);
    return t;
  };
  const int64_t rows = dap.mine(n).count;
  const int64_t before = world().received_bytes();
  evoformer_block(scope, config.evoformer, false,
                  {ones({dap.mine(s).count, n, c_m}), ones({rows, n, c_z})},
                  {ones({s, n}), Dtype::f32, dap}, ones({rows, n}), Trace(), {}, dap);
  const int64_t heads_m = config.evoformer.msa_row_attention.num_head,
                heads_z = config.evoformer.triangle_attention_starting_node.num_head,
                c_mul = config.evoformer.triangle_multiplication_outgoing_channel,
                c_opm = config.evoformer.num_outer_channel;
  // All-gathers bring (p - 1) / p of the whole, all-to-alls (p - 1) / p^2. n, s and the channels
  // are multiples of p here.
  const int64_t gathered = (heads_m + 2 * heads_z) * n * n + c_opm * s * n,
                exchanged = 2 * s * n * c_m + 2 * n * n * c_z + 2 * 3 * n * n * c_mul;
  CHECK(world().received_bytes() - before ==
        4 * (gathered * (p - 1) / p + exchanged * (p - 1) / (p * p)));
}

}  // namespace ff::test
