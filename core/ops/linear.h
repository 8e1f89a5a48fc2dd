// Linear: y = act(x w + b), and the forms that write where their result is wanted.
#pragma once

#include "core/autograd/tape.h"
#include "core/ops/kernels.h"
#include "core/ops/layer_norm.h"

namespace ff {

/// y[..., o] = act(sum_c x[..., c] w[c, o] + b[o])
/// x  [..., c_in]   f32, bf16 or f64, last axis contiguous
/// w  [c_in, ...]   same dtype as x; further axes count as one c_out (heads x channels)
/// b  [c_out] (any shape of c_out elements) or undefined; f32 (f64 for f64)
/// Returns [..., c_out] contiguous in x's dtype. f32 accumulation for bf16.
/// Throws ff::Error on shape or dtype mismatch.
Var linear(const Var& x, const Var& w, const Var& b = {}, Activation act = Activation::kNone);

/// The most channels of which a norm that is not kept, but made by the layer and again in its
/// backward, costs a training step no time.
constexpr int64_t kNarrow = 128;

/// What a layer norm gives, for linear layers that make it of x's rows as they read them, where the
/// GPU has a kernel for that; the backward makes it once more. Or x as it is.
struct Normed {
  Normed(Var x_) : x(std::move(x_)) {}  // NOLINT: is the Var
  Normed(Var x_, Var scale_, Var offset_)
      : x(std::move(x_)), scale(std::move(scale_)), offset(std::move(offset_)) {}
  Var value() const { return scale ? layer_norm_again(x, scale, offset) : x; }
  Var x, scale, offset;
};

/// mask (x w + b) of layers that lie beside each other: w [c_in, n, ...], b [n, ...], y [..., n,
/// ...]; mask [...] f32 or undefined. Gradients are those of the layers' own weights [c_in, ...], n
/// `parts`, and of the last ones' biases.
Var linear_joined(const Normed& x, const Tensor& w, const Tensor& b, const Vars& parts,
                  const Vars& biases, const Tensor& mask = {});

/// residual + linear(x, w, b); under NoGrad written into residual itself. w may have further
/// leading axes ([n_head, c, c_out]) that count as one c_in.
Var linear_add(const Var& residual, const Var& x, const Var& w, const Var& b);

/// residual + relu(x w1 + b1) w2 + b2; under NoGrad written into residual itself.
Var transition(const Var& residual, const Normed& x, const Var& w1, const Var& b1, const Var& w2,
               const Var& b2);

/// y[o, r] = sum_c x[r, c] w[c, o] with channels first: [c_out, rows] of x [..., c_in] contiguous,
/// without bias.
Var linear_channels_first(const Var& x, const Var& w);

}  // namespace ff
