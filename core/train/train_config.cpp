// The schema of training files, and how their layers are put together.
#include "core/train/train_config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/nearest.h"
#include "core/model/memory_plan.h"

namespace ff {
namespace {

struct Recipe {
  const char *name, *text;
};
constexpr Recipe kRecipes[] = {
#include "recipes.inc"
};

constexpr double kMany = 1 << 20, kCountless = 1e15, kTiny = 1e-30;

Fields train_fields(TrainConfig& c) {
  TrainDataConfig& t = c.train;
  DataConfig& v = c.model.data;
  Fields f = {
      {"preset", &c.model.name},
      {"seed", &c.seed, true, 0, 9.2e18},
      {"data.train.shards", &t.shards},
      {"data.train.crop_size", &t.crop_size, true, 4, kMany},
      {"data.train.max_msa_clusters", &t.max_msa_clusters, true, 1, kMany},
      {"data.train.max_extra_msa", &t.max_extra_msa, true, 1, kMany},
      {"data.train.max_templates", &t.max_templates, true, 0, 20},
      {"data.train.distillation_prob", &t.distillation_prob, true, 0, 1},
      {"data.train.clamp_prob", &t.clamp_prob, true, 0, 1},
      {"data.train.uniform_recycling", &t.uniform_recycling},
      {"data.filter.max_resolution", &c.filter.max_resolution, true, 0, 1000},
      {"data.filter.max_single_aa_prop", &c.filter.max_single_aa_prop, true, 0, 1},
      {"data.filter.accept_by_length_and_cluster", &c.filter.accept_by_length_and_cluster},
      {"data.filter.cluster_file", &c.filter.cluster_file},
      {"data.filter.date_max", &c.filter.date_max},
      {"data.block_delete_msa.fraction", &c.block_delete.fraction, true, 0, 1},
      {"data.block_delete_msa.num_blocks", &c.block_delete.num_blocks, true, 0, 1000},
      {"data.masked_msa.replace_fraction", &v.masked_msa_replace_fraction, true, 0, 1},
      {"data.masked_msa.uniform", &v.uniform_prob, true, 0, 1},
      {"data.masked_msa.profile", &v.profile_prob, true, 0, 1},
      {"data.masked_msa.same", &v.same_prob, true, 0, 1},
      {"data.validation.shards", &c.validation_shards},
      {"data.validation.max_msa_clusters", &v.max_msa_clusters, true, 1, kMany},
      {"data.validation.max_extra_msa", &v.max_extra_msa, true, 1, kMany},
      {"data.validation.max_templates", &v.max_templates, true, 0, 20},
      {"loss.fape", &c.loss.fape, true, 0, 1000},
      {"loss.supervised_chi", &c.loss.supervised_chi, true, 0, 1000},
      {"loss.distogram", &c.loss.distogram, true, 0, 1000},
      {"loss.masked_msa", &c.loss.masked_msa, true, 0, 1000},
      {"loss.plddt", &c.loss.plddt, true, 0, 1000},
      {"loss.violation", &c.loss.violation, true, 0, 1000},
      {"loss.experimentally_resolved", &c.loss.experimentally_resolved, true, 0, 1000},
      {"loss.tm", &c.loss.tm, true, 0, 1000},
      {"optim.lr", &c.optim.lr, true, 0, 1},
      {"optim.betas", &c.optim.betas, true, 0, 1 - 1e-12},
      {"optim.eps", &c.optim.eps, true, kTiny, 1},
      {"optim.warmup_samples", &c.optim.warmup_samples, true, 0, kCountless},
      {"optim.decay_after_samples", &c.optim.decay_after_samples, true, 0, kCountless},
      {"optim.decay", &c.optim.decay, true, 0, 1},
      {"optim.clip_per_example", &c.optim.clip_per_example, true, 0, 1e9},
      {"optim.ema", &c.optim.ema, true, 0, 1 - 1e-12},
      {"run.global_batch", &c.run.global_batch, true, 1, kMany},
      {"run.accumulate", &c.run.accumulate, true, 1, kMany},
      {"run.dap", &c.run.dap, true, 1, 1024},
      {"run.precision", &c.run.precision},
      {"run.recompute", &c.run.recompute},
      {"run.graphs", &c.run.graphs},
      {"run.max_steps", &c.run.max_steps, true, 1, kCountless},
      {"run.checkpoint_every", &c.run.checkpoint_every, true, 1, kCountless},
      {"run.keep", &c.run.keep, true, 1, kMany},
      {"run.val_every", &c.run.val_every, true, 0, kCountless},
      {"run.log_every", &c.run.log_every, true, 1, kCountless},
      {"run.logdir", &c.run.logdir},
      {"run.threads", &c.run.threads, true, 1, 4096},
      {"run.loader_threads", &c.run.loader_threads, true, 1, 4096},
  };
  for (Field& field : model_fields(c.model)) f.push_back(std::move(field));
  return f;
}

struct Layer {
  YAML::Node node;
  std::string file;
};

/// Takes `key` out of a layer; "" where it is not there.
std::string take(const Layer& layer, const char* key) {
  YAML::Node node = layer.node, value = node[key];
  if (!value) return "";
  if (!value.IsScalar()) fail(Exit::kUsage, layer.file, ": '", key, "' is a value");
  const std::string text = value.Scalar();
  node.remove(key);
  return text;
}

YAML::Node recipe_node(const std::string& name, const std::string& file) {
  for (const Recipe& r : kRecipes)
    if (name == r.name) return parse_config(r.text, cat("configs/", name, ".yaml"));
  std::string all;
  for (const std::string& n : recipe_names()) all += (all.empty() ? "" : ", ") + n;
  fail(Exit::kUsage, file, ": unknown recipe '", name, "'", did_you_mean(name, recipe_names()),
       " (recipes: ", all, ")");
}

/// Puts a layer, and the recipe that it begins from before it.
void add_layer(std::vector<Layer>& layers, Layer layer, int depth = 0) {
  constexpr int kDeepest = 16;
  const std::string recipe = take(layer, "recipe");
  if (depth > kDeepest) fail(Exit::kUsage, layer.file, ": recipes that begin from each other");
  if (!recipe.empty())
    add_layer(layers, {recipe_node(recipe, layer.file), cat("configs/", recipe, ".yaml")},
              depth + 1);
  layers.push_back(std::move(layer));
}

void check_together(const TrainConfig& c, const std::string& file) {
  const auto refuse = [&](const auto&... what) { fail(Exit::kUsage, file, ": ", what...); };
  validate_config(c.model, file);
  const HeadsConfig& h = c.model.heads;
  const auto needs = [&](const char* key, double weight, double head, const char* name) {
    if (weight > 0 && head == 0)
      refuse(key, " is ", weight, ", but preset ", c.model.name, " has no such head (", name,
             " is 0)",
             h.pae_weight == 0 && key == std::string("loss.tm") ? "; use a preset that ends in _ptm"
                                                                : "");
  };
  needs("loss.fape", c.loss.fape, h.structure_module_weight, "model.heads.structure_module.weight");
  needs("loss.distogram", c.loss.distogram, h.distogram_weight, "model.heads.distogram.weight");
  needs("loss.masked_msa", c.loss.masked_msa, h.masked_msa_weight, "model.heads.masked_msa.weight");
  needs("loss.plddt", c.loss.plddt, h.plddt_weight, "model.heads.lddt.weight");
  needs("loss.experimentally_resolved", c.loss.experimentally_resolved,
        h.experimentally_resolved_weight, "model.heads.experimentally_resolved.weight");
  needs("loss.tm", c.loss.tm, h.pae_weight, "model.heads.tm.weight");
  const DataConfig& d = c.model.data;
  if (d.uniform_prob + d.profile_prob + d.same_prob > 1 + 1e-9)
    refuse("data.masked_msa: uniform, profile and same add up to ",
           d.uniform_prob + d.profile_prob + d.same_prob, ", expected at most 1");
  if (c.run.precision != "bf16" && c.run.precision != "f32" && c.run.precision != "tf32" &&
      c.run.precision != "f64")
    refuse("run.precision is '", c.run.precision, "', expected bf16, f32, tf32 or, for tests, f64");
  recomputed_blocks(c.run.recompute, cat(file, ": run.recompute"));
  if (c.run.accumulate && c.run.global_batch % *c.run.accumulate)
    refuse("run.accumulate is ", *c.run.accumulate, ", which does not divide run.global_batch ",
           c.run.global_batch);
  const std::string& date = c.filter.date_max;
  if (!date.empty()) {
    bool good = date.size() == 10;
    for (size_t i = 0; good && i < date.size(); ++i)
      good = i == 4 || i == 7 ? date[i] == '-' : date[i] >= '0' && date[i] <= '9';
    if (!good) refuse("data.filter.date_max is '", date, "', expected YYYY-MM-DD");
  }
}

TrainConfig resolve(std::vector<Layer> layers) {
  std::string preset, named_in;
  for (const Layer& layer : layers)
    if (const std::string name = take(layer, "preset"); !name.empty())
      preset = name, named_in = layer.file;
  const std::vector<std::string> recipes = recipe_names();
  if (preset.empty())
    fail(Exit::kUsage, layers.back().file,
         ": no 'preset' names the model; add one, such as 'preset: demo'");
  const std::vector<std::string> presets = preset_names();
  if (std::find(presets.begin(), presets.end(), preset) == presets.end() &&
      std::find(recipes.begin(), recipes.end(), preset) != recipes.end())
    fail(Exit::kUsage, named_in, ": preset '", preset, "' is a recipe; write 'recipe: ", preset,
         "'");
  TrainConfig c;
  c.model = preset_config(preset);
  for (const Layer& layer : layers) apply_fields(train_fields(c), layer.node, layer.file);
  check_together(c, layers.back().file);
  c.model.data.use_templates = c.model.templates.enabled;
  c.features = c.model.data;
  c.features.max_msa_clusters = c.train.max_msa_clusters;
  c.features.max_extra_msa = c.train.max_extra_msa;
  c.features.max_templates = c.train.max_templates;
  return c;
}

void write_yaml(const nlohmann::ordered_json& node, const std::string& indent, std::string& out) {
  for (const auto& [key, value] : node.items()) {
    out += indent + key + ":";
    if (value.is_object()) {
      out += "\n";
      write_yaml(value, indent + "  ", out);
    } else {
      out += " " + value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    }
  }
}

nlohmann::ordered_json as_json(const TrainConfig& config) {
  TrainConfig copy = config;
  return fields_json(train_fields(copy));
}

}  // namespace

std::vector<std::string> recipe_names() {
  std::vector<std::string> names;
  for (const Recipe& r : kRecipes) names.push_back(r.name);
  return names;
}

TrainConfig read_train_config(const std::string& path, const std::vector<std::string>& overrides) {
  std::vector<Layer> layers;
  const std::vector<std::string> recipes = recipe_names();
  if (!std::filesystem::exists(path) &&
      std::find(recipes.begin(), recipes.end(), path) != recipes.end())
    add_layer(layers, {recipe_node(path, path), cat("configs/", path, ".yaml")});
  else
    add_layer(layers, {parse_config(read_config_file(path), path), path});
  for (const std::string& assignment : overrides) {
    const auto [node, name] = parse_assignment(assignment);
    add_layer(layers, {node, name});
  }
  return resolve(std::move(layers));
}

TrainConfig parse_train_config(const std::string& text, const std::string& file) {
  std::vector<Layer> layers;
  add_layer(layers, {parse_config(text, file), file});
  return resolve(std::move(layers));
}

std::string train_config_yaml(const TrainConfig& config) {
  std::string out;
  write_yaml(as_json(config), "", out);
  return out;
}

std::string train_config_json(const TrainConfig& config) {
  return as_json(config).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::vector<std::string> config_differences(const std::string& before, const std::string& now,
                                            const std::string& prefix) {
  const auto flat = [](const std::string& text) {
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    return json.is_object() ? json.flatten() : nlohmann::json::object();
  };
  const nlohmann::json a = flat(before), b = flat(now);
  std::vector<std::string> out;
  const auto compare = [&](const nlohmann::json& keys, bool only_missing) {
    for (const auto& [pointer, value] : keys.items()) {
      std::string key = pointer.substr(1);
      std::replace(key.begin(), key.end(), '/', '.');
      if (!key.starts_with(prefix) || (only_missing && a.contains(pointer))) continue;
      const std::string x = a.contains(pointer) ? a[pointer].dump() : "missing",
                        y = b.contains(pointer) ? b[pointer].dump() : "missing";
      if (x != y) out.push_back(cat(key, ": ", x, ", ", y));
    }
  };
  compare(a, false);
  compare(b, true);
  return out;
}

}  // namespace ff
