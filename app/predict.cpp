// fastfold predict: from sequences and their alignments to ranked structures with confidences.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/foreign_flags.h"
#include "app/gpu.h"
#include "app/predict_record.h"
#include "app/report.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "core/predict/predictor.h"
#include "io/choices.h"
#include "io/hash.h"
#include "io/npz.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

using Options = PredictOptions;
using Model = PredictModel;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What `--save` can name, and the outputs that it stands for.
const std::pair<const char*, const char*> kSaved[] = {{"single", "representations/single"},
                                                      {"pair", "representations/pair"},
                                                      {"msa", "representations/msa"},
                                                      {"structure", "structure_module/"},
                                                      {"distogram", "distogram/"},
                                                      {"confidence", "confidence/"},
                                                      {"all", ""}};

/// Whether `--save names` asks for output `key`.
bool is_saved(const std::vector<std::string>& names, const std::string& key) {
  for (const auto& [name, prefix] : kSaved)
    if (key.starts_with(prefix) && std::find(names.begin(), names.end(), name) != names.end())
      return true;
  return false;
}

/// AlphaFold's names for things that ours replace, and its --data-dir.
void resolve_aliases(Options& o) {
  const auto take = [](std::string& option, const fs::path& found) {
    if (option.empty() && fs::exists(found)) option = found;
  };
  if (!o.data_dir.empty()) {
    check_input(fs::is_directory(o.data_dir), o.data_dir, ": no such folder (--data-dir)");
    const fs::path data = o.data_dir;
    if (o.params.empty()) o.params = {data / "params"};
    take(o.inputs.search.mmcif_dir, data / "pdb_mmcif" / "mmcif_files");
    take(o.inputs.search.obsolete_file, data / "pdb_mmcif" / "obsolete.dat");
  }
  if (o.use_precomputed_msas && o.inputs.alignments.empty()) o.inputs.alignments = o.output;
  if (o.model_preset == "monomer_casp14" && o.num_ensemble < 0) o.num_ensemble = 8;
  if (o.cif_output) o.format = "cif";
  if (o.save_outputs) o.save = {"all"};
}

std::vector<Model> load_models(const std::vector<std::string>& files, const Options& o,
                               const Dap& dap) {
  std::vector<Model> models;
  std::map<std::string, int> taken;
  for (const std::string& path : files) {
    throw_if_stopped();
    ModelFile file = read_model_file(path, o.preset);
    ModelConfig& config = file.config;
    o.changes.apply(config);
    if (o.rank_by() == "ptm" && config.heads.pae_weight == 0)
      fail(Exit::kUsage, "--rank ptm: ", path, " is of ", config.name,
           ", which predicts no TM-score; use params_model_N_ptm.npz or --rank plddt");
    RunOptions options;
    options.num_recycle = o.num_recycle < 0 ? config.num_recycle : o.num_recycle;
    options.num_ensemble = o.num_ensemble < 0 ? config.data.num_ensemble : o.num_ensemble;
    options.recycle_early_stop_tolerance =
        o.tolerance.value_or(config.recycle_early_stop_tolerance);
    // What is not saved need not come from the GPU either.
    options.keep = [save = o.save](const std::string& key) { return is_saved(save, key); };
    const int count = ++taken[config.name];
    const std::string name = count == 1 ? config.name : cat(config.name, "_", count);
    const Params params(config, std::move(file.arrays), path);
    models.push_back(
        {name, path, options,
         AlphaFold(config, params.on(o.device), dtype_of_precision(o.compute.precision), dap)});
  }
  return models;
}

/// Throws where the pair representation and what a triangle update needs beside it cannot fit, of
/// which each of `ranks` holds a share.
void check_memory(int64_t n_res, const ModelConfig& config, const Options& o, int ranks) {
  const int64_t available = o.device.kind == Device::cpu
                                ? available_memory()
                                : find_gpus(o.device.index).gpus[0].free_bytes;
  const int64_t bytes = o.compute.precision == "bf16" ? 2 : 4;
  const double least =
      3.0 * double(n_res) * double(n_res) * double(config.pair_channel * bytes) / ranks;
  if (available >= 0 && least > double(available))
    fail(Exit::kDevice, n_res, " residues need at least ", show_bytes(int64_t(least)), " of memory",
         ranks == 1 ? "" : " a rank", ", ", show_bytes(available),
         " can be had; use a machine with more", bytes == 4 ? ", --precision bf16," : "",
         " or a part of the sequence");
}

/// How one prediction went.
struct Timing {
  std::string name;
  double process_features = 0, predict = 0;
  std::vector<double> passes;
};

double mean(const Tensor& values) {
  double sum = 0;
  for (int64_t i = 0; i < values.numel(); ++i) sum += values.data<float>()[i];
  return sum / double(std::max<int64_t>(1, values.numel()));
}

double score_of(const Prediction& p, const std::string& rank_by) {
  return rank_by == "ptm" ? 100 * p.ptm.value_or(0) : p.mean_plddt;
}

/// "pLDDT 83.1, pTM 0.77"
std::string confidence_line(const Prediction& p) {
  char text[64];
  std::snprintf(text, sizeof text, p.ptm ? "pLDDT %.1f, pTM %.2f" : "pLDDT %.1f", p.mean_plddt,
                p.ptm.value_or(0));
  return text;
}

Arrays saved_arrays(const Arrays& out, const std::vector<std::string>& names) {
  Arrays saved;
  for (const auto& [key, value] : out)
    if (is_saved(names, key)) saved[key] = value;
  return saved;
}

/// The run over all targets.
class Run {
 public:
  Run(const Options& options, Grid grid)
      : o_(options), results_(options.results()), grid_(std::move(grid)) {}

  int operator()() {
    std::vector<Job> jobs;
    together(grid_.world, [&] { jobs = prepare(); });
    if (grid_.world.size() == 1 || o_.dry_run) {
      if (grid_.world.rank() == 0)
        for (const Job& job : jobs) attempt(job, jobs.size());
    } else {
      // Longest first: the last ones to end are short.
      std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) {
        return a.sequence.size() > b.sequence.size();
      });
      for (size_t next = claim(); next < jobs.size(); next = claim())
        attempt(jobs[next], jobs.size());
    }
    const bool leads = leads_group();
    const double failed = grid_.world.sum(leads ? double(failed_) : 0, "failed targets"),
                 skipped = grid_.world.sum(leads ? double(skipped_) : 0, "skipped targets");
    if (grid_.world.rank() == 0) {
      if (jobs.size() > 1 && skipped > 0)
        log_notice(skipped, " of ", jobs.size(), " targets were left as they are");
      if (failed > 0) log_line(cat("fastfold: ", failed, " of ", jobs.size(), " targets failed"));
    }
    return int(failed > 0 ? Exit::kPartial : Exit::kDone);
  }

 private:
  std::vector<Job> prepare() {
    std::vector<Job> jobs = o_.inputs.jobs();
    param_files_ = find_parameter_files(o_.params, o_.model_preset, o_.num_models);
    for (const std::string& path : param_files_)
      hashes_.push_back(std::async(std::launch::async, sha256_of_file, path).share());
    check_output();
    return jobs;
  }

  /// The ranks that share a protein do the same; the first of them reads locks, writes and tells.
  bool leads_group() const { return grid_.dap.rank() == 0; }

  /// The group's next target.
  size_t claim() const {
    const double mine = leads_group() ? double(grid_.world.claim()) : 0;
    return size_t(grid_.dap.group().sum(mine, "the next target"));
  }

  /// A target; what fails is told, and the others go on.
  void attempt(const Job& job, size_t jobs) {
    throw_if_stopped();
    const auto failed = [&](const std::string& what) {
      if (jobs == 1) throw;
      ++failed_;
      if (!leads_group()) return;
      log_line(cat("fastfold: ", job.tag, " failed: ", what));
      log_event("target", job.tag, {{"state", "failed"}, {"error", what}});
    };
    try {
      skipped_ += !(o_.dry_run ? describe(job) : run(job));
    } catch (const SharedError& e) {
      failed(e.what());
    } catch (const std::exception& e) {
      if (!grid_.dap.single()) throw;  // the others of the group wait for this rank
      failed(dynamic_cast<const std::bad_alloc*>(&e) ? "out of memory" : e.what());
    }
  }

  /// Fails now rather than after the first prediction where nothing can be written.
  void check_output() const {
    if (!o_.dry_run) return make_output_folder(o_.output);
    fs::path there = fs::absolute(o_.output);
    while (!fs::exists(there) && there.has_relative_path()) there = there.parent_path();
    if (!fs::is_directory(there) || access(there.c_str(), W_OK) != 0)
      fail(Exit::kUsage, o_.output, ": no folder can be made in ", there.string(),
           "; choose another with -o");
  }

  const std::vector<Model>& models() {
    if (models_.empty()) models_ = load_models(param_files_, o_, grid_.dap);
    return models_;
  }

  /// Changes with everything that changes the result.
  std::string fingerprint(const Job& job) const {
    nlohmann::json j;
    j["sequence"] = job.sequence;
    j["files"] = hashes_of_inputs(job, o_.inputs);
    const TemplateOptions& t = o_.inputs.search;
    j["templates"] = {o_.inputs.templates, t.mmcif_dir, t.max_date, t.obsolete_file, t.max_hits};
    for (const auto& hash : hashes_) j["parameters"].push_back(hash.get());
    for (const std::string& file : o_.changes.files) j["config"].push_back(sha256_of_file(file));
    j["settings"] = {o_.changes.overrides,
                     o_.preset,
                     o_.changes.max_msa,
                     o_.num_recycle,
                     o_.num_ensemble,
                     o_.num_seeds,
                     o_.random_seed,
                     o_.compute.precision,
                     o_.rank_by(),
                     o_.tolerance.value_or(-2),
                     o_.stop_at_score.value_or(-1)};
    j["output"] = {o_.save, o_.layout, o_.format};
    return sha256(j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }

  /// Whether the target's files are there already, made from the same.
  bool is_done(const Job& job) const {
    if (!o_.skip_existing) return false;
    const Completion found = check_complete(job.tag, results_);
    if (found.state == Completion::kDamaged)
      log_notice(job.tag, ": is there but damaged (", found.damage, "): predicting again");
    if (found.state != Completion::kComplete) return false;
    if (found.fingerprint == fingerprint(job)) return true;
    log_notice(job.tag, ": is there, made from other inputs or settings: predicting again");
    return false;
  }

  bool skip(const Job& job, const char* why) const {
    log_notice(job.tag, ": skipped, ", why);
    log_event("target", job.tag, {{"state", "skipped"}, {"reason", why}});
    return false;
  }

  TargetInputs read(const Job& job) {
    if (!job.error.empty()) fail(Exit::kInput, job.error);
    check_memory(int64_t(job.sequence.size()), models().front().network.config(), o_,
                 grid_.dap.size());
    TargetInputs in = read_inputs(job, o_.inputs);
    const bool takes_templates = std::any_of(models().begin(), models().end(), [](const Model& m) {
      return m.network.config().data.use_templates;
    });
    if (!in.templates.empty() && !takes_templates)
      in.warnings.push_back(cat(in.templates.size(),
                                " templates found, but none of the models takes any (model_1 and "
                                "model_2 do)"));
    if (leads_group())
      for (const std::string& warning : in.warnings) log_warning(job.tag, ": ", warning);
    if (in.raw.n_seq == 1 && o_.inputs.msa_mode != "single_sequence") {
      in.warnings.push_back("no alignment, predicted from the single sequence (less accurate)");
      log_notice(job.tag, ": ", in.warnings.back());
    }
    throw_if_stopped();
    return in;
  }

  /// For --dry-run: reads everything and says what would be done.
  bool describe(const Job& job) {
    if (is_done(job)) return skip(job, "its files are complete");
    const TargetInputs in = read(job);
    std::string line =
        cat(job.tag, ": ", in.raw.n_res(), " residues, ", in.raw.n_seq, " sequences of ",
            in.rows.size(), " alignments, ", in.templates.size(), " templates; would run ");
    for (const Model& model : models()) {
      given_choices(in.raw, model, model.options);  // fails where predicting would
      line += cat(&model == &models().front() ? "" : ", ", model.name, " (",
                  model.options.num_recycle + 1, " passes)");
    }
    log_notice(line, " x ", o_.num_seeds, o_.num_seeds == 1 ? " seed" : " seeds", " -> ",
               o_.output);
    return true;
  }

  /// Why the target is left alone, "" where it is not; then it is locked.
  std::string reason_to_skip(const Job& job, std::optional<TargetLock>& lock) const {
    // Locked before it is looked at: a run killed after its last file has left its lock behind.
    std::string busy;
    try {
      lock.emplace(o_.output, job.tag);
    } catch (const Error& e) {
      if (!o_.skip_existing) throw;
      busy = e.what();
    }
    if (!is_done(job)) return busy;
    if (busy.empty()) remove_leftovers(job.tag, results_);
    return "its files are complete";
  }

  bool run(const Job& job) {
    const Group& group = grid_.dap.group();
    std::optional<TargetLock> lock;
    std::string why;
    together(group, [&] {
      if (leads_group()) why = reason_to_skip(job, lock);
    });
    why = group.gather_text(why, "whether to skip")[0];
    if (!why.empty()) return leads_group() ? skip(job, why.c_str()) : false;

    const Clock::time_point start = Clock::now();
    const std::string started = utc_now();
    TargetInputs in;
    together(group, [&] { in = read(job); });
    const double features = seconds_since(start);

    TargetResults results;
    std::vector<Timing> timings;
    predict_all(job, in, results, timings);
    if (!leads_group()) return true;
    results.tag = job.tag;
    results.title = job.title;
    results.rank_by = o_.rank_by();
    results.alignment = in.raw.n_seq > 1;
    results.timings = {{"features", features},
                       {"total", seconds_since(start)},
                       {"peak_rss_bytes", peak_rss()},
                       {"peak_tensor_bytes", memory_count(o_.device.kind).peak}};
    const char* predicting =
        results_.layout == Layout::kAlphafold ? "predict_and_compile_" : "predict_";
    for (const Timing& t : timings) {
      results.timings["process_features_" + t.name] = t.process_features;
      results.timings[predicting + t.name] = t.predict;
      results.timings["recycles_" + t.name] = t.passes;
    }
    results.run = run_record(o_, models(), hashes_, job, in, results, started);
    results.msa_a3m = in.msa_a3m;
    results.fingerprint = fingerprint(job);
    draw_results(o_, models(), job, in, results);
    throw_if_stopped();
    write_results(results, results_);

    const Prediction& best = results.ranked.front();
    const std::string path = best_structure_path(results, results_);
    double seconds = 0;
    for (const Timing& t : timings) seconds += t.predict;
    std::string line = cat(job.tag, ": ", job.sequence.size(), " residues, ");
    if (results.ranked.size() > 1)
      line += cat("best of ", results.ranked.size(), ": ", best.model, ", ");
    line += cat(confidence_line(best), ", ", show_seconds(seconds));
    if (timings.size() == 1 && timings[0].passes.size() > 1) {
      line += " (";
      for (size_t i = 0; i < timings[0].passes.size(); ++i)
        line += (i ? " + " : "") + show_seconds(timings[0].passes[i]);
      line += ")";
    }
    log_notice(line, ", ", memory_line(), " -> ", path);
    log_event("target", job.tag,
              {{"state", "done"},
               {"residues", int64_t(job.sequence.size())},
               {"model", best.model},
               {"plddt", best.mean_plddt},
               {"ptm", best.ptm.value_or(NAN)},
               {"seconds", seconds_since(start)},
               {"structure", path}});
    return true;
  }

  /// Every model with every seed, ranked.
  void predict_all(const Job& job, const TargetInputs& in, TargetResults& results,
                   std::vector<Timing>& timings) {
    const auto total = double(models().size() * size_t(o_.num_seeds));
    Progress progress(job.tag);
    struct Entry {
      Prediction prediction;
      Arrays arrays;
    };
    std::vector<Entry> entries;
    bool enough = false;
    for (const Model& model : models())
      for (int64_t s = 0; s < o_.num_seeds && !enough; ++s) {
        const uint64_t seed = o_.random_seed + uint64_t(s);
        Timing timing;
        if (results_.layout == Layout::kAlphafold)
          timing.name = cat(model.name, "_pred_", s);
        else
          timing.name = o_.num_seeds == 1 ? model.name : cat(model.name, "_seed_", seed);
        RunOptions options = model.options;
        const auto before = double(entries.size());
        options.progress = [&](const std::string& stage, double done) {
          throw_if_stopped();
          progress.update(total > 1 ? timing.name + ", " + stage : stage, (before + done) / total);
        };
        const Arrays out = predict_one(model, in.raw, seed, options, timing);
        Prediction p;
        p.model = model.name;
        p.seed = seed;
        p.aatype = in.raw.aatype;
        p.positions = out.at("structure_module/final_atom_positions");
        p.mask = out.at("structure_module/final_atom_mask");
        p.plddt = out.at("confidence/plddt");
        p.mean_plddt = mean(p.plddt);
        p.num_recycles = int64_t(out.at("num_recycles").item());
        p.templates = !in.templates.empty() && model.network.config().data.use_templates;
        if (out.contains("confidence/ptm")) {
          p.pae = out.at("confidence/predicted_aligned_error_expected").contiguous();
          p.max_pae = out.at("confidence/max_predicted_aligned_error").item();
          p.ptm = out.at("confidence/ptm").item();
        }
        if (total > 1)
          log_notice(job.tag, ": ", timing.name, ": ", confidence_line(p), ", ",
                     show_seconds(timing.predict));
        enough = o_.stop_at_score && score_of(p, o_.rank_by()) >= *o_.stop_at_score;
        entries.push_back({std::move(p), saved_arrays(out, o_.save)});
        timings.push_back(std::move(timing));
      }
    std::stable_sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
      return score_of(a.prediction, o_.rank_by()) > score_of(b.prediction, o_.rank_by());
    });
    for (Entry& entry : entries) {
      results.ranked.push_back(std::move(entry.prediction));
      if (!o_.save.empty()) results.arrays.push_back(std::move(entry.arrays));
    }
  }

  Arrays predict_one(const Model& model, const RawFeatures& raw, uint64_t seed,
                     const RunOptions& options, Timing& timing) const {
    const ModelConfig& config = model.network.config();
    const std::vector<Choices> given = given_choices(raw, model, options);
    const Clock::time_point start = Clock::now();
    std::vector<Clock::time_point> passes;
    const FeatureSource source = [&](int64_t slice) {
      const Clock::time_point begun = Clock::now();
      if (slice % options.num_ensemble == 0) passes.push_back(begun);
      // Rows that AlphaFold fills up with zeros are masked everywhere: they cost time and change
      // nothing.
      const Choices choices =
          given.empty() ? draw_choices(raw, config.data, seed, slice) : given[size_t(slice)];
      Arrays features = make_slice(raw, config.data, choices, {.rows = Padding::kLeast});
      timing.process_features += seconds_since(begun);
      return features;
    };
    Arrays out = predict(model.network, source, options);
    passes.push_back(Clock::now());
    timing.predict = seconds_since(start);
    for (size_t i = 0; i + 1 < passes.size(); ++i)
      timing.passes.push_back(std::chrono::duration<double>(passes[i + 1] - passes[i]).count());
    return out;
  }

  /// The random choices in --features, where `fastfold features --preset` put them.
  std::vector<Choices> given_choices(const RawFeatures& raw, const Model& model,
                                     const RunOptions& options) const {
    const std::string& path = o_.inputs.features;
    if (path.empty()) return {};
    const Arrays arrays = read_npz(path);
    if (!arrays.contains("choices/random/shuffle0")) return {};
    std::vector<Choices> given =
        choices_from_arrays(arrays, path, raw, model.network.config().data);
    const int64_t needed = (options.num_recycle + 1) * options.num_ensemble;
    check_input(int64_t(given.size()) >= needed, path, ": holds the choices of ", given.size(),
                " slices, ", model.name, " needs ", needed,
                " (recycles and ensembles); give --num-recycle, or make it with more");
    return given;
  }

  const Options& o_;
  const ResultOptions results_;
  const Grid grid_;
  size_t failed_ = 0, skipped_ = 0;
  std::vector<std::string> param_files_;
  std::vector<std::shared_future<std::string>> hashes_;
  std::vector<Model> models_;
};

int run(Options& o, const Group& world) {
  const Grid grid = make_grid(world, o.ranks.dap, o.compute.kind());
  if (o.compute.threads == 0)
    o.compute.threads = std::max(1, available_threads() / world.ranks_on_this_host());
  o.compute.quiet |= grid.dap.rank() != 0;
  o.device = o.compute.apply(world);
  if (grid.dap.rank() == 0) set_json_log(o.json_log);
  resolve_aliases(o);
  if (o.inputs.inputs.empty() && o.inputs.features.empty())
    fail(Exit::kUsage,
         "predict needs a FASTA file: fastfold predict INPUT.fasta --params FILE -o OUT");
  if (o.params.empty()) fail(Exit::kUsage, "predict needs --params FILE: ", where_parameters_are());
  return Run(o, grid)();
}

}  // namespace

Command add_predict(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("predict", "predict structures from sequences and alignments");
  o->inputs.add_to(*app);
  app->add_option("-o,--output-dir,--out", o->output,
                  "folder of the results, one folder a target in it (default: here)");
  app->add_option(
         "--params,--jax-param-path,--param-path", o->params,
         "DeepMind's params_model_*.npz, a file of fastfold's, or a folder of them; may be "
         "repeated: every model predicts every target")
      ->allow_extra_args(false);
  app->add_option(
      "--data-dir", o->data_dir,
      "AlphaFold's: params/ and pdb_mmcif/ are taken from it where not given otherwise");
  app->add_option("--preset,--config-preset,--model-name", o->preset,
                  "model_1..5, model_1..5_ptm, demo (default: from the file's name or contents)");
  app->add_option("--model-preset", o->model_preset,
                  "which files of a folder: monomer, monomer_ptm or monomer_casp14, which also "
                  "takes 8 ensembles (default: the _ptm ones where there are any)")
      ->check(CLI::IsMember({"monomer", "monomer_ptm", "monomer_casp14", "multimer"}));
  app->add_option("--num-models", o->num_models, "the first so many models (default: all)")
      ->check(CLI::Range(1, 1000));
  o->changes.add_to(*app);
  app->add_option("--num-seeds", o->num_seeds, "predictions of each model (default 1)")
      ->check(CLI::Range(1, 100000));
  app->add_option("--random-seed,--data-random-seed", o->random_seed, "the first seed (default 0)");
  app->add_option("--num-recycle", o->num_recycle, "recycles (default: the preset's, 3)")
      ->check(CLI::Range(0, 1000));
  app->add_option("--num-ensemble", o->num_ensemble,
                  "sets of features averaged in each recycle (default 1)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--recycle-early-stop-tolerance", o->tolerance,
                  "stop recycling below this change of CA distances, angstrom (default: off)");
  app->add_option("--rank", o->rank, "by plddt or ptm (default auto: plddt, as AlphaFold)")
      ->check(CLI::IsMember({"auto", "plddt", "ptm"}));
  app->add_option("--stop-at-score", o->stop_at_score,
                  "no more models or seeds for a target once one has this score, 0 to 100")
      ->check(CLI::Range(0.0, 100.0));
  std::vector<std::string> saved;
  for (const auto& [name, prefix] : kSaved) saved.push_back(name);
  app->add_option("--save", o->save,
                  "arrays to keep as .npz: single,pair,msa,structure,distogram,"
                  "confidence,all")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(saved));
  app->add_option("--format", o->format, "of structures: pdb, cif or both (default both)")
      ->check(CLI::IsMember({"pdb", "cif", "both"}));
  app->add_option("--layout", o->layout,
                  "file names of fastfold, alphafold or colabfold (default fastfold)")
      ->check(CLI::IsMember({"fastfold", "alphafold", "colabfold"}));
  app->add_flag("--skip-existing", o->skip_existing,
                "leave targets whose files are complete and made from the same as they are, and "
                "those that another run is at");
  app->add_flag("--dry-run", o->dry_run, "read and check everything, say what would be done");
  app->add_flag("--use-precomputed-msas", o->use_precomputed_msas,
                "AlphaFold's: alignments are in OUT/TARGET/msas");
  app->add_flag("--cif-output", o->cif_output, "OpenFold's: --format cif");
  app->add_flag("--save-outputs,--save-all", o->save_outputs, "OpenFold's: --save all");
  for (const char* what : {"single", "pair"})
    app->add_flag_callback(
        cat("--save-", what, "-representations"), [o, what] { o->save.emplace_back(what); },
        cat("ColabFold's: --save ", what));
  app->add_option("--json-log", o->json_log,
                  "append messages and events to this file, one JSON "
                  "object a line");
  add_idle_flags(*app);
  o->compute.add_to(*app, false);
  o->ranks.add_to(*app, true);
  return {app,
          [o] { return on_ranks(o->ranks, [&](const Group& world) { return run(*o, world); }); },
          true};
}

}  // namespace ff
