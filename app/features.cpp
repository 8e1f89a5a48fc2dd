// fastfold features: what the network is given, as AlphaFold's raw features and, for a preset, as
// the processed features of every slice with the random choices that made them.
#include <CLI/CLI.hpp>

#include "app/commands.h"
#include "app/inputs.h"
#include "app/model_file.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/model/config.h"
#include "io/choices.h"
#include "io/npz.h"

namespace ff {
namespace {

struct Options {
  ComputeOptions compute;
  InputOptions inputs;
  ConfigChanges changes;
  std::string preset, choices, output = "features.npz";
  int64_t num_recycle = -1, num_ensemble = -1;
  uint64_t random_seed = 0;
};

/// Adds the slices as processed/NAME, [slices, ...], and their choices as choices/NAME.
void add_slices(const RawFeatures& raw, const Options& o, Arrays& out) {
  ModelConfig config = preset_config(o.preset);
  o.changes.apply(config);
  if (o.num_ensemble > 0) config.data.num_ensemble = o.num_ensemble;
  const int64_t passes = 1 + (o.num_recycle < 0 ? config.num_recycle : o.num_recycle);
  std::vector<Choices> choices;
  if (o.choices.empty())
    for (int64_t slice = 0; slice < passes * config.data.num_ensemble; ++slice)
      choices.push_back(draw_choices(raw, config.data, o.random_seed, slice));
  else
    choices = choices_from_arrays(read_npz(o.choices), o.choices, raw, config.data);

  std::map<std::string, std::vector<Tensor>> slices;
  for (const Choices& c : choices) {
    throw_if_stopped();
    for (auto& [name, t] : make_slice(raw, config.data, c)) slices[name].push_back(t);
  }
  for (const auto& [name, parts] : slices) out["processed/" + name] = stacked(parts);
  for (const auto& [name, t] : to_arrays(choices, raw.n_res())) out["choices/" + name] = t;
}

int run(const Options& o) {
  o.compute.apply();
  if (o.preset.empty() &&
      !(o.choices.empty() && o.changes.files.empty() && o.changes.overrides.empty() &&
        o.changes.max_msa.empty() && o.num_recycle < 0 && o.num_ensemble < 0))
    fail(
        Exit::kUsage,
        "--choices, --config, --set, --max-msa, --num-recycle and --num-ensemble are for processed "
        "features, which need --preset, such as --preset model_1");
  const std::vector<Job> jobs = o.inputs.jobs();
  if (jobs.size() != 1)
    fail(Exit::kUsage, o.output, " holds the features of one target, but there are ", jobs.size(),
         "; give one");
  check_input(jobs[0].error.empty(), jobs[0].error);
  const TargetInputs in = read_inputs(jobs[0], o.inputs);
  for (const std::string& warning : in.warnings) log_warning(jobs[0].tag, ": ", warning);
  Arrays out = to_arrays(in.raw);
  if (!o.preset.empty()) add_slices(in.raw, o, out);
  write_npz(o.output, out);
  for (const auto& [file, rows] : in.rows) log_notice(file, ": ", rows, " rows");
  log_notice(jobs[0].tag, ": ", in.raw.n_res(), " residues, ", in.raw.n_seq, " different rows, ",
             in.raw.templates.size(), " templates -> ", o.output);
  return int(Exit::kDone);
}

}  // namespace

Command add_features(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "features", "write the features of a target, which 'predict --features' takes");
  o->inputs.add_to(*app);
  app->add_option("-o,--output,--out", o->output, "default features.npz")->capture_default_str();
  app->add_option("--preset,--config-preset", o->preset,
                  "add the processed features of this preset (model_1, ...), every slice, and the "
                  "random choices");
  o->changes.add_to(*app);
  app->add_option("--random-seed,--data-random-seed", o->random_seed, "default 0");
  auto* recycle = app->add_option("--num-recycle", o->num_recycle,
                                  "slices for so many recycles (default: the preset's, 3)")
                      ->check(CLI::Range(0, 1000));
  auto* ensemble = app->add_option("--num-ensemble", o->num_ensemble, "slices of each recycle")
                       ->check(CLI::Range(1, 1000));
  app->add_option("--choices", o->choices,
                  "npz with the random choices to use (this command's output, or AlphaFold's steps "
                  "random/shuffle0, random/shuffle1, step1/bert_mask, step1/msa)")
      ->excludes(recycle)
      ->excludes(ensemble);
  o->compute.add_to(*app, false);
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
