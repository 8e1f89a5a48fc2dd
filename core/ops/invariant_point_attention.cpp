// Invariant point attention: checks and dispatch.
#include "core/ops/invariant_point_attention.h"

#include "core/ops/gradient.h"

namespace ff {

Var invariant_point_attention(const IpaInputs& in) {
  const int64_t n_query = in.z.size(0), n = in.z.size(1), h = in.bias.size(2), c_z = in.z.size(2);
  const auto fits = [&](const Var& x, const Dims& shape) {
    const Tensor& t = x.value();
    return t.shape() == shape && t.dtype() == in.z.value().dtype() && t.is_contiguous();
  };
  const int64_t q = in.q_scalar.size(1), kv = in.kv_scalar.size(1);
  const int64_t q_point = in.q_point.size(1), kv_point = in.kv_point.size(1);
  const Dtype dtype = in.z.value().dtype();
  check((dtype == Dtype::f32 || dtype == Dtype::f64) && in.z.value().stride(2) == 1 &&
            fits(in.q_scalar, {n_query, q}) && fits(in.kv_scalar, {n, kv}) &&
            fits(in.q_point, {n_query, q_point}) && fits(in.kv_point, {n, kv_point}) &&
            fits(in.affine, {n_query, 7}) && fits(in.bias, {n_query, n, h}) &&
            fits(in.point_weights, {h}) && fits(in.query_mask, {n_query}) && fits(in.mask, {n}) &&
            q % h == 0 && kv % h == 0 && kv >= q && q_point % (3 * h) == 0 &&
            kv_point % (3 * h) == 0 && kv_point > q_point && q > 0 && q_point > 0,
        "invariant point attention: q ", in.q_scalar.shape().str(), ", k and v ",
        in.kv_scalar.shape().str(), ", points ", in.q_point.shape().str(), " and ",
        in.kv_point.shape().str(), ", bias ", in.bias.shape().str(), ", z ", in.z.shape().str());
  const int64_t c_v = (kv - q) / h, p_v = (kv_point - q_point) / (3 * h);
  const Tensor out =
      Tensor::empty({n_query, h * (c_v + 4 * p_v + c_z)}, dtype, in.z.value().device());
  const IpaTensors operands{in.q_scalar.value(),
                            in.kv_scalar.value(),
                            in.q_point.value(),
                            in.kv_point.value(),
                            in.affine.value(),
                            in.bias.value(),
                            in.z.value(),
                            in.query_mask,
                            in.mask,
                            in.point_weights.value()};
  kernels(out.device()).invariant_point_attention(operands, out);
  return result("invariant_point_attention", out,
                {&in.q_scalar, &in.kv_scalar, &in.q_point, &in.kv_point, &in.affine, &in.bias,
                 &in.z, &in.point_weights},
                [=](const Tensor& dy) {
                  const Gradient q(in.q_scalar), kv(in.kv_scalar), q_point(in.q_point),
                      kv_point(in.kv_point), affine(in.affine), bias(in.bias), w(in.point_weights);
                  kernels(dy.device())
                      .invariant_point_attention_backward(
                          operands, out, dy,
                          {q, kv, q_point, kv_point, affine, bias, in.z.grad_into(), {}, {}, w});
                });
}

}  // namespace ff
