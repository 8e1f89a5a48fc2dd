// fastfold train: a run in a folder, from its configuration to its last checkpoint.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>

#include "app/commands.h"
#include "app/gpu.h"
#include "app/model_file.h"
#include "app/report.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "core/train/trainer.h"
#include "io/file.h"
#include "io/loader.h"
#include "io/training_log.h"

namespace ff {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string config, logdir, resume, weights, device = "cpu";
  std::vector<std::string> overrides;
  int threads = 0;
  bool quiet = false, dry_run = false;
};

/// After so many skipped steps in a row the run stops (DESIGN.md).
constexpr int kMostSkipped = 3;

/// Where a run begins: --resume, --weights or fresh parameters.
TrainState first_state(const Options& o, const TrainConfig& config, const RunFolder& folder) {
  const std::string json = train_config_json(config);
  if (o.resume == "auto") {
    if (auto found = folder.latest()) {
      check_same_model(found->first, config.model, json, found->second);
      log_notice("resumed ", found->second, " at step ", found->first.step);
      return std::move(found->first);
    }
  } else if (!o.resume.empty()) {
    TrainState state = read_train_state(o.resume);
    check_same_model(state, config.model, json, o.resume);
    log_notice("resumed ", o.resume, " at step ", state.step);
    return state;
  } else if (!folder.checkpoints().empty()) {
    fail(Exit::kUsage, folder.path(),
         ": holds a run already; go on with --resume auto, or choose another folder");
  }
  Arrays params = o.weights.empty() ? initial_params(config.model, uint64_t(config.seed))
                                    : averaged_params(read_parameters(o.weights));
  if (!o.weights.empty()) Params(config.model, params, o.weights);  // fits, or says what does not
  return initial_state(std::move(params));
}

void write_text(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

class Run {
 public:
  Run(const TrainConfig& config, const RunFolder& folder, TrainState state, int threads,
      Device device)
      : config_(config),
        folder_(folder),
        dataset_(config.train.shards),
        sampler_(dataset_, sampler_config(config), uint64_t(config.seed)),
        trainer_(config, std::move(state), threads, {}, device),
        log_(folder.path(), trainer_.state().step),
        events_(folder.path(), trainer_.state().step) {
    trainer_.state().config = train_config_json(config);
    trainer_.state().model = config.model.name;
    if (!config.validation_shards.empty()) {
      validation_data_.emplace(config.validation_shards);
      SamplerConfig whole = sampler_config(config);
      whole.data = config.model.data;
      whole.uniform_recycling = false;
      validation_.emplace(*validation_data_, whole, uint64_t(config.seed));
    }
  }

  Exit go() {
    const RunConfig& run = config_.run;
    const int loaders = int(run.loader_threads.value_or(1));
    const Range own = trainer_.own_samples();
    Loader loader(sampler_, own.start, own.count, trainer_.state().step, loaders, 2 * own.count);
    Progress progress(folder_.path());
    const auto start = Clock::now();
    auto told = start;
    const int64_t first = trainer_.state().step;
    double flops = 0;
    int skipped = 0;
    while (trainer_.state().step < run.max_steps) {
      if (stop_requested()) return stopped();
      std::vector<TrainingSample> samples;
      for (int64_t i = 0; i < own.count; ++i) samples.push_back(loader.next());
      const StepReport report = trainer_.step(samples);
      const int64_t step = trainer_.state().step;
      flops += report.flops;
      skipped = report.skipped ? skipped + 1 : 0;
      if (report.skipped) {
        log_warning("step ", step, ": the loss or a gradient of ", report.blame,
                    " is not finite; the step is left out");
        if (skipped == kMostSkipped)
          fail(Exit::kInput, folder_.path(), ": ", kMostSkipped,
               " steps in a row were not finite, the last for ", report.blame,
               "; the last checkpoint is whole; lower optim.lr, or look at that chain");
      }
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      const double done = double(step - first) * double(run.global_batch);
      const auto since_told = Clock::now() - told;
      const bool validated =
          validation_ && run.val_every > 0 && (step % run.val_every == 0 || step == run.max_steps);
      if (step % std::max<int64_t>(1, run.log_every) == 0) {
        Scalars scalars = report.scalars;
        scalars.emplace_back("run/samples", double(trainer_.state().samples));
        scalars.emplace_back("run/seconds", seconds);
        scalars.emplace_back("run/samples_per_s", done / seconds);
        scalars.emplace_back("run/tflops", flops / seconds * 1e-12);
        scalars.emplace_back("run/loader_stall", loader.stalled_seconds() / seconds);
        scalars.emplace_back("run/memory", double(peak_rss()));
        log_.write("train", step, scalars);
        events_.write(step, scalars);
      }
      const std::string line = cat("step ", step, ": loss ", report.loss, ", lDDT-CA ",
                                   report.lddt_ca, ", ", done / seconds, " samples/s");
      progress.update(line, double(step) / double(run.max_steps));
      if (since_told > std::chrono::seconds(10)) {
        told = Clock::now();
        log_notice(line);
      }
      const bool best = validated && validate();
      if (best || step % run.checkpoint_every == 0 || step == run.max_steps)
        folder_.save(trainer_.state(), run.keep, best);
    }
    log_notice(folder_.path(), ": ", trainer_.state().step, " steps, ", trainer_.state().samples,
               " samples, ", loader.skipped(), " damaged samples replaced, ",
               trainer_.state().skipped, " steps left out; ", memory_line());
    return Exit::kDone;
  }

 private:
  /// Whether this is the best so far.
  bool validate() {
    const Scalars scores = trainer_.validate(*validation_);
    TrainState& state = trainer_.state();
    log_.write("validation", state.step, scores);
    events_.write(state.step, scores);
    const double lddt = scores.front().second;
    log_notice("step ", state.step, ": validation lDDT-CA ", lddt, ", TM ", scores[1].second);
    if (!std::isfinite(lddt) || (state.best && *state.best >= lddt)) return false;
    state.best = lddt;
    state.best_step = state.step;
    return true;
  }

  Exit stopped() {
    const std::string path = folder_.save(trainer_.state(), config_.run.keep, false);
    log_notice("checkpointed ", path, "; go on with --resume auto");
    return Exit::kRequeue;
  }

  const TrainConfig& config_;
  const RunFolder& folder_;
  Dataset dataset_;
  Sampler sampler_;
  std::optional<Dataset> validation_data_;
  std::optional<Sampler> validation_;
  Trainer trainer_;
  TrainingLog log_;
  EventFile events_;
};

int run(const Options& o) {
  set_quiet(o.quiet);
  TrainConfig config = read_train_config(o.config, o.overrides);
  if (!o.logdir.empty()) config.run.logdir = o.logdir;
  if (config.run.logdir.empty())
    fail(Exit::kUsage, o.config, ": no folder for the run; give --out or run.logdir");
  if (config.train.shards.empty())
    fail(Exit::kUsage, o.config,
         ": no data; give data.train.shards=FOLDER, made by fastfold prepare build");
  if (config.run.dap != 1)
    fail(Exit::kUsage, o.config, ": run.dap is ", config.run.dap,
         ", but this build trains on one rank");
  const int threads =
      o.threads > 0 ? o.threads : int(config.run.threads.value_or(available_threads()));
  set_threads(threads);
  if (o.dry_run) {
    const Dataset dataset(config.train.shards);
    const Sampler sampler(dataset, sampler_config(config), uint64_t(config.seed));
    if (!o.weights.empty())
      Params(config.model, averaged_params(read_parameters(o.weights)), o.weights);
    log_notice("would train ", config.model.name, " on ", sampler.chains().size(), " of ",
               dataset.chains().size(), " chains for ", config.run.max_steps, " steps of ",
               config.run.global_batch, " samples");
    return int(Exit::kDone);
  }
  const RunFolder folder(config.run.logdir);
  Run training(config, folder, first_state(o, config, folder), threads,
               o.device == "cuda" ? use_gpu() : Device{});
  write_text(folder.path() + "/config.yaml", train_config_yaml(config));
  return int(training.go());
}

}  // namespace

Command add_train(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("train", "train a model on shards of chains");
  app->add_option("--config", o->config,
                  "configuration, .yaml, or a recipe's name (initial_training, finetuning, "
                  "finetuning_ptm, small, demo)")
      ->required();
  app->add_option("overrides", o->overrides, "key=value, over the configuration");
  app->add_option("-o,--out,--logdir", o->logdir, "the run's folder (run.logdir)");
  app->add_option("--resume", o->resume,
                  "'auto': the newest checkpoint of the run's folder, or a checkpoint");
  app->add_option("--weights,--weights-only", o->weights,
                  "begin with these parameters, .npz or a checkpoint, and a fresh optimizer");
  app->add_option("--threads", o->threads,
                  "threads (default: what the machine or container allows)")
      ->check(CLI::Range(1, 4096));
  app->add_option("--device", o->device, "cpu or cuda (default cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app->add_flag("-q,--quiet", o->quiet, "no notices and no progress");
  app->add_flag("--dry-run", o->dry_run, "check the configuration and the data, then stop");
  app->footer(
      "SIGTERM, SIGINT and SIGUSR1 write a checkpoint and end with exit code 75, for a scheduler "
      "to "
      "start the same command again with --resume auto.");
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
