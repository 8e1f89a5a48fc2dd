// AlphaFold's own numbers for small models (tests/data/tiny, ...): their configuration, batch and
// parameters.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "core/model/alphafold.h"
#include "io/npz.h"

namespace ff::test {

inline std::string data_path(const std::string& name) {
  return std::string(TEST_DATA) + "/" + name;
}

/// The fixtures' rule for pseudo-random parameters: every value follows from its name, its index
/// and a seed, so that no file of values is needed. Spelled out in the fixtures' own notes.
inline Tensor fixture_parameter(const std::string& key, const Dims& shape, uint64_t seed) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  const std::string name = key.substr(key.find("//") + 2), scope = key.substr(0, key.find("//"));
  const std::string layer = scope.substr(scope.rfind('/') + 1);
  double base = 0, scale = 0.1;
  if (name == "scale" || name == "gating_b")
    base = 1;
  else if (name == "trainable_point_weights")
    base = 0.541324854612918;
  else if (name == "bias" && (layer == "left_gate" || layer == "right_gate" ||
                              layer == "gating_linear" || layer == "gate"))
    base = 1;
  else if (name != "offset" && name != "bias" && name != "output_b") {
    bool stacked = false;
    for (const char* part : {"evoformer_iteration", "extra_msa_stack", "__layer_stack_no_state"})
      stacked |= scope.find(part) != std::string::npos;
    int64_t fan_in = shape[stacked];
    if (name == "output_w")
      for (int i = int(stacked) + 1; i + 1 < shape.size(); ++i) fan_in *= shape[i];
    scale = (layer == "affine_update" ? 0.3 : 1.0) * std::sqrt(3.0 / double(fan_in));
  }
  uint64_t start = 0xcbf29ce484222325u;
  for (unsigned char c : key) start = (start ^ c) * 0x100000001b3u;
  start += seed * kGolden;
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) {
    uint64_t z = start + uint64_t(i) + kGolden;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    t.data<float>()[i] = float(base + scale * (2 * (double(z >> 40) * 0x1p-24) - 1));
  }
  return t;
}

struct Fixture {
  explicit Fixture(const std::string& folder)
      : name(folder), config(alphafold_config(data_path(folder + "/config.json"))) {
    std::ifstream file(data_path(folder + "/config.json"));
    seed = nlohmann::json::parse(file).at("fixture").at("param_seed");
    batch = read_npz(data_path(folder + "/batch.npz"));
  }
  Params params() const {
    Arrays arrays;
    for (const ParamSpec& spec : param_specs(config))
      arrays[spec.name] = fixture_parameter(spec.name, spec.shape, seed);
    return Params(config, std::move(arrays), name);
  }
  Arrays slice(int64_t i) const {
    Arrays out;
    for (const auto& [key, value] : batch) out[key] = value.select(0, i);
    return out;
  }
  int64_t num_ensemble() const { return batch.at("aatype").size(0) / (config.num_recycle + 1); }

  std::string name;
  ModelConfig config;
  uint64_t seed;
  Arrays batch;
};

}  // namespace ff::test
