// Times rows of the benchmark's table, and the modules of the trunk.
#include "app/bench_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>

#include "app/report.h"
#include "app/stopwatch.h"
#include "core/base/timeline.h"
#include "core/model/evoformer.h"
#include "core/ops/attention.h"
#include "core/ops/dropout.h"
#include "core/ops/embed.h"
#include "core/ops/kernels.h"
#include "core/ops/layer_norm.h"
#include "core/ops/pair_bias.h"

namespace ff {
namespace {

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

}  // namespace

Bench::Ceilings ceilings(Dtype dtype, Device device) {
  Bench::Ceilings c{matrix_rate(dtype, device), INFINITY, INFINITY};
  if (device.kind == Device::cpu) return c;
  const Tensor from = Tensor::zeros({int64_t(1) << 28}, Dtype::f32, device),
               to = Tensor::empty(from.shape(), Dtype::f32, device);
  c.bytes = 8.0 * double(from.numel()) / median_seconds(device, 5, [&] { to.copy_from(from); });
  c.exponentials = 3.6e12;  // 16 a clock of 132 multiprocessors at 1.7 GHz: a Hopper's
  return c;
}

void Bench::head() const {
  std::printf("%-28s %10s %10s %10s %8s %10s %10s\n", "module", "ms", training ? "backward" : "",
              "floor ms", "GFLOP", "of floor", "MiB");
}

void Bench::host_side(const std::string& name, const std::function<Vars()>& f) {
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

void Bench::watch(Var& leaf) {
  if (!training) return;
  leaf.want_grad();
  leaves.push_back(leaf.slot());
}

Bench::Inputs Bench::inputs(const Dims& shape, uint64_t stream) {
  const int64_t bytes = shape.product() * size_of(dtype), cache = int64_t(128) << 20;
  Inputs in;
  for (int64_t i = 0; i == 0 || (device.kind != Device::cpu && i * bytes < cache && i < 16); ++i) {
    in.copies.emplace_back(noise(shape, stream, dtype, device));
    watch(in.copies.back());
  }
  return in;
}

bool Bench::wants(const std::string& name) const {
  return only.empty() || std::find(only.begin(), only.end(), name) != only.end();
}

bool Bench::row(const std::string& name, const Work& work, const std::function<Vars()>& f,
                int calls) {
  if (!wants(name)) return false;
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
    forward = both = median_seconds(device, n.repeat, all, calls);
  }
  const double flop = work.flop + (training ? work.backward_flop : 0),
               bytes = work.bytes * (training ? 1 + work.backward : 1),
               exponentials = work.exponentials * (training ? 2 : 1),
               floor = std::max({flop / ceiling.flops, bytes / ceiling.bytes,
                                 exponentials / ceiling.exponentials}),
               peak = double(memory_count(device.kind).peak) / (1 << 20),
               extra = (training ? double(backward_peak(f, seeds)) / (1 << 20) : peak) -
                       double(before) / (1 << 20);
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
  if (graphs) beside_graph(all, copies);
  return true;
}

int64_t Bench::backward_peak(const std::function<Vars()>& f, const std::vector<Tensor>& seeds) {
  const auto peak = [&] { return memory_count(device.kind).peak; };
  reset_memory_peak(device.kind);
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

void Bench::beside_graph(const std::function<void()>& one_by_one,
                         const std::function<void()>& graph, double copies, int calls, int turns) {
  const double apart = median_seconds(device, n.repeat, one_by_one, calls) - copies,
               whole = median_seconds(device, n.repeat, graph, calls) / turns - copies;
  std::printf("  as one CUDA graph %.3f ms; launches one by one, %.3f ms, cost %.1f %% of them\n",
              whole * 1e3, apart * 1e3, 100 * (1 - whole / apart));
  rows.back()["one_by_one_ms"] = apart * 1e3;
  rows.back()["graph_ms"] = whole * 1e3;
  std::fflush(stdout);
}

void Bench::beside_graph(const std::function<void()>& all, double copies) {
  if (device.kind == Device::cpu) return;
  std::optional<NoGrad> no_grad;
  if (!training) no_grad.emplace();
  // A brief one with all copies of its inputs in turn.
  const nlohmann::json& row = rows.back();
  const int turns = row.at("ms").get<double>() + row.value("backward_ms", 0.0) < 1 ? 16 : 1;
  const Recording recording(device, [&] {
    for (int i = 0; i < turns; ++i) all();
  });
  beside_graph(
      all, [&] { recording.play(); }, copies, 1, turns);
}

void Bench::plan_beside_peak(const RecomputePlan& plan) {
  nlohmann::json& row = rows.back();
  std::printf("  %s, measured %.2f GiB\n", plan.text().c_str(), double(row["peak_mib"]) / 1024);
  row["predicted_peak_mib"] = double(plan.peak) / (1 << 20);
  row["kept_blocks"] = plan.blocks - plan.recompute;
  std::fflush(stdout);
}

void Bench::block(bool extra) {
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
  const MsaMask msa_mask(ones({n_seq, n.n_res}).to(device), dtype);
  const Tensor pair_mask = ones({n.n_res, n.n_res}).to(device);
  const std::string at = extra ? "extra: " : "";
  row(at + "row attention",
      {{10 * S * N * cm * cm + 2 * N * N * cz * row_heads, 4 * S * N * N * cm},
       13 * M + Z + 32 * N * N,
       S * N * N * row_heads},
      [&] {
        return Vars{msa_row_attention(s / "msa_row_attention_with_pair_bias", m.next(), z.next(),
                                      msa_mask.mask)};
      });
  if (extra)
    row(at + "column global attention",
        {{S * N * cm * (4 * cm + 4 * cm / column_heads), 4 * S * N * cm * column_heads}}, [&] {
          return Vars{msa_column_global_attention(s / "msa_column_global_attention", m.next(),
                                                  msa_mask.mask)};
        });
  else
    row(at + "column attention",
        {{10 * S * N * cm * cm, 4 * N * S * S * cm}, 13 * M, N * S * S * column_heads}, [&] {
          return Vars{msa_column_attention(s / "msa_column_attention", m.next(), msa_mask.mask)};
        });
  row(at + "MSA transition", {{4 * double(e.msa_transition_factor) * S * N * cm * cm}, 2 * M},
      [&] { return Vars{transition(s / "msa_transition", m.next())}; });
  row(at + "outer product mean",
      {{4 * S * N * cm * o + 2 * N * N * S * o * o + 2 * N * N * o * o * cz}, 1.5 * M + 2 * Z},
      [&] {
        return Vars{outer_product_mean(s / "outer_product_mean", m.next(), z.next(), msa_mask)};
      });
  if (extra) return;
  const Work multiplication{{10 * N * N * cz * t + 2 * N * N * cz * cz + 2 * N * N * N * t}, 9 * Z},
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

void Bench::operations(Inputs& z, double Z) {
  const int64_t heads = config.evoformer.triangle_attention_starting_node.num_head,
                c_z = config.pair_channel, c = c_z / heads, N = n.n_res;
  const Dims shape{N, N, heads, c};
  Inputs q = inputs(shape, 5), k = inputs(shape, 6), v = inputs(shape, 7);
  Var bias(noise({heads, N, N}, 8, Dtype::f32, device, 3));
  Var scale(ones({c_z}).to(device)), offset(scale.value().clone());
  watch(bias);
  for (Var* leaf : {&scale, &offset}) leaf->want_grad();  // parameters': added to, step by step
  const double logits = double(N) * double(N) * double(N) * double(heads);
  row("triangle attention core",
      {{0, 4 * logits * double(c)}, 4 * Z + 4 * double(heads * N * N), logits},
      [&] { return Vars{attention(q.next(), k.next(), v.next(), Var(), bias, Tensor())}; });
  const auto moves = [](double forward, double backward) {
    Work w{Flops{}, forward};
    w.backward = backward / forward;
    return w;
  };
  row("layer norm", moves(2 * Z, 3 * Z), [&] { return Vars{layer_norm(z.next(), scale, offset)}; });
  const auto parameter = [&](const Dims& shape, uint64_t stream) {
    Var x(noise(shape, stream, Dtype::f32, device));
    x.want_grad();
    return Var(x.value().to(dtype), x.slot());
  };
  const Var w = parameter({c_z, heads}, 9);
  if (fuses_pair_bias(z.next(), w)) {
    const double biases = 4 * double(heads * N * N);
    row("pair bias", moves(Z + biases, 2 * Z + biases), [&] {
      return Vars{pair_bias(z.next(), {scale, offset, w, {}}, false)};
    });
  }
  const Tensor factors = ones({N, c_z}).to(device);
  Inputs updates = inputs({N, N, c_z}, 10);
  row("residual and dropout", moves(3 * Z, 2 * Z),
      [&] { return Vars{dropout_add(z.next(), updates.next(), factors)}; });
  const Var left = parameter({N, c_z}, 11), right = parameter({N, c_z}, 12),
            relpos = parameter({65, c_z}, 13), dgram = parameter({15, c_z}, 14);
  const Tensor index = Tensor::empty({N}, Dtype::i32), breaks = Tensor::empty({15});
  for (int64_t i = 0; i < N; ++i) index.data<int32_t>()[i] = int32_t(i);
  for (int i = 0; i < 15; ++i) breaks.data<float>()[i] = float(i * i);
  const Tensor there[] = {index.to(device), noise({N, 3}, 15, Dtype::f32, device, 5),
                          breaks.to(device)};
  row("pair embedding", moves(Z, Z),
      [&] { return Vars{pair_embed(left, right, there[0], relpos, there[1], dgram, there[2])}; });
  // What as many bytes take at best.
  if (!training)
    row("copy of pairs", {Flops{}, 2 * Z}, [&] { return Vars{z.next().value().clone()}; });
}

}  // namespace ff
