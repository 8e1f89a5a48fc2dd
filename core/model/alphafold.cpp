// AlphaFold 2, whole. Jumper et al. 2021, Suppl. Alg. 2; embedders Alg. 3-5, 16, 17, 32.
#include "core/model/alphafold.h"

#include <cmath>

#include "core/base/timeline.h"
#include "core/geometry/atoms.h"
#include "core/geometry/residue_constants.h"
#include "core/model/evoformer.h"
#include "core/model/heads.h"
#include "core/model/structure.h"
#include "core/model/template_features.h"
#include "core/model/trace.h"
#include "core/ops/kernels.h"
#include "core/ops/ops.h"

namespace ff {
namespace {

constexpr const char* kRoot = "alphafold/alphafold_iteration";

const Tensor& feature(const Arrays& features, const std::string& name) {
  const auto found = features.find(name);
  check_input(found != features.end(), "the batch has no feature '", name, "'");
  return found->second;
}

/// What one recycle hands to the next; undefined in the first.
struct Recycled {
  Var first_row;     // [n_res, c_m]
  Var pair;          // [own rows, n_res, c_z]
  Tensor positions;  // [n_res, 37, 3] f32, where the network is
};

/// pair and msa: a rank's own rows.
struct Trunk {
  Var single, pair, msa, first_row;
  MsaRows msa_rows;
};

/// A part of the names of dropout's masks.
enum DropoutStack : uint64_t { kEvoformer, kExtraMsa, kTemplates, kStructure };

/// Everything that the passes over one target share.
struct Pass {
  const ModelConfig& config;
  Scope scope;  // .../evoformer
  Dtype dtype;
  Device device;
  Trace trace;
  std::function<void(const std::string&)> step;  // progress: before each unit of work
  Dap dap;
  DropoutStream dropout = {};
  BlockDone block_done = {};
  int64_t recompute = kEveryBlock;

  /// A feature where the network is; what is computed of features on the host goes the same way.
  Tensor there(const Tensor& x) const { return x.to(device); }

  /// The masks' name in block `b` of a stack.
  DropoutStream dropout_at(DropoutStack stack, int64_t b) const {
    DropoutStream at = dropout;
    at.stack = stack;
    at.block = uint64_t(b);
    return at;
  }

  /// fn(inputs), recorded whole from block `b` of the trunk on, else as a checkpoint.
  Vars run(int64_t b, const std::function<Vars(const Vars&)>& fn, const Vars& inputs) const {
    return b < recompute ? checkpoint(fn, inputs) : fn(inputs);
  }
};

/// A linear layer of a feature.
Var dense(const Scope& scope, const Tensor& x, const Pass& p) {
  return linear(scope, Var(p.there(x).to(p.dtype)));
}

/// mask[i] mask[j] of the rows i.
Tensor outer(const Tensor& mask, Range rows) {
  const int64_t n = mask.numel();
  const Tensor m = mask.to(Dtype::f32).contiguous(), out = Tensor::empty({rows.count, n});
  const float* const from = m.data<float>();
  float* const to = out.data<float>();
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t j = 0; j < n; ++j) to[i * n + j] = from[rows.start + i] * from[j];
  return out;
}

/// The rows of the alignment, without those of templates.
Var embed_msa(const Pass& p, const Arrays& f, const Recycled& prev, Range rows) {
  const Span span("input embedding");
  Var m = dense(p.scope / "preprocess_msa",
                feature(f, "msa_feat").narrow(0, rows.start, rows.count), p);
  m = add(m, repeat(dense(p.scope / "preprocess_1d", feature(f, "target_feat"), p), m.size(0)));
  if (!p.config.recycle_features || !p.dap.holds_first(rows)) return m;
  const Scope norm = p.scope / "prev_msa_first_row_norm";
  // The norm of the zeros that stand in for the first recycle is its offset.
  const Var update = prev.first_row ? layer_norm(norm, prev.first_row)
                                    : repeat(cast(norm["offset"], p.dtype), m.size(1));
  const Var first = add(narrow(m, 0, 0, 1), view(update, {1, m.size(1), m.size(2)}));
  return NoGrad::active() ? m : concat_rows(first, narrow(m, 0, 1, m.size(0) - 1));
}

Tensor squared_breaks(const DistogramBins& bins) {
  const Tensor t = Tensor::empty({bins.num_bins});
  for (int64_t i = 0; i < bins.num_bins; ++i) {
    const float edge =
        float(bins.min_bin + (bins.max_bin - bins.min_bin) * double(i) / double(bins.num_bins - 1));
    t.data<float>()[i] = edge * edge;
  }
  return t;
}

/// CB, or CA of glycine, without taking the positions off their device.
Tensor recycled_beta(const Pass& p, const Tensor& aatype, const Tensor& positions) {
  const int64_t n = aatype.numel();
  const Tensor has_beta = Tensor::empty({n}), none = Tensor::empty({n});
  for (int64_t i = 0; i < n; ++i) {
    has_beta.data<float>()[i] = aatype.select(0, i).item() != kGly;
    none.data<float>()[i] = 1 - has_beta.data<float>()[i];
  }
  const NoGrad no_grad;
  const Var alpha = scale_rows(positions.select(1, kAtomCa).clone(), p.there(none));
  return add(scale_rows(positions.select(1, kAtomCb).clone(), p.there(has_beta)), alpha).value();
}

Var embed_pair(const Pass& p, const Arrays& f, const Recycled& prev) {
  const Span span("input embedding");
  const Tensor& target = feature(f, "target_feat");
  const Scope relpos = p.scope / "pair_activiations", dgram = p.scope / "prev_pos_linear";
  const int64_t c_z = p.config.pair_channel;
  Var table = p.config.max_relative_feature ? relpos["weights"]
                                            : Var(Tensor::zeros({1, c_z}, p.dtype, p.device));
  const int64_t rows = table.size(0);
  if (NoGrad::active()) table = Var(table.value().clone());  // add() works in place then
  if (p.config.max_relative_feature)
    table = add(table, repeat(cast(relpos["bias"], p.dtype), rows));
  Var bins(Tensor::zeros({1, c_z}, p.dtype, p.device));
  Tensor beta, breaks = Tensor::zeros({1});
  if (p.config.recycle_pos) {
    table = add(table, repeat(cast(dgram["bias"], p.dtype), rows));
    bins = dgram["weights"];
    breaks = squared_breaks(p.config.prev_pos);
    if (prev.positions.defined()) beta = recycled_beta(p, feature(f, "aatype"), prev.positions);
  }
  const Range own = p.dap.mine(target.size(0));
  Var z =
      pair_embed(dense(p.scope / "left_single", target.narrow(0, own.start, own.count), p),
                 dense(p.scope / "right_single", target, p), p.there(feature(f, "residue_index")),
                 table, beta, bins, p.there(breaks), own.start);
  if (!p.config.recycle_features) return z;
  const Scope norm = p.scope / "prev_pair_norm";
  const Var offset = prev.pair ? Var() : repeat(cast(norm["offset"], p.dtype), z.size(1));
  return by_rows(z, [&](const Var& part, int64_t start) {
    const int64_t n = part.size(0);
    return add(part,
               prev.pair ? layer_norm(norm, narrow(prev.pair, 0, start, n)) : repeat(offset, n));
  });
}

/// z + what the templates say of every pair. Alg. 16, 17.
Var embed_templates(const Pass& p, const Arrays& f, const Var& z, const Tensor& pair_mask) {
  const Span span("templates");
  const TemplateConfig& config = p.config.templates;
  const Tensor template_mask = feature(f, "template_mask").to(Dtype::f32);
  const int64_t n_templ = template_mask.numel(), n = z.size(1);
  const Range own = p.dap.mine(n);
  float any = 0;
  for (int64_t t = 0; t < n_templ; ++t) any += template_mask.data<float>()[t];
  if (any <= 0) return z;  // AlphaFold multiplies the embedding by zero then
  const Scope scope = p.scope / "template_embedding", one = scope / "single_template_embedding";
  const int64_t c_t = config.pair_stack.triangle_attention_ending_node.value_dim;
  // [own rows, n_res, n_templ, c_t]: all templates of a pair beside each other, as the attention
  // reads them. With a tape they are put together at the end.
  Tensor all;
  Vars parts;
  for (int64_t t = 0; t < n_templ; ++t) {
    p.step(cat("template ", t + 1));
    const Trace trace = p.trace / cat("template", t);
    const Var x = p.run(0,
                        [=, &config, pass = p](const Vars&) {
                          const Tensor pair_features = template_pair_features(
                              f, t, config, own.start, own.count, pass.device);
                          trace("embedding2d_input_features", pair_features);
                          Var x = dense(one / "embedding2d", pair_features, pass);
                          trace("embedding2d_output", x);
                          for (int64_t b = 0; b < config.num_block; ++b)
                            x = template_pair_block(
                                (one / "template_pair_stack" / "__layer_stack_no_state").block(b),
                                config.pair_stack, x, pair_mask, trace / cat("pair_block", b),
                                pass.dropout_at(kTemplates, t * config.num_block + b), pass.dap);
                          return Vars{layer_norm(one / "output_layer_norm", x)};
                        },
                        {})[0];
    trace("single_template_embedding_output", x);
    if (!NoGrad::active()) {
      parts.push_back(x);
      continue;
    }
    if (!all.defined()) all = Tensor::empty({own.count, n, n_templ, c_t}, p.dtype, p.device);
    all.select(2, t).copy_from(x.value());
  }
  const Var every = parts.empty() ? Var(all) : stack(parts, 2);
  const Tensor mask = p.there(template_mask).unsqueeze(0);
  return by_rows(z, [&](const Var& rows, int64_t start) {
    const int64_t pairs = rows.size(0) * n;
    const Var query = view(rows, {pairs, 1, z.size(2)});
    const Var templates = view(narrow(every, 0, start, rows.size(0)), {pairs, n_templ, c_t});
    return view(
        attention_add(scope / "attention", query, query, templates, {}, mask.expand(0, pairs)),
        rows.shape());
  });
}

Var embed_extra_msa(const Pass& p, const Arrays& f) {
  const Span span("input embedding");
  const Tensor msa = feature(f, "extra_msa").contiguous();
  const Tensor has = feature(f, "extra_has_deletion").to(Dtype::f32).contiguous();
  const Tensor value = feature(f, "extra_deletion_value").to(Dtype::f32).contiguous();
  const int64_t n = msa.size(1), c = p.config.extra_msa_channel;
  const Range own = p.dap.mine(msa.size(0));
  const Scope scope = p.scope / "extra_msa_activations";
  for (const int32_t letter : std::span(msa.data<int32_t>() + own.start * n, size_t(own.count * n)))
    check_input(letter >= 0 && letter < 23, "extra_msa holds ", letter,
                "; residue types are 0 to 22");
  const auto rows_of = [&](int64_t first, int64_t rows) {
    const Tensor x = Tensor::empty({rows, n, 25}, p.dtype, p.device);
    const auto part = [&](const Tensor& t) { return p.there(t.narrow(0, first, rows)); };
    kernels(p.device).extra_msa_features(part(msa), part(has), part(value), x);
    return linear(scope, Var(x));
  };
  // On a GPU in one piece, or in few.
  const int64_t step =
      std::max<int64_t>(1, (p.device.kind == Device::cpu ? 4096 : int64_t(1) << 18) / n);
  if (!NoGrad::active() || step >= own.count) return rows_of(own.start, own.count);
  const Tensor e = Tensor::empty({own.count, n, c}, p.dtype, p.device);
  for (int64_t first = 0; first < own.count; first += step) {
    const int64_t rows = std::min(step, own.count - first);
    e.narrow(0, first, rows).copy_from(rows_of(own.start + first, rows).value());
  }
  return e;
}

/// Block b of a stack of the trunk.
Representations block(const Pass& p, DropoutStack stack, int64_t b, const Representations& x,
                      const MsaMask& mask, const Tensor& pair_mask) {
  const bool extra = stack == kExtraMsa;
  const char* const name = extra ? "extra_msa_stack" : "evoformer_iteration";
  const Trace trace = p.trace / cat(extra ? "extra_block" : "evoformer_block", b);
  p.step(cat(extra ? "extra MSA block " : "Evoformer block ", b + 1));
  (trace / "input")("msa", x.m);
  (trace / "input")("pair", x.z);
  const Scope scope = (p.scope / name).block(b);
  if (p.block_done)
    Tape::on_backward(
        [done = p.block_done, path = cat(kRoot, "/evoformer/", name), b] { done(path, b); });
  const Vars out = p.run(extra ? b : p.config.extra_msa_stack_num_block + b,
                         [=, &config = p.config.evoformer, dropout = p.dropout_at(stack, b),
                          dap = p.dap](const Vars& in) {
                           const Representations y =
                               evoformer_block(scope, config, extra, {in[0], in[1]}, mask,
                                               pair_mask, trace, dropout, dap);
                           return Vars{y.m, y.z};
                         },
                         {x.m, x.z});
  return {out[0], out[1]};
}

/// m's own rows and the whole mask, with a row for each template that has a torsion angle. Alg. 2
/// lines 7-8.
void append_template_rows(const Pass& p, const TemplateTorsions& torsions, Range own, Var& m,
                          Tensor& mask) {
  p.trace("embed/template_torsion_features", torsions.features);
  const Tensor features = torsions.features.narrow(0, own.start, own.count);
  const Var hidden = linear(p.scope / "template_single_embedding",
                            Var(p.there(features).to(p.dtype)), Activation::kRelu);
  const Var rows = linear(p.scope / "template_projection", hidden);
  p.trace("embed/template_projection", rows);
  m = concat_rows(m, rows);
  mask = concat_rows(Var(mask), Var(p.there(torsions.mask.to(mask.dtype())))).value();
}

Trunk run_trunk(const Pass& p, const Arrays& f, const Recycled& prev) {
  const ModelConfig& config = p.config;
  const Dap& dap = p.dap;
  const Tensor& seq_mask = feature(f, "seq_mask");
  const Tensor pair_mask = p.there(outer(seq_mask, dap.mine(seq_mask.numel())));
  Tensor mask = p.there(feature(f, "msa_mask").to(Dtype::f32));
  TemplateTorsions torsions;
  MsaRows rows{mask.size(0), mask.size(0)};
  if (config.templates.enabled && config.templates.embed_torsion_angles) {
    torsions = template_torsion_features(f);
    rows.total += torsions.mask.size(0);
  }
  Var z = embed_pair(p, f, prev);
  p.trace("embed/pair_before_templates", z);
  if (config.templates.enabled) z = embed_templates(p, f, z, pair_mask);

  if (config.extra_msa_stack_num_block > 0) {
    Representations extra{embed_extra_msa(p, f), z};
    z = Var();
    p.trace("embed/extra_msa_activations", extra.m);
    const MsaMask extra_mask(p.there(feature(f, "extra_msa_mask").to(Dtype::f32)), p.dtype, dap);
    for (int64_t b = 0; b < config.extra_msa_stack_num_block; ++b)
      extra = block(p, kExtraMsa, b, extra, extra_mask, pair_mask);
    z = extra.z;
  }

  // The alignment last: it is in memory, and on its way to a GPU, only when its stack begins.
  Var m = embed_msa(p, f, prev, rows.aligned(dap, dap.rank()));
  if (torsions.mask.defined()) append_template_rows(p, torsions, rows.templates(dap), m, mask);
  Representations x{m, z};
  m = z = Var();
  const MsaMask msa_mask(mask, p.dtype, dap);
  for (int64_t b = 0; b < config.evoformer_num_block; ++b)
    x = block(p, kEvoformer, b, x, msa_mask, pair_mask);
  const Range aligned = rows.aligned(dap, dap.rank());
  const Var own_first = narrow(x.m, 0, 0, dap.holds_first(aligned) ? 1 : 0);
  const Var first_row = select(broadcast(dap, own_first, 1), 0, 0);
  const Var single = linear(p.scope / "single_activations", first_row);
  p.trace("embed/single_activations", single);
  return {single, x.z, narrow(x.m, 0, 0, aligned.count), Var(first_row.value().clone()), rows};
}

/// Root mean square change of all distances between CA atoms, in angstrom; AlphaFold-Multimer's
/// criterion.
double distance_change(const Tensor& a, const Tensor& b, const Tensor& seq_mask) {
  const int64_t n = a.size(0);
  const Tensor pa = a.to(Dtype::f32).select(1, kAtomCa).contiguous(),
               pb = b.to(Dtype::f32).select(1, kAtomCa).contiguous();
  const Tensor mask = seq_mask.to(Dtype::f32).contiguous();
  const auto distance = [](const float* x, int64_t i, int64_t j) {
    double s = 0;
    for (int k = 0; k < 3; ++k) s += std::pow(double(x[3 * i + k]) - x[3 * j + k], 2);
    return std::sqrt(s);
  };
  double total = 0, count = 1e-10;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const double w = mask.data<float>()[i] * mask.data<float>()[j];
      total += w * std::pow(distance(pa.data<float>(), i, j) - distance(pb.data<float>(), i, j), 2);
      count += w;
    }
  return std::sqrt(total / count + 1e-8);
}

void scale(const Var& x, double factor) {
  const Tensor all = Tensor::empty(Dims(std::span(x.shape().begin(), size_t(x.rank() - 1))));
  for (int64_t i = 0; i < all.numel(); ++i) all.data<float>()[i] = float(factor);
  scale_rows(x, all.to(x.value().device()));
}

}  // namespace

AlphaFold::AlphaFold(ModelConfig config, Params params, Dtype activations, Dap dap)
    : config_(std::move(config)),
      params_(params.in_precision(activations)),
      dtype_(activations),
      dap_(std::move(dap)) {}

Arrays AlphaFold::run(const FeatureSource& features, const RunOptions& options) const {
  const NoGrad no_grad;
  check(options.num_ensemble >= 1 && options.num_recycle >= 0,
        "run needs at least one ensemble member");
  const Dtype head_type = dtype_ == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Scope root(params_, kRoot);
  const int64_t cycles = options.num_recycle + 1;
  const int64_t steps_per_member = config_.extra_msa_stack_num_block + config_.evoformer_num_block;
  const double total_steps = double(cycles * (options.num_ensemble * steps_per_member + 1));

  // A pass between the first and the last is a CUDA graph from the second such one on: it is
  // recorded while the GPU is at the first pass, and there must be room for another's memory beside
  // it.
  const Device device = params_.device();
  bool graphs = options.graphs && !options.trace && dap_.single() && options.num_recycle > 2 &&
                options.recycle_early_stop_tolerance < 0 && Recording::possible(device);
  std::optional<Recording> recording;
  Recycled prev;
  Trunk trunk;
  Var single, pair;
  Arrays out;
  int64_t cycle = 0;
  for (;; ++cycle) {
    const Trace trace = Trace(options.trace) / cat("cycle", cycle);
    int64_t steps = cycle * (options.num_ensemble * steps_per_member + 1);
    const auto step = [&](const std::string& what) {
      if (!options.progress || Recording::ongoing(device)) return;
      options.progress(cat("recycle ", cycle, ", ", what), double(steps) / total_steps);
      if (!what.starts_with("template")) ++steps;
    };
    const Pass pass{config_, root / "evoformer", dtype_, device, trace, step, dap_};

    std::vector<Arrays> slices;
    for (int64_t member = 0; member < options.num_ensemble; ++member)
      slices.push_back(features(cycle * options.num_ensemble + member));
    const auto iterate = [&] {
      trunk = run_trunk(pass, slices[0], prev);
      for (size_t member = 1; member < slices.size(); ++member) {
        const Trunk more = run_trunk(pass, slices[member], prev);
        add(trunk.single, more.single);
        add(trunk.pair, more.pair);
        add(trunk.first_row, more.first_row);
      }
      if (options.num_ensemble > 1)
        for (const Var& x : {trunk.single, trunk.pair, trunk.first_row})
          scale(x, 1.0 / double(options.num_ensemble));

      step("structure module");
      single = cast(trunk.single, head_type);
      pair = cast(trunk.pair, head_type);
      out = structure_module(root / "structure_module", config_.structure, single, pair, slices[0],
                             trace, {}, dap_);
    };
    const auto forget = [&] {
      trunk = {};
      single = pair = {};
      out.clear();
    };
    if (graphs && cycle > 0 && cycle < options.num_recycle) {
      const auto onwards = [&] {
        iterate();
        prev.first_row.value().copy_from(trunk.first_row.value());
        prev.pair.value().copy_from(trunk.pair.value());
        prev.positions.copy_from(out.at("structure_module/final_atom_positions"));
        forget();
      };
      step("as one graph");
      if (!recording) {
        const MemoryCount used = memory_count(device.kind);
        graphs = free_memory(device) > 2 * (used.peak - used.current);
        prev = {Var(prev.first_row.value().clone()), Var(prev.pair.value().clone()),
                prev.positions.clone()};
      }
      try {
        if (graphs && recording && recording->follow(onwards)) continue;
        if (graphs && !recording) {
          recording.emplace(device, onwards);
          recording->play();
          continue;
        }
      } catch (const CannotRecord&) {
      }
      graphs = false;
      forget();
    }
    iterate();
    const Tensor positions = out.at("structure_module/final_atom_positions");
    const bool settled =
        options.recycle_early_stop_tolerance >= 0 && cycle > 0 &&
        distance_change(prev.positions.to(Device{}), positions.to(Device{}),
                        feature(slices[0], "seq_mask")) < options.recycle_early_stop_tolerance;
    if (cycle < options.num_recycle && !settled) {
      prev = {trunk.first_row, trunk.pair, positions.to(Dtype::f32)};
      forget();  // the next pass needs the memory
      continue;
    }

    out["representations/single"] = single.value();
    out["representations/pair"] = pair.value();
    out["representations/msa"] = cast(trunk.msa, head_type).value();
    out["representations/msa_first_row"] = cast(trunk.first_row, head_type).value();
    run_heads(root, config_.heads, out, dap_);
    join_rows(trunk.msa_rows, options, out);
    const int32_t recycles = int32_t(cycle);
    out["num_recycles"] = Tensor::of<int32_t>({}, &recycles);
    for (auto& [name, value] : out)
      if (name != "predicted_aligned_error/logits") value = value.to(Device{});
    return out;
  }
}

Outputs AlphaFold::forward(const FeatureSource& features, int64_t num_recycle,
                           DropoutStream dropout, const BlockDone& done, int64_t recompute) const {
  check(num_recycle >= 0, "forward with ", num_recycle, " recycles");
  const Dtype head_type = dtype_ == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Scope root(params_, kRoot);
  Pass pass{config_, root / "evoformer",        dtype_, params_.device(),
            Trace(), [](const std::string&) {}, dap_,   dropout};
  Recycled prev;
  for (int64_t cycle = 0; cycle < num_recycle; ++cycle) {
    const NoGrad no_grad;
    pass.dropout.recycle = uint64_t(cycle);
    const Arrays f = features(cycle);
    const Trunk trunk = run_trunk(pass, f, prev);
    const Arrays out = structure_module(root / "structure_module", config_.structure,
                                        cast(trunk.single, head_type), cast(trunk.pair, head_type),
                                        f, Trace(), pass.dropout_at(kStructure, 0), dap_);
    prev = {trunk.first_row, trunk.pair,
            out.at("structure_module/final_atom_positions").to(Dtype::f32)};
  }
  pass.dropout.recycle = uint64_t(num_recycle);
  pass.block_done = done;
  pass.recompute = recompute;
  const Arrays f = features(num_recycle);
  Trunk trunk = run_trunk(pass, f, prev);
  for (Var* x : {&trunk.single, &trunk.pair, &trunk.msa}) *x = cast(*x, head_type);
  Outputs out;
  out.fold = fold(root / "structure_module", config_.structure, trunk.single, trunk.pair, f,
                  Trace(), pass.dropout_at(kStructure, 0), dap_);
  out.logits =
      head_logits(root, config_.heads, trunk.single, trunk.pair, trunk.msa, out.fold.act, dap_);
  out.dap = dap_;
  out.msa_rows = trunk.msa_rows;
  return out;
}

void AlphaFold::join_rows(const MsaRows& rows, const RunOptions& options, Arrays& out) const {
  std::vector<Range> aligned;
  for (int r = 0; r < dap_.size(); ++r) aligned.push_back(rows.aligned(dap_, r));
  const int64_t n = out.at("structure_module/final_atom_mask").size(0);
  const std::pair<const char*, bool> kSplit[] = {{"representations/pair", false},
                                                 {"distogram/logits", false},
                                                 {"representations/msa", true},
                                                 {"masked_msa/logits", true}};
  for (const auto& [name, by_sequence] : kSplit) {
    const auto found = out.find(name);
    if (found == out.end()) continue;
    if (!options.keep(name))
      out.erase(found);
    else if (!dap_.single())
      found->second =
          Gathering(dap_, found->second.contiguous(), 0, by_sequence ? aligned : dap_.all(n))
              .await()
              .value();
  }
}

}  // namespace ff
