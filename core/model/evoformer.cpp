// The trunk's modules, written once for training and prediction: by_rows and map_rows
// (core/ops/views.h) work through a few rows at a time under NoGrad, and on everything at once
// where a tape records.
#include "core/model/evoformer.h"

#include "core/base/timeline.h"
#include "core/ops/ops.h"

namespace ff {
namespace {

Dtype statistics_type(const Var& x) {
  return x.value().dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
}

/// A layout's change is sent in so many parts, each as soon as it is made; more groups of channels,
/// since two of them are in memory at a time.
constexpr int64_t kParts = 4, kChannelGroups = 8;

/// bias[h, i, j] = LN(z[i, j]) . feat_2d_weights[:, h], with statistics' precision; x = LN(z) where
/// that is there.
Var bias_of(const Scope& scope, const char* norm, const Var& z, const Var& x = {}, int along = 1) {
  const Var w = scope["feat_2d_weights"];
  const Scope layer = scope / norm;
  if (fuses_pair_bias(z, w))
    return pair_bias(z, {layer["scale"], layer["offset"], w, {}}, along == 0);
  const Var b = view(linear_channels_first(x ? x : layer_norm_again(layer, z), w),
                     {w.size(1), z.size(0), z.size(1)});
  const Dtype dtype = statistics_type(z);
  return along == 0 ? transpose_cast(b, 1, 2, dtype) : cast(b, dtype);
}

/// The same of z's own rows, on its way to be joined with the others'.
Gathering pair_bias(const Scope& scope, const char* norm, const Var& z, const Dap& dap) {
  const Var own =
      map_rows(z, 1, [&](const Var& rows, int64_t) { return bias_of(scope, norm, rows); });
  return {dap, own, 1, z.size(1)};
}

/// f(rows, start) updates rows of x as by_rows has it. Under several ranks x [.., own rows of
/// `axis`, ..], an axis of n in all that moves to the front for f, becomes split along the other of
/// its two leading axes, part after part while the next is computed.
template <class F>
Var update_rows(const Dap& dap, const Var& x, int axis, int64_t n, F f) {
  const auto front = [axis](const Var& v) { return axis == 0 ? v : transpose(v, 0, 1); };
  if (dap.single()) return front(by_rows(front(x), f));
  Dims whole = x.shape();
  whole[axis] = n;
  const auto parts =
      parts_of_rows(dap, n, dap.parts(whole.product() * size_of(x.value().dtype()), kParts));
  const int64_t first = dap.mine(n).start;
  Relayout change(dap, whole, axis, 1 - axis, parts);
  for (const std::vector<Range>& part : parts) {
    const Range own = part[size_t(dap.rank())];
    const int64_t at = own.start - first;
    const Var rows = front(narrow(x, axis, at, own.count));
    change.begin(
        front(by_rows(rows, [&](const Var& r, int64_t start) { return f(r, at + start); })));
  }
  return change.await();
}

/// p [c, own rows, n]: all ranks' triangle products of a = side(0) and b = side(1), both [c, own
/// rows, n], by channels: every rank multiplies all rows of some channels. a is exchanged behind
/// the making of b, b in groups of channels behind the products.
template <class Side>
Var triangle_product_by_channels(const Dap& dap, bool outgoing, Side side) {
  Var a = side(0);
  if (dap.single()) return triangle_product(a, side(1), outgoing);
  const int64_t c = a.size(0), n = a.size(2);
  const int64_t groups =
      dap.parts(c * n * n * size_of(a.value().dtype()), std::clamp<int64_t>(c, 1, kChannelGroups));
  std::vector<std::vector<Range>> channels;
  std::vector<Relayout> as, bs;
  for (int64_t g = 0; g < groups; ++g) {
    const Range group = deal(c, groups, g);
    channels.push_back(dap.all(group.count));
    for (Range& r : channels.back()) r.start += group.start;
    as.emplace_back(dap, Dims{group.count, n, n}, 1, 0);
    bs.emplace_back(dap, Dims{group.count, n, n}, 1, 0);
  }
  const auto begin = [&](std::vector<Relayout>& parts, const Var& x, int64_t g) {
    const Range group = deal(c, groups, g);
    parts[size_t(g)].begin(narrow(x, 0, group.start, group.count));
  };
  for (int64_t g = 0; g < groups; ++g) begin(as, a, g);
  a = Var();
  Var b = side(1);
  Relayout back(dap, {c, n, n}, 0, 1, channels);
  begin(bs, b, 0);
  for (int64_t g = 0; g < groups; ++g) {
    if (g + 1 < groups)
      begin(bs, b, g + 1);
    else
      b = Var();
    const Var left = as[size_t(g)].await(), right = bs[size_t(g)].await();
    back.begin(triangle_product(left, right, outgoing));
  }
  return back.await();
}

/// Modules that drop, in the order of Alg. 6: a part of the masks' names.
enum Place : uint64_t { kRow, kOutgoing, kIncoming, kStarting, kEnding };

Var heads(const Var& x, const Var& w) {
  return view(linear(x, w), {x.size(0), x.size(1), w.size(1), w.size(2)});
}

}  // namespace

Var attention_add(const Scope& scope, const Var& residual, Normed x_q, const Var& x_m,
                  const Gathering& bias, const Tensor& mask, const Tensor& factors, int along) {
  const auto awaited = [&] {
    x_q = Var();  // as large as what the attention gives
    return bias.defined() ? bias.await() : Var();
  };
  Var o;
  if (scope.has("qkvg_w")) {
    const Var all =
        linear_joined(x_q, scope["qkvg_w"].value(), scope["qkvg_b"].value(),
                      {scope["query_w"], scope["key_w"], scope["value_w"], scope["gating_w"]},
                      {scope["gating_b"]});
    o = attention(all, awaited(), mask, along);
  } else {
    x_q = x_q.value();
    const Var &x = x_q.x, &from = x_m ? x_m : x, q = heads(x, scope["query_w"]),
              k = heads(from, scope["key_w"]), v = heads(from, scope["value_w"]);
    Var gate;
    if (scope.has("gating_w"))
      gate = view(linear(x, scope["gating_w"], scope["gating_b"]),
                  {q.size(0), q.size(1), v.size(2), v.size(3)});
    o = attention(q, k, v, gate, awaited(), mask, along);
  }
  const int64_t c = o.size(2) * o.size(3);
  const Var flat = view(o, {o.size(0), o.size(1), c}), w = scope["output_w"], b = scope["output_b"];
  return factors.defined() ? dropout_add(residual, linear(flat, view(w, {c, residual.size(2)}), b),
                                         factors, along)
                           : linear_add(residual, flat, w, b);
}

Var msa_row_attention(const Scope& scope, const Var& m, const Var& z, const Tensor& msa_mask,
                      const ModuleDropout& dropout, const Dap& dap) {
  const Span span("row attention");
  const Gathering bias = pair_bias(scope, "feat_2d_norm", z, dap);
  const Tensor factors = dropout.factors(m);
  const int64_t n_seq = msa_mask.size(0), first = dap.mine(n_seq).start;
  return update_rows(dap, m, 0, n_seq, [&](const Var& rows, int64_t start) {
    return attention_add(scope / "attention", rows, normed(scope / "query_norm", rows), {}, bias,
                         msa_mask.narrow(0, first + start, rows.size(0)), factors);
  });
}

Var msa_column_attention(const Scope& scope, const Var& m, const Tensor& msa_mask, const Dap& dap) {
  const Span span("column attention");
  const Var columns = transpose(m, 0, 1);
  const Range own = dap.mine(msa_mask.size(1));
  const Tensor mask = msa_mask.transpose(0, 1).narrow(0, own.start, own.count);
  if (at_once(columns)) {
    return attention_add(scope / "attention", m, normed(scope / "query_norm", m), {}, {}, mask, {},
                         0);
  }
  const Var updated = by_rows(columns, [&](const Var& rows, int64_t start) {
    return attention_add(scope / "attention", rows, normed(scope / "query_norm", rows), {}, {},
                         mask.narrow(0, start, rows.size(0)));
  });
  return transpose(updated, 0, 1);
}

Var msa_column_global_attention(const Scope& scope, const Var& m, const Tensor& msa_mask,
                                const Dap& dap) {
  const Span span("column global attention");
  const Scope a = scope / "attention";
  const Var columns = transpose(m, 0, 1);
  const Tensor mask = msa_mask.transpose(0, 1);
  const int64_t first = dap.mine(mask.size(0)).start;
  const Var query_w = a["query_w"];
  const Var updated = by_rows(columns, [&](const Var& rows, int64_t start) {
    const Tensor keep = mask.narrow(0, first + start, rows.size(0));
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
  const Span span("transition");
  const Scope first = scope / "transition1", second = scope / "transition2";
  return by_rows(x, [&](const Var& rows, int64_t) {
    const Normed x = normed(scope / "input_layer_norm", rows);
    const Var w1 = first["weights"], b1 = first["bias"], w2 = second["weights"],
              b2 = second["bias"];
    return transition(rows, x, w1, b1, w2, b2);
  });
}

MsaMask::MsaMask(const Tensor& mask_, Dtype dtype, const Dap& dap) : mask(mask_) {
  const Range own = dap.mine(mask.size(1));
  count = pair_count(mask.narrow(1, own.start, own.count), mask, dtype);
}

Var outer_product_mean(const Scope& scope, const Var& m, const Var& z, const MsaMask& msa_mask,
                       const Dap& dap) {
  const Span span("outer product mean");
  const Range own = dap.mine(z.size(1));
  const Tensor mask = msa_mask.mask.narrow(1, own.start, own.count);
  const Scope norm_of_m = scope / "layer_norm_input";
  const Scope left = scope / "left_projection", right = scope / "right_projection";
  const auto update = [&](const Vars& sides) {
    return outer_product_mean(z, sides, scope["output_w"], scope["output_b"], msa_mask.count);
  };
  const auto gathering = [&](const Var& side) { return Gathering(dap, side, 1, z.size(1)); };
  if (scope.has("sides_w")) {
    const Var sides = map_rows(m, 0, [&](const Var& rows, int64_t start) {
      const Normed x(rows, norm_of_m["scale"], norm_of_m["offset"]);
      return linear_joined(x, scope["sides_w"].value(), scope["sides_b"].value(),
                           {left["weights"], right["weights"]}, {left["bias"], right["bias"]},
                           mask.narrow(0, start, rows.size(0)));
    });
    if (dap.single()) return update({sides});
    return update({select(sides, 2, 0), gathering(select(sides, 2, 1)).await()});
  }
  const Var x = at_once(m) ? layer_norm(norm_of_m, m) : Var();  // of both sides
  const auto side = [&](const Scope& projection) {
    const auto project = [&](const Var& rows, int64_t) {
      return linear(projection, x ? x : layer_norm(norm_of_m, rows));
    };
    return scale_rows(map_rows(m, 0, project), mask);
  };
  const Gathering rights = gathering(side(right));
  const Var lefts = side(left);
  return update({lefts, rights.await()});
}

Var triangle_multiplication(const Scope& scope, const Var& z, const Tensor& pair_mask,
                            bool outgoing, const ModuleDropout& dropout, const Dap& dap) {
  const Span span(outgoing ? "triangle multiplication out" : "triangle multiplication in");
  const int64_t n = z.size(1);
  const Tensor factors = dropout.factors(z);
  const Scope norm = scope / "layer_norm_input";
  const bool fused = fuses_triangle(z, (scope / "output_projection")["weights"].size(0));
  const auto layer = [&](const Scope& of, const std::string& name) {
    const Scope linear = scope / name;
    return NormedLayer{of["scale"], of["offset"], linear["weights"], linear["bias"]};
  };
  const auto fused_sides = [&](std::initializer_list<const char*> sides) {
    std::vector<NormedLayer> layers;
    for (const std::string name : sides) {
      layers.push_back(layer(norm, name + "_projection"));
      layers.push_back(layer(norm, name + "_gate"));
    }
    return triangle_sides(z, pair_mask.contiguous(), layers);
  };
  const auto side = [&](int i) {
    const char* const which = i == 0 ? "left" : "right";
    if (fused) return fused_sides({which});
    const std::string name = which;
    const Scope proj = scope / (name + "_projection"), gate = scope / (name + "_gate");
    return map_rows(z, 1, [&](const Var& rows, int64_t start) {
      const Var x = layer_norm(norm, rows);
      const Var p = linear_channels_first(x, proj["weights"]),
                g = linear_channels_first(x, gate["weights"]);
      const Tensor keep = pair_mask.narrow(0, start, rows.size(0)).view({-1});
      return view(triangle_gate(p, proj["bias"], g, gate["bias"], keep),
                  {p.size(0), rows.size(0), n});
    });
  };
  const Var product = fused && dap.single()
                          ? triangle_product(fused_sides({"left", "right"}), outgoing)
                          : triangle_product_by_channels(dap, outgoing, side);
  const Scope center = scope / "center_layer_norm";
  if (fused)
    return triangle_end(z, product, factors, layer(center, "output_projection"),
                        layer(norm, "gating_linear"));
  return by_rows(z, [&](const Var& rows, int64_t start) {
    const Var p = layer_norm_channels_first(narrow(product, 1, start, rows.size(0)),
                                            center["scale"], center["offset"]);
    const Var gate = linear(scope / "gating_linear", layer_norm(norm, rows));
    return add_gated(rows, ff::dropout(linear(scope / "output_projection", p), factors), gate);
  });
}

Var triangle_attention(const Scope& scope, const Var& z, const Tensor& pair_mask, bool starting,
                       const ModuleDropout& dropout, const Dap& dap) {
  const Span span(starting ? "triangle attention start" : "triangle attention end");
  const Var zt = starting ? z : transpose(z, 0, 1);
  const Tensor factors = dropout.factors(zt);
  if (dap.single() && at_once(zt)) {
    const int along = starting ? 1 : 0;
    // The bias and the attention share the norm where neither makes it itself.
    Normed x = normed(scope / "query_norm", z);
    if (!fuses_pair_bias(z, scope["feat_2d_weights"])) x = x.value();
    const Gathering bias(dap, bias_of(scope, "query_norm", z, x.scale ? Var() : x.x, along), 1,
                         z.size(1));
    return attention_add(scope / "attention", z, std::move(x), {}, bias, pair_mask, factors, along);
  }
  const Gathering bias = pair_bias(scope, "query_norm", zt, dap);
  return update_rows(dap, z, starting ? 0 : 1, zt.size(1), [&](const Var& rows, int64_t start) {
    return attention_add(scope / "attention", rows, normed(scope / "query_norm", rows), {}, bias,
                         pair_mask.narrow(0, start, rows.size(0)), factors);
  });
}

Representations evoformer_block(const Scope& scope, const EvoformerConfig& config, bool extra,
                                Representations x, const MsaMask& msa_mask, const Tensor& pair_mask,
                                const Trace& trace, const DropoutStream& dropout, const Dap& dap) {
  const Tensor& mask = msa_mask.mask;
  const auto pair = [&](Place place) { return ModuleDropout{dropout, config.pair_dropout, place}; };
  const auto done = [&](const char* module, const Var& value) {
    (trace / module)("after_residual", value);
  };
  const auto outer = [&](const Var& columns) {
    x.z = outer_product_mean(scope / "outer_product_mean", columns, x.z, msa_mask, dap);
    done("outer_product_mean", x.z);
  };
  const Dims whole{mask.size(0), mask.size(1), x.m.size(2)};
  if (config.outer_product_mean_first) outer(relayout(dap, x.m, 0, 1, whole[0]));
  x.m = msa_row_attention(scope / "msa_row_attention_with_pair_bias", x.m, x.z, mask,
                          {dropout, config.msa_dropout, kRow}, dap);
  done("msa_row_attention_with_pair_bias", x.m);
  if (extra) {
    x.m = msa_column_global_attention(scope / "msa_column_global_attention", x.m, mask, dap);
    done("msa_column_global_attention", x.m);
  } else {
    x.m = msa_column_attention(scope / "msa_column_attention", x.m, mask, dap);
    done("msa_column_attention", x.m);
  }
  x.m = transition(scope / "msa_transition", x.m);
  done("msa_transition", x.m);
  if (!config.outer_product_mean_first) outer(x.m);
  Relayout back(dap, whole, 1, 0);  // under the pair stack
  back.begin(x.m);
  x.z = triangle_multiplication(scope / "triangle_multiplication_outgoing", x.z, pair_mask, true,
                                pair(kOutgoing), dap);
  done("triangle_multiplication_outgoing", x.z);
  x.z = triangle_multiplication(scope / "triangle_multiplication_incoming", x.z, pair_mask, false,
                                pair(kIncoming), dap);
  done("triangle_multiplication_incoming", x.z);
  x.z = triangle_attention(scope / "triangle_attention_starting_node", x.z, pair_mask, true,
                           pair(kStarting), dap);
  done("triangle_attention_starting_node", x.z);
  x.z = triangle_attention(scope / "triangle_attention_ending_node", x.z, pair_mask, false,
                           pair(kEnding), dap);
  done("triangle_attention_ending_node", x.z);
  x.z = transition(scope / "pair_transition", x.z);
  done("pair_transition", x.z);
  x.m = back.await();
  return x;
}

Var template_pair_block(const Scope& scope, const PairStackConfig& config, const Var& t,
                        const Tensor& pair_mask, const Trace& trace, const DropoutStream& dropout,
                        const Dap& dap) {
  const auto pair = [&](Place place) { return ModuleDropout{dropout, config.pair_dropout, place}; };
  const auto done = [&](const char* module, const Var& value) {
    (trace / module)("after_residual", value);
  };
  Var x = triangle_attention(scope / "triangle_attention_starting_node", t, pair_mask, true,
                             pair(kStarting), dap);
  done("triangle_attention_starting_node", x);
  x = triangle_attention(scope / "triangle_attention_ending_node", x, pair_mask, false,
                         pair(kEnding), dap);
  done("triangle_attention_ending_node", x);
  x = triangle_multiplication(scope / "triangle_multiplication_outgoing", x, pair_mask, true,
                              pair(kOutgoing), dap);
  done("triangle_multiplication_outgoing", x);
  x = triangle_multiplication(scope / "triangle_multiplication_incoming", x, pair_mask, false,
                              pair(kIncoming), dap);
  done("triangle_multiplication_incoming", x);
  x = transition(scope / "pair_transition", x);
  done("pair_transition", x);
  return x;
}

}  // namespace ff
