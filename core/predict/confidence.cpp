// Confidence: expectations over the heads' softmaxed bins.
#include "core/predict/confidence.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/kernels.h"

namespace ff {
namespace {

/// The expectation of `value` in every row of logits [..., bin], computed where they are.
std::vector<double> expectations(const Tensor& logits, const std::vector<double>& value) {
  const int64_t bins = logits.size(-1);
  check(bins == int64_t(value.size()), "logits ", logits.shape().str(), " for ", value.size(),
        " bins");
  const Device device = logits.device();
  const Tensor out = Tensor::empty({logits.numel() / bins}, Dtype::f64, device);
  kernels(device).expectations(logits.contiguous(),
                               Tensor::of<double>({bins}, value.data()).to(device), out);
  const Tensor host = out.to(Device{});
  return {host.data<double>(), host.data<double>() + host.numel()};
}

/// Half a step above each break; the last bin catches everything beyond.
std::vector<double> bin_centers(const Tensor& breaks) {
  const int64_t n = breaks.numel();
  check(n >= 2, "aligned error with ", n, " breaks");
  const Tensor b = breaks.to(Dtype::f64).contiguous();
  const double step = b.data<double>()[1] - b.data<double>()[0];
  std::vector<double> centers;
  for (int64_t i = 0; i < n; ++i) centers.push_back(b.data<double>()[i] + step / 2);
  centers.push_back(centers.back() + step);
  return centers;
}

void check_rows(const Tensor& logits, const Dap& dap) {
  check(logits.rank() == 3 && logits.size(0) == dap.mine(logits.size(1)).count,
        "aligned error logits ", logits.shape(), ", expected [rows, n_res, bin]");
}

/// The rows of all ranks, [n, n].
Tensor joined(const Dap& dap, const Tensor& rows) {
  const NoGrad no_grad;
  return gather(dap, rows, 0, rows.size(1)).value();
}

}  // namespace

Tensor plddt(const Tensor& logits) {
  check(logits.rank() == 2, "lDDT logits ", logits.shape().str(), ", expected [n_res, bin]");
  std::vector<double> centers;
  for (int64_t b = 0; b < logits.size(1); ++b)
    centers.push_back(100 * (double(b) + 0.5) / double(logits.size(1)));
  const std::vector<double> score = expectations(logits, centers);
  const Tensor out = Tensor::empty({logits.size(0)});
  for (size_t i = 0; i < score.size(); ++i) out.data<float>()[i] = float(score[i]);
  return out;
}

AlignedError predicted_aligned_error(const Tensor& logits, const Tensor& breaks, const Dap& dap) {
  check_rows(logits, dap);
  const std::vector<double> centers = bin_centers(breaks), error = expectations(logits, centers);
  const Tensor rows = Tensor::empty({logits.size(0), logits.size(1)});
  for (size_t i = 0; i < error.size(); ++i) rows.data<float>()[i] = float(error[i]);
  return {joined(dap, rows), centers.back()};
}

double predicted_tm_score(const Tensor& logits, const Tensor& breaks, const Tensor& residue_weights,
                          const Tensor& asym_id, const Dap& dap) {
  check_rows(logits, dap);
  const int64_t n = logits.size(1);
  std::vector<double> weight(size_t(n), 1.0);
  if (residue_weights.defined()) {
    check(residue_weights.shape() == Dims{n}, "residue weights ", residue_weights.shape().str(),
          " for ", n, " residues");
    for (int64_t i = 0; i < n; ++i) weight[size_t(i)] = residue_weights.select(0, i).item();
  }
  const Tensor chain = asym_id.defined() ? asym_id.contiguous() : Tensor();
  check(!chain.defined() || chain.shape() == Dims{n}, "chains of ", n,
        " residues: ", chain.defined() ? chain.shape().str() : "");
  double residues = 0;
  for (double w : weight) residues += w;
  // d0 of Yang & Skolnick (2004), equation 5; below 19 residues it would not be defined.
  const double d0 = 1.24 * std::cbrt(std::max(std::floor(residues), 19.0) - 15) - 1.8;
  std::vector<double> term = bin_centers(breaks);
  for (double& d : term) d = 1 / (1 + d * d / (d0 * d0));
  const std::vector<double> own = expectations(logits, term);
  const Tensor all = joined(dap, Tensor::of({logits.size(0), n}, own.data()));
  const double* tm = all.data<double>();
  double best = 0, best_weighted = -1;
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0, total = 1e-8;
    for (int64_t j = 0; j < n; ++j) {
      if (chain.defined() && chain.data<int32_t>()[i] == chain.data<int32_t>()[j]) continue;
      const double w = weight[size_t(i)] * weight[size_t(j)];
      sum += tm[i * n + j] * w;
      total += w;
    }
    const double score = sum / total;
    if (score * weight[size_t(i)] > best_weighted) {
      best_weighted = score * weight[size_t(i)];
      best = score;
    }
  }
  return best;
}

void add_confidence(const HeadsConfig& config, Arrays& out, const Dap& dap) {
  if (config.plddt_weight != 0) out["confidence/plddt"] = plddt(out.at("predicted_lddt/logits"));
  if (config.pae_weight == 0) return;
  const Tensor &logits = out.at("predicted_aligned_error/logits"),
               &breaks = out.at("predicted_aligned_error/breaks");
  const AlignedError error = predicted_aligned_error(logits, breaks, dap);
  out["confidence/predicted_aligned_error_expected"] = error.expected;
  out["confidence/max_predicted_aligned_error"] = Tensor::scalar(float(error.max));
  out["confidence/ptm"] = Tensor::scalar(float(predicted_tm_score(logits, breaks, {}, {}, dap)));
}

}  // namespace ff
