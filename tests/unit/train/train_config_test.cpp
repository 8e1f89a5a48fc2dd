// Training files: every recipe, what is written reads back, and bad ones are refused by line.
#include "core/train/train_config.h"

#include <catch2/catch.hpp>

#include "core/base/error.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;

namespace {

std::string error_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  const Scratch scratch;
  try {
    read_train_config(scratch.write("x.yaml", yaml), overrides);
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kUsage);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("the recipes hold the supplement's numbers") {
  const TrainConfig a = read_train_config("initial_training"), b = read_train_config("finetuning"),
                    c = read_train_config("finetuning_ptm");
  CHECK(recipe_names().size() == 6);
  CHECK(a.model.name == "model_1");
  CHECK(a.train.crop_size == 256);
  CHECK(a.features.max_msa_clusters == 128);
  CHECK(a.features.max_extra_msa == 1024);
  CHECK(a.optim.lr == 1e-3);
  CHECK(a.optim.eps == 1e-6);
  CHECK(a.optim.warmup_samples == 128'000);
  CHECK(a.optim.decay_after_samples == 6'400'000);
  CHECK(a.loss.violation == 0);
  CHECK_FALSE(a.run.accumulate);
  CHECK(a.run.max_steps * a.run.global_batch == 9'200'000);
  CHECK(b.train.crop_size == 384);
  CHECK(b.features.max_msa_clusters == 512);
  CHECK(b.features.max_extra_msa == 5120);
  CHECK(b.optim.lr == 5e-4);
  CHECK(b.optim.warmup_samples == 0);
  CHECK(b.loss.violation == 1);
  CHECK(b.loss.experimentally_resolved == 0.01);
  CHECK(b.train.clamp_prob == 0.9);
  CHECK(c.loss.tm == 0.1);
  CHECK(c.model.heads.pae_weight > 0);
  CHECK(c.train.crop_size == 384);
}

TEST_CASE("run.recompute is auto, blocks, none or a number") {
  for (const char* value : {"auto", "blocks", "none", "0", "31"})
    CHECK(read_train_config("demo", {cat("run.recompute=", value)}).run.recompute == value);
  for (const char* value : {"some", "-1", "1.5", "7x", "''"})
    CHECK_THAT(error_of("preset: demo", {cat("run.recompute=", value)}),
               Contains("run.recompute is '") &&
                   Contains("expected auto, blocks, none or how many of the trunk's blocks"));
}

TEST_CASE("what is written reads back") {
  for (const std::string& name : recipe_names()) {
    INFO(name);
    const TrainConfig c = read_train_config(
        name, {"data.train.shards=[a, 'b, c: d']", "run.logdir=/tmp/x y", "optim.lr=1.25e-4",
               "run.threads=3", "model.evoformer_stack.no_blocks=2", "data.validation.shards=v"});
    CHECK(c.train.shards == std::vector<std::string>{"a", "b, c: d"});
    CHECK(c.run.logdir == "/tmp/x y");
    CHECK(c.validation_shards == std::vector<std::string>{"v"});
    CHECK(c.run.threads == 3);
    CHECK(c.model.evoformer_num_block == 2);
    for (const std::string& text : {train_config_yaml(c), train_config_json(c)}) {
      const TrainConfig again = parse_train_config(text, "again");
      CHECK(train_config_json(again) == train_config_json(c));
      CHECK(config_json(again.model) == config_json(c.model));
    }
  }
}

TEST_CASE("the last preset counts, and what files say of it stays") {
  const Scratch scratch;
  const std::string path =
      scratch.write("x.yaml", "recipe: small\nmodel: {evoformer_stack: {no_blocks: 3}}\nseed: 7\n");
  const TrainConfig c = read_train_config(path, {"preset=model_3_ptm"});
  CHECK(c.model.name == "model_3_ptm");
  CHECK(c.model.evoformer_num_block == 3);
  CHECK(c.model.pair_channel == 128);
  CHECK(c.seed == 7);
  CHECK(c.run.global_batch == 16);
}

TEST_CASE("bad training files are refused with their line") {
  CHECK_THAT(error_of("preset: demo\noptim:\n  lrr: 1\n"),
             Contains("x.yaml:3: unknown key 'optim.lrr'; did you mean 'lr'?"));
  CHECK_THAT(error_of("preset: demo\noptim: {lr: -0.001}\n"),
             Contains("x.yaml:2: 'optim.lr' is -0.001, expected 0 to 1"));
  CHECK_THAT(error_of("preset: demo\ndata: {train: {crop_size: 0}}\n"),
             Contains(":2: 'data.train.crop_size' is 0, expected 4 to"));
  CHECK_THAT(error_of("preset: demo\n", {"data.train.crop_size=0"}),
             Contains("'data.train.crop_size=0': 'data.train.crop_size' is 0"));
  CHECK_THAT(error_of("preset: demo\n", {"optim.lrate=1"}), Contains("unknown key 'optim.lrate'"));
  CHECK_THAT(error_of("preset: demo\noptim: {lr: .nan}\n"), Contains("'optim.lr' is nan"));
  CHECK_THAT(error_of("preset: demo\noptim: {lr: 1e-3, lr: 1e-4}\n"), Contains("given twice"));
  CHECK_THAT(error_of("preset: demo\noptim: {betas: [0.9, 1.5]}\n"), Contains("'optim.betas'"));
  CHECK_THAT(error_of("preset: demo\noptim: {betas: 0.9}\n"), Contains("cannot be '0.9'"));
  CHECK_THAT(error_of("preset: demo\nrun: 3\n"), Contains("'run' is a section"));
  CHECK_THAT(error_of("seed: 1\n"), Contains("no 'preset'"));
  CHECK_THAT(error_of("preset: initial_training\n"), Contains("write 'recipe: initial_training'"));
  CHECK_THAT(error_of("recipe: initial_trainin\n"), Contains("did you mean 'initial_training'?"));
  CHECK_THAT(error_of("preset: demoo\n"), Contains("did you mean 'demo'?"));
  CHECK_THAT(error_of("preset: model_1\nloss: {tm: 0.1}\n"), Contains("ends in _ptm"));
  CHECK_THAT(error_of("preset: demo\ndata: {filter: {date_max: 2020}}\n"), Contains("YYYY-MM-DD"));
  CHECK_THAT(error_of("preset: demo\nrun: {precision: fp16}\n"),
             Contains("expected bf16, f32, tf32 or"));
  CHECK_THAT(error_of("preset: demo\nrun: {global_batch: 6, accumulate: 4}\n"),
             Contains("does not divide"));
  CHECK_THAT(error_of("preset: demo\nmodel: {c_z: 100000000}\n"), Contains("model.c_z"));
  CHECK_THAT(error_of("a: ["), Contains("is not YAML"));
  CHECK_THAT(error_of("- 1\n"), Contains("expected sections"));
  CHECK_THROWS_WITH(read_train_config("/no/such.yaml"), Contains("cannot be opened"));
}
