// Adam against PyTorch's, clipping, schedule, and the same bits for any number of threads.
#include "core/train/optimizer.h"

#include <omp.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/rng.h"

using namespace ff;

namespace {

Arrays one(std::initializer_list<float> values) {
  return {{"p", Tensor::of<float>({int64_t(values.size())}, values.begin())}};
}

Arrays noise(uint64_t seed) {
  Arrays out;
  uint64_t stream = 0;
  for (const Dims& shape : {Dims{3, 70'001}, Dims{}, Dims{5}, Dims{0}, Dims{129, 257}}) {
    Tensor t = Tensor::empty(shape);
    const Rng rng(seed, {stream});
    for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = unit_float(rng.word(i)) - 0.5f;
    out.emplace(cat("array", stream++), t);
  }
  return out;
}

bool same_bits(const Arrays& a, const Arrays& b) {
  for (const auto& [name, t] : a)
    if (std::memcmp(t.raw(), b.at(name).raw(), size_t(t.numel()) * 4)) return false;
  return a.size() == b.size();
}

}  // namespace

TEST_CASE("Adam and its average follow torch.optim.Adam") {
  // torch 2.11: Adam(lr=1e-2, betas=(0.9, 0.999), eps=1e-6), ema += 0.1 (p - ema) after each step.
  const float expected[5] = {0.451491982f, -1.20000243f, 1.95657063f, -0.0160436891f,
                             0.0443145931f};
  const float average[5] = {0.487197518f, -1.23685646f, 1.98853135f, -0.00316768023f,
                            0.0123023596f};
  OptimConfig config;
  config.ema = 0.9;
  Arrays p = one({0.5f, -1.25f, 2, 0, 3e-4f}), ema = one({0.5f, -1.25f, 2, 0, 3e-4f});
  Arrays m = zeros_like(p), v = zeros_like(p);
  for (int t = 1; t <= 5; ++t) {
    const auto k = float(t);
    // A sum over a batch of four.
    const Arrays g = one({0.4f * k, -0.08f, 4e-5f * k * k, t == 3 ? 1.2f : 0, -20 / k});
    adam_step(config, {p, m, v, ema}, g, 0.25, 1e-2, t, Tensor::zeros({1}));
  }
  for (int i = 0; i < 5; ++i) {
    CHECK(p["p"].data<float>()[i] == Approx(expected[i]).epsilon(1e-6).margin(1e-8));
    CHECK(ema["p"].data<float>()[i] == Approx(average[i]).epsilon(1e-6).margin(1e-8));
  }
  // A step that is to be skipped.
  const float skipped = 2, last = p["p"].data<float>()[0];
  adam_step(config, {p, m, v, ema}, one({1, 1, 1, 1, 1}), 1, 1, 6,
            Tensor::of<float>({1}, &skipped));
  CHECK(p["p"].data<float>()[0] == last);
}

TEST_CASE("an example's gradient is clipped by its global norm") {
  Arrays sum = one({1, 1}), g = one({3, 4});
  const Tensor skipped = Tensor::zeros({1}), loss = Tensor::scalar(2);
  CHECK(add_clipped(sum, g, loss, 0.1, skipped).item() == Approx(5));
  CHECK(sum["p"].data<float>()[0] == Approx(1.06f));
  CHECK(sum["p"].data<float>()[1] == Approx(1.08f));
  add_clipped(sum, one({0.03f, 0.04f}), loss, 0.1, skipped);
  CHECK(sum["p"].data<float>()[0] == Approx(1.09f));
  add_clipped(sum, g, loss, 0, skipped);
  CHECK(sum["p"].data<float>()[0] == Approx(4.09f));
  CHECK(skipped.item() == 0);
  const Tensor before = sum["p"].clone();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    CHECK_FALSE(std::isfinite(add_clipped(sum, one({1, bad}), loss, 0.1, skipped).item()));
    add_clipped(sum, g, Tensor::scalar(bad), 0.1, skipped);
    CHECK(std::memcmp(before.raw(), sum["p"].raw(), 8) == 0);
  }
  CHECK(skipped.item() == 4);
  // Squares that f32 cannot hold.
  CHECK(global_norm(one({3e30f, 4e30f})) == Approx(5e30));
}

TEST_CASE("any number of threads gives the same bits") {
  const int threads = omp_get_max_threads();
  std::vector<Arrays> results;
  for (const int n : {1, 2, 3, 7}) {
    omp_set_num_threads(n);
    Arrays p = noise(1), ema = noise(1), sum = zeros_like(p), m = zeros_like(p), v = zeros_like(p);
    const Tensor skipped = Tensor::zeros({1});
    for (uint64_t i = 2; i < 5; ++i) add_clipped(sum, noise(i), Tensor::scalar(1), 0.1, skipped);
    adam_step({}, {p, m, v, ema}, sum, 1.0 / 3, 1e-3, 1, skipped);
    for (const auto& [prefix, group] :
         {std::pair{"m", &m}, std::pair{"v", &v}, std::pair{"e", &ema}})
      for (const auto& [name, t] : *group) p.emplace(prefix + name, t);
    results.push_back(p);
  }
  omp_set_num_threads(threads);
  for (const Arrays& other : results) CHECK(same_bits(results[0], other));
  CHECK_FALSE(same_bits(noise(1), noise(2)));
}

TEST_CASE("the rate is counted in samples") {
  OptimConfig c;
  CHECK(learning_rate(c, 128) == Approx(1e-6));
  CHECK(learning_rate(c, 64'000) == Approx(5e-4));
  CHECK(learning_rate(c, 128'000) == Approx(1e-3));
  CHECK(learning_rate(c, 6'400'000) == Approx(1e-3));
  CHECK(learning_rate(c, 6'400'128) == Approx(9.5e-4));
  c.warmup_samples = c.decay_after_samples = 0;
  CHECK(learning_rate(c, 0) == Approx(1e-3));
  CHECK(learning_rate(c, 1'000'000'000) == Approx(1e-3));
}
