// fastfold bench: every module of the trunk and the whole network, forward and with their backward,
// beside what the processor could do at best; the featurisation of a target, part by part; the
// loader.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/bench_comm.h"
#include "app/commands.h"
#include "app/inputs.h"
#include "app/report.h"
#include "comm/launch.h"
#include "core/base/machine.h"
#include "core/base/rng.h"
#include "core/model/alphafold.h"
#include "core/model/evoformer.h"
#include "core/model/flops.h"
#include "core/ops/kernels.h"
#include "core/train/trainer.h"
#include "io/features.h"
#include "io/file.h"
#include "io/loader.h"

namespace ff {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Tensor noise(const Dims& shape, uint64_t stream, float spread = 0.05f) {
  const Tensor t = Tensor::empty(shape);
  const Rng random(1, {stream});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = spread * (2 * unit_float(random.word(uint64_t(i))) - 1);
  return t;
}

Tensor ones(const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  std::fill_n(t.data<float>(), t.numel(), 1.0f);
  return t;
}

struct Sizes {
  int64_t n_res = 185, n_seq = 512, n_extra = 1024, repeat = 2;
};

struct Bench {
  const ModelConfig& config;
  const Params& params;
  Sizes n;
  Dtype dtype;
  Device device;
  double ceiling;
  bool training;
  nlohmann::json rows = nlohmann::json::array();

  void head() const {
    std::printf("%-28s %10s %10s %10s %8s %10s %10s\n", "module", "ms", training ? "backward" : "",
                "floor ms", "GFLOP", "of floor", "MiB");
  }

  /// Best of the runs of f, which returns Vars; while training with a tape, whose backward begins
  /// from all ones. `flop`: of one run.
  template <class F>
  void row(const std::string& name, double flop, F f) {
    double forward = 1e9, backward = 1e9;
    const auto now = [&] {
      synchronize(device);
      return seconds();
    };
    reset_memory_peak(device.kind);
    const int64_t before = memory_count(device.kind).current;
    for (int64_t i = 0; i < n.repeat; ++i) {
      if (training) {
        Tape tape;
        const double start = now();
        const Vars y = f();
        const double middle = now();
        std::vector<Tensor> seeds;
        for (const Var& v : y) seeds.push_back(ones(v.shape()).to(device).to(v.value().dtype()));
        const double again = now();
        tape.backward(y, seeds);
        backward = std::min(backward, now() - again);
        forward = std::min(forward, middle - start);
        for (const auto& [key, v] : params.all()) v.slot()->grad = Tensor();
      } else {
        const NoGrad no_grad;
        const double start = now();
        f();
        forward = std::min(forward, now() - start);
      }
    }
    const double floor = flop / ceiling, took = forward + (training ? backward : 0),
                 extra = double(memory_count(device.kind).peak - before) / (1 << 20);
    std::printf("%-28s %10.2f ", name.c_str(), forward * 1e3);
    training ? std::printf("%10.2f ", backward * 1e3) : std::printf("%10s ", "");
    std::printf("%10.2f %8.1f %8.0f %% %10.1f\n", floor * 1e3, flop * 1e-9, 100 * floor / took,
                extra);
    std::fflush(stdout);
    rows.push_back({{"name", name},
                    {"ms", forward * 1e3},
                    {"floor_ms", floor * 1e3},
                    {"gflop", flop * 1e-9},
                    {"share_of_floor", floor / took},
                    {"temporary_mib", extra}});
    if (training) rows.back()["backward_ms"] = backward * 1e3;
  }
  template <class F>
  void row(const std::string& name, const Flops& flops, F f) {
    row(name, flops.forward() + (training ? flops.backward() : 0), [&] { return Vars{f()}; });
  }

  /// The modules of one block; FLOPs by the counts of Jumper et al.'s layers (a multiply-add is
  /// two).
  void block(bool extra) {
    const EvoformerConfig& e = config.evoformer;
    const std::string stack = extra ? "extra_msa_stack" : "evoformer_iteration";
    const Scope s = Scope(params, "alphafold/alphafold_iteration/evoformer/" + stack).block(0);
    const int64_t n_seq = extra ? n.n_extra : n.n_seq,
                  c_m = extra ? config.extra_msa_channel : config.msa_channel;
    const double S = double(n_seq), N = double(n.n_res), cm = double(c_m),
                 cz = double(config.pair_channel);
    const double o = double(e.num_outer_channel),
                 t = double(e.triangle_multiplication_outgoing_channel);
    const double heads = double(e.triangle_attention_starting_node.num_head);
    Var m(noise({n_seq, n.n_res, c_m}, 2).to(dtype).to(device)),
        z(noise({n.n_res, n.n_res, config.pair_channel}, 3).to(dtype).to(device));
    if (training) m.want_grad(), z.want_grad();
    const Tensor msa_mask = ones({n_seq, n.n_res}).to(device),
                 pair_mask = ones({n.n_res, n.n_res}).to(device);
    const std::string at = extra ? "extra: " : "";
    row(at + "row attention",
        Flops{10 * S * N * cm * cm + 2 * N * N * cz * double(e.msa_row_attention.num_head),
              4 * S * N * N * cm},
        [&] { return msa_row_attention(s / "msa_row_attention_with_pair_bias", m, z, msa_mask); });
    if (extra)
      row(at + "column global attention",
          Flops{S * N * cm * (4 * cm + 4 * cm / double(e.msa_column_attention.num_head)),
                4 * S * N * cm * double(e.msa_column_attention.num_head)},
          [&] {
            return msa_column_global_attention(s / "msa_column_global_attention", m, msa_mask);
          });
    else
      row(at + "column attention", Flops{10 * S * N * cm * cm, 4 * N * S * S * cm},
          [&] { return msa_column_attention(s / "msa_column_attention", m, msa_mask); });
    row(at + "MSA transition", Flops{4 * double(e.msa_transition_factor) * S * N * cm * cm},
        [&] { return transition(s / "msa_transition", m); });
    row(at + "outer product mean",
        Flops{4 * S * N * cm * o + 2 * N * N * S * o * o + 2 * N * N * o * o * cz},
        [&] { return outer_product_mean(s / "outer_product_mean", m, z, msa_mask); });
    if (extra) return;
    const Flops multiplication{10 * N * N * cz * t + 2 * N * N * cz * cz + 2 * N * N * N * t},
        attention{10 * N * N * cz * cz + 2 * N * N * cz * heads, 4 * N * N * N * cz};
    row("triangle multiplication out", multiplication, [&] {
      return triangle_multiplication(s / "triangle_multiplication_outgoing", z, pair_mask, true);
    });
    row("triangle multiplication in", multiplication, [&] {
      return triangle_multiplication(s / "triangle_multiplication_incoming", z, pair_mask, false);
    });
    row("triangle attention start", attention, [&] {
      return triangle_attention(s / "triangle_attention_starting_node", z, pair_mask, true);
    });
    row("triangle attention end", attention, [&] {
      return triangle_attention(s / "triangle_attention_ending_node", z, pair_mask, false);
    });
    row("pair transition", Flops{4 * double(e.pair_transition_factor) * N * N * cz * cz},
        [&] { return transition(s / "pair_transition", z); });
    const Flops whole = evoformer_block_flops(config, {n.n_res, n_seq, n.n_extra, 0}, false);
    row("block", whole.forward() + (training ? whole.backward() : 0), [&] {
      const Representations y = evoformer_block(s, e, false, {m, z}, msa_mask, pair_mask, Trace());
      return Vars{y.m, y.z};
    });
  }

  /// Features of a made-up protein, every row and residue there.
  Arrays features() const {
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
};

struct Options {
  ComputeOptions compute;
  InputOptions inputs;
  CommBench comm;
  bool featurisation = false, training = false;
  std::string preset = "model_3_ptm", json;
  std::vector<std::string> shards;
  int64_t samples = 64;
  Sizes n;
  int64_t blocks = -1;
  bool modules_only = false;
};

void write_json(const std::string& path, const nlohmann::json& json) {
  if (path.empty()) return;
  AtomicFile file(path);
  file.write(json.dump(2) + "\n");
  file.commit();
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
  Arrays values;
  uint64_t stream = 100;
  for (const ParamSpec& spec : param_specs(config)) values[spec.name] = noise(spec.shape, ++stream);
  Params params = Params(config, std::move(values), "bench").on(device);
  if (options.training) params.want_grads();
  const Params cast = params.in_precision(dtype);
  const double ceiling = matrix_rate(dtype, device);
  std::printf("kernels %s, matrix products at most %.0f GFLOP/s (%s)\n", kernels(device).name,
              ceiling * 1e-9, name_of(dtype));
  std::printf("n_res %lld, n_seq %lld, n_extra %lld\n", (long long)options.n.n_res,
              (long long)options.n.n_seq, (long long)options.n.n_extra);
  Bench bench{config, cast, options.n, dtype, device, ceiling, options.training};
  bench.head();
  bench.block(false);
  bench.block(true);
  if (!options.modules_only) {
    malloc_trim(0);
    const AlphaFold model(config, params, dtype);
    const Arrays features = bench.features();
    const FeatureSource source = [&](int64_t) { return features; };
    const PassSizes sizes{options.n.n_res, options.n.n_seq, options.n.n_extra, 0};
    RunOptions run_options;
    run_options.num_recycle = 0;
    run_options.keep = [](const std::string&) { return false; };
    bench.n.repeat = device.kind == Device::cpu ? 1 : 3;
    const std::string name = cat("whole pass, ", config.evoformer_num_block, " blocks");
    if (options.training)
      // What a step runs but for its losses; blocks run forward twice.
      bench.row(name, training_flops(config, sizes, 0, true), [&] {
        const Outputs out = model.forward(source, 0);
        Vars all{out.fold.act, out.fold.layers.back().atoms};
        for (const Var& x : {out.logits.distogram, out.logits.masked_msa, out.logits.lddt})
          if (x) all.push_back(x);
        return all;
      });
    else
      bench.row(name, pass_flops(config, sizes).forward(), [&] {
        model.run(source, run_options);
        return Vars();
      });
    std::printf("%s\n", memory_line().c_str());
  }
  write_json(options.json, {{"kernels", kernels(device).name},
                            {"ceiling_gflops", ceiling * 1e-9},
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
  app->add_option("--repeat", options->n.repeat, "runs of each module; the best counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_flag("--modules-only", options->modules_only, "leave the whole pass out");
  app->add_option("--json", options->json, "write the table as JSON");
  options->comm.add_to(*app);
  return {app, [options] { return run(*options); }, true};
}

}  // namespace ff
