// One step: samples side by side, their gradients clipped and added in order.
#include "core/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <thread>

#include "core/base/machine.h"
#include "core/geometry/residue_constants.h"
#include "core/model/flops.h"
#include "core/train/metrics.h"

namespace ff {
namespace {

PassSizes sizes_of(const Arrays& slice) {
  PassSizes s;
  s.n_res = slice.at("aatype").size(0);
  s.n_seq = slice.at("msa_feat").size(0);
  s.n_extra = slice.at("extra_msa").size(0);
  if (const auto t = slice.find("template_mask"); t != slice.end())
    s.n_templates = t->second.numel();
  return s;
}

double number(const Tensor& t) { return double(*t.to(Dtype::f64).contiguous().data<double>()); }

/// Terms as the log names them.
constexpr std::pair<const char*, const char*> kTerms[] = {
    {"structure_module/fape", "fape"},
    {"structure_module/sidechain_fape", "sidechain_fape"},
    {"structure_module/chi_loss", "chi"},
    {"structure_module/angle_norm_loss", "angle_norm"},
    {"distogram/loss", "distogram"},
    {"masked_msa/loss", "masked_msa"},
    {"predicted_lddt/loss", "plddt"},
    {"predicted_aligned_error/loss", "tm"},
    {"experimentally_resolved/loss", "experimentally_resolved"}};

}  // namespace

LossConfig loss_config(const LossWeights& w) {
  if (w.fape <= 0)
    fail(Exit::kUsage, "loss.fape is ", w.fape,
         ", expected above 0: without it there is no structure");
  LossConfig c;
  c.structure_module = w.fape;
  c.chi_weight *= w.supervised_chi / w.fape;
  c.angle_norm_weight *= w.supervised_chi / w.fape;
  c.structural_violation_loss_weight = w.violation / w.fape;
  c.distogram = w.distogram;
  c.masked_msa = w.masked_msa;
  c.predicted_lddt = w.plddt;
  c.predicted_aligned_error = w.tm;
  c.experimentally_resolved = w.experimentally_resolved;
  return c;
}

SamplerConfig sampler_config(const TrainConfig& c) {
  SamplerConfig s;
  s.crop_size = c.train.crop_size;
  s.max_recycles = c.model.num_recycle;
  s.uniform_recycling = c.train.uniform_recycling;
  s.clamp_prob = c.train.clamp_prob;
  s.distillation_prob = c.train.distillation_prob;
  s.max_resolution = c.filter.max_resolution;
  s.max_single_aa_prop = c.filter.max_single_aa_prop;
  s.date_max = c.filter.date_max;
  s.accept_by_length_and_cluster = c.filter.accept_by_length_and_cluster;
  s.block_delete_fraction = c.block_delete.fraction;
  s.block_delete_num_blocks = c.block_delete.num_blocks;
  s.data = c.features;
  return s;
}

Trainer::Trainer(const TrainConfig& config, TrainState state, int threads)
    : config_(config),
      precision_(config.run.precision == "bf16" ? Dtype::bf16 : Dtype::f32),
      loss_(loss_config(config.loss)),
      state_(std::move(state)),
      threads_(threads) {
  const int64_t batch = config.run.accumulate.value_or(config.run.global_batch);
  for (int64_t w = 0; w < std::min<int64_t>(threads, std::max<int64_t>(1, batch)); ++w) {
    workers_.emplace_back(config.model, state_.params, "the state");
    workers_.back().want_grads();
  }
}

Trainer::Result Trainer::run(Params& params, const TrainingSample& sample) const {
  const Arrays& batch = sample.slices.back();
  const AlphaFold model(config_.model, params, precision_);
  Tape tape;
  const Outputs outputs = model.forward([&](int64_t slice) { return sample.slices[size_t(slice)]; },
                                        sample.num_recycle(),
                                        {.active = true,
                                         .seed = uint64_t(config_.seed),
                                         .step = uint64_t(sample.step),
                                         .sample = uint64_t(sample.index)});
  const Losses losses = objective(loss_, config_.model.heads, outputs, batch, sample.labels, false);
  Result r;
  r.terms = losses.terms;
  r.loss = number(losses.total.value());
  tape.backward({losses.total}, {Tensor::scalar(float(std::sqrt(double(sample.n_res()))))});
  r.gradients = params.take_grads();
  const Tensor mask = sample.labels.at("all_atom_mask").select(1, kAtomCa).contiguous();
  const std::vector<double> lddt =
      lddt_ca(outputs.fold.layers.back().atoms.value().select(1, 1),
              sample.labels.at("all_atom_positions").select(1, kAtomCa), mask);
  double sum = 0, count = 1e-10;
  for (size_t i = 0; i < lddt.size(); ++i) {
    sum += double(mask.data<float>()[i]) * lddt[i];
    count += double(mask.data<float>()[i]);
  }
  r.lddt_ca = sum / count;
  r.flops = training_flops(config_.model, sizes_of(batch), double(sample.num_recycle()), true);
  return r;
}

StepReport Trainer::step(const std::vector<TrainingSample>& samples) {
  StepReport report;
  Arrays sum = zeros_like(state_.params);
  double norms = 0, clipped = 0;
  std::map<std::string, std::pair<double, double>> terms;  // sum, count
  const size_t wave = workers_.size();
  for (size_t first = 0; first < samples.size(); first += wave) {
    const size_t count = std::min(wave, samples.size() - first);
    std::vector<Result> results(count);
    std::vector<std::exception_ptr> errors(count);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i)
      threads.emplace_back([&, i] {
        set_threads(std::max(1, threads_ / int(count)));
        try {
          results[i] = run(workers_[i], samples[first + i]);
        } catch (...) {
          errors[i] = std::current_exception();
        }
      });
    for (std::thread& t : threads) t.join();
    for (const std::exception_ptr& e : errors)
      if (e) std::rethrow_exception(e);
    for (size_t i = 0; i < count; ++i) {
      const Result& r = results[i];
      const Clipped c = add_clipped(sum, r.gradients, config_.optim.clip_per_example);
      if (!c.finite || !std::isfinite(r.loss)) {
        report.skipped = true;
        if (report.blame.empty()) report.blame = samples[first + i].chain;
      }
      norms += c.norm;
      clipped += c.clipped ? 1 : 0;
      report.loss += r.loss;
      report.lddt_ca += r.lddt_ca;
      report.flops += r.flops;
      for (const auto& [from, name] : kTerms)
        if (const auto found = r.terms.find(from); found != r.terms.end()) {
          terms[name].first += number(found->second);
          terms[name].second += 1;
        }
    }
  }
  const double n = double(samples.size());
  report.loss /= n;
  report.lddt_ca /= n;
  const int64_t seen = state_.samples + int64_t(samples.size());
  const double rate = learning_rate(config_.optim, seen);
  if (report.skipped)
    ++state_.skipped;
  else
    adam_step(config_.optim, {state_.params, state_.m, state_.v, state_.ema}, sum, 1 / n, rate,
              ++state_.adam_step);
  ++state_.step;
  state_.samples = seen;
  report.scalars = {{"loss/total", report.loss}, {"train/lddt_ca", report.lddt_ca}};
  for (const auto& [name, value] : terms)
    report.scalars.emplace_back("loss/" + name, value.first / value.second);
  report.scalars.emplace_back("optim/lr", rate);
  report.scalars.emplace_back("optim/grad_norm", norms / n);
  report.scalars.emplace_back("optim/clip_rate", clipped / n);
  report.scalars.emplace_back("optim/skipped", double(state_.skipped));
  return report;
}

Scalars Trainer::validate(const Sampler& sampler) const {
  const AlphaFold model(config_.model, Params(config_.model, state_.ema, "the average"));
  RunOptions options;
  options.num_recycle = config_.model.num_recycle;
  double lddt = 0, tm = 0, gdt_ts = 0, gdt_ha = 0, rmsd = 0, drmsd = 0, n = 0;
  for (const int32_t chain : sampler.chains()) {
    const TrainingSample s = sampler.whole(chain, options.num_recycle);
    const Arrays out = model.run([&](int64_t slice) { return s.slices[size_t(slice)]; }, options);
    const ChainScores scores =
        compare_chains(s.labels.at("aatype"), out.at("structure_module/final_atom_positions"),
                       out.at("structure_module/final_atom_mask"),
                       s.labels.at("all_atom_positions"), s.labels.at("all_atom_mask"));
    lddt += scores.lddt_ca;
    tm += scores.tm;
    gdt_ts += scores.gdt_ts;
    gdt_ha += scores.gdt_ha;
    rmsd += scores.rmsd;
    drmsd += scores.drmsd;
    n += 1;
  }
  return {{"val/lddt_ca", lddt / n},  {"val/tm", tm / n},     {"val/gdt_ts", gdt_ts / n},
          {"val/gdt_ha", gdt_ha / n}, {"val/rmsd", rmsd / n}, {"val/drmsd", drmsd / n}};
}

}  // namespace ff
