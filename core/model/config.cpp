// Reads model configurations: the presets compiled in from configs/presets.yaml, and AlphaFold's
// tree.
#include "core/model/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/nearest.h"

namespace ff {

namespace {

constexpr char kPresets[] =
#include "presets.inc"
    ;
constexpr const char* kPresetsFile = "configs/presets.yaml";
constexpr int64_t kLargestSize = 1 << 20;
constexpr double kMostDropout = 0.99;

/// The schema of configs/*.yaml.
Fields yaml_fields(ModelConfig& c) {
  EvoformerConfig& e = c.evoformer;
  TemplateConfig& t = c.templates;
  PairStackConfig& p = t.pair_stack;
  StructureConfig& s = c.structure;
  HeadsConfig& h = c.heads;
  DataConfig& d = c.data;
  return {
      {"model.c_m", &c.msa_channel},
      {"model.c_z", &c.pair_channel},
      {"model.c_e", &c.extra_msa_channel},
      {"model.c_s", &c.seq_channel},
      {"model.num_recycle", &c.num_recycle},
      {"model.recycle_early_stop_tolerance", &c.recycle_early_stop_tolerance},
      {"model.relpos_k", &c.max_relative_feature},
      {"model.recycling_embedder.min_bin", &c.prev_pos.min_bin},
      {"model.recycling_embedder.max_bin", &c.prev_pos.max_bin},
      {"model.recycling_embedder.no_bins", &c.prev_pos.num_bins},
      {"model.extra_msa.no_blocks", &c.extra_msa_stack_num_block},
      {"model.evoformer_stack.no_blocks", &c.evoformer_num_block},
      {"model.evoformer_stack.no_heads_msa", &e.msa_row_attention.num_head},
      {"model.evoformer_stack.no_heads_msa", &e.msa_column_attention.num_head},
      {"model.evoformer_stack.no_heads_pair", &e.triangle_attention_starting_node.num_head},
      {"model.evoformer_stack.no_heads_pair", &e.triangle_attention_ending_node.num_head},
      {"model.evoformer_stack.c_hidden_opm", &e.num_outer_channel},
      {"model.evoformer_stack.c_hidden_mul", &e.triangle_multiplication_outgoing_channel},
      {"model.evoformer_stack.c_hidden_mul", &e.triangle_multiplication_incoming_channel},
      {"model.evoformer_stack.transition_n", &e.msa_transition_factor},
      {"model.evoformer_stack.transition_n", &e.pair_transition_factor},
      {"model.evoformer_stack.msa_dropout", &e.msa_dropout, true, 0, kMostDropout},
      {"model.evoformer_stack.pair_dropout", &e.pair_dropout, true, 0, kMostDropout},
      {"model.template.enabled", &t.enabled},
      {"model.template.embed_angles", &t.embed_torsion_angles},
      {"model.template.max_templates", &t.max_templates},
      {"model.template.c_t", &t.attention.key_dim},
      {"model.template.c_t", &t.attention.value_dim},
      {"model.template.c_t", &p.triangle_attention_starting_node.key_dim},
      {"model.template.c_t", &p.triangle_attention_starting_node.value_dim},
      {"model.template.c_t", &p.triangle_attention_ending_node.key_dim},
      {"model.template.c_t", &p.triangle_attention_ending_node.value_dim},
      {"model.template.c_t", &p.triangle_multiplication_outgoing_channel},
      {"model.template.c_t", &p.triangle_multiplication_incoming_channel},
      {"model.template.no_blocks", &t.num_block},
      {"model.template.no_heads", &t.attention.num_head},
      {"model.template.no_heads", &p.triangle_attention_starting_node.num_head},
      {"model.template.no_heads", &p.triangle_attention_ending_node.num_head},
      {"model.template.transition_n", &p.pair_transition_factor},
      {"model.template.dropout_rate", &p.pair_dropout, true, 0, kMostDropout},
      {"model.template.distogram.min_bin", &t.dgram_features.min_bin},
      {"model.template.distogram.max_bin", &t.dgram_features.max_bin},
      {"model.template.distogram.no_bins", &t.dgram_features.num_bins},
      {"model.structure_module.c", &s.num_channel},
      {"model.structure_module.c_resnet", &s.sidechain_num_channel},
      {"model.structure_module.no_blocks", &s.num_layer},
      {"model.structure_module.no_heads_ipa", &s.num_head},
      {"model.structure_module.c_qk", &s.num_scalar_qk},
      {"model.structure_module.c_v", &s.num_scalar_v},
      {"model.structure_module.no_qk_points", &s.num_point_qk},
      {"model.structure_module.no_v_points", &s.num_point_v},
      {"model.structure_module.no_transition_layers", &s.num_layer_in_transition},
      {"model.structure_module.no_resnet_blocks", &s.sidechain_num_residual_block},
      {"model.structure_module.dropout_rate", &s.dropout, true, 0, kMostDropout},
      {"model.structure_module.trans_scale_factor", &s.position_scale},
      {"model.heads.structure_module.weight", &h.structure_module_weight},
      {"model.heads.lddt.no_bins", &h.plddt_num_bins},
      {"model.heads.lddt.c_hidden", &h.plddt_num_channels},
      {"model.heads.lddt.weight", &h.plddt_weight},
      {"model.heads.distogram.no_bins", &h.distogram_num_bins},
      {"model.heads.distogram.min_bin", &h.distogram_first_break},
      {"model.heads.distogram.max_bin", &h.distogram_last_break},
      {"model.heads.distogram.weight", &h.distogram_weight},
      {"model.heads.tm.no_bins", &h.pae_num_bins},
      {"model.heads.tm.max_bin", &h.pae_max_error_bin},
      {"model.heads.tm.weight", &h.pae_weight},
      {"model.heads.masked_msa.c_out", &h.masked_msa_num_output},
      {"model.heads.masked_msa.weight", &h.masked_msa_weight},
      {"model.heads.experimentally_resolved.weight", &h.experimentally_resolved_weight},
      {"data.max_msa_clusters", &d.max_msa_clusters},
      {"data.max_extra_msa", &d.max_extra_msa},
      {"data.max_templates", &d.max_templates},
      {"data.use_templates", &d.use_templates},
      {"data.reduce_msa_clusters_by_max_templates", &d.reduce_msa_clusters_by_max_templates},
      {"data.num_ensemble", &d.num_ensemble},
      {"data.resample_msa_in_recycling", &d.resample_msa_in_recycling},
      {"data.resample_msa_in_recycling", &c.resample_msa_in_recycling},
      {"data.masked_msa.replace_fraction", &d.masked_msa_replace_fraction},
      {"data.masked_msa.profile", &d.profile_prob},
      {"data.masked_msa.same", &d.same_prob},
      {"data.masked_msa.uniform", &d.uniform_prob},
  };
}

/// AlphaFold's tree. Keys that only say what the program always does (orientation, sub-batches, the
/// losses' constants) are not read.
Fields alphafold_fields(ModelConfig& c, bool& multimer, bool (&fused)[4]) {
  const std::string trunk = "model.embeddings_and_evoformer.", evo = trunk + "evoformer.";
  const std::string tmpl = trunk + "template.", stack = tmpl + "template_pair_stack.";
  const std::string sm = "model.heads.structure_module.", head = "model.heads.";
  EvoformerConfig& e = c.evoformer;
  TemplateConfig& t = c.templates;
  StructureConfig& s = c.structure;
  HeadsConfig& h = c.heads;
  DataConfig& d = c.data;
  Fields f = {
      {"model.global_config.multimer_mode", &multimer, false},
      {"model.num_recycle", &c.num_recycle},
      {"model.resample_msa_in_recycling", &c.resample_msa_in_recycling},
      {"model.recycle_early_stop_tolerance", &c.recycle_early_stop_tolerance, false},
      {trunk + "msa_channel", &c.msa_channel},
      {trunk + "pair_channel", &c.pair_channel},
      {trunk + "extra_msa_channel", &c.extra_msa_channel},
      {trunk + "seq_channel", &c.seq_channel},
      {trunk + "evoformer_num_block", &c.evoformer_num_block},
      {trunk + "extra_msa_stack_num_block", &c.extra_msa_stack_num_block},
      {trunk + "max_relative_feature", &c.max_relative_feature},
      {trunk + "recycle_pos", &c.recycle_pos},
      {trunk + "recycle_features", &c.recycle_features},
      {trunk + "prev_pos.min_bin", &c.prev_pos.min_bin},
      {trunk + "prev_pos.max_bin", &c.prev_pos.max_bin},
      {trunk + "prev_pos.num_bins", &c.prev_pos.num_bins},
      {evo + "msa_transition.num_intermediate_factor", &e.msa_transition_factor},
      {evo + "outer_product_mean.num_outer_channel", &e.num_outer_channel},
      {evo + "outer_product_mean.first", &e.outer_product_mean_first, false},
      {evo + "msa_row_attention_with_pair_bias.dropout_rate", &e.msa_dropout},
      {tmpl + "enabled", &t.enabled},
      {tmpl + "embed_torsion_angles", &t.embed_torsion_angles},
      {tmpl + "use_template_unit_vector", &t.use_template_unit_vector},
      {tmpl + "max_templates", &t.max_templates},
      {tmpl + "dgram_features.min_bin", &t.dgram_features.min_bin},
      {tmpl + "dgram_features.max_bin", &t.dgram_features.max_bin},
      {tmpl + "dgram_features.num_bins", &t.dgram_features.num_bins},
      {stack + "num_block", &t.num_block},
      {sm + "num_layer", &s.num_layer},
      {sm + "num_channel", &s.num_channel},
      {sm + "num_head", &s.num_head},
      {sm + "num_layer_in_transition", &s.num_layer_in_transition},
      {sm + "num_scalar_qk", &s.num_scalar_qk},
      {sm + "num_scalar_v", &s.num_scalar_v},
      {sm + "num_point_qk", &s.num_point_qk},
      {sm + "num_point_v", &s.num_point_v},
      {sm + "position_scale", &s.position_scale},
      {sm + "dropout", &s.dropout},
      {sm + "sidechain.num_channel", &s.sidechain_num_channel},
      {sm + "sidechain.num_residual_block", &s.sidechain_num_residual_block},
      {sm + "weight", &h.structure_module_weight},
      {head + "distogram.num_bins", &h.distogram_num_bins},
      {head + "distogram.first_break", &h.distogram_first_break},
      {head + "distogram.last_break", &h.distogram_last_break},
      {head + "distogram.weight", &h.distogram_weight},
      {head + "masked_msa.num_output", &h.masked_msa_num_output},
      {head + "masked_msa.weight", &h.masked_msa_weight},
      {head + "predicted_lddt.num_bins", &h.plddt_num_bins},
      {head + "predicted_lddt.num_channels", &h.plddt_num_channels},
      {head + "predicted_lddt.weight", &h.plddt_weight},
      {head + "predicted_aligned_error.num_bins", &h.pae_num_bins},
      {head + "predicted_aligned_error.max_error_bin", &h.pae_max_error_bin},
      {head + "predicted_aligned_error.weight", &h.pae_weight},
      {head + "experimentally_resolved.weight", &h.experimentally_resolved_weight},
      {"data.common.max_extra_msa", &d.max_extra_msa},
      {"data.common.use_templates", &d.use_templates},
      {"data.common.reduce_msa_clusters_by_max_templates", &d.reduce_msa_clusters_by_max_templates},
      {"data.common.resample_msa_in_recycling", &d.resample_msa_in_recycling},
      {"data.common.masked_msa.profile_prob", &d.profile_prob},
      {"data.common.masked_msa.same_prob", &d.same_prob},
      {"data.common.masked_msa.uniform_prob", &d.uniform_prob},
      {"data.eval.max_msa_clusters", &d.max_msa_clusters},
      {"data.eval.max_templates", &d.max_templates},
      {"data.eval.masked_msa_replace_fraction", &d.masked_msa_replace_fraction},
      {"data.eval.num_ensemble", &d.num_ensemble},
  };
  const auto attention = [&f](const std::string& at, AttentionConfig& a) {
    f.push_back({at + ".num_head", &a.num_head});
    f.push_back({at + ".key_dim", &a.key_dim, false});
    f.push_back({at + ".value_dim", &a.value_dim, false});
    f.push_back({at + ".gating", &a.gating});
  };
  attention(evo + "msa_row_attention_with_pair_bias", e.msa_row_attention);
  attention(evo + "msa_column_attention", e.msa_column_attention);
  attention(tmpl + "attention", t.attention);
  const auto pair = [&](const std::string& at, PairStackConfig& p, bool* fuse) {
    attention(at + "triangle_attention_starting_node", p.triangle_attention_starting_node);
    attention(at + "triangle_attention_ending_node", p.triangle_attention_ending_node);
    const std::string out = at + "triangle_multiplication_outgoing.";
    const std::string in = at + "triangle_multiplication_incoming.";
    f.push_back({out + "num_intermediate_channel", &p.triangle_multiplication_outgoing_channel});
    f.push_back({in + "num_intermediate_channel", &p.triangle_multiplication_incoming_channel});
    f.push_back({out + "fuse_projection_weights", fuse, false});
    f.push_back({in + "fuse_projection_weights", fuse + 1, false});
    f.push_back({at + "pair_transition.num_intermediate_factor", &p.pair_transition_factor});
    f.push_back({at + "triangle_attention_starting_node.dropout_rate", &p.pair_dropout});
  };
  pair(evo, e, fused);
  pair(stack, t.pair_stack, fused + 2);
  return f;
}

/// Throws `code` unless every size is one that a model can have.
void validate(const ModelConfig& c, Exit code, const std::string& file) {
  ModelConfig copy = c;
  for (const Field& field : yaml_fields(copy))
    if (const auto* size = std::get_if<int64_t*>(&field.target)) {
      const bool may_be_zero = field.key == "model.num_recycle" || field.key == "model.relpos_k" ||
                               field.key == "model.extra_msa.no_blocks" ||
                               field.key == "data.max_templates" ||
                               field.key == "model.template.max_templates";
      if (**size < (may_be_zero ? 0 : 1) || **size > kLargestSize)
        fail(code, file, ": ", field.key, " is ", **size, ", expected ", may_be_zero ? 0 : 1,
             " to ", kLargestSize);
    }
  const auto attention = [&](const char* name, const AttentionConfig& a, int64_t c_q, int64_t c_m) {
    const int64_t key = a.key_dim ? a.key_dim : c_q, value = a.value_dim ? a.value_dim : c_m;
    if (key % a.num_head || value % a.num_head)
      fail(code, file, ": ", name, ": ", a.num_head, " heads do not divide ", key, " key and ",
           value, " value channels");
  };
  const auto stack = [&](const char* name, const PairStackConfig& p, int64_t c_z) {
    attention(name, p.triangle_attention_starting_node, c_z, c_z);
    attention(name, p.triangle_attention_ending_node, c_z, c_z);
  };
  for (int64_t c_m : {c.msa_channel, c.extra_msa_channel}) {
    attention("msa attention", c.evoformer.msa_row_attention, c_m, c_m);
    attention("msa attention", c.evoformer.msa_column_attention, c_m, c_m);
  }
  stack("pair attention", c.evoformer, c.pair_channel);
  if (c.templates.enabled) {
    const int64_t c_t = c.templates.pair_stack.triangle_attention_ending_node.value_dim;
    stack("template pair stack", c.templates.pair_stack, c_t);
    attention("template attention", c.templates.attention, c.pair_channel, c_t);
  }
}

void apply_preset(const YAML::Node& presets, const std::string& name, const Fields& fields) {
  YAML::Node preset = YAML::Clone(presets[name]);
  if (preset["base"]) apply_preset(presets, preset["base"].as<std::string>(), fields);
  preset.remove("base");
  apply_fields(fields, preset, kPresetsFile);
}

void apply_over(ModelConfig& config, const YAML::Node& root, const std::string& file) {
  apply_fields(yaml_fields(config), root, file);
  validate_config(config, file);
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& item : YAML::Load(kPresets)) names.push_back(item.first.as<std::string>());
  std::sort(names.begin(), names.end());
  return names;
}

Fields model_fields(ModelConfig& config) {
  Fields fields;
  for (Field& field : yaml_fields(config))
    if (field.key.starts_with("model.")) fields.push_back(std::move(field));
  return fields;
}

void validate_config(const ModelConfig& config, const std::string& file) {
  validate(config, Exit::kUsage, file);
}

ModelConfig preset_config(const std::string& name) {
  const std::vector<std::string> names = preset_names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    std::string all;
    for (const std::string& n : names) all += (all.empty() ? "" : ", ") + n;
    fail(Exit::kUsage, "unknown preset '", name, "'", did_you_mean(name, names), " (presets: ", all,
         ")");
  }
  ModelConfig config;
  apply_preset(YAML::Load(kPresets), name, yaml_fields(config));
  validate(config, Exit::kUsage, kPresetsFile);
  config.name = name;
  return config;
}

void apply_config_file(ModelConfig& config, const std::string& path) {
  apply_over(config, parse_config(read_config_file(path), path), path);
}

void apply_override(ModelConfig& config, const std::string& assignment) {
  const auto [node, name] = parse_assignment(assignment);
  apply_over(config, node, name);
}

std::string config_json(const ModelConfig& config) {
  ModelConfig copy = config;
  return fields_json(yaml_fields(copy)).dump();
}

ModelConfig alphafold_config(const std::string& path) {
  const nlohmann::json root = nlohmann::json::parse(read_config_file(path), nullptr, false);
  check_input(!root.is_discarded(), path, ": is not JSON");

  ModelConfig config;
  bool multimer = false, fused[4] = {};
  for (const Field& field : alphafold_fields(config, multimer, fused)) {
    const nlohmann::json* value = &root;
    for (size_t at = 0; value && at != std::string::npos;) {
      const size_t dot = field.key.find('.', at);
      const auto found = value->find(field.key.substr(at, dot - at));
      value = value->is_object() && found != value->end() ? &*found : nullptr;
      at = dot == std::string::npos ? dot : dot + 1;
    }
    if (!value) {
      // Sections that a monomer does not have tell a multimer's file before any missing key.
      check_input(!multimer, path, ": is a multimer's configuration; fastfold has the monomer");
      check_input(!field.required, path, ": key '", field.key, "' is missing");
      continue;
    }
    std::visit(
        [&](auto* p) {
          using T = std::remove_pointer_t<decltype(p)>;
          if constexpr (std::is_arithmetic_v<T>) {
            const bool fits = std::is_same_v<T, bool>      ? value->is_boolean()
                              : std::is_same_v<T, int64_t> ? value->is_number_integer()
                                                           : value->is_number();
            check_input(fits, path, ": key '", field.key, "' holds ", value->type_name(),
                        ", expected ",
                        std::is_same_v<T, bool>      ? "true or false"
                        : std::is_same_v<T, int64_t> ? "an integer"
                                                     : "a number");
            *p = value->get<T>();
          }
        },
        field.target);
  }
  check_input(!multimer, path, ": is a multimer's configuration; fastfold has the monomer");
  for (bool f : fused)
    check_input(!f, path, ": fuse_projection_weights is a multimer's switch; expected false");
  validate(config, Exit::kInput, path);
  return config;
}

}  // namespace ff
