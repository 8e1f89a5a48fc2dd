// Steps of the feature pipeline that work on the alignment: sampling, masking, clustering.
#include "io/transforms.h"

#include <algorithm>
#include <cstring>

#include "core/geometry/residue_constants.h"

namespace ff {
namespace {

using Lanes = uint8_t __attribute__((vector_size(32)));
constexpr int kVectors = 4;
constexpr int kTile = kVectors * int(sizeof(Lanes));
constexpr int64_t kMostPerByte = 255;
constexpr uint8_t kNever = 255;

/// Columns in which `row` agrees with each of a tile's centres.
/// tile   [n_res, kTile]: one column of kTile centres after the other; kNever agrees with nothing
void count_agreements(const int8_t* row, const uint8_t* tile, int64_t n_res,
                      uint32_t (&counts)[kTile]) {
  std::fill_n(counts, kTile, 0);
  for (int64_t begin = 0; begin < n_res; begin += kMostPerByte) {
    Lanes sums[kVectors] = {};
    const int64_t end = std::min(n_res, begin + kMostPerByte);
    for (int64_t i = begin; i < end; ++i) {
      const Lanes letter = Lanes{} + uint8_t(row[i]);
      for (int v = 0; v < kVectors; ++v) {
        Lanes centers;
        std::memcpy(&centers, tile + i * kTile + v * sizeof(Lanes), sizeof(Lanes));
        sums[v] -= Lanes(centers == letter);  // a true lane is -1
      }
    }
    uint8_t bytes[kTile];
    std::memcpy(bytes, sums, sizeof bytes);
    for (int lane = 0; lane < kTile; ++lane) counts[lane] += bytes[lane];
  }
}

}  // namespace

int64_t cluster_count(const DataConfig& config) {
  const int64_t fewer = config.reduce_msa_clusters_by_max_templates ? config.max_templates : 0;
  if (config.max_msa_clusters <= fewer)
    fail(Exit::kUsage, "max_msa_clusters is ", config.max_msa_clusters, ", expected more than ",
         fewer, fewer ? ", the number of templates that take the place of clusters" : "");
  return config.max_msa_clusters - fewer;
}

RowSplit split_rows(int64_t max_clusters, std::span<const int32_t> shuffle0) {
  RowSplit rows;
  const auto cut = shuffle0.begin() + std::min<int64_t>(max_clusters - 1, std::ssize(shuffle0));
  rows.centers.push_back(0);
  rows.centers.insert(rows.centers.end(), shuffle0.begin(), cut);
  rows.extra.assign(cut, shuffle0.end());
  return rows;
}

void draw_masked_msa(const RawFeatures& raw, const DataConfig& config,
                     std::span<const int32_t> centers, const Rng& rng, Choices& choices) {
  const double mask_prob = 1 - config.profile_prob - config.same_prob - config.uniform_prob;
  constexpr double kRoundoff = 1e-9, kEpsilon = 1e-10;
  if (!(mask_prob >= -kRoundoff))
    fail(Exit::kUsage, "masked_msa: profile_prob ", config.profile_prob, ", same_prob ",
         config.same_prob, " and uniform_prob ", config.uniform_prob,
         " sum to more than 1; expected the rest to be the mask's");
  const int64_t n_res = raw.n_res(), n = std::ssize(centers) * n_res;
  choices.bert_mask.assign(n, 0);
  choices.msa.resize(n);
#pragma omp parallel for
  for (int64_t e = 0; e < n; ++e) {
    const int64_t i = e % n_res;
    const int8_t letter = raw.row(centers[e / n_res])[i];
    choices.msa[e] = letter;
    const auto words = rng.block(uint64_t(e));
    if (!(unit_float(words[0]) < config.masked_msa_replace_fraction)) continue;
    choices.bert_mask[e] = 1;
    double cumulated[kMsaClasses], sum = 0;
    for (int c = 0; c < kMsaClasses; ++c) {
      double p = kEpsilon;
      if (c < kRestypes) p += config.uniform_prob / kRestypes;
      if (c < kMsaLetters) p += config.profile_prob * raw.profile[i * kMsaLetters + c];
      if (c == letter) p += config.same_prob;
      if (c == kMaskRestype) p += std::max(0.0, mask_prob);
      cumulated[c] = sum += p;
    }
    const double u = unit_double(words[1], words[2]) * sum;
    choices.msa[e] = int8_t(std::min<int64_t>(
        std::upper_bound(cumulated, cumulated + kMsaClasses, u) - cumulated, kMaskRestype));
  }
}

std::vector<int32_t> nearest_clusters(const RawFeatures& raw, std::span<const int32_t> extra,
                                      std::span<const int8_t> centers) {
  const int64_t n_res = raw.n_res(), n_clusters = std::ssize(centers) / n_res;
  std::vector<int32_t> best(extra.size(), 0);
  std::vector<uint32_t> most(extra.size(), 0);
  std::vector<uint8_t> tile(n_res * kTile);
  for (int64_t first = 0; first < n_clusters; first += kTile) {
    const int64_t n_lanes = std::min<int64_t>(kTile, n_clusters - first);
    std::fill(tile.begin(), tile.end(), kNever);
    for (int64_t lane = 0; lane < n_lanes; ++lane)
      for (int64_t i = 0; i < n_res; ++i)
        if (const int8_t letter = centers[(first + lane) * n_res + i]; letter < kGapRestype)
          tile[i * kTile + lane] = uint8_t(letter);
#pragma omp parallel for
    for (int64_t s = 0; s < std::ssize(extra); ++s) {
      uint32_t counts[kTile];
      count_agreements(raw.row(extra[s]), tile.data(), n_res, counts);
      for (int64_t lane = 0; lane < n_lanes; ++lane)
        if (counts[lane] > most[s]) {
          most[s] = counts[lane];
          best[s] = int32_t(first + lane);
        }
    }
  }
  return best;
}

ClusterSummary summarize_clusters(const RawFeatures& raw, const RowSplit& rows,
                                  std::span<const int8_t> masked,
                                  std::span<const int32_t> assignment) {
  const int64_t n_res = raw.n_res(), n_clusters = std::ssize(rows.centers);
  std::vector<std::vector<int32_t>> members(n_clusters);
  for (size_t s = 0; s < assignment.size(); ++s) members[assignment[s]].push_back(rows.extra[s]);

  ClusterSummary summary;
  summary.profile.resize(n_clusters * n_res * kMsaClasses);
  summary.deletion_mean.resize(n_clusters * n_res);
#pragma omp parallel for schedule(dynamic)
  for (int64_t k = 0; k < n_clusters; ++k) {
    float* profile = summary.profile.data() + k * n_res * kMsaClasses;
    std::vector<int64_t> deletions(raw.deletions(rows.centers[k]),
                                   raw.deletions(rows.centers[k]) + n_res);
    for (int64_t i = 0; i < n_res; ++i) profile[i * kMsaClasses + masked[k * n_res + i]] += 1;
    for (int32_t s : members[k])
      for (int64_t i = 0; i < n_res; ++i) {
        profile[i * kMsaClasses + raw.row(s)[i]] += 1;
        deletions[i] += raw.deletions(s)[i];
      }
    const float count = (1e-6f + 1) + float(members[k].size());
    for (int64_t c = 0; c < n_res * kMsaClasses; ++c) profile[c] /= count;
    for (int64_t i = 0; i < n_res; ++i)
      summary.deletion_mean[k * n_res + i] = float(deletions[i]) / count;
  }
  return summary;
}

}  // namespace ff
