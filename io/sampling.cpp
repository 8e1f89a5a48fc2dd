// Draws, crops and cuts; the network's features are made by make_slice as for prediction.
#include "io/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/geometry/residue_constants.h"
#include "io/labels.h"
#include "io/transforms.h"

namespace ff {
namespace {

/// Streams of random numbers; never renumber: checkpoints rely on them.
enum Stream : uint64_t { kRecycles = 101, kChain, kCrop, kSeeds, kBlocks, kRows, kTemplates };

double uniform(const Rng& rng, uint64_t i) {
  const auto w = rng.block(i);
  return unit_double(w[0], w[1]);
}

/// An integer in [0, n).
int64_t below(double u, int64_t n) { return std::min(n - 1, int64_t(u * double(n))); }

double commonest_share(const std::string& sequence) {
  std::array<int64_t, 256> count{};
  for (const char letter : sequence) ++count[uint8_t(letter)];
  return double(*std::max_element(count.begin(), count.end())) /
         double(std::max<size_t>(1, sequence.size()));
}

/// Rows [start, start + length) of axis `axis`.
Tensor cut(const Tensor& t, int axis, int64_t start, int64_t length) {
  return t.narrow(axis, start, length).contiguous().clone();
}

/// The columns [start, start + length) alone.
void crop(RawFeatures& raw, Choices& choices, int64_t start, int64_t length) {
  const int64_t n_res = raw.n_res();
  const auto keep = [&](auto& rows) {
    auto to = rows.begin();
    for (auto from = rows.begin(); from != rows.end(); from += n_res)
      to = std::copy_n(from + start, length, to);
    rows.erase(to, rows.end());
  };
  keep(raw.msa);
  keep(raw.deletion_matrix);
  keep(choices.msa);
  keep(choices.bert_mask);
  raw.aatype = cut(raw.aatype, 0, start, length);
  raw.residue_index = cut(raw.residue_index, 0, start, length);
}

}  // namespace

int64_t crop_start(int64_t n_res, int64_t crop, bool clamped, double u0, double u1) {
  const int64_t n = std::max<int64_t>(0, n_res - crop);
  const int64_t last = clamped ? n - below(u1, n + 1) : n;
  return below(u0, last + 1);
}

std::vector<int32_t> delete_blocks(int64_t n_seq, double fraction, int64_t blocks, uint64_t seed,
                                   uint64_t sample) {
  const int64_t size = int64_t(std::floor(fraction * double(n_seq)));
  std::vector<bool> gone(static_cast<size_t>(n_seq));
  const Rng rng(seed, {kBlocks, sample});
  for (int64_t b = 0; b < blocks && n_seq > 1 && size > 0; ++b) {
    const int64_t start = 1 + below(uniform(rng, uint64_t(b)), n_seq - 1);
    for (int64_t s = start; s < std::min(n_seq, start + size); ++s) gone[size_t(s)] = true;
  }
  std::vector<int32_t> kept;
  for (int64_t s = 0; s < n_seq; ++s)
    if (!gone[size_t(s)]) kept.push_back(int32_t(s));
  return kept;
}

Sampler::Sampler(const Dataset& dataset, SamplerConfig config, uint64_t seed)
    : dataset_(dataset), config_(std::move(config)), seed_(seed) {
  int64_t coarse = 0, dull = 0, late = 0;
  for (size_t i = 0; i < dataset.chains().size(); ++i) {
    const ChainInfo& c = dataset.chains()[i];
    if (c.resolution > config_.max_resolution)
      ++coarse;
    else if (commonest_share(c.sequence) > config_.max_single_aa_prop)
      ++dull;
    else if (!config_.date_max.empty() && c.date > config_.date_max)
      ++late;
    else
      (c.distillation ? distilled_ : chains_).push_back(int32_t(i));
  }
  check_input(!chains_.empty() || !distilled_.empty(), "none of ", dataset.chains().size(),
              " chains can be trained on: resolution above ", config_.max_resolution, " A ", coarse,
              ", one kind of residue above ", config_.max_single_aa_prop, " ", dull, ", after ",
              config_.date_max.empty() ? "no date" : config_.date_max, " ", late);
}

int64_t Sampler::num_recycle(int64_t step) const {
  if (!config_.uniform_recycling) return config_.max_recycles;
  return below(uniform(Rng(seed_, {kRecycles, uint64_t(step)}), 0), config_.max_recycles + 1);
}

int64_t Sampler::draw_chain(int64_t step, int64_t index, int64_t& attempt) const {
  const Rng rng(seed_, {kChain, uint64_t(step), uint64_t(index)});
  for (;; ++attempt) {
    const auto a = rng.block(uint64_t(2 * attempt)), b = rng.block(uint64_t(2 * attempt + 1));
    const bool distilled = chains_.empty() || (!distilled_.empty() &&
                                               unit_double(a[0], a[1]) < config_.distillation_prob);
    const std::vector<int32_t>& pool = distilled ? distilled_ : chains_;
    const int64_t chain = pool[size_t(below(unit_double(a[2], a[3]), std::ssize(pool)))];
    const ChainInfo& c = dataset_.chains()[size_t(chain)];
    const double length = std::max(std::min(double(c.n_res()), 512.0), 256.0) / 512;
    if (!config_.accept_by_length_and_cluster ||
        unit_double(b[0], b[1]) < length / double(std::max<int64_t>(1, c.cluster_size)))
      return chain;
  }
}

TrainingSample Sampler::sample(int64_t step, int64_t index) const {
  int64_t attempt = 0;
  for (int64_t skipped = 0;; ++attempt, ++skipped) {
    const int64_t chain = draw_chain(step, index, attempt);
    try {
      TrainingSample s = make(config_, chain, step, index, num_recycle(step));
      s.skipped = skipped;
      return s;
    } catch (const Error& e) {
      if (e.code() != Exit::kInput || skipped == 99) throw;
      log_warning("step ", step, ", sample ", index, ": skipped ",
                  dataset_.chains()[size_t(chain)].id, ": ", e.what());
    }
  }
}

std::vector<int32_t> Sampler::chains() const {
  std::vector<int32_t> all = chains_;
  all.insert(all.end(), distilled_.begin(), distilled_.end());
  return all;
}

TrainingSample Sampler::whole(int64_t chain, int64_t num_recycle) const {
  SamplerConfig config = config_;
  config.crop_size = INT64_MAX;
  config.clamp_prob = 1;
  config.block_delete_num_blocks = 0;
  config.all_rows = true;
  return make(config, chain, 0, chain, num_recycle);
}

TrainingSample Sampler::make(const SamplerConfig& config, int64_t chain, int64_t step,
                             int64_t index, int64_t num_recycle) const {
  const ChainInfo& info = dataset_.chains()[size_t(chain)];
  const uint64_t s = uint64_t(step), i = uint64_t(index);
  const int64_t n_res = info.n_res();
  const Rng crops(seed_, {kCrop, s, i});
  const bool clamped = uniform(crops, 0) < config.clamp_prob;
  const int64_t length = std::min(config.crop_size, n_res);
  TrainingSample out;
  out.chain = info.id;
  out.step = step;
  out.index = index;
  out.start = crop_start(n_res, length, clamped, uniform(crops, 1), uniform(crops, 2));

  const ChainStructure structure = dataset_.structure(chain);
  check_input(int64_t(structure.sequence.size()) == n_res, info.id, ": structure of ",
              structure.sequence.size(), " residues, sequence of ", n_res);
  for (auto& [name, value] : make_labels(structure, info.resolution))
    out.labels[name] = value.rank() > 0 ? cut(value, 0, out.start, length) : value;
  out.labels["use_clamped_fape"] = Tensor::scalar(clamped ? 1.f : 0.f);

  RawFeatures whole;
  whole.aatype = Tensor::empty({n_res}, Dtype::i32);
  whole.residue_index = Tensor::empty({n_res}, Dtype::i32);
  for (int64_t r = 0; r < n_res; ++r) {
    whole.aatype.data<int32_t>()[r] = restype_index(info.sequence[size_t(r)]);
    whole.residue_index.data<int32_t>()[r] = int32_t(r);
  }
  whole.profile = dataset_.profile(chain);
  const auto seeds = Rng(seed_, {kSeeds, s, i}).block(0);
  const uint64_t own = uint64_t(seeds[1]) << 32 | seeds[0];

  if (config.data.use_templates && info.n_templates > 0) {
    const int64_t few = std::min<int64_t>(20, info.n_templates);
    const int64_t count =
        std::min(below(uniform(Rng(own, {kTemplates}), 0), few + 1), config.data.max_templates);
    std::vector<int32_t> which = random_order(Rng(own, {kTemplates, 1}), 0, int32_t(few));
    which.resize(size_t(count));
    if (count > 0) {
      const TemplateFeatures t = dataset_.templates(chain, which);
      whole.templates = {cut(t.aatype, 1, out.start, length),
                         cut(t.all_atom_positions, 1, out.start, length),
                         cut(t.all_atom_masks, 1, out.start, length), t.sum_probs};
    }
  }

  int64_t most = config.data.max_msa_clusters + config.data.max_extra_msa;
  if (info.distillation) most = std::min(most, config.distillation_rows);
  if (config.all_rows) most = info.n_msa;
  for (int64_t slice = 0; slice <= num_recycle; ++slice) {
    const uint64_t draw = config.data.resample_msa_in_recycling ? uint64_t(slice) : 0;
    const std::vector<int32_t> kept = delete_blocks(info.n_msa, config.block_delete_fraction,
                                                    config.block_delete_num_blocks, own, draw);
    // Centres and extra rows are the first of a random order, so that the others need no reading.
    std::vector<int32_t> rows{0};
    for (const int32_t k : random_order(Rng(own, {kRows, draw}), 1, int32_t(kept.size() - 1))) {
      if (std::ssize(rows) == most) break;
      rows.push_back(kept[size_t(k)]);
    }
    RawFeatures raw = whole;
    raw.n_seq = std::ssize(rows);
    raw.msa.resize(size_t(raw.n_seq * n_res));
    std::vector<uint8_t> deletions(raw.msa.size());
    dataset_.read_msa(chain, rows, raw.msa.data(), deletions.data());
    raw.deletion_matrix.assign(deletions.begin(), deletions.end());
    Choices choices = draw_choices(raw, config.data, own, slice);
    // AlphaFold crops last (Suppl. 1.2.8): rows are near a centre along the whole chain.
    choices.nearest = nearest_clusters(
        raw, split_rows(cluster_count(config.data), choices.shuffle0).extra, choices.msa);
    crop(raw, choices, out.start, length);
    out.slices.push_back(make_slice(raw, config.data, choices, {0, Padding::kLeast}));
  }
  return out;
}

}  // namespace ff
