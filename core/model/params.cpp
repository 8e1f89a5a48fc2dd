// The list of every parameter of a configuration, and the store that holds them.
#include "core/model/params.h"

#include <cmath>
#include <numbers>
#include <set>

#include "core/base/rng.h"

namespace ff {

namespace {

using Init = ParamSpec::Init;

constexpr const char* kRoot = "alphafold/alphafold_iteration";
constexpr int64_t kAatypes = 22, kMsaFeatures = 49, kExtraFeatures = 25, kAtom37 = 37;
constexpr int64_t kTorsionFeatures =
    57;  // aatype 22, sin and cos of 7 torsions and of their twins 28, mask 7
constexpr int64_t kTemplateFlags = 5;  // pseudo-beta mask, unit vector 3, backbone mask

/// A place in the tree of names to which parameters are added. `blocks` > 0: stacked.
class Adder {
 public:
  Adder(std::vector<ParamSpec>& out, std::string path, int64_t blocks = 0)
      : out_(out), path_(std::move(path)), blocks_(blocks) {}

  Adder operator/(const std::string& name) const { return {out_, path_ + "/" + name, blocks_}; }
  Adder stacked(const std::string& name, int64_t blocks) const {
    return {out_, path_ + "/" + name, blocks};
  }

  void add(const char* name, const Dims& shape, Init init, int64_t fan_in = 1,
           int64_t fan_out = 1) const {
    ParamSpec spec{path_ + "//" + name, {}, init, fan_in, fan_out};
    if (blocks_ > 0) spec.shape.push_back(blocks_);
    for (int64_t d : shape) spec.shape.push_back(d);
    out_.push_back(std::move(spec));
  }

  void linear(const std::string& name, int64_t in, int64_t out, Init init = Init::kLinear,
              Init bias = Init::kZeros) const {
    const Adder a = *this / name;
    a.add("weights", {in, out}, init, in, out);
    a.add("bias", {out}, bias);
  }
  /// A gate: weights 0 and bias 1, so that it starts nearly open.
  void gate(const std::string& name, int64_t in, int64_t out) const {
    linear(name, in, out, Init::kZeros, Init::kOnes);
  }
  void norm(const std::string& name, int64_t channels) const {
    const Adder a = *this / name;
    a.add("scale", {channels}, Init::kOnes);
    a.add("offset", {channels}, Init::kZeros);
  }

 private:
  std::vector<ParamSpec>& out_;
  std::string path_;
  int64_t blocks_;
};

/// Attention from `c_q` channels over `c_m` channels back to `c_q`. `global`: keys and values are
/// shared by the heads (Alg. 19). The fans of q, k and v are those of the projection to all heads.
void attention(const Adder& a, const AttentionConfig& c, int64_t c_q, int64_t c_m,
               bool global = false) {
  const int64_t key = c.key_dim ? c.key_dim : c_q, value = c.value_dim ? c.value_dim : c_m;
  const int64_t h = c.num_head, k = key / h, v = value / h;
  a.add("query_w", {c_q, h, k}, Init::kGlorot, c_q, key);
  if (global) {
    a.add("key_w", {c_m, k}, Init::kGlorot, c_m, k);
    a.add("value_w", {c_m, v}, Init::kGlorot, c_m, v);
  } else {
    a.add("key_w", {c_m, h, k}, Init::kGlorot, c_m, key);
    a.add("value_w", {c_m, h, v}, Init::kGlorot, c_m, value);
  }
  if (c.gating) {
    a.add("gating_w", {c_q, h, v}, Init::kZeros, c_q, value);
    a.add("gating_b", {h, v}, Init::kOnes);
  }
  a.add("output_w", {h, v, c_q}, Init::kZeros, value, c_q);
  a.add("output_b", {c_q}, Init::kZeros);
}

void transition(const Adder& a, int64_t channels, int64_t factor) {
  a.norm("input_layer_norm", channels);
  a.linear("transition1", channels, channels * factor, Init::kRelu);
  a.linear("transition2", channels * factor, channels, Init::kZeros);
}

void triangle_multiplication(const Adder& a, int64_t c_z, int64_t channels) {
  a.norm("layer_norm_input", c_z);
  a.linear("left_projection", c_z, channels);
  a.linear("right_projection", c_z, channels);
  a.gate("left_gate", c_z, channels);
  a.gate("right_gate", c_z, channels);
  a.norm("center_layer_norm", channels);
  a.linear("output_projection", channels, c_z, Init::kZeros);
  a.gate("gating_linear", c_z, c_z);
}

void triangle_attention(const Adder& a, const AttentionConfig& c, int64_t c_z) {
  a.norm("query_norm", c_z);
  a.add("feat_2d_weights", {c_z, c.num_head}, Init::kNormal, c_z, c.num_head);
  attention(a / "attention", c, c_z, c_z);
}

void pair_stack(const Adder& a, const PairStackConfig& c, int64_t c_z) {
  triangle_multiplication(a / "triangle_multiplication_outgoing", c_z,
                          c.triangle_multiplication_outgoing_channel);
  triangle_multiplication(a / "triangle_multiplication_incoming", c_z,
                          c.triangle_multiplication_incoming_channel);
  triangle_attention(a / "triangle_attention_starting_node", c.triangle_attention_starting_node,
                     c_z);
  triangle_attention(a / "triangle_attention_ending_node", c.triangle_attention_ending_node, c_z);
  transition(a / "pair_transition", c_z, c.pair_transition_factor);
}

void evoformer_block(const Adder& a, const EvoformerConfig& c, int64_t c_m, int64_t c_z,
                     bool extra) {
  const Adder row = a / "msa_row_attention_with_pair_bias";
  row.norm("query_norm", c_m);
  row.norm("feat_2d_norm", c_z);
  row.add("feat_2d_weights", {c_z, c.msa_row_attention.num_head}, Init::kNormal, c_z,
          c.msa_row_attention.num_head);
  attention(row / "attention", c.msa_row_attention, c_m, c_m);

  const Adder column = a / (extra ? "msa_column_global_attention" : "msa_column_attention");
  column.norm("query_norm", c_m);
  attention(column / "attention", c.msa_column_attention, c_m, c_m, extra);

  transition(a / "msa_transition", c_m, c.msa_transition_factor);

  const Adder outer = a / "outer_product_mean";
  const int64_t n = c.num_outer_channel;
  outer.norm("layer_norm_input", c_m);
  outer.linear("left_projection", c_m, n);
  outer.linear("right_projection", c_m, n);
  outer.add("output_w", {n, n, c_z}, Init::kZeros, n * n, c_z);
  outer.add("output_b", {c_z}, Init::kZeros);

  pair_stack(a, c, c_z);
}

void template_embedding(const Adder& a, const TemplateConfig& c, int64_t c_z) {
  const int64_t c_t = c.pair_stack.triangle_attention_ending_node.value_dim;
  attention(a / "attention", c.attention, c_z, c_t);
  const Adder one = a / "single_template_embedding";
  one.linear("embedding2d", c.dgram_features.num_bins + 2 * kAatypes + kTemplateFlags, c_t,
             Init::kRelu);
  pair_stack((one / "template_pair_stack").stacked("__layer_stack_no_state", c.num_block),
             c.pair_stack, c_t);
  one.norm("output_layer_norm", c_t);
}

void trunk(const Adder& a, const ModelConfig& c) {
  const int64_t c_m = c.msa_channel, c_z = c.pair_channel;
  a.linear("preprocess_1d", kAatypes, c_m);
  a.linear("preprocess_msa", kMsaFeatures, c_m);
  a.linear("left_single", kAatypes, c_z);
  a.linear("right_single", kAatypes, c_z);
  if (c.recycle_pos) a.linear("prev_pos_linear", c.prev_pos.num_bins, c_z);
  if (c.recycle_features) {
    a.norm("prev_msa_first_row_norm", c_m);
    a.norm("prev_pair_norm", c_z);
  }
  if (c.max_relative_feature)
    a.linear("pair_activiations", 2 * c.max_relative_feature + 1, c_z);  // DeepMind's spelling
  if (c.templates.enabled) {
    template_embedding(a / "template_embedding", c.templates, c_z);
    if (c.templates.embed_torsion_angles) {
      a.linear("template_single_embedding", kTorsionFeatures, c_m, Init::kRelu);
      a.linear("template_projection", c_m, c_m, Init::kRelu);
    }
  }
  if (c.extra_msa_stack_num_block > 0) {
    a.linear("extra_msa_activations", kExtraFeatures, c.extra_msa_channel);
    evoformer_block(a.stacked("extra_msa_stack", c.extra_msa_stack_num_block), c.evoformer,
                    c.extra_msa_channel, c_z, true);
  }
  evoformer_block(a.stacked("evoformer_iteration", c.evoformer_num_block), c.evoformer, c_m, c_z,
                  false);
  a.linear("single_activations", c_m, c.seq_channel);
}

void structure_module(const Adder& a, const StructureConfig& c, int64_t c_s, int64_t c_z) {
  a.norm("single_layer_norm", c_s);
  a.linear("initial_projection", c_s, c.num_channel);
  a.norm("pair_layer_norm", c_z);

  const Adder fold = a / "fold_iteration";
  const Adder ipa = fold / "invariant_point_attention";
  const int64_t h = c.num_head;
  ipa.linear("q_scalar", c.num_channel, h * c.num_scalar_qk);
  ipa.linear("kv_scalar", c.num_channel, h * (c.num_scalar_qk + c.num_scalar_v));
  ipa.linear("q_point_local", c.num_channel, h * 3 * c.num_point_qk);
  ipa.linear("kv_point_local", c.num_channel, h * 3 * (c.num_point_qk + c.num_point_v));
  ipa.add("trainable_point_weights", {h}, Init::kPointWeights);
  ipa.linear("attention_2d", c_z, h);
  ipa.linear("output_projection", h * (c.num_scalar_v + 4 * c.num_point_v + c_z), c.num_channel,
             Init::kZeros);
  fold.norm("attention_layer_norm", c.num_channel);

  const auto nth = [](const char* name, int64_t i) {
    return i ? cat(name, "_", i) : std::string(name);
  };
  for (int64_t i = 0; i < c.num_layer_in_transition; ++i)
    fold.linear(nth("transition", i), c.num_channel, c.num_channel,
                i + 1 < c.num_layer_in_transition ? Init::kRelu : Init::kZeros);
  fold.norm("transition_layer_norm", c.num_channel);
  fold.linear("affine_update", c.num_channel, 6, Init::kZeros);

  const Adder side = fold / "rigid_sidechain";
  const int64_t n = c.sidechain_num_channel;
  side.linear("input_projection", c.num_channel, n);
  side.linear("input_projection_1", c_s, n);
  for (int64_t i = 0; i < c.sidechain_num_residual_block; ++i) {
    side.linear(nth("resblock1", i), n, n, Init::kRelu);
    side.linear(nth("resblock2", i), n, n, Init::kZeros);
  }
  side.linear("unnormalized_angles", n, 14);
}

/// FNV-1a, so that a name is a stream of random numbers.
uint64_t hash_of(const std::string& name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (unsigned char c : name) h = (h ^ c) * 0x100000001b3u;
  return h;
}

/// Standard normal value of element `i`; cut off at two deviations where `truncated`.
double normal(const Rng& rng, uint64_t i, bool truncated) {
  constexpr double kCut = 2;
  for (uint64_t attempt = 0;; ++attempt) {
    const auto w = rng.block(i | attempt << 48);
    const double r = std::sqrt(-2 * std::log1p(-unit_double(w[0], w[1])));
    const double angle = 2 * std::numbers::pi * unit_double(w[2], w[3]);
    for (double z : {r * std::cos(angle), r * std::sin(angle)})
      if (!truncated || std::abs(z) <= kCut) return z;
  }
}

Tensor initial_value(const ParamSpec& spec, uint64_t seed) {
  constexpr double kTruncatedDeviation = 0.87962566103423978;  // of a standard normal cut at 2
  const Tensor t = Tensor::empty(spec.shape);
  float* out = t.data<float>();
  const int64_t n = t.numel();
  const auto fill = [&](float value) { std::fill(out, out + n, value); };
  const Rng rng(seed, {hash_of(spec.name)});
  switch (spec.init) {
    case Init::kZeros:
      fill(0);
      break;
    case Init::kOnes:
      fill(1);
      break;
    case Init::kPointWeights:
      fill(float(std::log(std::exp(1.0) - 1)));
      break;
    case Init::kGlorot: {
      const double limit = std::sqrt(6.0 / double(spec.fan_in + spec.fan_out));
#pragma omp parallel for
      for (int64_t i = 0; i < n; ++i) {
        const auto w = rng.block(uint64_t(i));
        out[i] = float(limit * (2 * unit_double(w[0], w[1]) - 1));
      }
      break;
    }
    case Init::kLinear:
    case Init::kRelu:
    case Init::kNormal: {
      const bool truncated = spec.init != Init::kNormal;
      const double variance = (spec.init == Init::kRelu ? 2.0 : 1.0) / double(spec.fan_in);
      const double scale = std::sqrt(variance) / (truncated ? kTruncatedDeviation : 1);
#pragma omp parallel for
      for (int64_t i = 0; i < n; ++i) out[i] = float(scale * normal(rng, uint64_t(i), truncated));
      break;
    }
  }
  return t;
}

/// Says which other kind of file the misfits look like, or nothing.
std::string hint(const std::vector<std::string>& missing, const std::vector<std::string>& unused) {
  const auto any = [](const std::vector<std::string>& keys, const char* part) {
    for (const std::string& key : keys)
      if (key.find(part) != std::string::npos) return true;
    return false;
  };
  for (const char* part : {"~_relative_encoding", "template_embedding_iteration", "left_norm_input",
                           "quat_rigid", "point_projection"})
    if (any(unused, part)) return " (this looks like a multimer file; the preset is monomer)";
  if (any(missing, "template_embedding") && !any(missing, "evoformer_iteration"))
    return " (the file has no template parameters: models 3, 4 and 5 have none, see --preset)";
  if (any(unused, "template_embedding"))
    return " (the file has template parameters: models 1 and 2 have them, see --preset)";
  if (any(missing, "predicted_aligned_error_head") && missing.size() <= 2)
    return " (the file has no predicted aligned error head: use the preset without _ptm)";
  if (any(unused, "predicted_aligned_error_head") && missing.empty())
    return " (the file has a predicted aligned error head: use the preset with _ptm)";
  return "";
}

/// Whether a product of the trunk adds this bias; the triangle multiplications' are added
/// elsewhere.
bool is_product_bias(const std::string& name, const std::string& leaf) {
  const auto in = [&](const char* module) { return name.find(module) != std::string::npos; };
  return leaf == "output_b" || leaf == "gating_b" ||
         (leaf == "bias" && (in("_transition/") || in("/outer_product_mean/")));
}

bool is_self_attention(const std::string& name) {
  for (const char* module :
       {"/msa_row_attention_with_pair_bias/", "/msa_column_attention/", "/triangle_attention_"})
    if (name.find(module) != std::string::npos) return true;
  return false;
}

/// ".../outer_product_mean//output_b": without the root that all names share.
std::string shortened(const std::string& name) {
  return name.rfind(kRoot, 0) == 0 ? "..." + name.substr(std::string(kRoot).size()) : name;
}

}  // namespace

std::vector<ParamSpec> param_specs(const ModelConfig& c) {
  std::vector<ParamSpec> out;
  const Adder a(out, kRoot);
  trunk(a / "evoformer", c);
  if (c.heads.structure_module_weight != 0)
    structure_module(a / "structure_module", c.structure, c.seq_channel, c.pair_channel);
  if (c.heads.plddt_weight != 0) {
    const Adder head = a / "predicted_lddt_head";
    const int64_t n = c.heads.plddt_num_channels;
    head.norm("input_layer_norm", c.structure.num_channel);
    head.linear("act_0", c.structure.num_channel, n, Init::kRelu);
    head.linear("act_1", n, n, Init::kRelu);
    head.linear("logits", n, c.heads.plddt_num_bins, Init::kZeros);
  }
  if (c.heads.distogram_weight != 0)
    (a / "distogram_head")
        .linear("half_logits", c.pair_channel, c.heads.distogram_num_bins, Init::kZeros);
  if (c.heads.pae_weight != 0)
    (a / "predicted_aligned_error_head")
        .linear("logits", c.pair_channel, c.heads.pae_num_bins, Init::kZeros);
  if (c.heads.masked_msa_weight != 0)
    (a / "masked_msa_head")
        .linear("logits", c.msa_channel, c.heads.masked_msa_num_output, Init::kZeros);
  if (c.heads.experimentally_resolved_weight != 0)
    (a / "experimentally_resolved_head").linear("logits", c.seq_channel, kAtom37, Init::kZeros);
  return out;
}

Arrays initial_params(const ModelConfig& config, uint64_t seed) {
  Arrays arrays;
  for (const ParamSpec& spec : param_specs(config)) arrays[spec.name] = initial_value(spec, seed);
  return arrays;
}

Params::Params(const ModelConfig& config, Arrays arrays, const std::string& file) {
  std::vector<std::string> missing, unused, lines;
  std::set<std::string> known;
  for (const ParamSpec& spec : param_specs(config)) {
    known.insert(spec.name);
    const auto found = arrays.find(spec.name);
    if (found == arrays.end()) {
      missing.push_back(spec.name);
      lines.push_back(shortened(spec.name) + ": missing");
    } else if (!(found->second.shape() == spec.shape)) {
      lines.push_back(cat(shortened(spec.name), ": file ", found->second.shape(),
                          ", model expects ", spec.shape));
    } else if (found->second.dtype() == Dtype::i32) {
      lines.push_back(shortened(spec.name) + ": file holds integers, model expects floats");
    }
  }
  for (const auto& [name, value] : arrays)
    if (!known.count(name)) {
      unused.push_back(name);
      lines.push_back(shortened(name) + ": the model has no such parameter");
    }
  if (!lines.empty()) {
    std::string text =
        cat(file, ": ", lines.size(), lines.size() == 1 ? " key does" : " keys do", " not fit",
            config.name.empty() ? "" : " preset " + config.name, hint(missing, unused), ":");
    for (const std::string& line : lines) text += "\n  " + line;
    fail(Exit::kInput, text);
  }
  for (auto& [name, value] : arrays) vars_.emplace(name, Var(std::move(value)));
}

const Var& Params::at(const std::string& name) const {
  const auto found = vars_.find(name);
  check(found != vars_.end(), "the model asks for parameter ", name,
        ", which its configuration does not have");
  return found->second;
}

void Params::want_grads() {
  for (auto& [name, var] : vars_) var.want_grad();
}

Arrays Params::take_grads() {
  Arrays grads;
  for (auto& [name, var] : vars_) {
    check(var.requires_grad(), name, ": its gradient was not asked for");
    grads[name] = var.grad_into();
    var.slot()->grad = Tensor();
  }
  return grads;
}

Params Params::in_precision(Dtype activations) const {
  Params out;
  const bool gpu = device().kind == Device::cuda;
  if (gpu && activations == Dtype::bf16) out.join_projections(*this);
  for (const auto& [name, var] : vars_) {
    if (out.vars_.count(name)) continue;
    const std::string leaf = name.substr(name.rfind('/') + 1);
    const bool matrix = leaf.ends_with("weights") || leaf.ends_with("_w");
    const bool trunk = name.find("/evoformer/") != std::string::npos;
    // cuBLASLt takes a bias of its result's type.
    const bool rounded = matrix || (gpu && is_product_bias(name, leaf));
    const Dtype dtype =
        activations == Dtype::bf16 && !(rounded && trunk) ? Dtype::f32 : activations;
    out.vars_.emplace(name,
                      var.value().dtype() == dtype ? var : Var(var.value().to(dtype), var.slot()));
  }
  return out;
}

void Params::join(const Params& given, const std::string& path, const std::string& name,
                  const std::vector<std::string>& weights, const std::vector<std::string>& biases,
                  int axes) {
  if (!std::all_of(weights.begin(), weights.end(), [&](const std::string& part) {
        return given.has(path + part) &&
               given.at(path + part).shape() == given.at(path + weights[0]).shape();
      }))
    return;
  const int64_t count = int64_t(weights.size()), first = count - int64_t(biases.size());
  const auto beside = [&](Dims own) {
    Dims shape;
    for (int i = 0; i < own.size(); ++i) {
      if (i == own.size() - axes) shape.push_back(count);
      shape.push_back(own[i]);
    }
    return shape;
  };
  const auto fill = [&](const Tensor& all, const std::vector<std::string>& parts, int64_t at) {
    for (const std::string& part : parts) {
      const Var& own = given.at(path + part);
      const Tensor view = all.select(all.rank() - axes - 1, at++);
      view.copy_from(own.value());
      vars_.emplace(path + part, Var(view, own.slot()));
    }
  };
  const Device where = given.device();
  const Tensor w = Tensor::empty(beside(given.at(path + weights[0]).shape()), Dtype::bf16, where),
               b = Tensor::zeros(beside(given.at(path + biases[0]).shape()), Dtype::bf16, where);
  fill(w, weights, 0);
  fill(b, biases, first);
  vars_.emplace(path + name + "_w", w);
  vars_.emplace(path + name + "_b", b);
}

void Params::join_projections(const Params& given) {
  const std::string query = "query_w", left = "/left_projection//weights";
  for (const auto& [name, var] : given.vars_) {
    const auto before = [&](const std::string& end) {
      return name.substr(0, name.size() - end.size());
    };
    if (name.ends_with("//" + query) && is_self_attention(name))
      join(given, before(query), "qkvg", {query, "key_w", "value_w", "gating_w"}, {"gating_b"}, 2);
    if (name.ends_with("/outer_product_mean" + left))
      join(given, before(left), "//sides", {left, "/right_projection//weights"},
           {"/left_projection//bias", "/right_projection//bias"}, 1);
  }
}

Params Params::on(Device device) const {
  Params out;
  for (const auto& [name, var] : vars_) {
    const bool there = var.value().device() == device;
    check(there || !var.requires_grad(), name,
          ": its gradient is wanted, which a copy on another device would lose");
    out.vars_.emplace(name, there ? var : Var(var.value().to(device)));
  }
  return out;
}

Var Scope::operator[](const std::string& name) const {
  const Var& var = params_->at(path_ + "//" + name);
  if (FiniteWatch::active())
    FiniteWatch::place() = cat(path_, "//", name, block_ < 0 ? "" : cat(", block ", block_));
  if (block_ < 0) return var;
  check(var.rank() > 0 && block_ < var.size(0), "block ", block_, " of parameter ", path_, "//",
        name, " of shape ", var.shape());
  return view_of(var, [block = block_](const Tensor& t) { return t.select(0, block); });
}

}  // namespace ff
