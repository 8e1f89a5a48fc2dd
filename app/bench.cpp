// fastfold bench: every module of the trunk and the whole network, beside what the processor could
// do at best; and the featurisation of a target, part by part.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/inputs.h"
#include "app/report.h"
#include "core/base/machine.h"
#include "core/base/rng.h"
#include "core/model/alphafold.h"
#include "core/model/evoformer.h"
#include "core/model/flops.h"
#include "core/ops/kernels.h"
#include "io/features.h"
#include "io/file.h"

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

/// Seconds of f, the device idle before and after: the least of `repeat` on the CPU; on a GPU,
/// whose work goes on beside ours, their mean after one more.
template <class F>
double time_of(Device device, int64_t repeat, F f) {
  if (device.kind != Device::cpu) {
    f();
    synchronize(device);
    const double start = seconds();
    for (int64_t i = 0; i < repeat; ++i) f();
    synchronize(device);
    return (seconds() - start) / double(repeat);
  }
  double best = 1e9;
  for (int64_t i = 0; i < repeat; ++i) {
    const double start = seconds();
    f();
    best = std::min(best, seconds() - start);
  }
  return best;
}

struct Ceilings {
  double flops = 0;      ///< of a large matrix product
  double bandwidth = 0;  ///< of a large copy, bytes read and written a second; GPUs alone
};

Ceilings measure_ceilings(Dtype dtype, Device device) {
  const int64_t n = device.kind == Device::cpu ? 2048 : 8192;
  const Tensor a = noise({1, n, n}, 1).to(dtype).to(device),
               c = Tensor::empty({1, n, n}, dtype, device);
  Ceilings out;
  out.flops =
      2.0 * double(n * n * n) / time_of(device, 4, [&] { kernels(device).matmul(a, a, c); });
  if (device.kind != Device::cpu) {
    const Tensor from = Tensor::zeros({int64_t(1) << 28}, Dtype::f32, device);
    out.bandwidth = 2.0 * double(from.numel()) * 4 / time_of(device, 10, [&] { from.clone(); });
  }
  return out;
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
  Ceilings ceilings;
  nlohmann::json rows = nlohmann::json::array();

  template <class F>
  void row(const std::string& name, double gflop, F f) {
    reset_memory_peak(device.kind);
    const int64_t before = memory_count(device.kind).current;
    const double best = time_of(device, n.repeat, f);
    const double floor = gflop * 1e9 / ceilings.flops,
                 extra = double(memory_count(device.kind).peak - before) / (1 << 20);
    std::printf("%-28s %10.2f %10.2f %8.1f %8.0f %% %10.1f\n", name.c_str(), best * 1e3,
                floor * 1e3, gflop, 100 * floor / best, extra);
    std::fflush(stdout);
    rows.push_back({{"name", name},
                    {"ms", best * 1e3},
                    {"floor_ms", floor * 1e3},
                    {"gflop", gflop},
                    {"share_of_floor", floor / best},
                    {"temporary_mib", extra}});
  }

  template <class F>
  void forward(const std::string& name, double gflop, F f) {
    row(name, gflop, [&] {
      const NoGrad no_grad;
      f();
    });
  }

  /// The modules of one block, and the whole of it with its backward; FLOPs by the counts of Jumper
  /// et al.'s layers (a multiply-add is two).
  double block(bool extra) {
    const EvoformerConfig& e = config.evoformer;
    const std::string stack = extra ? "extra_msa_stack" : "evoformer_iteration";
    const Params cast = params.in_precision(dtype);
    const Scope s = Scope(cast, "alphafold/alphafold_iteration/evoformer/" + stack).block(0);
    const int64_t n_seq = extra ? n.n_extra : n.n_seq,
                  c_m = extra ? config.extra_msa_channel : config.msa_channel;
    const double S = double(n_seq), N = double(n.n_res), cm = double(c_m),
                 cz = double(config.pair_channel);
    const double o = double(e.num_outer_channel),
                 t = double(e.triangle_multiplication_outgoing_channel);
    const double heads = double(e.triangle_attention_starting_node.num_head);
    Var m(noise({n_seq, n.n_res, c_m}, 2).to(dtype).to(device)),
        z(noise({n.n_res, n.n_res, config.pair_channel}, 3).to(dtype).to(device));
    const Tensor msa_mask = ones({n_seq, n.n_res}).to(device),
                 pair_mask = ones({n.n_res, n.n_res}).to(device);
    const std::string at = extra ? "extra: " : "";
    const size_t first = rows.size();
    forward(at + "row attention",
            1e-9 * (10 * S * N * cm * cm + 4 * S * N * N * cm +
                    2 * N * N * cz * double(e.msa_row_attention.num_head)),
            [&] { msa_row_attention(s / "msa_row_attention_with_pair_bias", m, z, msa_mask); });
    if (extra)
      forward(at + "column global attention",
              1e-9 * S * N * cm *
                  (4 * cm + 4 * cm / double(e.msa_column_attention.num_head) +
                   4 * double(e.msa_column_attention.num_head)),
              [&] { msa_column_global_attention(s / "msa_column_global_attention", m, msa_mask); });
    else
      forward(at + "column attention", 1e-9 * (10 * S * N * cm * cm + 4 * N * S * S * cm),
              [&] { msa_column_attention(s / "msa_column_attention", m, msa_mask); });
    forward(at + "MSA transition", 1e-9 * 4 * double(e.msa_transition_factor) * S * N * cm * cm,
            [&] { transition(s / "msa_transition", m); });
    forward(at + "outer product mean",
            1e-9 * (4 * S * N * cm * o + 2 * N * N * S * o * o + 2 * N * N * o * o * cz),
            [&] { outer_product_mean(s / "outer_product_mean", m, z, msa_mask); });
    if (!extra) {
      const double multiplication =
          1e-9 * (10 * N * N * cz * t + 2 * N * N * cz * cz + 2 * N * N * N * t);
      const double attention =
          1e-9 * (10 * N * N * cz * cz + 2 * N * N * cz * heads + 4 * N * N * N * cz);
      forward("triangle multiplication out", multiplication, [&] {
        triangle_multiplication(s / "triangle_multiplication_outgoing", z, pair_mask, true);
      });
      forward("triangle multiplication in", multiplication, [&] {
        triangle_multiplication(s / "triangle_multiplication_incoming", z, pair_mask, false);
      });
      forward("triangle attention start", attention, [&] {
        triangle_attention(s / "triangle_attention_starting_node", z, pair_mask, true);
      });
      forward("triangle attention end", attention, [&] {
        triangle_attention(s / "triangle_attention_ending_node", z, pair_mask, false);
      });
      forward("pair transition", 1e-9 * 4 * double(e.pair_transition_factor) * N * N * cz * cz,
              [&] { transition(s / "pair_transition", z); });
    }
    double gflop = 0;
    for (size_t i = first; i < rows.size(); ++i) gflop += double(rows[i]["gflop"]);
    if (extra) return gflop;
    const Flops flops = evoformer_block_flops(config, {n.n_res, n_seq, n.n_extra, 0}, false);
    forward("block", 1e-9 * flops.forward(), [&] {
      evoformer_block(s, e, false, {m, z}, msa_mask, pair_mask, Trace());
    });
    Params masters = params;
    masters.want_grads();
    const Params trained = masters.in_precision(dtype);
    const Scope own = Scope(trained, "alphafold/alphafold_iteration/evoformer/" + stack).block(0);
    m.want_grad();
    z.want_grad();
    row("block, and backward", 1e-9 * (flops.forward() + flops.backward()), [&] {
      Tape tape;
      const Representations y =
          evoformer_block(own, e, false, {m, z}, msa_mask, pair_mask, Trace());
      tape.backward({y.m, y.z}, {y.m.value(), y.z.value()});
    });
    return gflop;
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
  bool featurisation = false;
  std::string preset = "model_3_ptm", json;
  Sizes n;
  int64_t blocks = -1;
  bool modules_only = false;
};

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
  if (!options.json.empty()) {
    AtomicFile file(options.json);
    file.write(targets.dump(2) + "\n");
    file.commit();
  }
  return int(Exit::kDone);
}

int run(const Options& options) {
  const Device device = options.compute.apply();
  if (options.featurisation) return run_featurisation(options);
  if (!options.inputs.inputs.empty())
    fail(Exit::kUsage, options.inputs.inputs[0], ": only --featurisation takes inputs");
  const Dtype dtype = dtype_of_precision(options.compute.precision);
  ModelConfig config = preset_config(options.preset);
  if (options.blocks > 0) config.evoformer_num_block = options.blocks;
  Arrays values;
  uint64_t stream = 100;
  for (const ParamSpec& spec : param_specs(config)) values[spec.name] = noise(spec.shape, ++stream);
  const Params params(config, std::move(values), "bench");
  const Params there = params.on(device);
  const Ceilings ceilings = measure_ceilings(dtype, device);
  std::printf("kernels %s, matrix products at most %.0f GFLOP/s (%s)", kernels(device).name,
              ceilings.flops * 1e-9, name_of(dtype));
  if (ceilings.bandwidth > 0) std::printf(", copies %.0f GB/s", ceilings.bandwidth * 1e-9);
  std::printf("\n");
  std::printf("n_res %lld, n_seq %lld, n_extra %lld\n", (long long)options.n.n_res,
              (long long)options.n.n_seq, (long long)options.n.n_extra);
  std::printf("%-28s %10s %10s %8s %10s %10s\n", "module", "ms", "floor ms", "GFLOP", "of floor",
              "MiB");
  Bench bench{config, there, options.n, dtype, device, ceilings};
  const double block = bench.block(false), extra = bench.block(true);
  if (!options.modules_only) {
    // The pair half of an extra-MSA block is that of an Evoformer block.
    double pair = 0;
    for (const auto& row : bench.rows)
      if (std::string(row["name"]).find("triangle") == 0 || row["name"] == "pair transition")
        pair += double(row["gflop"]);
    malloc_trim(0);
    const AlphaFold model(config, there, dtype);
    const Arrays features = bench.features();
    RunOptions run_options;
    run_options.num_recycle = 0;
    bench.n.repeat = 1;
    bench.row(cat("whole pass, ", config.evoformer_num_block, " blocks"),
              block * double(config.evoformer_num_block) +
                  (extra + pair) * double(config.extra_msa_stack_num_block),
              [&] { model.run([&](int64_t) { return features; }, run_options); });
    std::printf("%s\n", memory_line().c_str());
  }
  if (!options.json.empty()) {
    const nlohmann::json all = {{"kernels", kernels(device).name},
                                {"ceiling_gflops", ceilings.flops * 1e-9},
                                {"ceiling_gb_per_s", ceilings.bandwidth * 1e-9},
                                {"precision", name_of(dtype)},
                                {"n_res", options.n.n_res},
                                {"n_seq", options.n.n_seq},
                                {"n_extra", options.n.n_extra},
                                {"rows", bench.rows},
                                {"peak_rss_bytes", peak_rss()}};
    AtomicFile file(options.json);
    file.write(all.dump(2) + "\n");
    file.commit();
  }
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
  return {app, [options] { return run(*options); }};
}

}  // namespace ff
