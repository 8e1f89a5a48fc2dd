// One step: samples side by side, their gradients clipped and added in order.
#include "core/train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <limits>
#include <set>
#include <thread>

#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/timeline.h"
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

/// What samples whose passes ask for the same have in common: a number of their recycles and the
/// shapes of their arrays.
uint64_t shapes_of(const TrainingSample& sample) {
  std::string all;
  const auto add = [&](const Arrays& arrays) {
    for (const auto& [name, t] : arrays) all += cat(name, t.shape(), name_of(t.dtype()));
    all += ';';
  };
  for (const Arrays& slice : sample.slices) add(slice);
  add(sample.labels);
  return std::hash<std::string>()(all);
}

/// Samples side by side on a GPU. Its driver takes launches one by one, whoever makes them.
constexpr int64_t kMostLanes = 8;

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

/// What is added over a step's samples; a sum and a count for each term from kFirstTerm on.
enum : size_t { kSamples, kSkipped, kNorm, kClipped, kLoss, kLddt, kFlops, kFirstTerm };
using Totals = std::array<double, kFirstTerm + 2 * std::size(kTerms)>;

/// The numbers, all at once from where they are; 0 for one that is undefined.
Tensor together(const std::vector<Tensor>& terms) {
  const Tensor all = Tensor::zeros({int64_t(terms.size())}, terms[0].dtype(), terms[0].device());
  std::vector<Tensor> from, to;
  for (size_t i = 0; i < terms.size(); ++i)
    if (terms[i]) {
      from.push_back(terms[i]);
      to.push_back(all.select(0, int64_t(i)));
    }
  copy_all(from, to);
  return all;
}

double mean_lddt(const Tensor& lddt, const Tensor& atom_mask) {
  const Tensor mask = atom_mask.select(1, kAtomCa).contiguous();
  double sum = 0, count = 1e-10;
  for (int64_t i = 0; i < lddt.numel(); ++i) {
    sum += double(mask.data<float>()[i]) * lddt.data<double>()[i];
    count += double(mask.data<float>()[i]);
  }
  return sum / count;
}

/// Throws on all ranks where a GPU's free memory does not hold the state and the least of a step.
void check_room(const TrainConfig& config, const PassSizes& sizes, const MemorySetting& setting,
                int64_t state, int64_t free, bool tell) {
  const auto needs = [&](const PassSizes& n, const MemorySetting& s) {
    return state + plan_recompute(PassMemory(config.model, n, s), 1, 0, 0, {}).peak;
  };
  if (needs(sizes, setting) <= free) return;
  std::vector<std::string> ways;
  // The first of what `next` makes, one after the other, that fits.
  const auto look = [&](const char* key, auto next, const std::string& where = "") {
    PassSizes n = sizes;
    MemorySetting s = setting;
    while (const int64_t value = next(n, s))
      if (needs(n, s) <= free) {
        ways.push_back(cat(key, value, where));
        return;
      }
  };
  look("data.train.crop_size=",
       [](PassSizes& n, auto&) { return n.n_res = (n.n_res - 1) / 8 * 8; });
  look("data.train.max_extra_msa=", [](PassSizes& n, auto&) { return n.n_extra /= 2; });
  look(
      "run.dap=", [](auto&, MemorySetting& s) { return s.dap < 64 ? s.dap *= 2 : 0; },
      " on as many GPUs");
  std::string text;
  for (size_t i = 0; i < ways.size(); ++i)
    text += cat(i == 0 ? "" : i + 1 < ways.size() ? ", " : " or ", ways[i]);
  throw SharedError(
      Exit::kDevice,
      cat("a training step on ", sizes.n_res, " x ", sizes.n_seq, " x ", sizes.n_extra,
          " (residues, clusters, extra rows) needs at least ", show_bytes(needs(sizes, setting)),
          " of the GPU's memory, ", show_bytes(needs({1, 1, 1, 0}, setting)),
          " for the parameters, their gradients, Adam's moments and the average alone; ",
          show_bytes(free), " can be had; ",
          ways.empty() ? "use a GPU with more free memory, or a smaller preset"
                       : cat("set ", text, ", or use a GPU with more free memory")),
      tell);
}

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

PassSizes largest_sample(const TrainConfig& config, const Sampler* sampler) {
  const DataConfig& data = config.features;
  PassSizes most{config.train.crop_size, data.max_msa_clusters, data.max_extra_msa, 0};
  if (data.use_templates) most.n_templates = data.max_templates;
  if (data.reduce_msa_clusters_by_max_templates) most.n_seq -= data.max_templates;
  if (!sampler) return most;
  PassSizes there{1, 1, 1, 1};  // what is absent is one that is masked
  for (const int32_t i : sampler->chains()) {
    const ChainInfo& chain = sampler->dataset().chains()[size_t(i)];
    there.n_res = std::max(there.n_res, chain.n_res());
    there.n_seq = std::max(there.n_seq, chain.n_msa);
    there.n_templates = std::max(there.n_templates, chain.n_templates);
  }
  there.n_extra = std::max<int64_t>(1, there.n_seq - most.n_seq);
  return {std::min(most.n_res, there.n_res), std::min(most.n_seq, there.n_seq),
          std::min(most.n_extra, there.n_extra), std::min(most.n_templates, there.n_templates)};
}

Trainer::Trainer(const TrainConfig& config, TrainState state, int threads, Grid grid, Device device,
                 std::optional<PassSizes> sizes)
    : config_(config),
      precision_(config.run.precision == "bf16"  ? Dtype::bf16
                 : config.run.precision == "f64" ? Dtype::f64
                                                 : Dtype::f32),
      loss_(loss_config(config.loss)),
      state_(std::move(state)),
      threads_(threads),
      grid_(std::move(grid)) {
  if (config.run.global_batch < grid_.dp.size())
    throw SharedError(
        Exit::kUsage,
        cat("run.global_batch is ", config.run.global_batch, ", fewer samples than the ",
            grid_.dp.size(), " groups of ranks; raise it or run.dap"),
        grid_.world.rank() == 0);
  // The ranks that share a sample meet in its collectives: one at a time.
  plan_ = make_plan(
      device, sizes.value_or(largest_sample(config)),
      grid_.dap.single()
          ? std::clamp<int64_t>(config.run.accumulate.value_or(own_samples().count), 1, threads)
          : 1);
  for (Arrays* arrays : {&state_.params, &state_.m, &state_.v, &state_.ema})
    for (auto& [name, t] : *arrays) t = t.to(device);
  for (int64_t w = 0; w < plan_.samples; ++w) {
    workers_.push_back(
        {.params = Params(config.model, state_.params, "the state"),
         .records = config.run.graphs && grid_.dap.single() && Recording::possible(device)});
    workers_.back().params.want_grads();
  }
}

RecomputePlan Trainer::make_plan(Device device, const PassSizes& sizes, int64_t samples) const {
  const Group& world = grid_.world;
  // Every rank's free memory, shared by those of its host that have the same device.
  const int64_t own = free_memory(device);
  const std::vector<std::string> all =
      world.gather_text(cat(own < 0 || device.kind != Device::cpu ? own : own / 2, " ",
                            world.host(world.rank()), " ", device.index),
                        "free memory");
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const std::string& one : all) {
    const auto same_place = [place = one.substr(one.find(' '))](const std::string& other) {
      return other.ends_with(place);
    };
    least = std::min(least,
                     int64_t(std::stoll(one)) / std::count_if(all.begin(), all.end(), same_place));
  }
  const MemorySetting setting{.dtype = precision_,
                              .device = device.kind,
                              .dap = grid_.dap.size(),
                              .recycles = config_.model.num_recycle > 0};
  int64_t state = 0;  // bytes of it that come to the device after this
  for (const Arrays* arrays : {&state_.params, &state_.m, &state_.v, &state_.ema})
    for (const auto& [name, t] : *arrays)
      if (!(t.device() == device)) state += t.numel() * size_of(t.dtype());
  if (device.kind != Device::cpu && least >= 0)
    check_room(config_, sizes, setting, state, least, world.rank() == 0);
  const PassMemory pass(config_.model, sizes, setting);
  const auto plan_for = [&](int64_t n) {
    return plan_recompute(pass, n, memory_count(device.kind).current + state,
                          least < 0 ? least : least - state,
                          recomputed_blocks(config_.run.recompute, "run.recompute"));
  };
  if (device.kind == Device::cpu) return plan_for(samples);
  const RecomputePlan one = plan_for(1);
  for (samples = std::min<int64_t>(samples, kMostLanes); samples > 1; --samples)
    if (const RecomputePlan plan = plan_for(samples);
        plan.recompute == one.recompute && plan.fits())
      return plan;
  return one;
}

Trainer::Result Trainer::run(Params& worker, const TrainingSample& sample) const {
  const Arrays& batch = sample.slices.back();
  const Dap& dap = grid_.dap;
  Params params = worker;
  if (precision_ == Dtype::f64) {  // for tests: gradients in f64 too
    params = params.in_precision(precision_);
    params.want_grads();
  }
  const AlphaFold model(config_.model, params, precision_, dap);
  BucketedSum shares(dap.group());
  std::set<std::string> summed;
  const auto block_done = [&](const std::string& scope, int64_t block) {
    for (const auto& [name, var] : params.all())
      if (name.starts_with(scope)) {
        shares.add(var.grad_into().select(0, block));
        summed.insert(name);
      }
    shares.flush();
  };
  Tape tape;
  const Outputs outputs = model.forward([&](int64_t slice) { return sample.slices[size_t(slice)]; },
                                        sample.num_recycle(),
                                        {.active = true,
                                         .seed = uint64_t(config_.seed),
                                         .step = uint64_t(sample.step),
                                         .sample = uint64_t(sample.index)},
                                        dap.single() ? BlockDone() : block_done, plan_.recompute);
  const Losses losses = objective(loss_, config_.model.heads, outputs, batch, sample.labels, false);
  Result r;
  std::vector<Tensor> terms{losses.total.value()};
  for (const auto& [term, name] : kTerms) {
    const auto found = losses.terms.find(term);
    terms.push_back(found != losses.terms.end() ? found->second : Tensor());
    r.has_term.push_back(terms.back().defined());
  }
  r.terms = together(terms);
  const double seed = std::sqrt(double(sample.n_res())) / dap.size();
  tape.backward({losses.total}, {Tensor::of({}, &seed).to(losses.total.value().dtype())});
  r.gradients = params.take_grads();
  for (const auto& [name, gradient] : r.gradients)
    if (!summed.count(name)) shares.add(gradient);
  shares.finish();
  r.lddt = lddt_ca(outputs.fold.layers.back().atoms.value().select(1, 1),
                   sample.labels.at("all_atom_positions").select(1, kAtomCa),
                   sample.labels.at("all_atom_mask").select(1, kAtomCa));
  r.flops =
      training_flops(config_.model, sizes_of(batch), double(sample.num_recycle()), plan_.recompute);
  return r;
}

Trainer::Result Trainer::run(Worker& worker, const TrainingSample& sample) const {
  constexpr int64_t kBefore = 2;  // by then all that a pass keeps for others has been made
  constexpr int64_t kMost = 4;    // of the host's memory each takes some 50 KiB a launch
  if (!worker.records) return run(worker.params, sample);
  Replay& replay = worker.replays[shapes_of(sample)];
  const bool room = std::ranges::count_if(worker.replays, [](const auto& known) {
                      return known.second.recording != nullptr;
                    }) < kMost;
  Result r;
  const auto pass = [&] {
    r = run(worker.params, sample);
    replay.terms.copy_from(r.terms);
    replay.lddt.copy_from(r.lddt);
    std::vector<Tensor> from, to;
    for (auto& [name, gradient] : r.gradients) {
      from.push_back(gradient);
      to.push_back(gradient = worker.gradients.at(name));
    }
    copy_all(from, to);
    r.terms = replay.terms;
    r.lddt = replay.lddt;
  };
  const auto give_up = [&](bool all) {
    worker.params.take_grads();
    r = {};
    replay = {};
    if (all)
      for (auto& [shapes, other] : worker.replays) other = {};
  };
  if (replay.recording) {
    if (replay.recording->follow(pass)) return r;
    give_up(false);
  } else if (replay.terms && room) {
    try {
      replay.recording = std::make_unique<Recording>(worker.params.device(), pass);
      replay.recording->play();
      return r;
    } catch (const CannotRecord& e) {
      log_notice(e.what(), ": passes are launched kernel by kernel");
      give_up(true);
      worker.records = false;
    }
  }
  try {
    r = run(worker.params, sample);
  } catch (const OutOfMemory&) {  // beside what recordings hold
    give_up(true);
    r = run(worker.params, sample);
  }
  if (++replay.seen >= kBefore && room && !replay.terms) {
    const auto like = [](const Tensor& t) {
      return Tensor::empty(t.shape(), t.dtype(), t.device());
    };
    replay.terms = like(r.terms);
    replay.lddt = like(r.lddt);
    for (const auto& [name, gradient] : r.gradients)
      if (!worker.gradients.count(name)) worker.gradients[name] = like(gradient);
  }
  return r;
}

std::string Trainer::first_fault(const TrainingSample& sample) {
  set_threads(threads_);
  const FiniteWatch watch;
  run(workers_[0].params, sample);
  return watch.found();
}

StepReport Trainer::step(std::vector<TrainingSample> samples) {
  gradients(std::move(samples));
  update();
  return finish().value();
}

void Trainer::gradients(std::vector<TrainingSample> samples) {
  check(!given_ && int64_t(samples.size()) == own_samples().count, samples.size(),
        " samples for a step of ", own_samples().count);
  Step step;
  step.samples = std::move(samples);
  const Dtype dtype = precision_ == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  step.sum = zeros_like(state_.params, dtype);
  step.skipped = Tensor::zeros({1}, dtype, state_.params.begin()->second.device());
  const size_t wave = workers_.size();
  for (size_t first = 0; first < step.samples.size(); first += wave) {
    const size_t count = std::min(wave, step.samples.size() - first);
    std::vector<Result> results(count);
    std::vector<std::exception_ptr> errors(count);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i)
      threads.emplace_back([&, i] {
        set_threads(std::max(1, threads_ / int(count)));
        try {
          std::optional<Lane> lane;
          if (count > 1) lane.emplace(workers_[i].params.device(), int(i));
          results[i] = run(workers_[i], step.samples[first + i]);
        } catch (const OutOfMemory& e) {
          errors[i] = std::make_exception_ptr(Error(
              e.code(),
              cat("out of memory in a step: run.recompute=", config_.run.recompute, " ",
                  plan_.text(), "; set ",
                  plan_.recompute < plan_.blocks ? "run.recompute=blocks, which needs least, or "
                                                 : "",
                  "a smaller data.train.crop_size (", e.what(), ")")));
        } catch (...) {
          errors[i] = std::current_exception();
        }
      });
    for (std::thread& t : threads) t.join();
    for (const std::exception_ptr& e : errors)
      if (e) std::rethrow_exception(e);
    const Span span("optimizer");
    for (const Result& r : results) {
      const Tensor norm = add_clipped(step.sum, r.gradients, r.terms.select(0, 0),
                                      config_.optim.clip_per_example, step.skipped);
      step.told.push_back(
          {Download(norm), Download(r.terms), Download(r.lddt), r.has_term, r.flops});
    }
  }
  given_.emplace(std::move(step));
}

void Trainer::update() {
  check(given_ && !updated_, "an update without gradients, or before the last one is finished");
  Step& step = updated_.emplace(std::move(*given_));
  given_.reset();
  const Span span("optimizer");
  BucketedSum groups(grid_.dp);
  for (const auto& [name, gradient] : step.sum) groups.add(gradient);
  groups.add(step.skipped);
  groups.finish();
  for (auto& [name, gradient] : step.sum) gradient = gradient.to(Dtype::f32);
  const int64_t n = config_.run.global_batch;
  state_.samples += n;
  step.rate = learning_rate(config_.optim, state_.samples);
  adam_step(config_.optim, {state_.params, state_.m, state_.v, state_.ema}, step.sum, 1 / double(n),
            step.rate, state_.adam_step + 1, step.skipped.to(Dtype::f32));
  ++state_.step;
  step.sum.clear();
  step.skipped = Tensor();
}

std::optional<StepReport> Trainer::finish() {
  if (!updated_) return {};
  Step step(std::move(*updated_));
  updated_.reset();
  StepReport report;
  Totals all{};
  const double limit = config_.optim.clip_per_example;
  for (size_t i = 0; i < step.samples.size(); ++i) {
    Told& told = step.told[i];
    const TrainingSample& sample = step.samples[i];
    const double norm = told.norm.wait().item();
    const Tensor terms = told.terms.wait().to(Dtype::f64);
    const double* term = terms.data<double>();
    const bool finite = std::isfinite(norm);
    if (!report.blamed && (!finite || !std::isfinite(term[0]))) {
      report.blamed = sample;
      report.fault = first_fault(sample);
    }
    all[kSamples] += 1;
    all[kSkipped] += report.blamed ? 1 : 0;
    all[kNorm] += norm;
    all[kClipped] += finite && limit > 0 && norm > limit ? 1 : 0;
    all[kLoss] += term[0];
    all[kLddt] += mean_lddt(told.lddt.wait(), sample.labels.at("all_atom_mask"));
    all[kFlops] += told.flops;
    for (size_t t = 0; t < std::size(kTerms); ++t)
      if (told.has_term[t]) {
        all[kFirstTerm + 2 * t] += term[1 + t];
        all[kFirstTerm + 2 * t + 1] += 1;
      }
  }
  // One mean over the groups, in their order whichever rank adds.
  const Tensor totals = Tensor::of({int64_t(all.size())}, all.data());
  grid_.dp.all_reduce(totals, "the step's totals").wait();
  std::copy_n(totals.data<double>(), all.size(), all.begin());
  const double n = all[kSamples];
  report.skipped = all[kSkipped] > 0;
  ++(report.skipped ? state_.skipped : state_.adam_step);
  report.loss = all[kLoss] / n;
  report.lddt_ca = all[kLddt] / n;
  report.flops = all[kFlops];
  report.scalars = {{"loss/total", report.loss}, {"train/lddt_ca", report.lddt_ca}};
  for (size_t t = 0; t < std::size(kTerms); ++t)
    if (const double count = all[kFirstTerm + 2 * t + 1]; count > 0)
      report.scalars.emplace_back(cat("loss/", kTerms[t].second), all[kFirstTerm + 2 * t] / count);
  report.scalars.emplace_back("optim/lr", step.rate);
  report.scalars.emplace_back("optim/grad_norm", all[kNorm] / n);
  report.scalars.emplace_back("optim/clip_rate", all[kClipped] / n);
  report.scalars.emplace_back("optim/skipped", double(state_.skipped));
  return report;
}

Scalars Trainer::validate(const Sampler& sampler, const std::function<bool()>& stop) {
  for (Worker& worker : workers_) worker.replays.clear();  // whole chains need their memory
  const AlphaFold model(config_.model, Params(config_.model, state_.ema, "the average"), Dtype::f32,
                        grid_.dap);
  RunOptions options;
  options.num_recycle = config_.model.num_recycle;
  options.keep = [](const std::string&) { return false; };
  constexpr std::pair<const char*, double ChainScores::*> kScores[] = {
      {"val/lddt_ca", &ChainScores::lddt_ca}, {"val/tm", &ChainScores::tm},
      {"val/gdt_ts", &ChainScores::gdt_ts},   {"val/gdt_ha", &ChainScores::gdt_ha},
      {"val/rmsd", &ChainScores::rmsd},       {"val/drmsd", &ChainScores::drmsd}};
  std::array<double, std::size(kScores) + 2> sums{};
  double &scored = sums[std::size(kScores)], &stopped = sums[std::size(kScores) + 1];
  const std::vector<int32_t> chains = sampler.chains();
  for (size_t k = size_t(grid_.dp.rank()); k < chains.size(); k += size_t(grid_.dp.size())) {
    stopped = grid_.dap.group().sum(stop() ? 1 : 0, "whether to stop");
    if (stopped > 0) break;
    const TrainingSample s = sampler.whole(chains[k], options.num_recycle);
    const Arrays out = model.run([&](int64_t slice) { return s.slices[size_t(slice)]; }, options);
    const ChainScores scores =
        compare_chains(s.labels.at("aatype"), out.at("structure_module/final_atom_positions"),
                       out.at("structure_module/final_atom_mask"),
                       s.labels.at("all_atom_positions"), s.labels.at("all_atom_mask"));
    for (size_t i = 0; i < std::size(kScores); ++i) sums[i] += scores.*kScores[i].second;
    scored += 1;
  }
  const Tensor totals = Tensor::of({int64_t(sums.size())}, sums.data());
  grid_.dp.all_reduce(totals, "validation").wait();
  std::copy_n(totals.data<double>(), sums.size(), sums.begin());
  Scalars out;
  if (stopped > 0) return out;
  for (size_t i = 0; i < std::size(kScores); ++i)
    out.emplace_back(kScores[i].first, sums[i] / scored);
  return out;
}

}  // namespace ff
