// Parameters by DeepMind's names ("alphafold/alphafold_iteration/...//weights"); tensors of
// repeated blocks are stacked on a leading axis and block i reads slice i.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/autograd/tape.h"
#include "core/model/config.h"
#include "core/tensor/arrays.h"

namespace ff {

/// Every parameter that a configuration has: its name in DeepMind's files, shape and how the
/// supplement (1.11.4) initialises it.
struct ParamSpec {
  enum class Init { kZeros, kOnes, kLinear, kRelu, kGlorot, kNormal, kPointWeights };
  std::string name;
  Dims shape;
  Init init = Init::kLinear;
  int64_t fan_in = 1, fan_out = 1;  ///< of one block
};
std::vector<ParamSpec> param_specs(const ModelConfig& config);

/// Fresh parameters, f32: truncated normal (LeCun; He before a relu), Glorot uniform for q, k and
/// v, zeros for what ends a residual branch, gates open, point weights softplus^-1(1)
/// (Suppl. 1.11.4 and AlphaFold's code). Depends on the seed and each parameter's name and shape
/// alone.
Arrays initial_params(const ModelConfig& config, uint64_t seed);

class Params {
 public:
  /// Takes the arrays that `config` needs. Throws Exit::kInput listing all missing, unused and
  /// mis-shaped keys at once (`file` names their origin); loads nothing unless it can load all.
  Params(const ModelConfig& config, Arrays arrays, const std::string& file);

  const Var& at(const std::string& name) const;
  bool has(const std::string& name) const { return vars_.count(name) > 0; }
  /// Asks for every parameter's gradient.
  void want_grads();
  /// The gradients summed so far, by name; zeros where nothing was. They start anew.
  Arrays take_grads();
  /// The same parameters for activations of another precision: all in f64, or the trunk's matrices
  /// in bf16 and everything else in f32. Copies of now, whose gradients are summed in these
  /// parameters' own precision and place. For bf16 on a GPU with what one product wants together:
  /// self-attention's projections [.., c, 4, n_head, c_head] as "qkvg_w", of which "query_w" ...
  /// are views, and their biases as "qkvg_b"; the outer product mean's as "sides_w" [.., c, 2, n]
  /// and "sides_b".
  Params in_precision(Dtype activations) const;
  /// The same parameters on another device; before their gradients are asked for.
  Params on(Device device) const;
  /// Where they are.
  Device device() const { return vars_.begin()->second.value().device(); }
  const std::map<std::string, Var>& all() const { return vars_; }

 private:
  Params() = default;
  /// What in_precision joins, in bf16.
  void join_projections(const Params& given);
  /// Layers beside each other: their `weights`, whose outputs have so many axes, and the last ones'
  /// `biases`, all of them at path + .., as path + name + "_w" and "_b"; nothing where a layer is
  /// absent or of another shape.
  void join(const Params& given, const std::string& path, const std::string& name,
            const std::vector<std::string>& weights, const std::vector<std::string>& biases,
            int axes);
  std::map<std::string, Var> vars_;
};

/// A place in the tree of names: constructors of modules take one, so that names are paths.
class Scope {
 public:
  Scope(const Params& params, std::string path, int64_t block = -1)
      : params_(&params), path_(std::move(path)), block_(block) {}
  Scope operator/(const std::string& name) const { return {*params_, path_ + "/" + name, block_}; }
  /// The same place, reading slice `block` of stacked tensors.
  Scope block(int64_t block) const { return {*params_, path_, block}; }
  /// Parameter `path//name`, or its slice for this block.
  Var operator[](const std::string& name) const;
  bool has(const std::string& name) const { return params_->has(path_ + "//" + name); }

 private:
  const Params* params_;
  std::string path_;
  int64_t block_;
};

}  // namespace ff
