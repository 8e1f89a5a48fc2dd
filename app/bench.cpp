// fastfold bench: every module of the trunk and the whole network, forward and with their backward,
// beside what the processor could do at best, and a whole step of training; the featurisation of a
// target, part by part; the loader.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/bench_comm.h"
#include "app/bench_rows.h"
#include "app/commands.h"
#include "app/inputs.h"
#include "app/report.h"
#include "app/stopwatch.h"
#include "comm/launch.h"
#include "core/base/machine.h"
#include "core/geometry/residue_constants.h"
#include "core/model/alphafold.h"
#include "core/model/flops.h"
#include "core/ops/kernels.h"
#include "core/train/trainer.h"
#include "io/features.h"
#include "io/file.h"
#include "io/labels.h"
#include "io/loader.h"

namespace ff {
namespace {

/// One step of Adam and of the average over all parameters, with the clipped gradient's sum.
void optimizer(Bench& bench) {
  Arrays values, gradient;
  for (const ParamSpec& spec : param_specs(bench.config)) {
    values[spec.name] = noise(spec.shape, 9, Dtype::f32, bench.device);
    gradient[spec.name] = noise(spec.shape, 10, Dtype::f32, bench.device, 1e-3f);
  }
  Arrays m = zeros_like(values), v = zeros_like(values), ema = zeros_like(values);
  double count = 0;
  for (const auto& [name, value] : values) count += double(value.numel());
  const OptimConfig optim;
  const Tensor loss = Tensor::zeros({}, Dtype::f32, bench.device);
  int64_t step = 0;
  bench.training = false;  // the row times all of it as one
  bench.row("optimizer", {Flops{}, 9 * 4 * count}, [&] {
    Arrays sum = zeros_like(values);
    const Tensor skipped = Tensor::zeros({1}, Dtype::f32, bench.device);
    add_clipped(sum, gradient, loss, optim.clip_per_example, skipped);
    adam_step(optim, {values, m, v, ema}, sum, 1, optim.lr, ++step, skipped);
    return Vars();
  });
}

/// Features of a made-up protein, every row and residue there.
Arrays made_up_features(const Bench::Sizes& n) {
  const int64_t N = n.n_res;
  Arrays f;
  const auto letters = [&](const Dims& shape, int64_t kinds, uint64_t stream) {
    const Tensor t = Tensor::empty(shape, Dtype::i32);
    const Rng random(2, {stream});
    for (int64_t i = 0; i < t.numel(); ++i)
      t.data<int32_t>()[i] = int32_t(unit_float(random.word(uint64_t(i))) * float(kinds));
    return t;
  };
  f["aatype"] = letters({N}, 20, 0);
  f["residue_index"] = Tensor::empty({N}, Dtype::i32);
  for (int64_t i = 0; i < N; ++i) f["residue_index"].data<int32_t>()[i] = int32_t(i);
  f["seq_mask"] = ones({N});
  f["target_feat"] = noise({N, 22}, 4, 1);
  f["msa_feat"] = noise({n.n_seq, N, 49}, 5, 1);
  f["msa_mask"] = ones({n.n_seq, N});
  f["extra_msa"] = letters({n.n_extra, N}, 23, 1);
  f["extra_has_deletion"] = f["extra_deletion_value"] = Tensor::zeros({n.n_extra, N});
  f["extra_msa_mask"] = ones({n.n_extra, N});
  f["residx_atom37_to_atom14"] = Tensor::zeros({N, 37}, Dtype::i32);
  f["residx_atom14_to_atom37"] = Tensor::zeros({N, 14}, Dtype::i32);
  f["atom37_atom_exists"] = ones({N, 37});
  f["atom14_atom_exists"] = ones({N, 14});
  f["template_mask"] = Tensor::zeros({1});
  f["template_aatype"] = Tensor::zeros({1, N}, Dtype::i32);
  f["template_all_atom_positions"] = Tensor::zeros({1, N, 37, 3});
  f["template_all_atom_masks"] = Tensor::zeros({1, N, 37});
  return f;
}

/// Atoms near a helix, every one of them seen.
Arrays made_up_labels(const Tensor& aatype) {
  const int64_t n = aatype.numel();
  ChainStructure chain{"A", std::string(size_t(n), 'A'), noise({n, kAtom37, 3}, 6, 2),
                       ones({n, kAtom37})};
  for (int64_t i = 0; i < n; ++i) {
    chain.sequence[size_t(i)] = kRestypeLetters[size_t(aatype.data<int32_t>()[i])];
    const double turn = 1.75 * double(i);
    const double axis[] = {2.3 * std::cos(turn), 2.3 * std::sin(turn), 1.5 * double(i)};
    for (int64_t a = 0; a < kAtom37; ++a)
      for (int k = 0; k < 3; ++k)
        chain.positions.data<float>()[(i * kAtom37 + a) * 3 + k] += float(axis[k]);
  }
  return make_labels(chain, 2);
}

/// A whole step of training on one sample: the pass with its losses and backward, clipping, Adam
/// and the average.
void training_step(Bench& bench, const Params& params, const std::string& recompute, int threads) {
  const bool graphs = std::exchange(bench.graphs, false);
  if (!bench.wants("training step")) return;
  TrainConfig config = read_train_config("initial_training");
  config.model = bench.config;
  config.model.num_recycle = 0;
  config.train.crop_size = bench.n.n_res;
  config.features = {.max_msa_clusters = bench.n.n_seq,
                     .max_extra_msa = bench.n.n_extra,
                     .max_templates = 1,
                     .use_templates = config.model.templates.enabled};
  config.run.recompute = recompute;
  config.run.global_batch = 1;
  config.run.precision = name_of(bench.dtype);
  TrainingSample sample;
  Arrays slice = made_up_features(bench.n);
  sample.labels = made_up_labels(slice.at("aatype"));
  for (const char* name : {"atom14_atom_exists", "atom37_atom_exists", "residx_atom14_to_atom37",
                           "residx_atom37_to_atom14"})
    slice[name] = sample.labels.at(name);
  slice["true_msa"] = Tensor::zeros({bench.n.n_seq, bench.n.n_res}, Dtype::i32);
  slice["bert_mask"] = ones({bench.n.n_seq, bench.n.n_res});
  sample.slices = {slice};
  const auto trainer_with = [&](bool recorded) {
    config.run.graphs = recorded;
    Arrays values;
    for (const auto& [name, var] : params.all()) values[name] = var.value().to(Device{}).clone();
    return Trainer(config, initial_state(std::move(values)), threads, {}, bench.device);
  };
  const std::vector<TrainingSample> samples{sample};
  const auto step_of = [&](Trainer& trainer) {
    const auto step = [&] {  // as a run makes them, one behind the other
      trainer.gradients(samples);
      trainer.finish();
      trainer.update();
      return Vars();
    };
    // By then its pass is recorded; the CPU records none.
    for (int i = 0; i < 4 && Recording::possible(bench.device); ++i) step();
    return step;
  };
  Trainer trainer = trainer_with(true);
  const PassSizes sizes{bench.n.n_res, bench.n.n_seq, bench.n.n_extra, 0};
  bench.training = false;  // the row times all of it as one
  const auto step = step_of(trainer);
  // So many that the first, for which the GPU waits until its graph is given, does not count.
  constexpr int kSteps = 16;
  bench.row("training step", training_flops(bench.config, sizes, 0, trainer.plan().recompute), step,
            kSteps);
  bench.plan_beside_peak(trainer.plan());
  if (graphs && Recording::possible(bench.device)) {
    Trainer other = trainer_with(false);
    bench.beside_graph(step_of(other), step, 0, kSteps);
  }
  bench.host_side("training step", step);
}

struct Options {
  ComputeOptions compute;
  InputOptions inputs;
  CommBench comm;
  bool featurisation = false, training = false;
  std::string preset = "model_3_ptm", json, recompute = "auto";
  std::vector<std::string> shards;
  int64_t samples = 64;
  Bench::Sizes n;
  int64_t blocks = -1;
  bool modules_only = false, graphs = false;
  std::vector<std::string> rows;
};

void write_json(const std::string& path, const nlohmann::json& json) {
  if (!path.empty()) write_file(path, json.dump(2) + "\n");
}

/// Times from the alignment files to one slice of the preset's features. Every part's best of
/// `repeat` runs; "whole" is timed by itself.
int run_featurisation(const Options& options) {
  const DataConfig config = preset_config(options.preset).data;
  const std::vector<Job> jobs = options.inputs.jobs();
  nlohmann::json targets = nlohmann::json::array();
  for (const Job& job : jobs) {
    std::vector<std::pair<std::string, double>> parts;
    const auto timed = [&](size_t part, const char* name, const auto& f) {
      const double start = seconds();
      f();
      if (parts.size() <= part) parts.emplace_back(name, 1e9);
      parts[part].second = std::min(parts[part].second, seconds() - start);
    };
    RawFeatures raw;
    for (int64_t i = 0; i < options.n.repeat; ++i) {
      std::vector<std::string> texts;
      std::vector<Msa> msas;
      Msa merged;
      Choices choices;
      timed(0, "read and unpack", [&] {
        for (const std::string& path : job.alignments) texts.push_back(read_msa_text(path));
      });
      timed(1, "parse", [&] {
        for (size_t f = 0; f < texts.size(); ++f)
          msas.push_back(parse_msa(texts[f], job.alignments[f]));
      });
      timed(2, "merge", [&] { merged = merge_msas(std::move(msas)); });
      timed(3, "raw features", [&] { raw = make_raw_features(job.sequence, merged); });
      timed(4, "choices", [&] { choices = draw_choices(raw, config, 0, i); });
      timed(5, "slice", [&] { make_slice(raw, config, choices); });
      timed(6, "whole, to raw features", [&] { read_inputs(job, options.inputs); });
      timed(7, "whole, to one slice",
            [&] { make_slice(read_inputs(job, options.inputs).raw, config, 0, i); });
    }
    std::printf("%s: %lld residues, %lld different rows, %s\n", job.tag.c_str(),
                (long long)raw.n_res(), (long long)raw.n_seq, options.preset.c_str());
    nlohmann::json times;
    for (const auto& [name, best] : parts) {
      std::printf("  %-24s %9.2f ms\n", name.c_str(), best * 1e3);
      times[name] = best;
    }
    targets.push_back({{"target", job.tag},
                       {"n_res", raw.n_res()},
                       {"n_seq", raw.n_seq},
                       {"preset", options.preset},
                       {"seconds", times}});
  }
  write_json(options.json, targets);
  return int(Exit::kDone);
}

/// How fast training's samples are made, at the sizes of initial training.
int run_loader(const Options& options) {
  const int threads = options.compute.threads > 0 ? options.compute.threads : available_threads();
  const TrainConfig config =
      read_train_config("initial_training", {"data.filter.accept_by_length_and_cluster=false"});
  const Dataset dataset(options.shards);
  const Sampler sampler(dataset, sampler_config(config), 1);
  const double start = seconds();
  double bytes = 0;
  int64_t slices = 0;
  Loader loader(sampler, 0, 1, 0, threads, 2 * threads);
  for (int64_t i = 0; i < options.samples; ++i)
    for (const Arrays& slice : loader.next().slices) {
      ++slices;
      for (const auto& [name, t] : slice) bytes += double(t.numel() * size_of(t.dtype()));
    }
  const double took = seconds() - start, rate = double(options.samples) / took;
  std::printf(
      "%lld samples of %lld chains on %d threads: %.2f a second, %.2f a second and thread, "
      "%.1f ms of a thread each, %.1f MiB each; %s\n",
      (long long)options.samples, (long long)dataset.chains().size(), threads, rate, rate / threads,
      loader.working_seconds() / double(options.samples) * 1e3,
      bytes / double(options.samples) / (1 << 20), memory_line().c_str());
  write_json(options.json, {{"samples", options.samples},
                            {"slices", slices},
                            {"threads", threads},
                            {"samples_per_s", rate},
                            {"working_s", loader.working_seconds()},
                            {"peak_rss_bytes", peak_rss()}});
  return int(Exit::kDone);
}

int run(const Options& options) {
  if (launched().size > 1 && !options.comm.wanted)
    fail(Exit::kUsage,
         "fastfold bench works with one rank but for --comm; start it without mpirun");
  const Dtype dtype = dtype_of_precision(options.compute.precision);
  if (options.comm.wanted)
    return bench_comm(options.comm, options.compute,
                      {options.preset, options.n.n_res, options.n.n_seq, dtype}, options.n.repeat,
                      options.json);
  const Device device = options.compute.apply();
  if (options.featurisation) return run_featurisation(options);
  if (!options.inputs.inputs.empty())
    fail(Exit::kUsage, options.inputs.inputs[0], ": only --featurisation takes inputs");
  if (!options.shards.empty()) return run_loader(options);
  ModelConfig config = preset_config(options.preset);
  if (options.blocks > 0) config.evoformer_num_block = options.blocks;
  const auto made_up = [&](const ModelConfig& c) {
    Arrays values;
    uint64_t stream = 100;
    for (const ParamSpec& spec : param_specs(c)) values[spec.name] = noise(spec.shape, ++stream);
    Params params = Params(c, std::move(values), "bench").on(device);
    if (options.training) params.want_grads();
    return params;
  };
  // The modules' own: beside a module's other tensors the gradients of all blocks would count.
  ModelConfig one = config;
  one.evoformer_num_block = one.extra_msa_stack_num_block = 1;
  const Params block = made_up(one).in_precision(dtype);
  const Bench::Ceilings ceiling = ceilings(dtype, device);
  std::printf("kernels %s, matrix products at most %.0f GFLOP/s (%s)", kernels(device).name,
              ceiling.flops * 1e-9, name_of(dtype));
  if (device.kind != Device::cpu) std::printf(", copies %.2f TB/s", ceiling.bytes * 1e-12);
  std::printf("\nn_res %lld, n_seq %lld, n_extra %lld\n", (long long)options.n.n_res,
              (long long)options.n.n_seq, (long long)options.n.n_extra);
  Bench bench{config,           block,          options.n,   dtype, device, ceiling,
              options.training, options.graphs, options.rows};
  bench.head();
  bench.block(false);
  bench.block(true);
  if (!options.modules_only) {
    malloc_trim(0);
    const Params params = made_up(config);
    const AlphaFold model(config, params, dtype);
    const Arrays features = made_up_features(bench.n);
    const FeatureSource source = [&](int64_t) { return features; };
    const PassSizes sizes{options.n.n_res, options.n.n_seq, options.n.n_extra, 0};
    RunOptions run_options;
    run_options.num_recycle = 0;
    run_options.keep = [](const std::string&) { return false; };
    bench.n.repeat = device.kind == Device::cpu ? 1 : 3;
    if (options.training) {
      // What a step runs but for its losses and dropout.
      const RecomputePlan plan = plan_recompute(
          PassMemory(config, sizes,
                     {.dtype = dtype, .device = device.kind, .dropout = false, .recycles = false}),
          1, memory_count(device.kind).current, free_memory(device),
          recomputed_blocks(options.recompute, "--recompute"));
      const auto pass = [&] {
        const Outputs out = model.forward(source, 0, {}, {}, plan.recompute);
        Vars all{out.fold.act, out.fold.layers.back().atoms};
        for (const Var& x : {out.logits.distogram, out.logits.masked_msa, out.logits.lddt})
          if (x) all.push_back(x);
        return all;
      };
      if (bench.row("whole pass", training_flops(config, sizes, 0, plan.recompute), pass))
        bench.plan_beside_peak(plan);
      training_step(bench, params, options.recompute,
                    options.compute.threads > 0 ? options.compute.threads : available_threads());
      bench.n.repeat = options.n.repeat;
      optimizer(bench);
    } else {
      const auto pass = [&] {
        model.run(source, run_options);
        return Vars();
      };
      // A graph cannot hold what the host waits for: it has what the next recycle goes on from.
      bench.graphs = false;
      const auto recycle = [&] { model.forward(source, 0); };
      if (bench.row("whole pass", pass_flops(config, sizes).forward(), pass)) {
        bench.host_side("whole pass", pass);
        if (options.graphs) bench.beside_graph(recycle);
      }
    }
    std::printf("%s\n", memory_line().c_str());
  }
  if (bench.rows.empty())
    fail(Exit::kUsage,
         "--rows: none of the table's rows has such a name; they are those that are "
         "printed without --rows");
  write_json(options.json,
             {{"kernels", kernels(device).name},
              {"ceiling_gflops", ceiling.flops * 1e-9},
              {"copy_tb_per_s", device.kind == Device::cpu ? 0 : ceiling.bytes * 1e-12},
              {"precision", name_of(dtype)},
              {"n_res", options.n.n_res},
              {"n_seq", options.n.n_seq},
              {"n_extra", options.n.n_extra},
              {"training", options.training},
              {"rows", bench.rows},
              {"peak_rss_bytes", peak_rss()},
              {"peak_tensor_bytes", memory_count(device.kind).peak}});
  return int(Exit::kDone);
}

}  // namespace

Command add_bench(CLI::App& root) {
  CLI::App* app =
      root.add_subcommand("bench", "time the modules and the whole network beside their floors");
  auto options = std::make_shared<Options>();
  options->compute.add_to(*app, false);
  options->inputs.add_to(*app);
  app->add_flag("--featurisation", options->featurisation,
                "time the features of INPUT, from its files to one slice, instead of the network");
  app->add_flag("--training", options->training, "forward with a tape, and backward");
  app->add_option(
         "--recompute", options->recompute,
         "of --training: auto, blocks, none or a number, as run.recompute of fastfold train")
      ->capture_default_str();
  app->add_option("--loader", options->shards,
                  "time how training samples are made of these shards, instead of the network");
  app->add_option("--samples", options->samples, "of --loader")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app->add_option("--preset", options->preset, "whose sizes to use")->capture_default_str();
  app->add_option("--n-res", options->n.n_res, "residues")
      ->check(CLI::Range(1, 20000))
      ->capture_default_str();
  app->add_option("--n-seq", options->n.n_seq, "MSA rows")
      ->check(CLI::Range(1, 20000))
      ->capture_default_str();
  app->add_option("--n-extra", options->n.n_extra, "extra MSA rows")
      ->check(CLI::Range(1, 20000))
      ->capture_default_str();
  app->add_option("--blocks", options->blocks,
                  "Evoformer blocks of the whole pass (default: the preset's)")
      ->check(CLI::Range(1, 48));
  app->add_option("--repeat", options->n.repeat, "runs of each module; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_flag("--modules-only", options->modules_only, "leave the whole pass out");
  app->add_flag("--graphs", options->graphs,
                "on a GPU, each row as one CUDA graph beside its launches one by one");
  app->add_option("--rows", options->rows, "only the rows of these names, comma between them")
      ->delimiter(',');
  app->add_option("--json", options->json, "write the table as JSON");
  options->comm.add_to(*app);
  return {app, [options] { return run(*options); }, true};
}

}  // namespace ff
