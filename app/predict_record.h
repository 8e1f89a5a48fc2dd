// What fastfold predict was asked for, and what it records of a target beside the structures.
#pragma once

#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/commands.h"
#include "app/inputs.h"
#include "app/model_file.h"
#include "app/ranks.h"
#include "app/results.h"
#include "core/model/alphafold.h"

namespace ff {

struct PredictOptions {
  ComputeOptions compute;
  Device device;
  InputOptions inputs;
  ConfigChanges changes;
  std::vector<std::string> params, save;
  std::string data_dir, preset, model_preset, output = ".", json_log;
  std::string rank = "auto", layout = "fastfold", format = "both";
  int num_models = 0;
  int64_t num_recycle = -1, num_ensemble = -1, num_seeds = 1;
  uint64_t random_seed = 0;
  std::optional<double> tolerance, stop_at_score;
  bool use_precomputed_msas = false, cif_output = false, save_outputs = false;
  bool skip_existing = false, dry_run = false;
  RankOptions ranks;

  ResultOptions results() const { return {output, layout_of_name(layout), format_of_name(format)}; }
  std::string rank_by() const { return rank == "ptm" ? "ptm" : "plddt"; }
};

/// A network with its parameters.
struct PredictModel {
  std::string name;  ///< its preset; with a number where two files are of one preset
  std::string path;
  RunOptions options;
  AlphaFold network;
};

/// The time now: "2026-11-24T09:30:00Z".
std::string utc_now();

/// run.json: enough to run the target again. hashes: of the models' parameter files.
nlohmann::json run_record(const PredictOptions& o, const std::vector<PredictModel>& models,
                          const std::vector<std::shared_future<std::string>>& hashes,
                          const Job& job, const TargetInputs& in, const TargetResults& results,
                          const std::string& started);

/// The report and the plots, into the results.
void draw_results(const PredictOptions& o, const std::vector<PredictModel>& models, const Job& job,
                  const TargetInputs& in, TargetResults& results);

}  // namespace ff
