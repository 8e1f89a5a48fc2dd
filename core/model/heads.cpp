// The heads: linear layers, the distogram made symmetric, and the two-layer confidence head.
#include "core/model/heads.h"

#include <optional>

#include "core/base/timeline.h"
#include "core/model/nn.h"
#include "core/ops/elementwise.h"
#include "core/ops/rigid_ops.h"
#include "core/ops/views.h"

namespace ff {
namespace {

/// `count` values from `first` to `last`, f32.
Tensor linspace(double first, double last, int64_t count) {
  const Tensor t = Tensor::empty({count});
  for (int64_t i = 0; i < count; ++i)
    t.data<float>()[i] =
        count == 1 ? float(first) : float(first + (last - first) * double(i) / double(count - 1));
  return t;
}

}  // namespace

Var aligned_error_logits(const Scope& scope, const Var& pair) {
  return linear(scope / "logits", pair);
}

Var masked_msa_logits(const Scope& scope, const Var& msa) { return linear(scope / "logits", msa); }

Var resolved_logits(const Scope& scope, const Var& single) {
  return linear(scope / "logits", single);
}

Var lddt_logits(const Scope& scope, const Var& structure_act) {
  Var x = layer_norm(scope / "input_layer_norm", structure_act);
  x = linear(scope / "act_0", x, Activation::kRelu);
  x = linear(scope / "act_1", x, Activation::kRelu);
  return linear(scope / "logits", x);
}

Tensor distogram_edges(const HeadsConfig& config) {
  return linspace(config.distogram_first_break, config.distogram_last_break,
                  config.distogram_num_bins - 1);
}

Tensor aligned_error_breaks(const HeadsConfig& config) {
  return linspace(0, config.pae_max_error_bin, config.pae_num_bins - 1);
}

HeadLogits head_logits(const Scope& scope, const HeadsConfig& config, const Var& single,
                       const Var& pair, const Var& msa, const Var& structure_act, const Dap& dap) {
  const Span span("heads");
  HeadLogits out;
  Var half;
  std::optional<Relayout> transposed;  // half[j, i] of the own i, on its way under the others
  if (config.distogram_weight != 0) {
    half = linear(scope / "distogram_head" / "half_logits", pair);
    if (!dap.single()) {
      transposed.emplace(dap, Dims{half.size(1), half.size(1), half.size(2)}, 0, 1);
      transposed->begin(half);
    }
  }
  if (config.masked_msa_weight != 0)
    out.masked_msa = masked_msa_logits(scope / "masked_msa_head", msa);
  if (config.experimentally_resolved_weight != 0)
    out.resolved = resolved_logits(scope / "experimentally_resolved_head", single);
  if (config.plddt_weight != 0)
    out.lddt = lddt_logits(scope / "predicted_lddt_head", structure_act);
  if (config.pae_weight != 0)
    out.aligned_error = aligned_error_logits(scope / "predicted_aligned_error_head", pair);
  if (transposed)
    out.distogram = add(half, transpose(transposed->await(), 0, 1));
  else if (half)
    out.distogram = symmetrize(half);
  return out;
}

void run_heads(const Scope& scope, const HeadsConfig& config, Arrays& out, const Dap& dap) {
  const auto input = [&](const char* name) {
    const auto found = out.find(cat("representations/", name));
    return found == out.end() ? Var() : Var(found->second);
  };
  const HeadLogits logits = head_logits(scope, config, input("single"), input("pair"), input("msa"),
                                        input("structure_module"), dap);
  const auto add = [&](const char* head, const Var& x) {
    if (x) out[cat(head, "/logits")] = x.value();
  };
  add("distogram", logits.distogram);
  add("masked_msa", logits.masked_msa);
  add("experimentally_resolved", logits.resolved);
  add("predicted_lddt", logits.lddt);
  add("predicted_aligned_error", logits.aligned_error);
  if (logits.distogram) out["distogram/bin_edges"] = distogram_edges(config);
  if (logits.aligned_error) out["predicted_aligned_error/breaks"] = aligned_error_breaks(config);
}

}  // namespace ff
