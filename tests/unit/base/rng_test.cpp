// Philox against the known answers of Random123, and the streams built on it.
#include "core/base/rng.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>

using namespace ff;

TEST_CASE("Philox4x32-10 gives Random123's known answers") {
  using Words = std::array<uint32_t, 4>;
  REQUIRE(philox({0, 0, 0, 0}, 0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  REQUIRE(philox({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u) ==
          Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  REQUIRE(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
          Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("streams with different names differ, the same name repeats") {
  std::set<uint32_t> first;
  int streams = 0;
  for (uint64_t seed : {0, 1})
    for (uint64_t a : {0, 1, 2})
      for (uint64_t b : {0, 1, 2}) {
        first.insert(Rng(seed, {a, b}).word(0));
        ++streams;
      }
  first.insert(Rng(0, {}).word(0));
  first.insert(Rng(0, {0}).word(0));
  first.insert(Rng(0, {0, 0, 0}).word(0));
  REQUIRE(first.size() == size_t(streams) + 3);
  REQUIRE(Rng(7, {1, 2}).word(123456789012) == Rng(7, {1, 2}).word(123456789012));
}

TEST_CASE("uniform numbers have the moments of a uniform distribution") {
  const Rng rng(42, {3});
  constexpr int kCount = 1 << 16;
  double sum = 0, squares = 0, lag = 0, last = 0.5;
  for (int i = 0; i < kCount; ++i) {
    const double u = unit_float(rng.word(i));
    REQUIRE((u >= 0 && u < 1));
    sum += u;
    squares += u * u;
    lag += (u - 0.5) * (last - 0.5);
    last = u;
  }
  // Five standard deviations.
  REQUIRE(sum / kCount == Approx(0.5).margin(5 * 0.289 / 256));
  REQUIRE(squares / kCount == Approx(1.0 / 3).margin(5 * 0.298 / 256));
  REQUIRE(lag / kCount == Approx(0).margin(5 * 0.0834 / 256));
}

TEST_CASE("a random order is a permutation and every place is equally likely") {
  std::vector<int> count(5 * 5);
  constexpr int kDraws = 10000;
  for (int draw = 0; draw < kDraws; ++draw) {
    std::vector<int32_t> order = random_order(Rng(9, {uint64_t(draw)}), 1, 5);
    for (int place = 0; place < 5; ++place) ++count[place * 5 + order[place] - 1];
    std::sort(order.begin(), order.end());
    REQUIRE(order == std::vector<int32_t>{1, 2, 3, 4, 5});
  }
  // 2,000 expected with a standard deviation of 40.
  for (int n : count) REQUIRE(std::abs(n - kDraws / 5) < 200);
  REQUIRE(random_order(Rng(9, {}), 1, 0).empty());
}
