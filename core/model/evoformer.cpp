// The trunk's modules, written once for training and prediction: by_rows and map_rows
// (core/ops/views.h) work through a few rows at a time under NoGrad, and on everything at once
// where a tape records.
#include "core/model/evoformer.h"

#include "core/ops/ops.h"

namespace ff {
namespace {

Dtype statistics_type(const Var& x) {
  return x.value().dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
}

/// bias[h, i, j] = LN(z)[i, j] . feat_2d_weights[:, h], with statistics' precision.
Var pair_bias(const Scope& scope, const char* norm, const Var& z) {
  const Var w = scope["feat_2d_weights"];
  return map_rows(z, 1, [&](const Var& rows, int64_t) {
    const Var b = linear_channels_first(layer_norm(scope / norm, rows), w);
    return cast(view(b, {w.size(1), rows.size(0), rows.size(1)}), statistics_type(z));
  });
}

/// Modules that drop, in the order of Alg. 6: a part of the masks' names.
enum Place : uint64_t { kRow, kOutgoing, kIncoming, kStarting, kEnding };

Var heads(const Var& x, const Var& w) {
  return view(linear(x, w), {x.size(0), x.size(1), w.size(1), w.size(2)});
}

}  // namespace

Var attention_add(const Scope& scope, const Var& residual, const Var& x_q, const Var& x_m,
                  const Var& bias, const Tensor& mask, const Tensor& factors) {
  const Var q = heads(x_q, scope["query_w"]), k = heads(x_m, scope["key_w"]),
            v = heads(x_m, scope["value_w"]);
  Var gate;
  if (scope.has("gating_w"))
    gate = view(linear(x_q, scope["gating_w"], scope["gating_b"]),
                {q.size(0), q.size(1), v.size(2), v.size(3)});
  const Var o = attention(q, k, v, gate, bias, mask);
  const int64_t c = v.size(2) * v.size(3);
  const Var flat = view(o, {q.size(0), q.size(1), c}), w = scope["output_w"], b = scope["output_b"];
  return factors.defined()
             ? dropout_add(residual, linear(flat, view(w, {c, residual.size(2)}), b), factors)
             : linear_add(residual, flat, w, b);
}

Var msa_row_attention(const Scope& scope, const Var& m, const Var& z, const Tensor& msa_mask,
                      const ModuleDropout& dropout) {
  const Var bias = pair_bias(scope, "feat_2d_norm", z);
  const Tensor factors = dropout.factors(m);
  return by_rows(m, [&](const Var& rows, int64_t start) {
    const Var x = layer_norm(scope / "query_norm", rows);
    return attention_add(scope / "attention", rows, x, x, bias,
                         msa_mask.narrow(0, start, rows.size(0)), factors);
  });
}

Var msa_column_attention(const Scope& scope, const Var& m, const Tensor& msa_mask) {
  const Var columns = transpose(m, 0, 1);
  const Tensor mask = msa_mask.transpose(0, 1);
  const Var updated = by_rows(columns, [&](const Var& rows, int64_t start) {
    const Var x = layer_norm(scope / "query_norm", rows);
    return attention_add(scope / "attention", rows, x, x, {}, mask.narrow(0, start, rows.size(0)));
  });
  return transpose(updated, 0, 1);
}

Var msa_column_global_attention(const Scope& scope, const Var& m, const Tensor& msa_mask) {
  const Scope a = scope / "attention";
  const Var columns = transpose(m, 0, 1);
  const Tensor mask = msa_mask.transpose(0, 1);
  const Var query_w = a["query_w"];
  const Var updated = by_rows(columns, [&](const Var& rows, int64_t start) {
    const Tensor keep = mask.narrow(0, start, rows.size(0));
    const Var x = layer_norm(scope / "query_norm", rows);
    const Var q =
        view(linear(masked_mean(x, keep), query_w), {x.size(0), query_w.size(1), query_w.size(2)});
    const Var gate = linear(x, a["gating_w"], a["gating_b"]);
    const Var o = global_attention(q, linear(x, a["key_w"]), linear(x, a["value_w"]), gate, keep);
    return linear_add(rows, o, a["output_w"], a["output_b"]);
  });
  return transpose(updated, 0, 1);
}

Var transition(const Scope& scope, const Var& x) {
  const Scope second = scope / "transition2";
  return by_rows(x, [&](const Var& rows, int64_t) {
    const Var hidden = linear(scope / "transition1", layer_norm(scope / "input_layer_norm", rows),
                              Activation::kRelu);
    return linear_add(rows, hidden, second["weights"], second["bias"]);
  });
}

Var outer_product_mean(const Scope& scope, const Var& m, const Var& z, const Tensor& msa_mask) {
  Var sides[2];
  const char* const kNames[] = {"left_projection", "right_projection"};
  for (int side = 0; side < 2; ++side)
    sides[side] = map_rows(m, 0, [&](const Var& rows, int64_t) {
      return linear(scope / kNames[side], layer_norm(scope / "layer_norm_input", rows));
    });
  for (Var& side : sides) side = scale_rows(side, msa_mask);
  const Tensor norm = pair_count(msa_mask, m.value().dtype());
  return outer_product_mean(z, sides[0], sides[1], scope["output_w"], scope["output_b"], norm);
}

Var triangle_multiplication(const Scope& scope, const Var& z, const Tensor& pair_mask,
                            bool outgoing, const ModuleDropout& dropout) {
  const int64_t n = z.size(1);
  const Tensor factors = dropout.factors(z);
  Var sides[2];
  const char* const kNames[] = {"left", "right"};
  for (int side = 0; side < 2; ++side) {
    const Scope proj = scope / (std::string(kNames[side]) + "_projection");
    const Scope gate = scope / (std::string(kNames[side]) + "_gate");
    sides[side] = map_rows(z, 1, [&](const Var& rows, int64_t start) {
      const Var x = layer_norm(scope / "layer_norm_input", rows);
      const Var p = linear_channels_first(x, proj["weights"]),
                g = linear_channels_first(x, gate["weights"]);
      const Tensor keep = pair_mask.narrow(0, start, rows.size(0)).view({-1});
      return view(triangle_gate(p, proj["bias"], g, gate["bias"], keep),
                  {p.size(0), rows.size(0), n});
    });
  }
  const Var product = triangle_product(sides[0], sides[1], outgoing);
  sides[0] = sides[1] = Var();
  const Scope center = scope / "center_layer_norm";
  return by_rows(z, [&](const Var& rows, int64_t start) {
    const Var p = layer_norm_channels_first(narrow(product, 1, start, rows.size(0)),
                                            center["scale"], center["offset"]);
    const Var gate = linear(scope / "gating_linear", layer_norm(scope / "layer_norm_input", rows));
    return add_gated(rows, ff::dropout(linear(scope / "output_projection", p), factors), gate);
  });
}

Var triangle_attention(const Scope& scope, const Var& z, const Tensor& pair_mask, bool starting,
                       const ModuleDropout& dropout) {
  const Var zt = starting ? z : transpose(z, 0, 1);
  const Tensor factors = dropout.factors(zt);
  const Tensor mask = starting ? pair_mask : pair_mask.transpose(0, 1);
  const Var bias = pair_bias(scope, "query_norm", zt);
  const Var updated = by_rows(zt, [&](const Var& rows, int64_t start) {
    const Var x = layer_norm(scope / "query_norm", rows);
    return attention_add(scope / "attention", rows, x, x, bias, mask.narrow(0, start, rows.size(0)),
                         factors);
  });
  return starting ? updated : transpose(updated, 0, 1);
}

Representations evoformer_block(const Scope& scope, const EvoformerConfig& config, bool extra,
                                Representations x, const Tensor& msa_mask, const Tensor& pair_mask,
                                const Trace& trace, const DropoutStream& dropout) {
  const auto pair = [&](Place place) { return ModuleDropout{dropout, config.pair_dropout, place}; };
  const auto done = [&](const char* module, const Var& value) {
    (trace / module)("after_residual", value);
  };
  const auto outer = [&] {
    x.z = outer_product_mean(scope / "outer_product_mean", x.m, x.z, msa_mask);
    done("outer_product_mean", x.z);
  };
  if (config.outer_product_mean_first) outer();
  x.m = msa_row_attention(scope / "msa_row_attention_with_pair_bias", x.m, x.z, msa_mask,
                          {dropout, config.msa_dropout, kRow});
  done("msa_row_attention_with_pair_bias", x.m);
  if (extra) {
    x.m = msa_column_global_attention(scope / "msa_column_global_attention", x.m, msa_mask);
    done("msa_column_global_attention", x.m);
  } else {
    x.m = msa_column_attention(scope / "msa_column_attention", x.m, msa_mask);
    done("msa_column_attention", x.m);
  }
  x.m = transition(scope / "msa_transition", x.m);
  done("msa_transition", x.m);
  if (!config.outer_product_mean_first) outer();
  x.z = triangle_multiplication(scope / "triangle_multiplication_outgoing", x.z, pair_mask, true,
                                pair(kOutgoing));
  done("triangle_multiplication_outgoing", x.z);
  x.z = triangle_multiplication(scope / "triangle_multiplication_incoming", x.z, pair_mask, false,
                                pair(kIncoming));
  done("triangle_multiplication_incoming", x.z);
  x.z = triangle_attention(scope / "triangle_attention_starting_node", x.z, pair_mask, true,
                           pair(kStarting));
  done("triangle_attention_starting_node", x.z);
  x.z = triangle_attention(scope / "triangle_attention_ending_node", x.z, pair_mask, false,
                           pair(kEnding));
  done("triangle_attention_ending_node", x.z);
  x.z = transition(scope / "pair_transition", x.z);
  done("pair_transition", x.z);
  return x;
}

Var template_pair_block(const Scope& scope, const PairStackConfig& config, const Var& t,
                        const Tensor& pair_mask, const Trace& trace, const DropoutStream& dropout) {
  const auto pair = [&](Place place) { return ModuleDropout{dropout, config.pair_dropout, place}; };
  const auto done = [&](const char* module, const Var& value) {
    (trace / module)("after_residual", value);
  };
  Var x = triangle_attention(scope / "triangle_attention_starting_node", t, pair_mask, true,
                             pair(kStarting));
  done("triangle_attention_starting_node", x);
  x = triangle_attention(scope / "triangle_attention_ending_node", x, pair_mask, false,
                         pair(kEnding));
  done("triangle_attention_ending_node", x);
  x = triangle_multiplication(scope / "triangle_multiplication_outgoing", x, pair_mask, true,
                              pair(kOutgoing));
  done("triangle_multiplication_outgoing", x);
  x = triangle_multiplication(scope / "triangle_multiplication_incoming", x, pair_mask, false,
                              pair(kIncoming));
  done("triangle_multiplication_incoming", x);
  x = transition(scope / "pair_transition", x);
  done("pair_transition", x);
  return x;
}

}  // namespace ff
