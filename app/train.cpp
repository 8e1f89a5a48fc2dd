// fastfold train: a run in a folder, from its configuration to its last checkpoint.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/gpu.h"
#include "app/model_file.h"
#include "app/ranks.h"
#include "app/replay.h"
#include "app/report.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "core/ops/kernels.h"
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
  RankOptions ranks;
};

constexpr double kTellEvery = 10;  // seconds
/// After so many skipped steps in a row the run stops (DESIGN.md).
constexpr int kMostSkipped = 3;

/// So many samples of such steps are kept for parity.
constexpr int kMostReplays = 3;

/// What of a configuration decides the parameters' bits: of `run` neither the folder nor threads,
/// and nothing of when it ends, tells and saves.
std::string config_of_bits(TrainConfig config) {
  RunConfig run;
  run.global_batch = config.run.global_batch;
  run.dap = config.run.dap;
  run.precision = config.run.precision;
  config.run = run;
  return train_config_json(config);
}

TrainState resumed(TrainState state, const TrainConfig& config, const std::string& file) {
  const std::string json = config_of_bits(config);
  check_same_model(state, config.model, json, file);
  std::string changes;
  for (const std::string& change : config_differences(state.config, json))
    changes += "\n  " + change;
  if (!changes.empty())
    log_warning(file, ": was written under other settings (checkpoint, now):", changes);
  log_notice("resumed ", file, " at step ", state.step);
  return state;
}

/// Where a run begins: --resume, --weights or fresh parameters.
TrainState first_state(const Options& o, const TrainConfig& config, const RunFolder& folder) {
  if (o.resume == "auto") {
    if (auto found = folder.latest())
      return resumed(std::move(found->first), config, found->second);
  } else if (!o.resume.empty()) {
    return resumed(read_train_state(o.resume), config, o.resume);
  } else if (!folder.checkpoints().empty()) {
    fail(Exit::kUsage, folder.path(),
         ": holds a run already; go on with --resume auto, or choose another folder");
  }
  Arrays params = o.weights.empty() ? initial_params(config.model, uint64_t(config.seed))
                                    : averaged_params(read_parameters(o.weights));
  if (!o.weights.empty()) Params(config.model, params, o.weights);  // fits, or says what does not
  return initial_state(std::move(params));
}

class Run {
 public:
  /// `folder` belongs to rank 0, which alone writes; the others have none.
  Run(const TrainConfig& config, const RunFolder* folder, TrainState state, int threads,
      const Grid& grid, Device device)
      : config_(config),
        folder_(folder),
        grid_(grid),
        dataset_(config.train.shards),
        sampler_(dataset_, sampler_config(config), uint64_t(config.seed)),
        device_(device),
        trainer_(config, std::move(state), threads, grid, device,
                 largest_sample(config, &sampler_)),
        peak_(folder ? matrix_rate(trainer_.precision(), device) * grid.world.size() : 0) {
    if (folder_) {
      log_.emplace(folder_->path(), trainer_.state().step);
      events_.emplace(folder_->path(), trainer_.state().step);
    }
    trainer_.state().config = config_of_bits(config);
    trainer_.state().model = config.model.name;
    if (!config.validation_shards.empty()) {
      validation_data_.emplace(config.validation_shards);
      SamplerConfig whole = sampler_config(config);
      whole.data = config.model.data;
      whole.uniform_recycling = false;
      validation_.emplace(*validation_data_, whole, uint64_t(config.seed));
    }
  }

  const RecomputePlan& plan() const { return trainer_.plan(); }

  Exit go() {
    const RunConfig& run = config_.run;
    TrainState& state = trainer_.state();
    const int loaders = int(run.loader_threads.value_or(1));
    const Range own = trainer_.own_samples();
    Loader loader(sampler_, own.start, own.count, state.step, loaders, 2 * own.count);
    Progress progress(config_.run.logdir, double(state.step) / double(run.max_steps));
    auto told = Clock::now();
    Counts now, logged;
    const auto start = Clock::now();
    int skipped = 0;
    // Of the last step that is finished.
    const auto tell = [&](const std::optional<StepReport>& report) {
      if (!report) return;
      skipped = report->skipped ? skipped + 1 : 0;
      if (report->blamed) leave_out(*report);
      if (skipped == kMostSkipped) give_up();
      now = {seconds_since(start), now.samples + double(run.global_batch),
             now.flops + report->flops, loader.stalled_seconds()};
      if (state.step % run.log_every == 0) {
        log(report->scalars, now, logged);
        logged = now;
      }
      const std::string line = describe(*report, now.samples / now.seconds);
      progress.update(line, double(state.step) / double(run.max_steps));
      if (seconds_since(told) > kTellEvery) {
        told = Clock::now();
        log_notice(line);
      }
    };
    while (state.step < run.max_steps) {
      if (any_stopped()) {
        tell(trainer_.finish());
        return stopped();
      }
      std::vector<TrainingSample> samples;
      for (int64_t i = 0; i < own.count; ++i) samples.push_back(loader.next());
      trainer_.gradients(std::move(samples));
      tell(trainer_.finish());
      trainer_.update();
      const bool last = state.step == run.max_steps,
                 validates =
                     validation_ && run.val_every > 0 && (state.step % run.val_every == 0 || last),
                 saves = state.step % run.checkpoint_every == 0 || last;
      if (!validates && !saves) continue;
      tell(trainer_.finish());
      const bool best = validates && validate();
      if (best || saves) save(best);
    }
    log_notice(run.logdir, ": ", state.step, " steps, ", state.samples, " samples, ",
               loader.skipped(), " damaged samples replaced, ", state.skipped, " steps left out; ",
               memory_line());
    return Exit::kDone;
  }

 private:
  /// Since this process began.
  struct Counts {
    double seconds = 0, samples = 0, flops = 0, stalled = 0;
  };

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  /// A signal that reached one rank stops all, at the same step.
  bool any_stopped() const {
    return grid_.world.sum(stop_requested() ? 1 : 0, "whether to stop") > 0;
  }

  void write(const char* kind, const Scalars& scalars) {
    if (!folder_) return;
    log_->write(kind, trainer_.state().step, scalars);
    events_->write(trainer_.state().step, scalars);
  }

  std::string save(bool best) const {
    return folder_ ? folder_->save(trainer_.state(), config_.run.keep, best) : "";
  }

  /// Speeds are those since the last record.
  void log(Scalars scalars, const Counts& now, const Counts& before) {
    const double took = now.seconds - before.seconds, rate = (now.flops - before.flops) / took;
    scalars.emplace_back("run/samples", double(trainer_.state().samples));
    scalars.emplace_back("run/seconds", now.seconds);
    scalars.emplace_back("run/samples_per_s", (now.samples - before.samples) / took);
    scalars.emplace_back("run/tflops", rate * 1e-12);
    scalars.emplace_back("run/share_of_peak", rate / peak_);
    scalars.emplace_back("run/loader_stall", (now.stalled - before.stalled) / took);
    scalars.emplace_back("run/memory", double(peak_rss()));
    scalars.emplace_back("run/tensor_peak", double(memory_count(device_.kind).peak));
    write("train", scalars);
  }

  std::string describe(const StepReport& report, double rate) const {
    std::string terms;
    for (const auto& [name, value] : report.scalars)
      if (name.starts_with("loss/") && name != "loss/total")
        terms += cat(terms.empty() ? " (" : ", ", name.substr(5), " ", shown(value));
    return cat("step ", trainer_.state().step, ": loss ", shown(report.loss), terms,
               terms.empty() ? "" : ")", ", lDDT-CA ", shown(report.lddt_ca), ", ", shown(rate),
               " samples/s");
  }

  static std::string shown(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
  }

  /// Tells of a sample whose step was not finite, and keeps it.
  void leave_out(const StepReport& report) {
    if (grid_.dap.rank() != 0) return;
    const TrainingSample& sample = *report.blamed;
    const TrainState& state = trainer_.state();
    std::string kept;
    if (replays_ < kMostReplays) try {
        const std::string folder =
            cat(config_.run.logdir, "/not_finite/step_", state.step, "_", sample.chain);
        write_replay(folder, config_, state.params, sample);
        ++replays_;
        kept = cat("; ", folder, "/command.txt repeats it");
      } catch (const Error& e) {
        kept = cat("; it could not be kept: ", e.what());
      }
    log_warning("step ", state.step, ": the loss or a gradient of ", sample.chain,
                " is not finite, first in ",
                report.fault.empty() ? "no operation of a second run" : report.fault,
                "; the step is left out", kept);
  }

  [[noreturn]] void give_up() const {
    const auto checkpoints = folder_ ? folder_->checkpoints() : std::vector<std::string>();
    throw SharedError(Exit::kInput,
                      cat(config_.run.logdir, ": ", kMostSkipped,
                          " steps in a row were not finite, of the samples named above; ",
                          checkpoints.empty() ? "there is no checkpoint yet"
                                              : cat("the last checkpoint is ", checkpoints.back()),
                          "; lower optim.lr, or look at those chains"),
                      folder_ != nullptr);
  }

  /// Whether this is the best so far.
  bool validate() {
    const Scalars scores = trainer_.validate(*validation_, [] { return stop_requested() != 0; });
    TrainState& state = trainer_.state();
    if (scores.empty()) return false;
    write("validation", scores);
    const double lddt = scores.front().second;
    log_notice("step ", state.step, ": validation lDDT-CA ", lddt, ", TM ", scores[1].second);
    if (!std::isfinite(lddt) || (state.best && *state.best >= lddt)) return false;
    state.best = lddt;
    state.best_step = state.step;
    return true;
  }

  Exit stopped() {
    const std::string path = save(false);
    log_notice("checkpointed ", path, "; go on with --resume auto");
    return Exit::kRequeue;
  }

  const TrainConfig& config_;
  const RunFolder* folder_;
  const Grid grid_;
  Dataset dataset_;
  Sampler sampler_;
  std::optional<Dataset> validation_data_;
  std::optional<Sampler> validation_;
  const Device device_;
  Trainer trainer_;
  std::optional<TrainingLog> log_;
  std::optional<EventFile> events_;
  const double peak_;  ///< of all ranks together, FLOP/s; measured where it is logged
  int replays_ = 0;
};

/// The configuration, complete enough to train with; the same on all ranks.
TrainConfig configuration(const Options& o, const Group& world) {
  TrainConfig config;
  together(world, [&] {
    config = read_train_config(o.config, o.overrides);
    if (!o.logdir.empty()) config.run.logdir = o.logdir;
    if (config.run.logdir.empty())
      fail(Exit::kUsage, o.config, ": no folder for the run; give --out or run.logdir");
    if (config.train.shards.empty())
      fail(Exit::kUsage, o.config,
           ": no data; give data.train.shards=FOLDER, made by fastfold prepare build");
  });
  const std::vector<std::string> all = world.gather_text(config_of_bits(config), "configuration");
  for (int r = 1; r < world.size(); ++r)
    if (all[size_t(r)] != all[0]) {
      std::string changes;
      for (const std::string& change : config_differences(all[0], all[size_t(r)]))
        changes += "\n  " + change;
      throw SharedError(Exit::kUsage,
                        cat(o.config, ": rank ", r, " (", world.host(r),
                            ") has another configuration than rank 0 (rank 0, rank ", r,
                            "); start all ranks with the same file and overrides:", changes),
                        world.rank() == 0);
    }
  return config;
}

/// Rank 0's state on all ranks.
void share(const Group& world, TrainState& state) {
  nlohmann::json numbers{{"step", state.step},
                         {"samples", state.samples},
                         {"adam_step", state.adam_step},
                         {"skipped", state.skipped},
                         {"best_step", state.best_step}};
  if (state.best) numbers["best"] = *state.best;
  numbers = nlohmann::json::parse(world.gather_text(numbers.dump(), "state")[0]);
  state.step = numbers["step"];
  state.samples = numbers["samples"];
  state.adam_step = numbers["adam_step"];
  state.skipped = numbers["skipped"];
  state.best_step = numbers["best_step"];
  if (numbers.contains("best")) state.best = double(numbers["best"]);
  std::vector<Pending> sent;
  for (const Arrays* arrays : {&state.params, &state.m, &state.v, &state.ema})
    for (const auto& [name, array] : *arrays) sent.push_back(world.broadcast(array, "state"));
  for (Pending& pending : sent) pending.wait();
}

int run(const Options& o, const Group& world) {
  set_quiet(o.quiet || world.rank() != 0);
  const TrainConfig config = configuration(o, world);
  const bool on_gpu = o.device == "cuda";
  tf32_products() = config.run.precision == "tf32";
  if (tf32_products() && !on_gpu)
    throw SharedError(Exit::kUsage, "run.precision=tf32 is for --device cuda", world.rank() == 0);
  const Grid grid = make_grid(world, int(config.run.dap), on_gpu ? Device::cuda : Device::cpu);
  const int threads = o.threads > 0 ? o.threads
                                    : int(config.run.threads.value_or(std::max(
                                          1, available_threads() / world.ranks_on_this_host())));
  set_threads(threads);
  if (o.dry_run) {
    together(world, [&] {
      const Dataset dataset(config.train.shards);
      const Sampler sampler(dataset, sampler_config(config), uint64_t(config.seed));
      if (!o.weights.empty())
        Params(config.model, averaged_params(read_parameters(o.weights)), o.weights);
      log_notice("would train ", config.model.name, " on ", sampler.chains().size(), " of ",
                 dataset.chains().size(), " chains for ", config.run.max_steps, " steps of ",
                 config.run.global_batch, " samples, on ", world.size(), " ranks");
    });
    return int(Exit::kDone);
  }
  const Device device = on_gpu ? use_gpu(world) : Device{};
  std::optional<RunFolder> folder;
  std::optional<Run> training;
  TrainState state;
  together(world, [&] {
    if (world.rank() == 0) folder.emplace(config.run.logdir);
    state = folder ? first_state(o, config, *folder)
                   : initial_state(initial_params(config.model, uint64_t(config.seed)));
  });
  share(world, state);
  together(world, [&] {
    training.emplace(config, folder ? &*folder : nullptr, std::move(state), threads, grid, device);
    if (folder) write_file(folder->path() + "/" + kRunConfig, train_config_yaml(config));
  });
  const RecomputePlan& plan = training->plan();
  log_notice("run.recompute=", config.run.recompute, " ", plan.text());
  if (on_gpu && plan.peak > plan.room)
    log_warning("that is more than the GPU has; run.recompute=auto needs less");
  return int(training->go());
}

}  // namespace

Command add_train(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("train", "train a model on shards of chains");
  app->add_option("--config", o->config,
                  "configuration, .yaml, or a recipe's name (initial_training, finetuning, "
                  "finetuning_ptm, small, demo, tiny)")
      ->required();
  app->add_option("overrides", o->overrides, "key=value, over the configuration");
  app->add_option("-o,--out,--logdir", o->logdir, "the run's folder (run.logdir)");
  app->add_option("--resume", o->resume,
                  "'auto': the newest checkpoint of the run's folder, or a checkpoint");
  app->add_option(
      "--weights,--weights-only", o->weights,
      "begin with these parameters, .npz, a checkpoint or a run, and a fresh optimizer");
  app->add_option("--threads", o->threads,
                  "threads (default: what the machine or container allows)")
      ->check(CLI::Range(1, 4096));
  app->add_option("--device", o->device, "cpu or cuda (default cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app->add_flag("-q,--quiet", o->quiet, "no notices and no progress");
  app->add_flag("--dry-run", o->dry_run, "check the configuration and the data, then stop");
  o->ranks.add_to(*app, false);
  app->footer(
      "SIGTERM, SIGINT and SIGUSR1 write a checkpoint and end with exit code 75, for a scheduler "
      "to "
      "start the same command again with --resume auto. Under mpirun or srun, run.dap=N ranks "
      "share "
      "each sample and the groups of N take samples of their own.");
  return {app,
          [o] { return on_ranks(o->ranks, [&](const Group& world) { return run(*o, world); }); },
          true};
}

}  // namespace ff
