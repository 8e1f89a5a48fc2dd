// One real chain as training data, and a network small enough for it.
#pragma once

#include <cstring>
#include <optional>

#include "core/base/rng.h"
#include "core/train/trainer.h"
#include "io/dataset_writer.h"
#include "io/features.h"
#include "io/structure_reader.h"
#include "tests/unit/io/scratch.h"

namespace ff::test {

inline TrainConfig small(const std::vector<std::string>& more = {}) {
  std::vector<std::string> sets = {
      "model.c_m=16",
      "model.c_z=16",
      "model.c_s=16",
      "model.c_e=8",
      "model.evoformer_stack={no_blocks: 2, no_heads_msa: 2, msa_dropout: 0.15}",
      "model.extra_msa={no_blocks: 1}",
      "model.structure_module={c: 16, no_blocks: 2, no_heads_ipa: 2}",
      "data.train={crop_size: 24, max_msa_clusters: 4, max_extra_msa: 4}",
      "run.global_batch=3",
      "optim.warmup_samples=0"};
  sets.insert(sets.end(), more.begin(), more.end());
  return read_train_config("demo", sets);
}

/// With an alignment of so many rows beside the chain's own, made up.
struct Data {
  const Scratch scratch;
  std::optional<Dataset> dataset;

  explicit Data(uint64_t rows = 0) {
    ShardWriter writer(scratch / "chains-00001-of-00001.h5", {1, 1, std::string(64, 'a'), 0});
    ChainStructure chain = read_structure(TEST_DATA "/evaluate/bp_4CUP.cif.gz").chains.at(0);
    Msa msa;
    if (rows) msa = {{chain.sequence}, {"query"}, chain.sequence.size()};
    for (uint64_t r = 0; r < rows; ++r) {
      const Rng random(1, {r});
      std::string row;
      for (uint64_t i = 0; i < msa.columns; ++i) row += "ACDEFGHIKLMNPQRSTVWY"[random.word(i) % 20];
      msa.rows.push_back(row);
      msa.descriptions.emplace_back();
    }
    const RawFeatures raw = make_raw_features(chain.sequence, msa);
    ChainInfo info;
    info.id = "4cup_A";
    info.resolution = 1.9;
    writer.add(pack_chain(info, raw, chain));
    writer.commit({});
    dataset.emplace(std::vector<std::string>{scratch.path()});
  }

  std::vector<TrainingSample> samples(const TrainConfig& config, int64_t step) const {
    const Sampler sampler(*dataset, sampler_config(config), uint64_t(config.seed));
    std::vector<TrainingSample> out;
    for (int64_t i = 0; i < config.run.global_batch; ++i) out.push_back(sampler.sample(step, i));
    return out;
  }
};

inline TrainState fresh(const TrainConfig& config) {
  return initial_state(initial_params(config.model, 1));
}

inline bool same_bits(const Arrays& a, const Arrays& b) {
  for (const auto& [name, t] : a)
    if (std::memcmp(t.raw(), b.at(name).raw(), size_t(t.numel()) * 4)) return false;
  return a.size() == b.size();
}

}  // namespace ff::test
