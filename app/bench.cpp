// fastfold bench: every module of the trunk and the whole network, forward and with their backward,
// beside what the processor could do at best; the featurisation of a target, part by part; the
// loader.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "app/bench_comm.h"
#include "app/commands.h"
#include "app/inputs.h"
#include "app/report.h"
#include "app/stopwatch.h"
#include "comm/launch.h"
#include "core/base/machine.h"
#include "core/base/timeline.h"
#include "core/geometry/residue_constants.h"
#include "core/model/alphafold.h"
#include "core/model/evoformer.h"
#include "core/model/flops.h"
#include "core/ops/attention.h"
#include "core/ops/kernels.h"
#include "core/ops/layer_norm.h"
#include "core/train/trainer.h"
#include "io/features.h"
#include "io/file.h"
#include "io/labels.h"
#include "io/loader.h"

namespace ff {
namespace {

Tensor noise(const Dims& shape, uint64_t stream, float spread = 0.05f) {
  return noise(shape, stream, Dtype::f32, Device{}, spread);
}

Tensor ones(const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  std::fill_n(t.data<float>(), t.numel(), 1.0f);
  return t;
}

/// Times each Span by itself while one is alive, without the Spans inside it, waiting for the
/// device at its ends.
class ModuleClock {
 public:
  explicit ModuleClock(Device device) {
    device_ = device;
    times_.clear();
    open_ = {"elsewhere"};
    before_ = hook_spans(&kHook);
    mark();
  }
  ~ModuleClock() { hook_spans(before_); }
  ModuleClock(const ModuleClock&) = delete;
  ModuleClock& operator=(const ModuleClock&) = delete;

  /// Seconds of each; nothing is timed any more.
  std::map<std::string, double> stop() {
    add();
    hook_spans(before_);
    return times_;
  }

 private:
  static void mark() {
    synchronize(device_);
    since_ = seconds();
  }
  static void add() {
    synchronize(device_);
    times_[open_.back()] += seconds() - since_;
  }
  static void begin(const char* name) {
    add();
    open_.emplace_back(name);
    mark();
  }
  static void end() {
    add();
    open_.pop_back();
    mark();
  }
  static constexpr SpanHook kHook = {&ModuleClock::begin, &ModuleClock::end};
  static inline Device device_;
  static inline std::map<std::string, double> times_;
  static inline std::vector<std::string> open_;
  static inline double since_ = 0;
  const SpanHook* before_;
};

struct Sizes {
  int64_t n_res = 185, n_seq = 512, n_extra = 1024, repeat = 2;
};

/// What a row does, for its floor.
struct Work {
  Work(double flop) : flop(flop) {}  // NOLINT: all of a row that is one whole
  Work(Flops f, double bytes = 0, double exponentials = 0)
      : flop(f.forward()), backward_flop(f.backward()), bytes(bytes), exponentials(exponentials) {}
  double flop, backward_flop = 0;
  double bytes = 0;         ///< that a forward must read and write
  double exponentials = 0;  ///< of softmax
  double backward = 2;      ///< times `bytes` of the backward
};

/// What the machine could do at best; infinite where it does not count.
struct Ceilings {
  double flops, bytes, exponentials;
};

Ceilings ceilings(Dtype dtype, Device device) {
  Ceilings c{matrix_rate(dtype, device), INFINITY, INFINITY};
  if (device.kind == Device::cpu) return c;
  const Tensor from = Tensor::zeros({int64_t(1) << 28}, Dtype::f32, device),
               to = Tensor::empty(from.shape(), Dtype::f32, device);
  c.bytes = 8.0 * double(from.numel()) / median_seconds(device, 5, [&] { to.copy_from(from); });
  c.exponentials = 3.6e12;  // 16 a clock of 132 multiprocessors at 1.7 GHz: a Hopper's
  return c;
}

struct Bench {
  const ModelConfig& config;
  const Params& params;
  Sizes n;
  Dtype dtype;
  Device device;
  Ceilings ceiling;
  bool training, graphs;
  const std::vector<std::string>& only;  ///< names of rows; empty: all
  nlohmann::json rows = nlohmann::json::array();
  std::vector<std::shared_ptr<GradSlot>> leaves = {};

  void head() const {
    std::printf("%-28s %10s %10s %10s %8s %10s %10s\n", "module", "ms", training ? "backward" : "",
                "floor ms", "GFLOP", "of floor", "MiB");
  }

  /// What the host did for one run of f on a GPU, and what of it each module took.
  template <class F>
  void host_side(const std::string& name, F f) {
    if (device.kind == Device::cpu) return;
    synchronize(device);
    const DeviceWork before = device_work();
    const double start = seconds();
    f();
    const double given = seconds() - start;
    const DeviceWork work = device_work() - before;
    synchronize(device);
    const double done = seconds() - start;
    std::printf(
        "  %s: the host had given all of it after %.2f of %.2f ms; %lld launches, %lld copies to "
        "the GPU "
        "(%.2f MiB), %lld from it (%.2f MiB), %lld waits\n",
        name.c_str(), given * 1e3, done * 1e3, (long long)work.launches, (long long)work.uploads,
        double(work.upload_bytes) / (1 << 20), (long long)work.downloads,
        double(work.download_bytes) / (1 << 20), (long long)work.waits);
    nlohmann::json& row = rows.back();
    row["host"] = {{"given_ms", given * 1e3},     {"launches", work.launches},
                   {"uploads", work.uploads},     {"upload_bytes", work.upload_bytes},
                   {"downloads", work.downloads}, {"download_bytes", work.download_bytes},
                   {"waits", work.waits}};
    ModuleClock clock(device);
    f();
    for (const auto& [module, took] : clock.stop()) {
      std::printf("    %-40s %9.2f ms\n", module.c_str(), took * 1e3);
      row["modules_ms"][module] = took * 1e3;
    }
    std::fflush(stdout);
  }

  /// Asks for a leaf's gradient, which a row's backward makes anew.
  void watch(Var& leaf) {
    if (!training) return;
    leaf.want_grad();
    leaves.push_back(leaf.slot());
  }

  /// Inputs in turn, so many that together no cache holds them.
  struct Inputs {
    Vars copies;
    size_t turn = 0;
    const Var& next() { return copies[turn++ % copies.size()]; }
  };
  Inputs inputs(const Dims& shape, uint64_t stream) {
    const int64_t bytes = shape.product() * size_of(dtype), cache = int64_t(128) << 20;
    Inputs in;
    for (int64_t i = 0; i == 0 || (device.kind != Device::cpu && i * bytes < cache && i < 16);
         ++i) {
      in.copies.emplace_back(ff::noise(shape, stream, dtype, device));
      watch(in.copies.back());
    }
    return in;
  }

  /// f returns Vars; while training with a tape, whose backward begins from all ones. False where
  /// the row is not asked for.
  template <class F>
  bool row(const std::string& name, const Work& work, F f) {
    if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) return false;
    std::vector<Tensor> seeds;  // given, as the peers' are: they count for none of the row's memory
    if (training) {
      const Tape tape;  // f() may write into what it is given where nothing is recorded
      for (const Var& y : f()) seeds.push_back(ones(y.shape()).to(device).to(y.value().dtype()));
    }
    reset_memory_peak(device.kind);
    const int64_t before = memory_count(device.kind).current;
    double forward = 0, both = 0, copies = 0;
    std::function<void()> all = [&] { f(); };
    if (training) {
      all = [&] {
        Tape tape;
        tape.backward(f(), seeds);
        for (const auto& leaf : leaves) leaf->grad = Tensor();
      };
      both = median_seconds(device, n.repeat, all);
      const auto forward_and = [&](auto more) {
        return median_seconds(device, n.repeat, [&] {
          const Tape tape;
          f();
          more();
        });
      };
      forward = forward_and([] {});
      // The tape copies its seeds, which the backward of a module within a network does not.
      copies = forward_and([&] {
                 for (const Tensor& seed : seeds) seed.clone();
               }) -
               forward;
      both -= copies;
    } else {
      const NoGrad no_grad;
      forward = both = median_seconds(device, n.repeat, all);
    }
    const double flop = work.flop + (training ? work.backward_flop : 0),
                 bytes = work.bytes * (training ? 1 + work.backward : 1),
                 exponentials = work.exponentials * (training ? 2 : 1),
                 floor = std::max({flop / ceiling.flops, bytes / ceiling.bytes,
                                   exponentials / ceiling.exponentials}),
                 peak = double(memory_count(device.kind).peak) / (1 << 20),
                 extra = double(peak_of(f, seeds) - before) / (1 << 20);
    std::printf("%-28s %10.3f ", name.c_str(), forward * 1e3);
    training ? std::printf("%10.3f ", (both - forward) * 1e3) : std::printf("%10s ", "");
    std::printf("%10.3f %8.1f %8.0f %% %10.1f\n", floor * 1e3, flop * 1e-9, 100 * floor / both,
                extra);
    std::fflush(stdout);
    rows.push_back({{"name", name},
                    {"ms", forward * 1e3},
                    {"floor_ms", floor * 1e3},
                    {"gflop", flop * 1e-9},
                    {"share_of_floor", floor / both},
                    {"temporary_mib", extra},
                    {"peak_mib", peak}});
    if (training) rows.back()["backward_ms"] = (both - forward) * 1e3;
    if (graphs && device.kind != Device::cpu) beside_graph(both, copies, all);
    return true;
  }

  /// The most memory in use while f and its backward run, without the tape's copies of the seeds.
  template <class F>
  int64_t peak_of(F f, const std::vector<Tensor>& seeds) {
    const auto peak = [&] { return memory_count(device.kind).peak; };
    reset_memory_peak(device.kind);
    if (!training) {
      const NoGrad no_grad;
      f();
      return peak();
    }
    Tape tape;
    const Vars y = f();
    const int64_t forward = peak();
    reset_memory_peak(device.kind);
    tape.backward(y, seeds);
    int64_t copies = 0;
    for (const Tensor& seed : seeds) copies += seed.numel() * size_of(seed.dtype());
    for (const auto& leaf : leaves) leaf->grad = Tensor();
    return std::max(forward, peak() - copies);
  }

  /// Of the row that was printed last: what it costs to give its launches one by one.
  void beside_graph(double one_by_one, double copies, const std::function<void()>& all) {
    std::optional<NoGrad> no_grad;
    if (!training) no_grad.emplace();
    const Recording recording(device, all);
    const double graph = median_seconds(device, n.repeat, [&] { recording.play(); }) - copies;
    std::printf("  as one CUDA graph %.3f ms: launches one by one cost %.1f %%\n", graph * 1e3,
                100 * (one_by_one / graph - 1));
    rows.back()["graph_ms"] = graph * 1e3;
    std::fflush(stdout);
  }

  /// Of the row that was printed last.
  void plan_beside_peak(const RecomputePlan& plan) {
    nlohmann::json& row = rows.back();
    std::printf("  %s, measured %.2f GiB\n", plan.text().c_str(), double(row["peak_mib"]) / 1024);
    row["predicted_peak_mib"] = double(plan.peak) / (1 << 20);
    row["kept_blocks"] = plan.blocks - plan.recompute;
    std::fflush(stdout);
  }

  /// The modules of one block; FLOPs and bytes by the counts of Jumper et al.'s layers (a
  /// multiply-add is two; everything fused that reads the same).
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
    const double heads = double(e.triangle_attention_starting_node.num_head),
                 row_heads = double(e.msa_row_attention.num_head),
                 column_heads = double(e.msa_column_attention.num_head);
    const double M = S * N * cm * double(size_of(dtype)), Z = N * N * cz * double(size_of(dtype));
    Inputs m = inputs({n_seq, n.n_res, c_m}, 2),
           z = inputs({n.n_res, n.n_res, config.pair_channel}, 3);
    const Tensor msa_mask = ones({n_seq, n.n_res}).to(device),
                 pair_mask = ones({n.n_res, n.n_res}).to(device);
    const std::string at = extra ? "extra: " : "";
    row(at + "row attention",
        {{10 * S * N * cm * cm + 2 * N * N * cz * row_heads, 4 * S * N * N * cm},
         13 * M + Z + 32 * N * N,
         S * N * N * row_heads},
        [&] {
          return Vars{msa_row_attention(s / "msa_row_attention_with_pair_bias", m.next(), z.next(),
                                        msa_mask)};
        });
    if (extra)
      row(at + "column global attention",
          {{S * N * cm * (4 * cm + 4 * cm / column_heads), 4 * S * N * cm * column_heads}}, [&] {
            return Vars{
                msa_column_global_attention(s / "msa_column_global_attention", m.next(), msa_mask)};
          });
    else
      row(at + "column attention",
          {{10 * S * N * cm * cm, 4 * N * S * S * cm}, 13 * M, N * S * S * column_heads}, [&] {
            return Vars{msa_column_attention(s / "msa_column_attention", m.next(), msa_mask)};
          });
    row(at + "MSA transition", {{4 * double(e.msa_transition_factor) * S * N * cm * cm}, 2 * M},
        [&] { return Vars{transition(s / "msa_transition", m.next())}; });
    row(at + "outer product mean",
        {{4 * S * N * cm * o + 2 * N * N * S * o * o + 2 * N * N * o * o * cz}, 1.5 * M + 2 * Z},
        [&] {
          return Vars{outer_product_mean(s / "outer_product_mean", m.next(), z.next(), msa_mask)};
        });
    if (extra) return;
    const Work multiplication{{10 * N * N * cz * t + 2 * N * N * cz * cz + 2 * N * N * N * t},
                              9 * Z},
        attention{{10 * N * N * cz * cz + 2 * N * N * cz * heads, 4 * N * N * N * cz},
                  13 * Z,
                  N * N * N * heads};
    const auto multiply = [&](bool outgoing) {
      const char* name = outgoing ? "outgoing" : "incoming";
      return Vars{triangle_multiplication(s / cat("triangle_multiplication_", name), z.next(),
                                          pair_mask, outgoing)};
    };
    row("triangle multiplication out", multiplication, [&] { return multiply(true); });
    row("triangle multiplication in", multiplication, [&] { return multiply(false); });
    const auto attend = [&](bool starting) {
      const char* name = starting ? "starting_node" : "ending_node";
      return Vars{
          triangle_attention(s / cat("triangle_attention_", name), z.next(), pair_mask, starting)};
    };
    row("triangle attention start", attention, [&] { return attend(true); });
    row("triangle attention end", attention, [&] { return attend(false); });
    row("pair transition", {{4 * double(e.pair_transition_factor) * N * N * cz * cz}, 2 * Z},
        [&] { return Vars{transition(s / "pair_transition", z.next())}; });
    operations(z, Z);
    row("block",
        {evoformer_block_flops(config, {n.n_res, n_seq, n.n_extra, 0}, false), 29.5 * M + 49 * Z,
         2 * N * N * N * heads + S * N * N * row_heads + N * S * S * column_heads},
        [&] {
          const Representations y =
              evoformer_block(s, e, false, {m.next(), z.next()}, msa_mask, pair_mask, Trace());
          return Vars{y.m, y.z};
        });
  }

  /// What stands alone: the triangle attention's core, and a layer norm of z, of Z bytes.
  void operations(Inputs& z, double Z) {
    const int64_t heads = config.evoformer.triangle_attention_starting_node.num_head,
                  c = config.pair_channel / heads, N = n.n_res;
    const Dims shape{N, N, heads, c};
    Inputs q = inputs(shape, 5), k = inputs(shape, 6), v = inputs(shape, 7);
    Var bias(ff::noise({heads, N, N}, 8, Dtype::f32, device, 3));
    Var scale(ones({config.pair_channel}).to(device)), offset(scale.value().clone());
    watch(bias);
    for (Var* leaf : {&scale, &offset}) leaf->want_grad();  // parameters': added to, step by step
    const double logits = double(N) * double(N) * double(N) * double(heads);
    row("triangle attention core",
        {{0, 4 * logits * double(c)}, 4 * Z + 4 * double(heads * N * N), logits},
        [&] { return Vars{attention(q.next(), k.next(), v.next(), Var(), bias, Tensor())}; });
    Work norm{Flops{}, 2 * Z};
    norm.backward = 1.5;
    row("layer norm", norm, [&] { return Vars{layer_norm(z.next(), scale, offset)}; });
  }

  /// One step of Adam and of the average over all parameters, with the clipped gradient's sum.
  void optimizer() {
    Arrays values, gradient;
    for (const ParamSpec& spec : param_specs(config)) {
      values[spec.name] = ff::noise(spec.shape, 9, Dtype::f32, device);
      gradient[spec.name] = ff::noise(spec.shape, 10, Dtype::f32, device, 1e-3f);
    }
    Arrays m = zeros_like(values), v = zeros_like(values), ema = zeros_like(values);
    double count = 0;
    for (const auto& [name, value] : values) count += double(value.numel());
    const OptimConfig optim;
    int64_t step = 0;
    training = false;  // the row times all of it as one
    row("optimizer", {Flops{}, 9 * 4 * count}, [&] {
      Arrays sum = zeros_like(values);
      add_clipped(sum, gradient, optim.clip_per_example);
      adam_step(optim, {values, m, v, ema}, sum, 1, optim.lr, ++step);
      return Vars();
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
  Arrays slice = bench.features();
  sample.labels = made_up_labels(slice.at("aatype"));
  for (const char* name : {"atom14_atom_exists", "atom37_atom_exists", "residx_atom14_to_atom37",
                           "residx_atom37_to_atom14"})
    slice[name] = sample.labels.at(name);
  slice["true_msa"] = Tensor::zeros({bench.n.n_seq, bench.n.n_res}, Dtype::i32);
  slice["bert_mask"] = ones({bench.n.n_seq, bench.n.n_res});
  sample.slices = {slice};
  Arrays values;
  for (const auto& [name, var] : params.all()) values[name] = var.value().to(Device{}).clone();
  Trainer trainer(config, initial_state(std::move(values)), threads, {}, bench.device);
  const std::vector<TrainingSample> samples{sample};
  const PassSizes sizes{bench.n.n_res, bench.n.n_seq, bench.n.n_extra, 0};
  bench.training = false;  // the row times all of it as one
  const auto step = [&] {
    trainer.step(samples);
    return Vars();
  };
  if (bench.row("training step", training_flops(bench.config, sizes, 0, trainer.plan().recompute),
                step)) {
    bench.plan_beside_peak(trainer.plan());
    bench.host_side("training step", step);
  }
}

struct Options {
  ComputeOptions compute;
  InputOptions inputs;
  CommBench comm;
  bool featurisation = false, training = false;
  std::string preset = "model_3_ptm", json, recompute = "auto";
  std::vector<std::string> shards;
  int64_t samples = 64;
  Sizes n;
  int64_t blocks = -1;
  bool modules_only = false, graphs = false;
  std::vector<std::string> rows;
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
  const Ceilings ceiling = ceilings(dtype, device);
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
    const Arrays features = bench.features();
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
      bench.optimizer();
    } else {
      const auto pass = [&] {
        model.run(source, run_options);
        return Vars();
      };
      if (bench.row("whole pass", pass_flops(config, sizes).forward(), pass))
        bench.host_side("whole pass", pass);
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
                "on a GPU, each module as one CUDA graph beside its launches one by one");
  app->add_option("--rows", options->rows, "only the rows of these names, comma between them")
      ->delimiter(',');
  app->add_option("--json", options->json, "write the table as JSON");
  options->comm.add_to(*app);
  return {app, [options] { return run(*options); }, true};
}

}  // namespace ff
