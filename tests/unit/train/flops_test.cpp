// The counts against those of the performance notes' table, made by hand.
#include "core/model/flops.h"

#include <catch2/catch.hpp>

using namespace ff;

TEST_CASE("blocks and samples cost what the closed forms say") {
  const ModelConfig c = preset_config("model_3");
  const PassSizes initial{256, 128, 1024, 0}, fine{384, 512, 5120, 0};
  const auto near = [](double gflop) { return Approx(gflop * 1e9).epsilon(0.005); };
  CHECK(evoformer_block_flops(c, initial, false).forward() == near(216));
  CHECK(evoformer_block_flops(c, fine, false).forward() == near(1076));
  CHECK(evoformer_block_flops(c, initial, true).forward() == near(297));
  CHECK(evoformer_block_flops(c, fine, true).forward() == near(2273));
  // A sample of 2.5 passes; the table leaves embedders, structure module and heads out.
  const auto about = [](double tflop) { return Approx(tflop * 1e12).epsilon(0.03); };
  CHECK(training_flops(c, initial, 1.5, 0) == about(53));
  CHECK(training_flops(c, fine, 1.5, 0) == about(276));
  CHECK(training_flops(c, initial, 1.5, kEveryBlock) == about(65));
  CHECK(training_flops(c, fine, 1.5, kEveryBlock) == about(338));
}

TEST_CASE("templates cost by their number") {
  const ModelConfig c = preset_config("model_1");
  const auto pass = [&](int64_t templates) {
    return pass_flops(c, {256, 128, 1024, templates}).forward();
  };
  CHECK(pass(4) > pass(1));
  CHECK(pass(4) - pass(1) == Approx(3 * (pass(2) - pass(1))));
}
