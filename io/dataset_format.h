// What writer and reader of shards share: a chain's parts and how they are cut into chunks
// (docs/dataset-format.md). For io/dataset*.cpp alone.
#pragma once

#include <cstdint>
#include <vector>

#include "core/geometry/residue_constants.h"

namespace ff::shard {

constexpr const char* kKind = "fastfold shard";
constexpr int kFormatVersion = 1;
constexpr int64_t kUserBlock = 512;
/// A row of /chunks: offset, stored bytes, CRC-32, each 64 bits.
constexpr int64_t kChunkRow = 24;
/// What no chain reaches; keeps sizes within 64 bits.
constexpr int64_t kMostResidues = 100'000, kMostTemplates = 1000, kMostRows = INT32_MAX,
                  kMostChunkRows = 4096;

enum PartName {
  kMsa,
  kDeletions,
  kProfile,
  kPositions,
  kMask,
  kTemplateAatype,
  kTemplateSumProbs,
  kTemplatePositions,
  kTemplateMask,
  kParts
};

/// A dataset of a chain: its chunks hold `chunk_rows` whole rows of the first axis each, the last
/// one padded with zeros.
struct Part {
  const char* name;
  int element;  ///< bytes; 1: integer, 4: f32, shuffled
  bool is_signed;
  std::vector<int64_t> shape;
  int64_t chunk_rows;
  int64_t first_chunk;  ///< in the chain's list

  int64_t chunks() const { return (shape[0] + chunk_rows - 1) / chunk_rows; }
  int64_t row_bytes() const {
    int64_t bytes = element;
    for (size_t i = 1; i < shape.size(); ++i) bytes *= shape[i];
    return bytes;
  }
  int64_t chunk_bytes() const { return chunk_rows * row_bytes(); }
};

/// The parts of a chain in the order of PartName; those of templates only where there are any.
inline std::vector<Part> parts_of(int64_t n_res, int64_t n_msa, int64_t n_templates,
                                  int64_t msa_chunk_rows) {
  const int64_t n = n_res, t = n_templates;
  std::vector<Part> parts = {
      {"msa", 1, true, {n_msa, n}, msa_chunk_rows, 0},
      {"deletions", 1, false, {n_msa, n}, msa_chunk_rows, 0},
      {"profile", 4, true, {n, kMsaLetters}, n, 0},
      {"positions", 4, true, {n, kAtom37, 3}, n, 0},
      {"mask", 1, false, {n, kAtom37}, n, 0},
      {"template_aatype", 1, true, {t, n}, 1, 0},
      {"template_sum_probs", 4, true, {t}, 1, 0},
      {"template_positions", 4, true, {t, n, kAtom37, 3}, 1, 0},
      {"template_mask", 1, false, {t, n, kAtom37}, 1, 0},
  };
  if (t == 0) parts.resize(kTemplateAatype);
  int64_t first = 0;
  for (Part& part : parts) {
    part.first_chunk = first;
    first += part.chunks();
  }
  return parts;
}

inline int64_t chunks_of(const std::vector<Part>& parts) {
  return parts.back().first_chunk + parts.back().chunks();
}

}  // namespace ff::shard
