// The structure module. Jumper et al. 2021, Suppl. Alg. 20; its attention Alg. 22, its side chains
// Alg. 24 and Alg. 20 lines 11-14.
#include "core/model/structure.h"

#include "core/base/timeline.h"
#include "core/geometry/residue_constants.h"
#include "core/model/nn.h"
#include "core/ops/elementwise.h"
#include "core/ops/invariant_point_attention.h"
#include "core/ops/rigid_ops.h"

namespace ff {
namespace {

const Tensor& feature(const Arrays& features, const std::string& name, const Dims& shape) {
  const auto found = features.find(name);
  check_input(found != features.end(), "the batch has no feature '", name, "'");
  check_input(found->second.shape() == shape, "feature '", name, "' has shape ",
              found->second.shape().str(), ", expected ", shape.str());
  return found->second;
}

/// A feature of indices in [0, end), on the host.
Tensor indices(const Arrays& features, const std::string& name, const Dims& shape, int end) {
  const Tensor t = feature(features, name, shape).contiguous();
  check_input(t.dtype() == Dtype::i32, "feature '", name, "' is ", name_of(t.dtype()),
              ", expected i32");
  for (int64_t i = 0; i < t.numel(); ++i)
    check_input(t.data<int32_t>()[i] >= 0 && t.data<int32_t>()[i] < end, "feature '", name,
                "' holds ", t.data<int32_t>()[i], ", expected 0 to ", end - 1);
  return t;
}

AtomTables atom_tables(Device device) {
  const ResidueConstants& c = residue_constants();
  return {Tensor::of({21, 8, 4, 4}, &c.rigid_group_default_frame[0][0][0][0]).to(device),
          Tensor::of({21, 14}, &c.atom14_to_rigid_group[0][0]).to(device),
          Tensor::of({21, 14, 3}, &c.atom14_rigid_group_positions[0][0][0]).to(device),
          Tensor::of({21, 14}, &c.atom14_mask[0][0]).to(device)};
}

Tensor identity_affines(int64_t n, Dtype dtype) {
  const Tensor t = Tensor::zeros({n, 7});
  for (int64_t i = 0; i < n; ++i) t.data<float>()[7 * i] = 1;
  return t.to(dtype);
}

/// What every layer reads.
struct Shared {
  Dap dap;
  Var initial_act, z, bias;  // after the layer norms; the pair bias is the same in every layer
  Tensor mask, aatype;
  AtomTables tables;
};

Var attention(const Scope& scope, const Shared& shared, const Var& act, const Var& affine) {
  const Dap& dap = shared.dap;
  const Var own_act = shard(dap, act, 0), own_affine = shard(dap, affine, 0);
  const Range own = dap.mine(act.size(0));
  const Var out = invariant_point_attention(
      {.q_scalar = linear(scope / "q_scalar", own_act),
       .kv_scalar = linear(scope / "kv_scalar", act),
       .q_point = apply_rigids(own_affine, linear(scope / "q_point_local", own_act)),
       .kv_point = apply_rigids(affine, linear(scope / "kv_point_local", act)),
       .affine = own_affine,
       .bias = shared.bias,
       .z = shared.z,
       .point_weights = scope["trainable_point_weights"],
       .query_mask = shared.mask.narrow(0, own.start, own.count),
       .mask = shared.mask});
  return gather(dap, linear(scope / "output_projection", out), 0, act.size(0));
}

/// The k-th layer of one name: Haiku calls them x, x_1, x_2, ...
Scope numbered(const Scope& scope, const char* name, int64_t k) {
  return scope / (k ? cat(name, "_", k) : std::string(name));
}

Var transition(const Scope& scope, int64_t num_layer, const Var& act) {
  Var x = act;
  for (int64_t i = 0; i < num_layer; ++i)
    x = linear(numbered(scope, "transition", i), x,
               i + 1 < num_layer ? Activation::kRelu : Activation::kNone);
  return add(x, act);
}

/// Torsions, frames and atoms. affine in angstrom.
FoldLayer side_chains(const Scope& scope, const StructureConfig& config, const Shared& shared,
                      const Var& act, const Var& affine) {
  Var x = add(linear(scope / "input_projection", relu(act)),
              linear(scope / "input_projection_1", relu(shared.initial_act)));
  for (int64_t i = 0; i < config.sidechain_num_residual_block; ++i) {
    const Var hidden = linear(numbered(scope, "resblock1", i), relu(x), Activation::kRelu);
    x = add(linear(numbered(scope, "resblock2", i), hidden), x);
  }
  FoldLayer layer;
  layer.affine = affine;
  layer.unnormalized_angles = linear(scope / "unnormalized_angles", relu(x));
  layer.angles = normalize_angles(layer.unnormalized_angles);
  layer.frames = torsions_to_frames(affine, layer.angles, shared.aatype, shared.tables);
  layer.atoms = frames_to_atom14(layer.frames, shared.aatype, shared.tables);
  return layer;
}

/// One part of every layer, the layers along a new leading axis.
Tensor stack(const Fold& f, Var FoldLayer::*part, const Dims& shape) {
  Dims all{int64_t(f.layers.size())};
  for (int64_t d : shape) all.push_back(d);
  const Tensor t = Tensor::empty(all, f.act.value().dtype(), f.act.value().device());
  for (size_t i = 0; i < f.layers.size(); ++i)
    t.select(0, int64_t(i)).copy_from((f.layers[i].*part).value().view(shape));
  return t;
}

}  // namespace

Fold fold(const Scope& scope, const StructureConfig& config, const Var& single, const Var& pair,
          const Arrays& features, const Trace& trace, const DropoutStream& stream, const Dap& dap) {
  const Span span("structure module");
  const int64_t n = single.size(0);
  const Dtype dtype = single.value().dtype();
  const Device device = single.value().device();
  check(config.num_layer > 0, "a structure module without layers");
  const Trace outer = trace / "structure_module";
  Shared shared;
  shared.dap = dap;
  shared.mask = feature(features, "seq_mask", {n}).to(dtype).contiguous().to(device);
  shared.aatype = indices(features, "aatype", {n}, kUnknownRestype + 1).to(device);
  shared.tables = atom_tables(device);
  shared.initial_act = layer_norm(scope / "single_layer_norm", single);
  outer("single_layer_norm", shared.initial_act);
  Var act = linear(scope / "initial_projection", shared.initial_act);
  outer("initial_projection", act);
  shared.z = layer_norm(scope / "pair_layer_norm", pair);
  outer("pair_layer_norm", shared.z);
  const Scope layer = scope / "fold_iteration", ipa = layer / "invariant_point_attention";
  shared.bias = linear(ipa / "attention_2d", shared.z);

  // Alg. 20 lines 6 and 9: of the sum with what came in, before its norm.
  const auto drop = [&](const Var& x, int64_t l, uint64_t place) {
    DropoutStream at = stream;
    at.block = uint64_t(l);
    return dropout(x, at.factors(config.dropout, place, n, x.size(1), dtype, device));
  };

  Var affine(identity_affines(n, dtype).to(device));
  Fold out;
  for (int64_t l = 0; l < config.num_layer; ++l) {
    const Trace t = trace / cat("fold", l), sidechain = t / "sidechain";
    t("input_act", act);
    t("input_affine", affine);
    const Var update = attention(ipa, shared, act, affine);
    t("ipa_output", update);
    act = layer_norm(layer / "attention_layer_norm", drop(add(update, act), l, 0));
    t("attention_layer_norm", act);
    act = layer_norm(layer / "transition_layer_norm",
                     drop(transition(layer, config.num_layer_in_transition, act), l, 1));
    t("transition_layer_norm", act);
    const Var step = linear(layer / "affine_update", act);
    t("affine_update", step);
    affine = update_backbone(affine, step);
    t("output_act", act);
    t("output_affine", affine);
    out.layers.push_back(side_chains(layer / "rigid_sidechain", config, shared, act,
                                     scale_translation(affine, config.position_scale)));
    const FoldLayer& now = out.layers.back();
    sidechain("angles_sin_cos", now.angles);
    sidechain("unnormalized_angles_sin_cos", Var(now.unnormalized_angles.value().view({n, 7, 2})));
    sidechain("frames", now.frames);
    sidechain("atom_pos", now.atoms);
    affine = stop_rotation_gradient(affine);
  }
  out.act = act;
  return out;
}

Arrays structure_module(const Scope& scope, const StructureConfig& config, const Var& single,
                        const Var& pair, const Arrays& features, const Trace& trace,
                        const DropoutStream& dropout, const Dap& dap) {
  const int64_t n = single.size(0);
  const Tensor index = indices(features, "residx_atom37_to_atom14", {n, kAtom37}, kAtom14);
  const Tensor mask37 =
      feature(features, "atom37_atom_exists", {n, kAtom37}).to(Dtype::f32).contiguous();
  const Tensor& mask14 = feature(features, "atom14_atom_exists", {n, kAtom14});
  const Fold f = fold(scope, config, single, pair, features, trace, dropout, dap);
  const FoldLayer& last = f.layers.back();
  Arrays out;
  out["representations/structure_module"] = f.act.value();
  const std::string path = "structure_module/", side = path + "sidechains/";
  out[path + "traj"] = stack(f, &FoldLayer::affine, {n, 7});
  out[side + "angles_sin_cos"] = stack(f, &FoldLayer::angles, {n, 7, 2});
  out[side + "unnormalized_angles_sin_cos"] = stack(f, &FoldLayer::unnormalized_angles, {n, 7, 2});
  out[side + "frames"] = stack(f, &FoldLayer::frames, {n, kRigidGroups, 12});
  out[side + "atom_pos"] = stack(f, &FoldLayer::atoms, {n, kAtom14, 3});
  out[path + "final_atom14_positions"] = last.atoms.value();
  out[path + "final_atom14_mask"] = mask14;
  const Device device = last.atoms.value().device();
  out[path + "final_atom_positions"] =
      atom14_to_atom37(last.atoms, index.to(device), mask37.to(device)).value();
  out[path + "final_atom_mask"] = mask37;
  out[path + "final_affines"] = last.affine.value();
  return out;
}

}  // namespace ff
