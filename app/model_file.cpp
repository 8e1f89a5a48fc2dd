// Finds parameter files, the presets that they belong to, and what is changed of these.
#include "app/model_file.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "core/base/log.h"
#include "core/model/params.h"
#include "core/train/train_config.h"
#include "core/train/train_state.h"
#include "io/checkpoint.h"
#include "io/npz.h"

namespace fs = std::filesystem;

namespace ff {

void ConfigChanges::add_to(CLI::App& app) {
  app.add_option("--config,--experiment-config-json", files,
                 "YAML or JSON with keys of configs/presets.yaml to change")
      ->allow_extra_args(false);
  app.add_option("--set", overrides, "KEY=VALUE, one such key: model.num_recycle=5")
      ->allow_extra_args(false);
  app.add_option("--max-msa", max_msa,
                 "rows of the MSA, CLUSTERS:EXTRA (default: the preset's, such as 512:5120)");
}

void ConfigChanges::apply(ModelConfig& config) const {
  for (const std::string& file : files) apply_config_file(config, file);
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  if (max_msa.empty()) return;
  const size_t colon = max_msa.find(':');
  const auto number = [&](const std::string& part) -> int64_t {
    constexpr size_t kDigits = 7;
    if (part.empty() || part.size() > kDigits ||
        part.find_first_not_of("0123456789") != std::string::npos || std::stol(part) == 0)
      fail(Exit::kUsage, "--max-msa ", max_msa,
           ": expected CLUSTERS:EXTRA, two numbers of rows from 1 on, such as 512:5120");
    return std::stol(part);
  };
  config.data.max_msa_clusters = number(max_msa.substr(0, colon));
  config.data.max_extra_msa = number(colon == std::string::npos ? "" : max_msa.substr(colon + 1));
}

std::string where_parameters_are() {
  return "DeepMind's trained parameters are in "
         "https://storage.googleapis.com/alphafold/alphafold_params_2022-12-06.tar (CC BY 4.0; "
         "take "
         "params_model_1_ptm.npz from it), untrained ones for trying things come from "
         "'fastfold init'";
}

std::string preset_of_name(const std::string& path) {
  const std::string stem = fs::path(path).stem();
  for (const std::string& name : preset_names())
    if (name.starts_with("model_") && (stem == name || stem.ends_with("_" + name))) return name;
  return "";
}

std::string preset_of_arrays(const Arrays& arrays) {
  for (const std::string& name : preset_names()) {
    const std::vector<ParamSpec> specs = param_specs(preset_config(name));
    const auto fits = [&](const ParamSpec& spec) {
      const auto found = arrays.find(spec.name);
      return found != arrays.end() && found->second.shape() == spec.shape;
    };
    if (specs.size() == arrays.size() && std::all_of(specs.begin(), specs.end(), fits)) return name;
  }
  return "";
}

std::vector<std::string> find_parameter_files(const std::vector<std::string>& params,
                                              const std::string& model_preset, int num_models) {
  if (model_preset == "multimer")
    fail(Exit::kUsage,
         "--model-preset multimer: fastfold predicts single chains; expected monomer, ",
         "monomer_ptm or monomer_casp14");
  std::vector<std::string> found;
  for (const std::string& path : params) {
    if (!fs::is_directory(path)) {
      check_input(fs::exists(path), path, ": no such file; ", where_parameters_are());
      found.push_back(path);
      continue;
    }
    if (const std::string trained = best_checkpoint(path); !trained.empty()) {
      found.push_back(trained);
      continue;
    }
    std::vector<std::string> plain, ptm;
    for (const fs::path& folder : {fs::path(path), fs::path(path) / "params"})
      for (int i = 1; i <= 5; ++i)
        for (const auto& [end, files] : {std::pair{"", &plain}, std::pair{"_ptm", &ptm}})
          if (const fs::path file = folder / cat("params_model_", i, end, ".npz"); fs::exists(file))
            files->push_back(file);
    const bool take_ptm = model_preset == "monomer_ptm" || (model_preset.empty() && !ptm.empty());
    const std::vector<std::string>& files = take_ptm ? ptm : plain;
    if (files.empty())
      fail(Exit::kInput, path, ": holds no params_model_1", take_ptm ? "_ptm" : "",
           ".npz to params_model_5", take_ptm ? "_ptm" : "", ".npz; ", where_parameters_are());
    found.insert(found.end(), files.begin(), files.end());
  }
  if (num_models > 0 && size_t(num_models) < found.size()) found.resize(size_t(num_models));
  return found;
}

Arrays read_parameters(const std::string& path, std::string* config) {
  check_input(fs::exists(path), path, ": no such file; ", where_parameters_are());
  if (fs::is_directory(path)) {
    const std::string trained = best_checkpoint(path);
    check_input(!trained.empty(), path, ": holds no checkpoint of a training run");
    return read_parameters(trained, config);
  }
  if (fs::path(path).extension() != ".h5") return read_npz(path);
  Attributes texts;
  Arrays arrays = averaged_params(read_checkpoint(path, &texts));
  for (auto& [name, t] : arrays)
    if (t.dtype() == Dtype::bf16) t = t.to(Dtype::f32);
  if (config) *config = texts["config"];
  return arrays;
}

ModelFile read_model_file(const std::string& path, const std::string& preset) {
  if (!preset.empty()) {
    ModelConfig config = preset_config(preset);
    return {std::move(config), read_parameters(path)};
  }
  std::string config;
  Arrays arrays = read_parameters(path, &config);
  if (!config.empty())  // of training: any sizes
    return {parse_train_config(config, path).model, std::move(arrays)};
  std::string name = preset_of_name(path);
  if (name.empty()) {
    name = preset_of_arrays(arrays);
    if (name.empty()) {
      // Says in detail what does not fit the most common preset.
      Params(preset_config("model_1_ptm"), std::move(arrays), path);
    }
    log_notice(path, ": taken for preset ", name, " by its contents (--preset says otherwise)");
  }
  return {preset_config(name), std::move(arrays)};
}

}  // namespace ff
