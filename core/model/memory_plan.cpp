// The forms, module by module in the order of core/model/evoformer.cpp, and the walk through the
// backward that finds the peak.
#include "core/model/memory_plan.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>

#include "core/model/params.h"
#include "core/ops/gemm.h"
#include "core/ops/kernels.h"
#include "core/ops/linear.h"
#include "core/ops/triangle.h"

namespace ff {
namespace {

int64_t largest(std::initializer_list<int64_t> bytes) { return std::max(bytes); }

/// Sizes in bytes that the forms of one stack share.
class Forms {
 public:
  Forms(const MemorySetting& setting)  // NOLINT: is a setting
      : e(size_of(setting.dtype)),
        f(setting.dtype == Dtype::f64 ? 8 : 4),
        dap(setting.dap),
        gpu(setting.device != Device::cpu),
        drops(setting.dropout),
        converts_(!gpu && setting.dtype == Dtype::bf16 && !cpu::has_bf16_units()) {}

  /// Of an axis that the ranks share.
  int64_t own(int64_t n) const { return (n + dap - 1) / dap; }
  /// What a product's backward converts where a CPU has no units for bf16.
  int64_t converted(int64_t in, int64_t out) const { return converts_ ? 2 * (in + out) : 0; }
  /// A module's factors of dropout.
  int64_t factors(double rate, int64_t n, int64_t c) const {
    return drops && rate > 0 ? f * n * c : 0;
  }

  /// Gated attention of `batch` rows of n positions of c channels, with a bias [h, n, n] that is
  /// made of z more bytes of the pair representation. Keeps x's norm unless x is narrow, the bias,
  /// q, k, v, gate, result. In the backward the attention itself has most, or what stands before or
  /// behind it.
  ModuleMemory attention(const char* name, bool pair, int64_t batch, int64_t n, int64_t c,
                         const AttentionConfig& a, bool biased, int64_t z, double rate) const {
    const int64_t x = e * batch * n * c, qk = 2 * e * batch * n * (a.key_dim ? a.key_dim : c),
                  v = e * batch * n * (a.value_dim ? a.value_dim : c), gate = a.gating ? v : 0,
                  bias = biased ? f * a.num_head * n * n : 0,
                  statistics = gpu ? 4 * batch * n * a.num_head : 0,
                  read = (c > kNarrow ? x : 0) + bias, core = qk + 2 * v + gate + statistics,
                  // Sums of the bias's gradient, by parts of the batch; on a GPU packed bias, too.
        sums = bias * (gpu ? 3 : std::min<int64_t>(batch, 16)) + (gpu ? statistics : 0),
                  sent = dap > 1 ? x : 0;
    return {
        name, pair, read + core + x + factors(rate, n, c),
        sent + largest({x + read + core + v + qk + v + gate + bias + sums,
                        2 * x + read + core + v + converted(x, v),
                        3 * x + qk + v + gate + 2 * bias + converted(x, v), x + 2 * z + 2 * bias})};
  }

  /// Attention with one query a column (Alg. 19). Keeps the norm, its mean, q, k, v, gate, result.
  ModuleMemory global_attention(int64_t s, int64_t n, int64_t c, const AttentionConfig& a) const {
    const int64_t x = e * s * n * c, v = e * s * n * (a.value_dim ? a.value_dim : c),
                  kv = e * s * n * ((a.key_dim ? a.key_dim : c) / a.num_head) + v / a.num_head,
                  one = e * n * (c + (a.key_dim ? a.key_dim : c)), core = 2 * v + kv + one;
    return {"msa_column_global_attention", false, 2 * x + core, 3 * x + core + v + converted(x, v)};
  }

  /// Keeps the hidden channels, which the backward has twice, and the norm unless x is narrow.
  ModuleMemory transition(const char* name, bool pair, int64_t rows, int64_t c,
                          int64_t factor) const {
    const int64_t x = e * rows * c;
    return {name, pair, ((c > kNarrow ? 2 : 1) + factor) * x,
            (3 + 2 * factor) * x + converted(x, factor * x)};
  }

  /// m [s, own n, c_m] into z [own n, n, c_z]. Keeps the norm, both projections, and on a GPU the
  /// products, if they exist at once; where one product makes both projections, the norm is made
  /// again.
  ModuleMemory outer_product_mean(int64_t s, int64_t n, int64_t c_m, int64_t c, int64_t c_z) const {
    const int64_t rows = own(n), x = e * s * rows * c_m, left = e * s * rows * c,
                  right = e * s * n * c, z = e * rows * n * c_z, sums = f * rows * n,
                  most = kGpuOuterProducts, all = rows * n * c * c;
    // Of the right side, gathered of what one product made with the left one's.
    const int64_t own_right = gpu && e == 2 && dap > 1 ? left : 0;
    // The CPU's products of one row and one side's sums; the GPU's of many, the sides' copies, and
    // their gradients' as products leave them.
    const int64_t products =
        gpu ? e * std::min(all, most) + 2 * left + 3 * right + (e == 2 && all > most ? left : 0)
            : e * n * c * c + sums + (e == 2 ? 2 : 1) * right;
    return {
        "outer_product_mean", true,
        (gpu && e == 2 ? 0 : x) + left + own_right + right + z + (gpu && all <= most ? e * all : 0),
        x + 2 * left + 2 * own_right + 2 * right + 2 * z + products + converted(right, 0)};
  }

  /// Of `rows` x n pairs of c channels, t in the product. Keeps three times the norm, the gate and
  /// the update; of each side projection, gate and their product; the sides' product and its norm.
  /// In the backward the end, the output's projection, the product or its norm has most. Fused
  /// (core/ops/triangle.h) it keeps the sides, their product and the update, and the backward of
  /// the end has most: the gradients of p and the update, and what makes the weights' gradients.
  ModuleMemory triangle_multiplication(const char* name, int64_t rows, int64_t n, int64_t c,
                                       int64_t t, double rate) const {
    const int64_t z = e * rows * n * c, p = e * rows * n * t;
    if (gpu && e == 2 && fuses_triangle(c, t)) {
      const int64_t fused = z + 3 * p + factors(rate, n, c);
      return {name, true, fused, fused + 2 * (z + p)};
    }
    const int64_t kept = 6 * z + 8 * p + factors(rate, n, c);
    return {name, true, kept,
            largest({8 * z + 8 * p, 6 * z + 9 * p + converted(z, p),
                     3 * z + 9 * p + converted(2 * p, p), 3 * z + (gpu ? 9 : 11) * p})};
  }

  const int64_t e, f;  ///< bytes of an activation, and of a number that is kept in f32 or wider
  const int64_t dap;
  const bool gpu, drops;

 private:
  const bool converts_;
};

int64_t msa_rows(const ModelConfig& c, const PassSizes& sizes) {
  return sizes.n_seq +
         (c.templates.enabled && c.templates.embed_torsion_angles ? sizes.n_templates : 0);
}

/// What follows the MSA's modules, but for the order that templates have.
void add_triangles(const Forms& forms, const PairStackConfig& c, int64_t n, int64_t c_z,
                   bool attention_first, std::vector<ModuleMemory>& out) {
  // One rank's attention reads the norm that its bias is made of.
  const int64_t rows = forms.own(n), z = forms.dap > 1 ? forms.e * rows * n * c_z : 0;
  const std::vector<ModuleMemory> multiplications = {
      forms.triangle_multiplication("triangle_multiplication_outgoing", rows, n, c_z,
                                    c.triangle_multiplication_outgoing_channel, c.pair_dropout),
      forms.triangle_multiplication("triangle_multiplication_incoming", rows, n, c_z,
                                    c.triangle_multiplication_incoming_channel, c.pair_dropout)};
  const std::vector<ModuleMemory> attentions = {
      forms.attention("triangle_attention_starting_node", true, rows, n, c_z,
                      c.triangle_attention_starting_node, true, z, c.pair_dropout),
      forms.attention("triangle_attention_ending_node", true, rows, n, c_z,
                      c.triangle_attention_ending_node, true, z, c.pair_dropout)};
  for (const auto& part : attention_first ? std::array{attentions, multiplications}
                                          : std::array{multiplications, attentions})
    out.insert(out.end(), part.begin(), part.end());
  out.push_back(forms.transition("pair_transition", true, rows * n, c_z, c.pair_transition_factor));
}

int64_t total(const std::vector<ModuleMemory>& modules, int64_t ModuleMemory::*part) {
  int64_t sum = 0;
  for (const ModuleMemory& module : modules) sum += module.*part;
  return sum;
}

/// The most in the backward through modules that are all on the tape: m and z are the bytes of the
/// gradients of what a module does not update. Parameters' gradients are made as the `first` such
/// backward comes to them.
int64_t walk(const std::vector<ModuleMemory>& modules, int64_t m, int64_t z, bool first) {
  int64_t before = 0, most = 0, passed = 0;
  const int64_t parameters = total(modules, &ModuleMemory::parameters);
  for (const ModuleMemory& module : modules) {
    most = std::max(most, before + module.backward + (module.pair ? m : z) + parameters - passed);
    before += module.kept;
    if (first) passed += module.parameters;
  }
  return most;
}

/// What follows the trunk: the f32 copies of its results, the structure module, heads and losses.
struct Ends {
  int64_t kept = 0;    ///< on the tape before the backward
  int64_t logits = 0;  ///< which the caller has until the end
  int64_t backward = 0;
};

Ends ends(const ModelConfig& c, const PassSizes& sizes, const Forms& forms) {
  const StructureConfig& s = c.structure;
  const HeadsConfig& h = c.heads;
  const int64_t n = sizes.n_res, f = forms.f, pairs = forms.own(n) * n,
                rows = forms.own(sizes.n_seq) * n, z = f * pairs * c.pair_channel,
                m = f * rows * c.msa_channel, bias = f * pairs * s.num_head,
                qk = s.num_head * s.num_scalar_qk, v = s.num_head * s.num_scalar_v,
                points = 3 * s.num_head * (2 * s.num_point_qk + s.num_point_v),
                point_v = s.num_head * s.num_point_v;
  // Floats of a layer and residue: the attention's operands, points before and behind the frames,
  // and result; what norms, dropout, transition and relu keep; the side chains' layers; the
  // torsions, frames and atoms with the gradients that their losses made.
  const int64_t layer =
      2 * qk + 2 * v + 2 * points + 4 * point_v + s.num_head * c.pair_channel +
      (s.num_layer_in_transition + (forms.drops && s.dropout > 0 ? 7 : 5)) * s.num_channel +
      (2 + 3 * s.sidechain_num_residual_block) * s.sidechain_num_channel + 300;
  const int64_t distogram = h.distogram_weight != 0 ? f * pairs * h.distogram_num_bins : 0,
                error = h.pae_weight != 0 ? f * pairs * h.pae_num_bins : 0,
                masked = h.masked_msa_weight != 0 ? f * rows * h.masked_msa_num_output : 0;
  Ends out;
  out.logits = distogram + error + masked;
  // m's last value stays under the view of its first row.
  out.kept = z + m + (forms.e == f ? 0 : forms.e * rows * c.msa_channel) + z + bias +
             f * s.num_layer * n * layer;
  // First the heads: every logit's gradient, and the distogram's halves and theirs. Then the
  // structure module: gradients of what it and the heads have of z and m, the bias's with room to
  // add to it, and the attention's weights and logits, of which a GPU has kGpuIpaBytes at most.
  const int64_t weights = forms.gpu ? std::min<int64_t>(2 * bias, kGpuIpaBytes) : 2 * bias;
  out.backward = std::max(out.logits + 2 * distogram, 2 * z + m + 2 * bias + weights);
  return out;
}

/// Templates and the attention to them.
struct Templates {
  int64_t shared = 0;  ///< kept in any case
  int64_t one = 0;     ///< kept of one that is recorded
  int64_t replay = 0;  ///< the most while one runs again
};

Templates templates(const ModelConfig& config, const PassSizes& sizes, const Forms& forms) {
  const TemplateConfig& c = config.templates;
  Templates out;
  if (!c.enabled || sizes.n_templates == 0) return out;
  constexpr int64_t kFeatures = 49;  // beside the distogram's
  const int64_t n = sizes.n_res, pairs = forms.own(n) * n, e = forms.e, t = sizes.n_templates,
                c_t = c.pair_stack.triangle_attention_ending_node.value_dim,
                attended = c.attention.key_dim + c.attention.value_dim, result = e * pairs * c_t;
  std::vector<ModuleMemory> blocks;
  for (int64_t b = 0; b < c.num_block; ++b)
    add_triangles(forms, c.pair_stack, n, c_t, true, blocks);
  out.shared = e * pairs * (config.pair_channel + t * c_t + (1 + t) * attended);
  out.one = e * pairs * (c.dgram_features.num_bins + kFeatures) + result +
            total(blocks, &ModuleMemory::kept);
  // With the gradients of all of them.
  out.replay =
      out.one - total(blocks, &ModuleMemory::kept) + walk(blocks, 0, 0, true) + 2 * t * result;
  return out;
}

}  // namespace

std::vector<ModuleMemory> block_memory(const ModelConfig& config, const PassSizes& sizes,
                                       const MemorySetting& setting, bool extra) {
  const Forms forms(setting);
  const EvoformerConfig& c = config.evoformer;
  const int64_t n = sizes.n_res, s = extra ? sizes.n_extra : msa_rows(config, sizes),
                c_m = extra ? config.extra_msa_channel : config.msa_channel,
                c_z = config.pair_channel, z = forms.e * forms.own(n) * n * c_z;
  std::vector<ModuleMemory> out = {
      forms.attention("msa_row_attention_with_pair_bias", false, forms.own(s), n, c_m,
                      c.msa_row_attention, true, z, c.msa_dropout),
      extra ? forms.global_attention(s, forms.own(n), c_m, c.msa_column_attention)
            : forms.attention("msa_column_attention", false, forms.own(n), s, c_m,
                              c.msa_column_attention, false, 0, 0),
      forms.transition("msa_transition", false, s * forms.own(n), c_m, c.msa_transition_factor)};
  out.insert(c.outer_product_mean_first ? out.begin() : out.end(),
             forms.outer_product_mean(s, n, c_m, c.num_outer_channel, c_z));
  add_triangles(forms, c, n, c_z, false, out);
  for (const ParamSpec& spec : param_specs(config))
    for (ModuleMemory& module : out)
      if (spec.name.find(cat(extra ? "/extra_msa_stack/" : "/evoformer_iteration/", module.name)) !=
          std::string::npos)
        module.parameters += forms.f * spec.shape.product();
  return out;
}

PassMemory::PassMemory(const ModelConfig& config, const PassSizes& sizes,
                       const MemorySetting& setting) {
  const Forms forms(setting);
  const int64_t n = sizes.n_res, e = forms.e, pairs = forms.own(n) * n;
  const Ends end = ends(config, sizes, forms);
  const Templates one = templates(config, sizes, forms);
  const auto stack = [&](bool extra) {
    const int64_t rows = forms.own(extra ? sizes.n_extra : msa_rows(config, sizes));
    return Stack{extra ? config.extra_msa_stack_num_block : config.evoformer_num_block,
                 e * rows * n * (extra ? config.extra_msa_channel : config.msa_channel),
                 block_memory(config, sizes, setting, extra)};
  };
  extra_ = stack(true);
  evoformer_ = stack(false);
  z_ = e * pairs * config.pair_channel;
  dap_ = setting.dap > 1;
  // The pair mask, the alignments' counts, what came from the recycle before, features in the
  // network's precision or on its device.
  start_ = (4 + 2 * forms.f) * pairs + (setting.recycles ? z_ + e * n * config.msa_channel : 0) +
           one.shared;
  if (forms.gpu || e == 2) start_ += 49 * e * forms.own(sizes.n_seq) * n;
  if (config.extra_msa_stack_num_block > 0) start_ += 25 * e * forms.own(sizes.n_extra) * n;
  templates_ = sizes.n_templates * one.one;
  replay_ = one.replay;
  logits_ = end.logits;
  end_ = end.kept + end.logits + end.backward - (e == forms.f ? 0 : z_);  // what cast() copied
  for (const ParamSpec& spec : param_specs(config)) {
    const int64_t numel = spec.shape.product();
    const bool trunk = spec.name.find("/evoformer/") != std::string::npos;
    parameters_ += forms.f * numel;
    if (!trunk) end_parameters_ += forms.f * numel;
    // Params::in_precision
    if (setting.dtype == Dtype::f64 ||
        (setting.dtype == Dtype::bf16 && trunk &&
         (spec.name.ends_with("weights") || spec.name.ends_with("_w"))))
      copies_ += e * numel;
  }
}

int64_t PassMemory::peak(int64_t recompute) const {
  int64_t kept = start_, most = kept + replay_ + z_ + parameters_, b = 0;
  if (recompute == 0) kept += templates_;
  for (const Stack* stack : {&extra_, &evoformer_}) {
    const bool extra = stack == &extra_;
    // Before the extra stack's turn the Evoformer's gradients are made, and under DAP packed.
    const int64_t m = stack->m,
                  parameters =
                      end_parameters_ +
                      (extra ? (dap_ ? 2 : 1) * total(evoformer_.modules, &ModuleMemory::parameters)
                             : 0);
    for (int64_t i = 0; i < stack->blocks; ++i, ++b) {
      const bool again = b < recompute, last = i + 1 == stack->blocks;
      // The extra stack's last m has no gradient. A checkpoint has its results and their gradients
      // beside what it is given anew.
      const int64_t dm = extra && last ? 0 : m, outer = again ? m + z_ + dm + z_ : 0;
      most = std::max(
          most, kept + m + z_ + outer + walk(stack->modules, dm, z_, last) + logits_ + parameters);
      kept += again ? m + z_ : total(stack->modules, &ModuleMemory::kept);
    }
  }
  return std::max(most, kept + end_ + end_parameters_);
}

int64_t PassMemory::step_peak(int64_t samples, int64_t recompute) const {
  return parameters_ + samples * (copies_ + peak(recompute));
}

std::optional<int64_t> recomputed_blocks(const std::string& value, const std::string& key) {
  if (value == "auto") return {};
  if (value == "blocks") return kEveryBlock;
  if (value == "none") return 0;
  int64_t count = -1;
  const char* const end = value.data() + value.size();
  if (const auto [at, error] = std::from_chars(value.data(), end, count);
      error != std::errc() || at != end || count < 0)
    fail(Exit::kUsage, key, " is '", value,
         "', expected auto, blocks, none or how many of the trunk's blocks are computed again");
  return std::min(count, kEveryBlock);
}

std::string RecomputePlan::text() const {
  char bytes[80];
  constexpr double kGib = 1 << 30;
  std::snprintf(bytes, sizeof bytes, room < 0 ? "%.2f GiB" : "%.2f of %.2f GiB",
                double(peak) / kGib, double(room) / kGib);
  return cat("keeps ", blocks - recompute, " of ", blocks,
             " blocks for the backward; predicted peak of tensors ", bytes,
             samples > 1 ? cat(" with ", samples, " samples side by side") : "");
}

RecomputePlan plan_recompute(const PassMemory& pass, int64_t samples, int64_t there, int64_t free,
                             std::optional<int64_t> choice) {
  RecomputePlan plan;
  plan.samples = samples;
  plan.blocks = pass.blocks();
  plan.room = free < 0 ? -1 : there + free;
  const auto peak = [&](int64_t recompute) { return pass.step_peak(samples, recompute); };
  if (choice) {
    plan.recompute = std::min(*choice, plan.blocks);
  } else {
    // What is there already is not asked: all ranks of a run choose alike. Where nothing fits, what
    // needs least, which a last block that is kept may do.
    for (int64_t r = 0; r <= plan.blocks; ++r) {
      if (peak(r) < peak(plan.recompute)) plan.recompute = r;
      if (peak(plan.recompute) <= free - free / 10) break;
    }
  }
  plan.peak = there + peak(plan.recompute);
  return plan;
}

}  // namespace ff
