// Recomputation: the closed forms against what a step has, and the same bits whatever is kept.
#include "core/model/memory_plan.h"

#include <catch2/catch.hpp>

#include "core/base/machine.h"
#include "tests/unit/train/limited_memory.h"
#include "tests/unit/train/one_chain.h"

using namespace ff;
using namespace ff::test;
using Catch::Contains;

namespace {

/// Two templates with all their atoms.
void add_templates(TrainingSample& sample) {
  for (Arrays& slice : sample.slices)
    for (auto& [name, value] : slice) {
      if (!name.starts_with("template_")) continue;
      Dims shape = value.shape();
      shape[0] = 2;
      const Tensor both = Tensor::zeros(shape, value.dtype());
      if (value.dtype() == Dtype::f32)
        for (int64_t i = 0; i < both.numel(); ++i)
          both.data<float>()[i] = shape.size() == 4 ? float(i % 97) : 1.0f;
      value = both;
    }
}

constexpr const char *kBlocks = "model.evoformer_stack.no_blocks=3",
                     *kExtra = "model.extra_msa.no_blocks=2",
                     *kNoTemplates = "model.template={enabled: false, embed_angles: false}";

}  // namespace

TEST_CASE("a step's peak is the predicted one, and its bits are the same, whatever is kept") {
  set_threads(1);  // small work: barriers would take longer
  const Data data(500);
  const std::vector<std::vector<std::string>> kCases = {
      // The shapes of initial training and of fine-tuning, divided by eight and by twelve.
      {"preset=demo", "run.precision=f32",
       "data.train={crop_size: 33, max_msa_clusters: 17, max_extra_msa: 129}"},
      {"preset=demo", "run.precision=bf16",
       "data.train={crop_size: 31, max_msa_clusters: 43, max_extra_msa: 427}"},
      // Channels of model_1, with templates; with a recycle; without dropout, more pairs than rows.
      {"run.precision=f32", "model.num_recycle=0",
       "data.train={crop_size: 27, max_msa_clusters: 23, max_extra_msa: 45, max_templates: 2}"},
      {"run.precision=bf16", kNoTemplates, "model.num_recycle=1",
       "data.train={crop_size: 29, max_msa_clusters: 41, max_extra_msa: 70, "
       "uniform_recycling: false}"},
      {"run.precision=f32", kNoTemplates, "model.num_recycle=0",
       "model.evoformer_stack={msa_dropout: 0, pair_dropout: 0}",
       "data.train={crop_size: 53, max_msa_clusters: 9, max_extra_msa: 31}"}};
  for (const std::vector<std::string>& one : kCases) {
    std::vector<TrainState> ends;
    Arrays params;
    for (const char* recompute : {"blocks", "none", "3"}) {
      std::vector<std::string> sets = {
          kBlocks,
          kExtra,
          "run.global_batch=1",
          "data.train.distillation_prob=0",
          "data.filter={accept_by_length_and_cluster: false, max_single_aa_prop: 1}",
          "data.block_delete_msa.fraction=0",
          cat("run.recompute=", recompute)};
      sets.insert(sets.end(), one.begin(), one.end());
      const TrainConfig config = read_train_config("initial_training", sets);
      std::vector<TrainingSample> samples = data.samples(config, 0);
      if (config.model.templates.enabled) add_templates(samples[0]);
      if (params.empty()) params = fresh(config).params;
      Arrays values;
      for (const auto& [name, value] : params) values[name] = value.clone();
      Trainer trainer(config, initial_state(std::move(values)), 1);
      const int64_t there = memory_count().current;
      reset_memory_peak();
      CHECK_FALSE(trainer.step(samples).skipped);
      const double measured = double(memory_count().peak - there),
                   predicted = double(trainer.plan().peak - there);
      INFO(one[0] << ", " << one.back() << ", " << recompute << ": " << measured * 1e-6
                  << " MB, predicted " << predicted * 1e-6);
      CHECK(predicted == Approx(measured).epsilon(0.05));
      ends.push_back(trainer.state());
    }
    for (size_t i = 1; i < ends.size(); ++i) CHECK(same_bits(ends[0].m, ends[i].m));
  }
  set_threads(available_threads());
}

TEST_CASE("twenty steps end with the same bits, whatever is kept") {
  const Data data;
  std::vector<TrainState> ends;
  for (const auto& [recompute, count] : {std::pair{"blocks", 3}, {"none", 0}, {"1", 1}}) {
    const TrainConfig config = small({cat("run.recompute=", recompute), "run.global_batch=1"});
    Trainer trainer(config, fresh(config), 1);
    CHECK(trainer.plan().blocks == 3);
    CHECK(trainer.plan().recompute == count);
    for (int64_t step = 0; step < 20; ++step) trainer.step(data.samples(config, step));
    ends.push_back(trainer.state());
  }
  set_threads(available_threads());
  for (size_t i = 1; i < ends.size(); ++i) {
    CHECK(same_bits(ends[0].params, ends[i].params));
    CHECK(same_bits(ends[0].v, ends[i].v));
  }
}

TEST_CASE("as many blocks are kept as the memory holds") {
  const ModelConfig config = preset_config("model_3");
  const PassSizes sizes{256, 128, 1024, 0};
  const MemorySetting setting;
  const PassMemory pass(config, sizes, setting);
  const auto plan = [&](int64_t free) { return plan_recompute(pass, 1, 1000, free, {}); };
  const auto needs = [&](int64_t recompute) { return pass.step_peak(1, recompute); };
  CHECK(pass.blocks() == 52);
  CHECK(plan(int64_t(1) << 40).recompute == 0);
  // Without room, what needs least, and of that what keeps most.
  const int64_t least = plan(0).recompute;
  for (int64_t r = 0; r <= 52; ++r) CHECK(needs(least) <= needs(r));
  CHECK(needs(least) < needs(least - 1));
  CHECK(plan(-1).recompute == least);
  CHECK(plan(-1).room == -1);
  for (const int64_t recompute : {30, 4, 3, 1}) {
    INFO(recompute << " of 52");
    CHECK(needs(recompute) < needs(recompute - 1));
    const int64_t free = needs(recompute) * 10 / 9 + 10;
    CHECK(plan(free).recompute == recompute);
    CHECK(plan(free).peak == needs(recompute) + 1000);
    CHECK(plan(free).room == free + 1000);
  }
  // A choice is kept to, whatever there is.
  CHECK(plan_recompute(pass, 1, 0, 0, 7).recompute == 7);
  CHECK(plan_recompute(pass, 1, 0, 0, kEveryBlock).recompute == 52);
  // A block of PERFORMANCE.md's S=128, N=256 in bf16 as it is now: 21.25 M and 34 Z (8 of them
  // outer products), in which M and Z are alike, and biases, log-sum-exps and dropout's factors.
  int64_t kept = 0;
  for (const ModuleMemory& module : block_memory(config, sizes, setting, false))
    kept += module.kept;
  CHECK(double(kept) == Approx(55.25 * 128 * 256 * 256 * 2).epsilon(0.02));
}

TEST_CASE("a plan that does not hold says so when the memory ends") {
  const Data data;
  const TrainConfig config =
      small({"run.global_batch=1", "data.train={max_msa_clusters: 8, max_extra_msa: 32}"});
  const std::vector<TrainingSample> samples = data.samples(config, 0);
  const LimitedMemory memory;
  Trainer trainer(config, fresh(config), 1);
  CHECK(trainer.plan().recompute == 0);
  LimitedMemory::most = memory_count().current + (trainer.plan().peak - memory_count().current) / 2;
  const auto error_of_step = [&](Trainer& trainer) -> std::string {
    try {
      trainer.step(samples);
    } catch (const Error& e) {
      CHECK(e.code() == Exit::kDevice);
      return e.what();
    }
    return "";
  };
  const std::string error = error_of_step(trainer);
  CHECK_THAT(error, Contains("run.recompute=auto keeps 3 of 3 blocks"));
  CHECK_THAT(error, Contains("predicted peak"));
  CHECK_THAT(error, Contains("set run.recompute=blocks"));
  // With so little to begin with, nothing is kept, and that is said too.
  LimitedMemory::free = 0;
  Trainer careful(config, fresh(config), 1);
  CHECK(careful.plan().recompute == 3);
  LimitedMemory::most = memory_count().current + (1 << 20);
  CHECK_THAT(error_of_step(careful),
             Contains("keeps 0 of 3 blocks") && Contains("set a smaller data.train.crop_size"));
}
