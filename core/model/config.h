// Model configuration: the sizes and switches of AlphaFold 2, from a preset (configs/presets.yaml)
// or from AlphaFold's own configuration tree (fixtures' config.json). Names follow AlphaFold's
// tree.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/data_config.h"
#include "core/base/fields.h"

namespace ff {

struct AttentionConfig {
  int64_t num_head = 8;
  int64_t key_dim = 0, value_dim = 0;  ///< over all heads; 0 = the input's channels
  bool gating = true;
};

/// Channels of one triangle multiplication / transition / outer product are read here too.
struct PairStackConfig {
  AttentionConfig triangle_attention_starting_node{.num_head = 4};
  AttentionConfig triangle_attention_ending_node{.num_head = 4};
  int64_t triangle_multiplication_outgoing_channel = 128;
  int64_t triangle_multiplication_incoming_channel = 128;
  int64_t pair_transition_factor = 4;
  double pair_dropout = 0.25;
};

struct EvoformerConfig : PairStackConfig {
  AttentionConfig msa_row_attention{.num_head = 8}, msa_column_attention{.num_head = 8};
  int64_t msa_transition_factor = 4;
  int64_t num_outer_channel = 32;
  bool outer_product_mean_first = false;  ///< multimer's order
  double msa_dropout = 0.15;
};

struct DistogramBins {
  double min_bin = 3.25, max_bin = 20.75;
  int64_t num_bins = 15;
};

struct TemplateConfig {
  bool enabled = false;
  bool embed_torsion_angles = false;
  bool use_template_unit_vector = false;
  int64_t max_templates = 4;
  AttentionConfig attention{.num_head = 4, .key_dim = 64, .value_dim = 64, .gating = false};
  DistogramBins dgram_features{3.25, 50.75, 39};
  int64_t num_block = 2;
  PairStackConfig
      pair_stack;  ///< its channels: pair_stack.triangle_attention_ending_node.value_dim
};

struct StructureConfig {
  int64_t num_layer = 8, num_channel = 384, num_head = 12, num_layer_in_transition = 3;
  int64_t num_scalar_qk = 16, num_scalar_v = 16, num_point_qk = 4, num_point_v = 8;
  int64_t sidechain_num_channel = 128, sidechain_num_residual_block = 2;
  double position_scale = 10.0, dropout = 0.1;
};

struct HeadsConfig {
  int64_t distogram_num_bins = 64;
  double distogram_first_break = 2.3125, distogram_last_break = 21.6875;
  int64_t masked_msa_num_output = 23;
  int64_t plddt_num_bins = 50, plddt_num_channels = 128;
  int64_t pae_num_bins = 64;
  double pae_max_error_bin = 31.0;
  // A head whose weight is zero does not exist (AlphaFold's rule).
  double distogram_weight = 0.3, masked_msa_weight = 2.0, plddt_weight = 0.01, pae_weight = 0.0,
         experimentally_resolved_weight = 0.01, structure_module_weight = 1.0;
};

struct ModelConfig {
  std::string name;
  int64_t msa_channel = 256, pair_channel = 128, extra_msa_channel = 64, seq_channel = 384;
  int64_t evoformer_num_block = 48, extra_msa_stack_num_block = 4;
  int64_t max_relative_feature = 32;
  bool recycle_pos = true, recycle_features = true;
  DistogramBins prev_pos;
  EvoformerConfig evoformer;
  TemplateConfig templates;
  StructureConfig structure;
  HeadsConfig heads;
  int64_t num_recycle = 3;
  bool resample_msa_in_recycling = true;
  double recycle_early_stop_tolerance = -1;  ///< angstrom; below zero: never stop early
  DataConfig data;
};

/// The named preset: model_1..model_5, model_1_ptm..model_5_ptm, demo. Throws Exit::kUsage with the
/// nearest name for another.
ModelConfig preset_config(const std::string& name);
std::vector<std::string> preset_names();

/// Sets what a YAML or JSON file names in the schema of configs/presets.yaml (sections "model" and
/// "data"). Throws Exit::kUsage with file and line on an unknown key (with the nearest name), a
/// wrong type or an impossible size, Exit::kInput on a file that cannot be read.
void apply_config_file(ModelConfig& config, const std::string& path);

/// The same for one "model.num_recycle=5".
void apply_override(ModelConfig& config, const std::string& assignment);

/// Every key of the schema with its value, as JSON that apply_config_file takes.
std::string config_json(const ModelConfig& config);

/// The keys "model.*" of the schema, bound to `config`; for files that hold more than a model.
Fields model_fields(ModelConfig& config);

/// Throws Exit::kUsage naming `file` unless every size is one that a model can have.
void validate_config(const ModelConfig& config, const std::string& file);

/// AlphaFold's tree as JSON, as in fixtures/tiny/config.json (sections "data" and "model"). Throws
/// Exit::kInput naming the file and the key that is missing or of another type.
ModelConfig alphafold_config(const std::string& json_path);

}  // namespace ff
