// fastfold parity: the network on given processed features, for comparing with other
// implementations.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "app/commands.h"
#include "app/ranks.h"
#include "app/report.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "core/predict/predictor.h"
#include "core/train/trainer.h"
#include "io/npz.h"

namespace ff {
namespace {

struct Options {
  ComputeOptions compute;
  RankOptions ranks;
  std::string config, params, batch, outputs, compare, labels, losses, gradients;
  int64_t num_recycle = -1, dropout_step = -1, dropout_sample = 0;
  double tolerance = 1e-4;
};

/// Row `index` of every feature. The batch's leading axis is (num_recycle + 1) * num_ensemble, or
/// only num_ensemble where the MSA is not resampled in recycling.
class Slices {
 public:
  Slices(Arrays batch, const ModelConfig& config, std::string file)
      : batch_(std::move(batch)), file_(std::move(file)) {
    check_input(!batch_.empty(), file_, ": holds no arrays");
    for (const auto& [name, value] : batch_) {
      check_input(value.rank() > 0, file_, ": ", name,
                  " has no leading axis, expected (num_recycle + 1) * num_ensemble rows");
      if (rows_ < 0) rows_ = value.size(0);
      check_input(value.size(0) == rows_, file_, ": ", name, " has ", value.size(0),
                  " rows on its leading axis, the others have ", rows_);
    }
    const int64_t passes = config.resample_msa_in_recycling ? config.num_recycle + 1 : 1;
    check_input(rows_ > 0 && rows_ % passes == 0, file_, ": ", rows_, " rows are no multiple of ",
                passes, ", the configuration's num_recycle + 1");
    num_ensemble_ = rows_ / passes;
    resampled_ = config.resample_msa_in_recycling;
  }

  int64_t num_ensemble() const { return num_ensemble_; }
  int64_t most_recycles() const { return resampled_ ? rows_ / num_ensemble_ - 1 : INT64_MAX; }

  Arrays operator()(int64_t index) const {
    Arrays slice;
    for (const auto& [name, value] : batch_)
      slice[name] = value.select(0, resampled_ ? index : index % num_ensemble_);
    return slice;
  }

 private:
  Arrays batch_;
  std::string file_;
  int64_t rows_ = -1, num_ensemble_ = 1;
  bool resampled_ = true;
};

struct Difference {
  std::string key;
  double worst = 0, rms = 0;  ///< largest |a - b| and the reference's root mean square
  double error() const { return worst / std::max(1.0, rms); }
};

Difference difference(const std::string& key, const Tensor& ours, const Tensor& reference) {
  Difference d{key};
  const Tensor a = ours.to(Dtype::f64).contiguous(), b = reference.to(Dtype::f64).contiguous();
  double squares = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double x = a.data<double>()[i], y = b.data<double>()[i];
    const double gap = std::abs(x - y);
    if (!(gap <= d.worst)) d.worst = gap;  // a NaN is the worst
    squares += y * y;
  }
  d.rms = a.numel() ? std::sqrt(squares / double(a.numel())) : 0;
  return d;
}

/// Prints the worst keys and returns whether all are within the tolerance. Keys that only the
/// reference has are counted: labels make some of them.
bool compare(const Arrays& ours, const Arrays& reference, double tolerance) {
  std::vector<Difference> all;
  int64_t absent = 0;
  bool good = true;
  for (const auto& [key, value] : reference) {
    const auto found = ours.find(key);
    if (found == ours.end()) {
      ++absent;
      continue;
    }
    if (!(found->second.shape() == value.shape())) {
      std::printf("%-55s ours %s, reference %s\n", key.c_str(), found->second.shape().str().c_str(),
                  value.shape().str().c_str());
      good = false;
      continue;
    }
    all.push_back(difference(key, found->second, value));
    good &= all.back().error() <= tolerance;
  }
  check_input(!all.empty(), "the reference has no key that this run wrote");
  std::sort(all.begin(), all.end(),
            [](const Difference& a, const Difference& b) { return !(a.error() <= b.error()); });
  constexpr size_t kShown = 10;
  std::printf("%-55s %12s %12s %12s\n", "key", "max|a-b|", "rms(b)", "error");
  for (size_t i = 0; i < std::min(all.size(), kShown); ++i)
    std::printf("%-55s %12.3e %12.3e %12.3e\n", all[i].key.c_str(), all[i].worst, all[i].rms,
                all[i].error());
  std::printf(
      "%zu keys compared, %lld of the reference not written here; worst error %.3e, "
      "tolerance %.3e: %s\n",
      all.size(), static_cast<long long>(absent), all.front().error(), tolerance,
      good ? "agrees" : "DIFFERS");
  return good;
}

/// The configuration tree of AlphaFold, or the configuration of a training run.
struct Configuration {
  ModelConfig model;
  LossConfig loss;
  DropoutStream dropout;

  explicit Configuration(const Options& o) {
    if (o.config.ends_with(".yaml")) {
      const TrainConfig train = read_train_config(o.config);
      model = train.model;
      loss = loss_config(train.loss);
      dropout.seed = uint64_t(train.seed);
    } else {
      model = alphafold_config(o.config);
      if (!o.labels.empty()) loss = alphafold_losses(o.config);
    }
    dropout.active = o.dropout_step >= 0;
    dropout.step = uint64_t(o.dropout_step);
    dropout.sample = uint64_t(o.dropout_sample);
  }
};

bool all_finite(const Arrays& arrays) {
  for (const auto& [name, t] : arrays) {
    const Tensor x = t.to(Dtype::f64).contiguous();
    for (int64_t i = 0; i < x.numel(); ++i)
      if (!std::isfinite(x.data<double>()[i])) return false;
  }
  return true;
}

/// One pass with a tape: every loss and, where asked for, every parameter's gradient.
void train_pass(const Options& o, const Configuration& config, Params params, const Slices& slices,
                int64_t recycles, Dtype precision, Device device, const Dap& dap) {
  const Slices all_labels(read_npz(o.labels, precision == Dtype::f64), config.model, o.labels);
  check_input(recycles <= all_labels.most_recycles() && slices.num_ensemble() == 1, o.labels,
              ": labels for ", all_labels.most_recycles(),
              " recycles and one ensemble member are needed");
  if (precision == Dtype::f64) params = params.in_precision(precision);
  params = params.on(device);
  params.want_grads();
  const AlphaFold model(config.model, params, precision, dap);
  const HeadsConfig& heads = config.model.heads;
  Arrays terms, gradients;
  const auto pass = [&] {
    Tape tape;
    const Outputs outputs =
        model.forward([&](int64_t i) { return slices(i); }, recycles, config.dropout);
    const Losses losses =
        objective(config.loss, heads, outputs, slices(recycles), all_labels(recycles));
    for (const auto& [name, value] : losses.terms) terms[name] = value.to(Device{});
    if (outputs.logits.aligned_error) {
      Arrays logits{
          {"predicted_lddt/logits", outputs.logits.lddt.value().to(Device{})},
          {"predicted_aligned_error/logits", outputs.logits.aligned_error.value().to(Device{})},
          {"predicted_aligned_error/breaks", aligned_error_breaks(heads)}};
      add_confidence(heads, logits, dap);
      for (const char* name : {"confidence/ptm", "confidence/max_predicted_aligned_error"})
        terms[name] = logits.at(name);
    }
    if (o.gradients.empty()) return;
    const double share = 1.0 / dap.size();
    tape.backward({losses.total},
                  {Tensor::of<double>({}, &share).to(losses.total.value().dtype())});
    gradients = params.take_grads();
    for (auto& [name, g] : gradients) {
      g = g.to(Device{});
      dap.group().all_reduce(g, name).wait();
    }
  };
  const auto start = std::chrono::steady_clock::now();
  pass();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const bool first = dap.rank() == 0;
  if (!o.losses.empty() && first) write_npz(o.losses, terms);
  if (!o.gradients.empty() && first) write_npz(o.gradients, gradients);
  log_notice(terms.size(), " losses", o.gradients.empty() ? "" : " and all gradients", " in ",
             show_seconds(seconds.count()), ", ", recycles, " recycles; ", memory_line());
  if (all_finite(terms) && all_finite(gradients)) return;
  const FiniteWatch watch;
  pass();
  if (const std::string found = watch.found(); first || !found.empty())
    log_warning("not everything is finite, first in ", found);
}

int run(const Options& o, const Group& world) {
  if (o.ranks.dap != world.size())
    throw SharedError(Exit::kUsage,
                      cat("parity is of one protein: --dap ", o.ranks.dap, " on ", world.size(),
                          " ranks; start as many as --dap says"),
                      world.rank() == 0);
  const Dap dap(world, Dap::worth_a_message(o.compute.kind()));
  if (o.labels.empty() != (o.losses.empty() && o.gradients.empty()))
    fail(Exit::kUsage, "--labels goes with --losses or --gradients");
  const Device device = o.compute.apply(world);
  const Dtype precision = dtype_of_precision(o.compute.precision);
  const bool f64 = precision == Dtype::f64;
  const Configuration configuration(o);
  const ModelConfig& config = configuration.model;
  Slices slices(read_npz(o.batch, f64), config, o.batch);
  const int64_t recycles = o.num_recycle < 0 ? config.num_recycle : o.num_recycle;
  check_input(recycles <= slices.most_recycles(), o.batch, ": holds features for ",
              slices.most_recycles(), " recycles, asked for ", recycles);
  Arrays reference;
  if (!o.compare.empty()) reference = read_npz(o.compare);

  const Params params(config, read_npz(o.params, f64), o.params);
  if (!o.labels.empty())
    train_pass(o, configuration, params, slices, recycles, precision, device, dap);
  if (!o.labels.empty() && o.outputs.empty() && o.compare.empty()) return int(Exit::kDone);
  AlphaFold model(config, params.on(device), precision, dap);
  RunOptions options;
  options.num_recycle = recycles;
  options.num_ensemble = slices.num_ensemble();
  options.recycle_early_stop_tolerance = config.recycle_early_stop_tolerance;
  const auto start = std::chrono::steady_clock::now();
  Arrays out;
  {
    Progress progress("parity");
    options.progress = [&](const std::string& stage, double done) {
      throw_if_stopped();
      progress.update(stage, done);
    };
    out = predict(
        model, [&](int64_t i) { return slices(i); }, options);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (dap.rank() != 0) return int(Exit::kDone);
  if (!o.outputs.empty()) write_npz(o.outputs, out);
  log_notice(out.size(), " outputs in ", show_seconds(seconds.count()), ", ", recycles,
             " recycles; ", memory_line());
  if (reference.empty()) return int(Exit::kDone);
  return int(compare(out, reference, o.tolerance) ? Exit::kDone : Exit::kInput);
}

}  // namespace

Command add_parity(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("parity", "run the network on processed features and write every output");
  app->add_option("--config", o->config,
                  "AlphaFold's configuration tree as JSON, or a training run's config.yaml")
      ->required();
  app->add_option("--params", o->params, "parameters, .npz")->required();
  app->add_option("--batch", o->batch, "processed features, .npz")->required();
  app->add_option("--num-recycle", o->num_recycle, "recycles (default: the configuration's)")
      ->check(CLI::Range(0, 1000));
  app->add_option("--outputs", o->outputs, "write all outputs here, .npz");
  app->add_option("--compare", o->compare,
                  "reference outputs, .npz: print the worst max|a-b| / max(1, rms(b))");
  app->add_option("--tolerance", o->tolerance, "exit 3 above this error (default 1e-4)");
  app->add_option("--labels", o->labels, "labels, .npz: the losses' ground truth");
  app->add_option("--losses", o->losses, "write every loss here, .npz");
  app->add_option("--dropout-step", o->dropout_step,
                  "drop as training does in this step (default: no dropout)")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 50));
  app->add_option("--dropout-sample", o->dropout_sample, "the sample's number in that step")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 50));
  app->add_option("--gradients", o->gradients, "write every parameter's gradient here, .npz");
  o->compute.add_to(*app, true);
  o->ranks.add_to(*app, true);
  return {app,
          [o] { return on_ranks(o->ranks, [&](const Group& world) { return run(*o, world); }); },
          true};
}

}  // namespace ff
