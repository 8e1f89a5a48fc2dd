// Reads the losses' weights and constants from AlphaFold's configuration tree.
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/loss/losses.h"

namespace ff {

LossConfig alphafold_losses(const std::string& path) {
  std::ifstream file(path);
  check_input(file.good(), path, ": cannot be read");
  const auto root = nlohmann::json::parse(file, nullptr, false);
  check_input(!root.is_discarded(), path, ": is not JSON");
  const auto at = [&](const std::string& key) -> const nlohmann::json* {
    const nlohmann::json* value = &root;
    for (size_t from = 0; value && from != std::string::npos;) {
      const size_t dot = key.find('.', from);
      const auto found = value->find(key.substr(from, dot - from));
      value = value->is_object() && found != value->end() ? &*found : nullptr;
      from = dot == std::string::npos ? dot : dot + 1;
    }
    return value;
  };
  const auto number = [&](const std::string& key, double& to) {
    const nlohmann::json* value = at(key);
    check_input(value, path, ": key '", key, "' is missing");
    check_input(value->is_number() && std::isfinite(value->get<double>()), path, ": key '", key,
                "' holds ", value->type_name(), ", expected a finite number");
    to = value->get<double>();
  };

  LossConfig c;
  const std::string heads = "model.heads.", structure = heads + "structure_module.";
  const std::pair<const char*, double*> weights[] = {
      {"distogram", &c.distogram},
      {"masked_msa", &c.masked_msa},
      {"predicted_lddt", &c.predicted_lddt},
      {"predicted_aligned_error", &c.predicted_aligned_error},
      {"experimentally_resolved", &c.experimentally_resolved},
      {"structure_module", &c.structure_module}};
  for (const auto& [head, weight] : weights)
    if (at(heads + head))
      number(heads + head + ".weight", *weight);
    else
      *weight = 0;
  number(structure + "fape.clamp_distance", c.fape_clamp_distance);
  number(structure + "fape.loss_unit_distance", c.fape_loss_unit_distance);
  number(structure + "sidechain.weight_frac", c.sidechain_weight_frac);
  number(structure + "sidechain.atom_clamp_distance", c.atom_clamp_distance);
  number(structure + "sidechain.length_scale", c.length_scale);
  number(structure + "chi_weight", c.chi_weight);
  number(structure + "angle_norm_weight", c.angle_norm_weight);
  number(structure + "structural_violation_loss_weight", c.structural_violation_loss_weight);
  number(structure + "violation_tolerance_factor", c.violation_tolerance_factor);
  number(structure + "clash_overlap_tolerance", c.clash_overlap_tolerance);

  bool first = true;
  for (const char* head :
       {"predicted_lddt", "experimentally_resolved", "predicted_aligned_error"}) {
    const std::string key = heads + head;
    if (!at(key)) continue;
    LossConfig filter;
    const nlohmann::json* on = at(key + ".filter_by_resolution");
    check_input(on && on->is_boolean(), path, ": key '", key,
                ".filter_by_resolution' is missing or not true or false");
    filter.filter_by_resolution = on->get<bool>();
    number(key + ".min_resolution", filter.min_resolution);
    number(key + ".max_resolution", filter.max_resolution);
    check_input(first || (filter.filter_by_resolution == c.filter_by_resolution &&
                          filter.min_resolution == c.min_resolution &&
                          filter.max_resolution == c.max_resolution),
                path, ": '", key, "' filters by another resolution than the head before; ",
                "fastfold has one range for all heads");
    c.filter_by_resolution = filter.filter_by_resolution;
    c.min_resolution = filter.min_resolution;
    c.max_resolution = filter.max_resolution;
    first = false;
  }
  return c;
}

}  // namespace ff
