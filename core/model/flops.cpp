// The counts, layer by layer (Jumper et al. 2021, Suppl. 1.6-1.9).
#include "core/model/flops.h"

#include <algorithm>

namespace ff {
namespace {

Flops product(double rows, double in, double out) { return {2 * rows * in * out, 0}; }

/// Gated attention of `rows` x `n` queries to as many keys.
Flops attention(const AttentionConfig& c, double rows, double n, double channels) {
  const double key = c.key_dim ? double(c.key_dim) : channels,
               value = c.value_dim ? double(c.value_dim) : channels;
  Flops f = product(rows * n, channels, 2 * key + value + (c.gating ? value : 0));
  f += product(rows * n, value, channels);
  f.cores = 2 * rows * n * n * (key + value);
  return f;
}

Flops pair_stack(const PairStackConfig& c, double n, double c_z) {
  Flops f;
  for (const int64_t channels :
       {c.triangle_multiplication_outgoing_channel, c.triangle_multiplication_incoming_channel}) {
    const auto t = double(channels);
    f += product(n * n, c_z, 4 * t + c_z);
    f += product(n * n, t, c_z);
    f += product(n * n, n, t);
  }
  for (const AttentionConfig& a :
       {c.triangle_attention_starting_node, c.triangle_attention_ending_node}) {
    f += attention(a, n, n, c_z);
    f += product(n * n, c_z, double(a.num_head));
  }
  f += product(n * n, c_z, 2 * c_z * double(c.pair_transition_factor));
  return f;
}

Flops structure_module(const ModelConfig& c, double n) {
  const StructureConfig& s = c.structure;
  const double c_s = double(s.num_channel), c_z = double(c.pair_channel), h = double(s.num_head);
  const double qk = double(s.num_scalar_qk), v = double(s.num_scalar_v),
               point_qk = 3 * double(s.num_point_qk), point_v = 3 * double(s.num_point_v);
  Flops layer = product(n, c_s, h * (2 * qk + v + 2 * point_qk + point_v));
  layer += product(n * n, c_z, h);
  layer += product(n, h * (v + 4 * double(s.num_point_v) + c_z), c_s);
  layer.cores = 2 * n * n * h * (qk + point_qk + v + point_v + c_z);
  layer += product(n, c_s, c_s * double(s.num_layer_in_transition) + 6);
  const auto side = double(s.sidechain_num_channel);
  layer += product(n, c_s + double(c.seq_channel), side);
  layer += product(n, side, 2 * side * double(s.sidechain_num_residual_block) + 14);
  Flops f = product(n, double(c.seq_channel), c_s);
  for (int64_t i = 0; i < s.num_layer; ++i) f += layer;
  return f;
}

Flops heads(const ModelConfig& c, double n, double n_seq) {
  const HeadsConfig& h = c.heads;
  const double c_z = double(c.pair_channel), hidden = double(h.plddt_num_channels);
  Flops f;
  if (h.distogram_weight != 0) f += product(n * n, c_z, double(h.distogram_num_bins));
  if (h.pae_weight != 0) f += product(n * n, c_z, double(h.pae_num_bins));
  if (h.masked_msa_weight != 0)
    f += product(n * n_seq, double(c.msa_channel), double(h.masked_msa_num_output));
  if (h.plddt_weight != 0) {
    f += product(n, double(c.structure.num_channel), hidden);
    f += product(n, hidden, hidden + double(h.plddt_num_bins));
  }
  if (h.experimentally_resolved_weight != 0) f += product(n, double(c.seq_channel), 37);
  return f;
}

/// Every template by itself.
Flops templates(const ModelConfig& c, const PassSizes& size) {
  Flops f;
  if (!c.templates.enabled) return f;
  const TemplateConfig& t = c.templates;
  const auto n = double(size.n_res),
             c_t = double(t.pair_stack.triangle_attention_ending_node.value_dim);
  Flops one = product(n * n, double(t.dgram_features.num_bins) + 49, c_t);
  for (int64_t i = 0; i < t.num_block; ++i) one += pair_stack(t.pair_stack, n, c_t);
  for (int64_t i = 0; i < size.n_templates; ++i) f += one;
  return f;
}

Flops embedders(const ModelConfig& c, const PassSizes& size) {
  const auto n = double(size.n_res), n_t = double(size.n_templates);
  const auto c_m = double(c.msa_channel), c_z = double(c.pair_channel);
  Flops f = product(n * double(size.n_seq), 49, c_m);
  if (c.extra_msa_stack_num_block > 0)
    f += product(n * double(size.n_extra), 25, double(c.extra_msa_channel));
  f += product(n * n, 2 * double(c.max_relative_feature) + 1 + double(c.prev_pos.num_bins), c_z);
  f += product(n, c_m, double(c.seq_channel));
  if (!c.templates.enabled || n_t == 0) return f;
  const TemplateConfig& t = c.templates;
  const auto c_t = double(t.pair_stack.triangle_attention_ending_node.value_dim);
  f += templates(c, size);
  const auto key = double(t.attention.key_dim), value = double(t.attention.value_dim);
  f += product(n * n, c_z, key + value);
  f += product(n * n * n_t, c_t, key + value);
  f.cores += 2 * n * n * n_t * (key + value);
  return f;
}

}  // namespace

Flops evoformer_block_flops(const ModelConfig& c, const PassSizes& size, bool extra) {
  const EvoformerConfig& e = c.evoformer;
  const auto n = double(size.n_res), s = double(extra ? size.n_extra : size.n_seq);
  const auto c_m = double(extra ? c.extra_msa_channel : c.msa_channel),
             c_z = double(c.pair_channel), outer = double(e.num_outer_channel);
  Flops f = attention(e.msa_row_attention, s, n, c_m);
  f += product(n * n, c_z, double(e.msa_row_attention.num_head));
  if (extra) {  // Alg. 19: one key and value for all heads, one query a column
    const auto heads = double(e.msa_column_attention.num_head);
    f += product(s * n, c_m, 2 * c_m + 2 * c_m / heads);
    f.cores += 4 * s * n * c_m;
  } else {
    f += attention(e.msa_column_attention, n, s, c_m);
  }
  f += product(s * n, c_m, 2 * c_m * double(e.msa_transition_factor));
  f += product(s * n, c_m, 2 * outer);
  f += product(n * n, s, outer * outer);
  f += product(n * n, outer * outer, c_z);
  f += pair_stack(e, n, c_z);
  return f;
}

Flops pass_flops(const ModelConfig& c, const PassSizes& sizes) {
  Flops f = embedders(c, sizes);
  const Flops block = evoformer_block_flops(c, sizes, false),
              extra = evoformer_block_flops(c, sizes, true);
  for (int64_t i = 0; i < c.evoformer_num_block; ++i) f += block;
  for (int64_t i = 0; i < c.extra_msa_stack_num_block; ++i) f += extra;
  f += structure_module(c, double(sizes.n_res));
  f += heads(c, double(sizes.n_res), double(sizes.n_seq));
  return f;
}

double training_flops(const ModelConfig& config, const PassSizes& sizes, double recycles,
                      int64_t recompute) {
  const Flops pass = pass_flops(config, sizes);
  const int64_t extra = std::min(recompute, config.extra_msa_stack_num_block),
                blocks = std::min(recompute - extra, config.evoformer_num_block);
  double again = double(extra) * evoformer_block_flops(config, sizes, true).forward() +
                 double(blocks) * evoformer_block_flops(config, sizes, false).forward();
  if (recompute > 0) again += templates(config, sizes).forward();
  return pass.forward() * (recycles + 1) + again + pass.backward();
}

}  // namespace ff
