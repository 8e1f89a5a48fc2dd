// Random numbers without state: Philox4x32-10 keyed by (seed, stream...), read by element index.
// Whoever asks for element i of a stream gets the same number: in any order, on any rank, in a
// replay. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace ff {

/// Ten rounds of Philox4x32.
constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, uint32_t key0,
                                         uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * counter[0], b = uint64_t(0xCD9E8D57u) * counter[2];
    counter = {uint32_t(b >> 32) ^ counter[1] ^ key0, uint32_t(b),
               uint32_t(a >> 32) ^ counter[3] ^ key1, uint32_t(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// In [0, 1), 24 bits.
constexpr float unit_float(uint32_t word) { return float(word >> 8) * 0x1p-24f; }
/// In [0, 1), 53 bits.
constexpr double unit_double(uint32_t low, uint32_t high) {
  return double((uint64_t(high) << 32 | low) >> 11) * 0x1p-53;
}

/// One stream of random numbers. Its name is a list of integers, such as (step, sample, recycle,
/// block, operation); two different names are two independent streams.
class Rng {
 public:
  constexpr Rng(uint64_t seed, std::initializer_list<uint64_t> stream) {
    std::array<uint32_t, 4> state = {0, 0, uint32_t(stream.size()), 0};
    absorb(state, seed);
    for (uint64_t id : stream) absorb(state, id);
    key_ = {state[0], state[1]};
    stream_ = {state[2], state[3]};
  }

  /// Block `i` of four words.
  constexpr std::array<uint32_t, 4> block(uint64_t i) const {
    return philox({uint32_t(i), uint32_t(i >> 32), stream_[0], stream_[1]}, key_[0], key_[1]);
  }
  /// Word `i`; four consecutive words share a block.
  constexpr uint32_t word(uint64_t i) const { return block(i / 4)[i % 4]; }

 private:
  static constexpr void absorb(std::array<uint32_t, 4>& state, uint64_t id) {
    state = philox(state, uint32_t(id), uint32_t(id >> 32));
  }
  std::array<uint32_t, 2> key_{}, stream_{};
};

/// A uniformly random order of first, first + 1, ..., first + count - 1 (Fisher and Yates).
inline std::vector<int32_t> random_order(const Rng& rng, int32_t first, int32_t count) {
  std::vector<int32_t> order(count);
  for (int32_t i = 0; i < count; ++i) order[i] = first + i;
  for (int32_t i = count - 1; i > 0; --i) {
    const auto w = rng.block(uint64_t(i));
    std::swap(order[i], order[size_t(unit_double(w[0], w[1]) * (i + 1))]);
  }
  return order;
}

}  // namespace ff
