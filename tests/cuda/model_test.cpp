// The whole network on the GPU against AlphaFold's own numbers, within the CPU's tolerances:
// outputs of the fixtures, and every parameter's gradient.
#include "core/predict/predictor.h"
#include "core/train/objective.h"
#include "tests/cuda/gpu.h"
#include "tests/unit/compare.h"
#include "tests/unit/model/fixture.h"

using namespace ff;
using namespace ff::test;

namespace {

Arrays outputs(const Fixture& f, int64_t recycles, Dtype dtype) {
  const AlphaFold model(f.config, f.params().on(kGpu), dtype);
  RunOptions options;
  options.num_recycle = recycles;
  options.num_ensemble = f.num_ensemble();
  return predict(
      model, [&](int64_t i) { return f.slice(i); }, options);
}

}  // namespace

TEST_CASE("GPU: the fixtures' outputs in f32, the same bits twice") {
  if (!have_gpu()) return;
  for (const auto& [folder, recycles] : {std::pair{"tiny", 0},
                                         {"tiny", 2},
                                         {"tiny_ensemble", 1},
                                         {"tiny_no_template", 1},
                                         {"tiny_shallow", 0}})
    DYNAMIC_SECTION(folder << " r" << recycles) {
      const Fixture f(folder);
      const Arrays got = outputs(f, recycles, Dtype::f32), again = outputs(f, recycles, Dtype::f32);
      int compared = 0;
      for (const auto& [key, value] :
           read_npz(data_path(cat(folder, "/outputs_r", recycles, ".npz")))) {
        if (!got.count(key)) continue;  // labels make it
        INFO(key);
        const bool angles = key.find("angles") != std::string::npos;
        compare(key, got.at(key), value, angles ? Tolerance::kAngle : Tolerance::kOutput);
        CHECK(norm_error(again.at(key), got.at(key)) == 0);
        ++compared;
      }
      CHECK(compared >= 21);
    }
}

TEST_CASE("GPU: bf16 representations are near f32's") {
  if (!have_gpu()) return;
  const Fixture f("tiny");
  const Arrays want = read_npz(data_path("tiny/outputs_r0.npz")), got = outputs(f, 0, Dtype::bf16);
  for (const char* key : {"representations/pair", "representations/msa", "representations/single"})
    CHECK(norm_error(got.at(key), want.at(key)) < 3e-2);
}

TEST_CASE("GPU: recycles from a recording are those launched kernel by kernel") {
  if (!have_gpu()) return;
  for (const char* folder : {"tiny", "tiny_ensemble"}) DYNAMIC_SECTION(folder) {
      const Fixture f(folder);
      const AlphaFold model(f.config, f.params().on(kGpu), Dtype::f32);
      Arrays outputs[2];
      int64_t launches[2];
      for (const bool graphs : {false, true}) {
        RunOptions options;
        options.num_recycle = 4;
        options.num_ensemble = f.num_ensemble();
        options.graphs = graphs;
        const int64_t before = device_work().launches;
        // Other features in each, of the same shapes.
        outputs[graphs] = model.run(
            [&](int64_t i) {
              Arrays slice = f.slice(i % 2);
              slice["msa_feat"] = random(slice.at("msa_feat").shape(), uint64_t(i));
              return slice;
            },
            options);
        launches[graphs] = device_work().launches - before;
      }
      CHECK(launches[1] < launches[0] / 2);
      for (const auto& [name, value] : outputs[0]) {
        INFO(name);
        CHECK(norm_error(outputs[1].at(name).to(Device{}), value.to(Device{})) == 0);
      }
    }
}

// The limits are the CPU's (tests/unit/loss/parity_test.cpp). tiny's pass without recycles is left
// out: of its MSA transition one hidden unit (block 0, row 4, residue 6, unit 35) is 1.03e-6 before
// the relu in AlphaFold's own run, nearer to zero than f32 computes it.
TEST_CASE("GPU: every parameter's gradient") {
  if (!have_gpu()) return;
  for (const auto& [folder, recycles, limit] :
       {std::tuple{"tiny", 1, 1e-3}, {"tiny_padded", 1, 1e-3}, {"tiny_no_template", 0, 5e-3}})
    DYNAMIC_SECTION(folder << " r" << recycles) {
      const Fixture f(folder);
      Params params = f.params().on(kGpu);
      params.want_grads();
      const AlphaFold model(f.config, params);
      Tape tape;
      const Outputs outputs = model.forward([&](int64_t i) { return f.slice(i); }, recycles);
      Arrays labels = read_npz(data_path(cat(folder, "/labels.npz")));
      for (auto& [name, value] : labels) value = value.select(0, recycles);
      LossConfig config = head_weights(f.config.heads);
      config.structural_violation_loss_weight = 1;
      const Losses losses = objective(config, f.config.heads, outputs, f.slice(recycles), labels);
      tape.backward({losses.total});
      const Arrays got = params.take_grads();
      for (const auto& [name, value] :
           read_npz(data_path(cat(folder, "/grads_r", recycles, ".npz")))) {
        INFO(name);
        REQUIRE(got.count(name) == 1);
        CHECK(largest_gap(got.at(name), value) <= limit * rms(value) + 1e-6);
      }
    }
}
