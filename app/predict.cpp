// fastfold predict: from sequences and their alignments to structures with confidences.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/commands.h"
#include "app/inputs.h"
#include "app/model_file.h"
#include "app/report.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "core/predict/predictor.h"
#include "io/features.h"
#include "io/file.h"
#include "io/structure_writer.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  ComputeOptions compute;
  InputOptions input;
  std::string params, preset, output = ".", max_msa;
  int64_t num_recycle = -1, num_ensemble = -1;
  uint64_t random_seed = 0;
  std::optional<double> tolerance;
};

struct MaxMsa {
  int64_t clusters, extra;
};

/// Reads "512:5120".
MaxMsa parse_max_msa(const std::string& text) {
  const size_t colon = text.find(':');
  const auto number = [&](const std::string& part) -> int64_t {
    constexpr size_t kDigits = 7;
    if (part.empty() || part.size() > kDigits ||
        part.find_first_not_of("0123456789") != std::string::npos || std::stol(part) == 0)
      fail(Exit::kUsage, "--max-msa ", text,
           ": expected CLUSTERS:EXTRA, two numbers of rows from 1 on, such as 512:5120");
    return std::stol(part);
  };
  return {number(text.substr(0, colon)),
          number(colon == std::string::npos ? "" : text.substr(colon + 1))};
}

struct Timings {
  double features = 0, process_features = 0, predict = 0;
  std::vector<double> recycles;
};

double rounded(double x) { return std::round(x * 100) / 100; }

nlohmann::json rounded_list(const Tensor& values) {
  nlohmann::json list = nlohmann::json::array();
  for (int64_t i = 0; i < values.numel(); ++i) list.push_back(rounded(values.data<float>()[i]));
  return list;
}

/// ColabFold's keys.
nlohmann::json scores(const Arrays& out) {
  nlohmann::json json;
  json["plddt"] = rounded_list(out.at("confidence/plddt"));
  const auto pae = out.find("confidence/predicted_aligned_error_expected");
  if (pae == out.end()) return json;
  const Tensor error = pae->second.contiguous();
  float worst = 0;
  nlohmann::json& rows = json["pae"] = nlohmann::json::array();
  for (int64_t i = 0; i < error.size(0); ++i) rows.push_back(rounded_list(error.select(0, i)));
  for (int64_t i = 0; i < error.numel(); ++i) worst = std::max(worst, error.data<float>()[i]);
  json["max_pae"] = rounded(worst);
  json["ptm"] = rounded(out.at("confidence/ptm").item());
  return json;
}

double mean(const Tensor& values) {
  double sum = 0;
  for (int64_t i = 0; i < values.numel(); ++i) sum += values.data<float>()[i];
  return sum / double(std::max<int64_t>(1, values.numel()));
}

void write_text(const fs::path& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

/// One target: features, network, files.
void predict(const Job& job, const AlphaFold& model, const RunOptions& base, const Options& o) {
  const ModelConfig& config = model.config();
  const fs::path folder = fs::path(o.output) / job.tag;
  Timings timings;
  const Clock::time_point start = Clock::now();

  const TargetInputs inputs = read_inputs(job, o.input);
  for (const std::string& warning : inputs.warnings) log_notice(job.tag, ": ", warning);
  const RawFeatures& raw = inputs.raw;
  timings.features = seconds_since(start);
  throw_if_stopped();

  RunOptions options = base;
  Clock::time_point pass_start = Clock::now();
  std::vector<Clock::time_point> passes;
  const FeatureSource source = [&](int64_t slice) {
    if (slice % options.num_ensemble == 0) passes.push_back(Clock::now());
    const Clock::time_point begun = Clock::now();
    // Rows that AlphaFold fills up with zeros are masked everywhere: they cost time and change
    // nothing.
    Arrays features =
        make_slice(raw, config.data, draw_choices(raw, config.data, o.random_seed, slice),
                   {.rows = Padding::kLeast});
    timings.process_features += seconds_since(begun);
    return features;
  };
  Arrays out;
  {
    Progress progress(job.tag);
    options.progress = [&](const std::string& stage, double done) {
      throw_if_stopped();
      progress.update(stage, done);
    };
    out = predict(model, source, options);
  }
  passes.push_back(Clock::now());
  timings.predict = seconds_since(pass_start);
  for (size_t i = 0; i + 1 < passes.size(); ++i)
    timings.recycles.push_back(std::chrono::duration<double>(passes[i + 1] - passes[i]).count());

  Prediction structure;
  structure.aatype = raw.aatype;
  structure.positions = out.at("structure_module/final_atom_positions");
  structure.mask = out.at("structure_module/final_atom_mask");
  structure.plddt = out.at("confidence/plddt");
  const std::string pdb = to_pdb(structure);
  throw_if_stopped();

  fs::create_directories(folder);
  write_text(folder / "ranked_000.pdb", pdb);
  write_text(folder / "scores_rank_000.json", scores(out).dump() + "\n");
  const nlohmann::json timing = {{"features", timings.features},
                                 {"process_features_" + config.name, timings.process_features},
                                 {"predict_" + config.name, timings.predict},
                                 {"recycles", timings.recycles},
                                 {"total", seconds_since(start)},
                                 {"peak_rss_bytes", peak_rss()},
                                 {"peak_tensor_bytes", memory_count().peak}};
  write_text(folder / "timings.json", timing.dump(1) + "\n");

  const auto ptm = out.find("confidence/ptm");
  char confidence[64];
  std::snprintf(confidence, sizeof confidence, "pLDDT %.1f", mean(structure.plddt));
  std::string line = cat(job.tag, ": ", job.sequence.size(), " residues, ", confidence);
  if (ptm != out.end()) {
    std::snprintf(confidence, sizeof confidence, ", pTM %.2f", ptm->second.item());
    line += confidence;
  }
  line += cat(", ", show_seconds(timings.predict), " (");
  for (size_t i = 0; i < timings.recycles.size(); ++i)
    line += (i ? " + " : "") + show_seconds(timings.recycles[i]);
  log_notice(line, "), ", memory_line(), " -> ", (folder / "ranked_000.pdb").string());
}

int run(const Options& o) {
  o.compute.apply();
  if (o.input.inputs.empty() && o.input.features.empty())
    fail(Exit::kUsage,
         "predict needs a FASTA file: fastfold predict INPUT.fasta --params FILE -o OUT");
  if (o.params.empty()) fail(Exit::kUsage, "predict needs --params FILE: ", where_parameters_are());
  std::optional<MaxMsa> max_msa;
  if (!o.max_msa.empty()) max_msa = parse_max_msa(o.max_msa);
  const std::vector<Job> jobs = o.input.jobs();
  // Fails now rather than after the first prediction where nothing can be written.
  make_output_folder(o.output);

  ModelFile file = read_model_file(o.params, o.preset);
  ModelConfig& config = file.config;
  if (max_msa) {
    config.data.max_msa_clusters = max_msa->clusters;
    config.data.max_extra_msa = max_msa->extra;
  }
  RunOptions options;
  options.num_recycle = o.num_recycle < 0 ? config.num_recycle : o.num_recycle;
  options.num_ensemble = o.num_ensemble < 0 ? config.data.num_ensemble : o.num_ensemble;
  options.recycle_early_stop_tolerance = o.tolerance.value_or(config.recycle_early_stop_tolerance);
  Params params(config, std::move(file.arrays), o.params);
  const AlphaFold model(config, std::move(params), dtype_of_precision(o.compute.precision));

  size_t failed = 0;
  for (const Job& job : jobs) {
    throw_if_stopped();
    try {
      predict(job, model, options, o);
    } catch (const std::exception& e) {
      if (jobs.size() == 1) throw;
      ++failed;
      log_line(cat("fastfold: ", job.tag, " failed: ", e.what()));
    }
  }
  if (!failed) return int(Exit::kDone);
  log_line(cat("fastfold: ", failed, " of ", jobs.size(), " targets failed"));
  return int(Exit::kPartial);
}

}  // namespace

Command add_predict(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("predict", "predict structures from sequences and alignments");
  o->input.add_to(*app);
  app->add_option("-o,--output-dir,--out", o->output,
                  "folder of the results, one folder a target in it (default: here)");
  app->add_option("--params,--jax-param-path", o->params,
                  "DeepMind's params_model_*.npz, or a file of fastfold's");
  app->add_option("--preset,--config-preset", o->preset,
                  "model_1..5, model_1..5_ptm, demo (default: from the file's name or contents)");
  app->add_option("--num-recycle", o->num_recycle, "recycles (default: the preset's, 3)")
      ->check(CLI::Range(0, 1000));
  app->add_option("--num-ensemble", o->num_ensemble,
                  "sets of features averaged in each recycle (default 1)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--recycle-early-stop-tolerance", o->tolerance,
                  "stop recycling below this change of CA distances, angstrom (default: off)");
  app->add_option("--random-seed,--data-random-seed", o->random_seed, "default 0");
  app->add_option("--max-msa", o->max_msa,
                  "rows of the MSA, CLUSTERS:EXTRA (default: the preset's, such as 512:5120)");
  o->compute.add_to(*app, false);
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
