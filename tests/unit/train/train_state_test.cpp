// Training checkpoints: bit for bit, newest that is whole, one trainer a folder, full disks.
#include "core/train/train_state.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <set>

#include "core/model/params.h"
#include "core/train/train_config.h"
#include "io/checkpoint.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;
namespace fs = std::filesystem;

namespace {

/// A small model's configuration and a state that has trained.
TrainConfig small(const std::vector<std::string>& more = {}) {
  std::vector<std::string> sets = {"model.c_m=8",
                                   "model.c_z=8",
                                   "model.c_s=8",
                                   "model.c_e=8",
                                   "model.evoformer_stack={no_blocks: 1, no_heads_msa: 2}",
                                   "model.structure_module={c: 8, no_heads_ipa: 2}"};
  sets.insert(sets.end(), more.begin(), more.end());
  return read_train_config("demo", sets);
}

TrainState trained(const TrainConfig& config, int64_t step) {
  TrainState s = initial_state(initial_params(config.model, uint64_t(step)));
  s.step = step;
  s.samples = 4 * step;
  s.adam_step = step - 1;
  s.skipped = 1;
  s.config = train_config_json(config);
  s.model = config.model.name;
  float x = 0;
  for (Arrays* group : {&s.m, &s.v, &s.ema})
    for (auto& [name, t] : *group)
      for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = x += 0.1f;
  return s;
}

void check_same(const TrainState& a, const TrainState& b) {
  for (const auto& [x, y] : {std::pair{&a.params, &b.params}, std::pair{&a.m, &b.m},
                             std::pair{&a.v, &b.v}, std::pair{&a.ema, &b.ema}}) {
    REQUIRE(x->size() == y->size());
    for (const auto& [name, t] : *x)
      CHECK(std::memcmp(t.raw(), y->at(name).raw(), size_t(t.numel()) * 4) == 0);
  }
  CHECK(a.step == b.step);
  CHECK(a.samples == b.samples);
  CHECK(a.adam_step == b.adam_step);
  CHECK(a.skipped == b.skipped);
  CHECK(a.best == b.best);
  CHECK(a.best_step == b.best_step);
  CHECK(a.config == b.config);
  CHECK(a.model == b.model);
}

void damage(const std::string& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.write("damage", 6);
}

}  // namespace

TEST_CASE("a state comes back bit for bit") {
  const Scratch scratch;
  const TrainConfig config = small();
  TrainState s = trained(config, 12);
  write_train_state(scratch / "a.h5", s);
  check_same(s, read_train_state(scratch / "a.h5"));
  s.best = 0.1 + 0.2;
  s.best_step = 10;
  write_train_state(scratch / "a.h5", s);
  check_same(s, read_train_state(scratch / "a.h5"));
  CHECK_NOTHROW(check_same_model(s, config.model, s.config, "a.h5"));
}

TEST_CASE("the folder keeps the newest and the best, and finds the newest that is whole") {
  const Scratch scratch;
  const TrainConfig config = small();
  const std::string run = scratch / "run";
  const RunFolder folder(run);
  CHECK_FALSE(folder.latest());
  for (int64_t step = 1; step <= 5; ++step) folder.save(trained(config, step), 3, step == 2);
  CHECK(folder.checkpoints() == std::vector<std::string>{run + "/step_00000003.h5",
                                                         run + "/step_00000004.h5",
                                                         run + "/step_00000005.h5"});
  CHECK(read_train_state(run + "/best.h5").step == 2);
  CHECK(folder.latest()->first.step == 5);
  fs::resize_file(run + "/step_00000005.h5", fs::file_size(run + "/step_00000005.h5") / 2);
  CHECK(folder.latest()->first.step == 4);
  damage(run + "/step_00000004.h5");
  CHECK(folder.latest()->second == run + "/step_00000003.h5");
  check_same(folder.latest()->first, trained(config, 3));
  damage(run + "/step_00000003.h5");
  CHECK_THROWS_WITH(folder.latest(), Contains("none of its 3 checkpoints can be read"));
  folder.save(trained(config, 2), 3, true);
  CHECK(folder.latest()->first.step == 2);
}

TEST_CASE("one trainer a folder, and what a killed one left is removed") {
  const Scratch scratch;
  const std::string run = scratch / "run";
  {
    const RunFolder first(run);
    CHECK_THROWS_WITH(RunFolder(run), Contains("is being written by another fastfold (process"));
  }
  scratch.write("run/.step_00000010.h5.4-0.tmp", "half");
  for (const char* name : {".second.tmp", ".best.h5.4-0.tmp", ".config.yaml.4-0.tmp"})
    scratch.write(cat("run/", name), "");
  scratch.write("run/.mine.tmp", "kept");
  const RunFolder again(run);
  std::set<std::string> left;
  for (const auto& entry : fs::directory_iterator(run)) left.insert(entry.path().filename());
  CHECK(left == std::set<std::string>{".mine.tmp", ".train.lock"});
}

TEST_CASE("a full disk leaves the checkpoint before whole") {
  const Scratch scratch;
  const TrainConfig config = small();
  const RunFolder folder(scratch / "run");
  folder.save(trained(config, 1), 1, true);
  {
    const FileSizeLimit full(20'000);
    try {
      folder.save(trained(config, 2), 1, false);
      FAIL("written");
    } catch (const Error& e) {
      CHECK(e.code() == Exit::kDevice);
      CHECK_THAT(e.what(), Contains("step_00000002.h5") && Contains("free some space"));
    }
  }
  check_same(folder.latest()->first, trained(config, 1));
}

TEST_CASE("another model's checkpoint is refused with what differs") {
  const TrainConfig config = small(), other = small({"model.c_z=16"});
  const TrainState s = trained(config, 1);
  try {
    check_same_model(s, other.model, train_config_json(other), "run/step_00000001.h5");
    FAIL("accepted");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    CHECK_THAT(e.what(), Contains("run/step_00000001.h5: is a checkpoint of another model") &&
                             Contains("model.c_z: 8, 16") && Contains("[22, 8], model [22, 16]"));
  }
  // Another rate is no other model.
  const TrainConfig slow = small({"optim.lr=1e-5"});
  CHECK_NOTHROW(check_same_model(s, slow.model, train_config_json(slow), "x"));
  CHECK(config_differences(s.config, train_config_json(slow)) ==
        std::vector<std::string>{"optim.lr: 0.001, 1e-05"});
}

TEST_CASE("parameters alone are no training state") {
  const Scratch scratch;
  write_checkpoint(scratch / "p.h5", initial_params(small().model, 1));
  CHECK_THROWS_WITH(read_train_state(scratch / "p.h5"), Contains("--weights-only"));
}
