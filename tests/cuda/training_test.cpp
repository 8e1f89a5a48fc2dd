// The trainer on the GPU: samples side by side in lanes of their own.
#include "core/base/machine.h"
#include "core/train/trainer.h"
#include "tests/cuda/gpu.h"
#include "tests/unit/train/one_chain.h"

using namespace ff;
using namespace ff::test;

TEST_CASE("GPU: a step is the same whether its samples go one by one or side by side") {
  if (!have_gpu()) return;
  const Data data;
  const TrainConfig config = small({"model.num_recycle=1"});
  std::vector<TrainState> ends;
  for (const int threads : {1, 3}) {
    Trainer trainer(config, fresh(config), threads, {}, kGpu);
    CHECK(trainer.plan().samples == std::min<int64_t>(threads, config.run.global_batch));
    for (int64_t step = 0; step < 2; ++step) {
      const StepReport report = trainer.step(data.samples(config, step));
      CHECK_FALSE(report.skipped);
      CHECK(std::isfinite(report.loss));
    }
    TrainState end = trainer.state();
    for (Arrays* arrays : {&end.params, &end.v, &end.ema})
      for (auto& [name, t] : *arrays) t = t.to(Device{});
    ends.push_back(std::move(end));
  }
  set_threads(available_threads());
  CHECK(same_bits(ends[0].params, ends[1].params));
  CHECK(same_bits(ends[0].v, ends[1].v));
  CHECK(same_bits(ends[0].ema, ends[1].ema));
  CHECK_FALSE(same_bits(ends[0].params, fresh(config).params));
}

TEST_CASE("GPU: steps from recordings are those launched kernel by kernel") {
  if (!have_gpu()) return;
  struct Way {
    const char* name;
    int64_t batch, lanes, steps, recycles;
  };
  // What is asked for differs by the number of recycles, and is recorded when it comes again.
  for (const Way& way :
       {Way{"three in two lanes", 3, 2, 4, 0}, Way{"with and without a recycle", 1, 1, 7, 1}})
    DYNAMIC_SECTION(way.name) {
      const Data data(9);
      std::vector<TrainState> ends;
      std::vector<double> losses[2];
      for (const bool graphs : {false, true}) {
        const TrainConfig config = small(
            {cat("run.graphs=", graphs ? "true" : "false"), cat("run.global_batch=", way.batch),
             cat("model.num_recycle=", way.recycles), "data.train.clamp_prob=0.5"});
        Trainer trainer(config, fresh(config), int(way.lanes), {}, kGpu);
        const int64_t before = device_work().launches;
        int64_t last = 0;
        for (int64_t step = 0; step < way.steps; ++step) {
          last = device_work().launches;
          losses[graphs].push_back(trainer.step(data.samples(config, step)).loss);
        }
        const int64_t now = device_work().launches;
        INFO(now - last << " launches of " << now - before << " in all");
        // In the last step all samples are followed.
        CHECK((now - last < (now - before) / (2 * way.steps)) == graphs);
        TrainState end = trainer.state();
        for (Arrays* arrays : {&end.params, &end.v, &end.ema})
          for (auto& [name, t] : *arrays) t = t.to(Device{});
        ends.push_back(std::move(end));
      }
      set_threads(available_threads());
      CHECK(losses[0] == losses[1]);
      CHECK(same_bits(ends[0].params, ends[1].params));
      CHECK(same_bits(ends[0].v, ends[1].v));
      CHECK(same_bits(ends[0].ema, ends[1].ema));
    }
}
