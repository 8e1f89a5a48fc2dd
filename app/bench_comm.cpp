// fastfold bench --comm: collectives by size, and how one Evoformer block scales over the ranks.
// Times, bytes and exposed communication are each rank's median of several runs, averaged over the
// ranks, as NCCL-tests reports its times.
#include "app/bench_comm.h"

#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "app/stopwatch.h"
#include "core/base/rng.h"
#include "core/base/timeline.h"
#include "core/model/evoformer.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kSmallest = 1024;     // bytes
constexpr int64_t kCollectiveRuns = 5;  // for one of the block
constexpr const char* kStart = "start";

Tensor filled(const Dims& shape, Dtype dtype, uint64_t stream) {
  const Tensor t = Tensor::empty(shape);
  const Rng random(1, {stream});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = unit_float(random.word(uint64_t(i))) - 0.5f;
  return t.to(dtype);
}

/// Of one run, or so far.
struct Cost {
  double seconds = 0, received = 0, communication = 0, exposed = 0;

  static Cost so_far(const Group& group) {
    group.settle();
    Cost all{0, double(group.received_bytes())};
    for (const auto& [name, e] : exposures()) {
      if (name == kStart) continue;
      all.communication += e.communication;
      all.exposed += e.exposed;
    }
    return all;
  }
};

/// f(start) begins together with the other ranks where it calls start(), and returns what shall not
/// be freed before the clock is read. One run more than `runs` comes first, to warm up.
template <class F>
Cost measure(const Group& group, Device device, int64_t runs, F f) {
  std::vector<Cost> costs;
  for (int64_t i = 0; i <= runs; ++i) {
    Cost before;
    int64_t begin = 0;
    const Vars kept = f([&] {
      before = Cost::so_far(group);
      group.sum(0, kStart);
      before.received = double(group.received_bytes());
      begin = now_ns();
    });
    synchronize(device);
    const int64_t end = now_ns();
    const Cost after = Cost::so_far(group);
    if (i == 0) continue;
    costs.push_back({1e-9 * double(end - begin), after.received - before.received,
                     after.communication - before.communication, after.exposed - before.exposed});
  }
  const auto middle = costs.begin() + int64_t(costs.size()) / 2;
  std::nth_element(costs.begin(), middle, costs.end(),
                   [](const Cost& a, const Cost& b) { return a.seconds < b.seconds; });
  Cost mean = *middle;
  for (double Cost::*x : {&Cost::seconds, &Cost::received, &Cost::communication, &Cost::exposed})
    mean.*x = group.sum(mean.*x, "mean") / group.size();
  return mean;
}

/// Bytes are of the whole: what all ranks hold together of an all-gather's result or a
/// reduce-scatter's input is one copy a rank; an all-to-all sends and an all-reduce sums so many on
/// every rank.
nlohmann::json collectives(const Group& world, Device device, int64_t largest, int64_t runs) {
  const Dap dap(world);
  const double n = world.size();
  const Span span("bench");
  nlohmann::json rows = nlohmann::json::array();
  const auto row = [&](const char* name, int64_t bytes, double factor, const auto& f) {
    const Cost cost = measure(world, device, runs, f);
    const double bandwidth = factor * double(bytes) / cost.seconds * 1e-9;
    if (world.rank() == 0) {
      std::printf("%-16s %12lld %12.3f %12.3f\n", name, (long long)bytes, cost.seconds * 1e3,
                  bandwidth);
      std::fflush(stdout);
    }
    rows.push_back({{"name", name},
                    {"bytes", bytes},
                    {"ms", cost.seconds * 1e3},
                    {"bus_gb_per_s", bandwidth},
                    {"received_bytes", cost.received}});
  };
  if (world.rank() == 0)
    std::printf("%-16s %12s %12s %12s\n", "collective", "bytes", "ms", "bus GB/s");
  // NCCL-tests' bus bandwidth: what a rank has to receive, by its time.
  const double part = (n - 1) / n;
  for (int64_t bytes = kSmallest; bytes <= largest; bytes *= 4) {
    const int64_t count = bytes / 4;
    const auto zeros = [&](const Dims& shape) { return Tensor::zeros(shape, Dtype::f32, device); };
    const Var own(zeros({dap.mine(count).count})), row_of_all(zeros({1, count}));
    const Tensor whole = zeros({count});
    row("all-gather", bytes, part, [&](const auto& start) {
      start();
      return Vars{gather(dap, own, 0, count)};
    });
    row("reduce-scatter", bytes, part, [&](const auto& start) {
      Var x = own;
      x.want_grad();
      Tape tape;
      const Var y = gather(dap, x, 0, count);
      start();
      tape.backward({y}, {whole});
      return Vars{x, y};
    });
    row("all-to-all", bytes, part, [&](const auto& start) {
      start();
      return Vars{relayout(dap, row_of_all, 0, 1, world.size())};
    });
    row("all-reduce", bytes, 2 * part, [&](const auto& start) {
      start();
      world.all_reduce(whole, "all-reduce").wait();
      return Vars();
    });
  }
  return rows;
}

/// One block, forward as in prediction, and forward and backward as in training but for dropout and
/// for the sum of the parameters' gradients.
nlohmann::json block_scaling(const Group& world, Device device, const CommBenchBlock& b,
                             int64_t runs) {
  ModelConfig config = preset_config(b.preset);
  config.evoformer_num_block = 1;
  Params params = Params(config, initial_params(config, 1), b.preset).on(device);
  params.want_grads();
  const Params cast = params.in_precision(b.dtype);
  const Scope scope =
      Scope(cast, "alphafold/alphafold_iteration/evoformer/evoformer_iteration").block(0);
  const Tensor msa_mask = ones({b.n_seq, b.n_res}).to(device);
  std::set<int> counts{world.size()};
  for (int p = 1; p < world.size(); p *= 2) counts.insert(p);
  nlohmann::json rows = nlohmann::json::array();
  double alone[2] = {0, 0};
  if (world.rank() == 0) {
    std::printf("\nan Evoformer block of %s at %lld x %lld, %s, %d threads a rank\n",
                b.preset.c_str(), (long long)b.n_seq, (long long)b.n_res, name_of(b.dtype),
                omp_get_max_threads());
    std::printf("%-20s %6s %10s %10s %12s %12s %10s\n", "pass", "ranks", "ms", "efficiency",
                "MB received", "communic. ms", "exposed ms");
  }
  for (const bool training : {false, true}) {
    const char* name = training ? "forward + backward" : "forward";
    for (const int p : counts) {
      if (world.rank() < p) {
        const Dap dap(world.part(0, p, 1), Dap::worth_a_message(device.kind));
        const Range own_seq = dap.mine(b.n_seq), own_res = dap.mine(b.n_res);
        const Tensor
            m = filled({own_seq.count, b.n_res, config.msa_channel}, b.dtype, 1).to(device),
            z = filled({own_res.count, b.n_res, config.pair_channel}, b.dtype, 2).to(device),
            pair_mask = ones({own_res.count, b.n_res}).to(device);
        const MsaMask mask(msa_mask, b.dtype, dap);
        const auto block = [&](const Var& m, const Var& z) {
          return evoformer_block(scope, config.evoformer, false, {m, z}, mask, pair_mask, Trace(),
                                 {}, dap);
        };
        const Cost cost = measure(dap.group(), device, runs, [&](const auto& start) {
          Var m_in(m.clone()), z_in(z.clone());
          if (!training) {
            const NoGrad no_grad;
            start();
            const Representations out = block(m_in, z_in);
            return Vars{out.m, out.z};
          }
          m_in.want_grad();
          z_in.want_grad();
          Tape tape;
          start();
          const Representations out = block(m_in, z_in);
          tape.backward({out.m, out.z}, {m, z});
          return Vars{m_in, z_in, out.m, out.z};
        });
        if (p == 1) alone[training] = cost.seconds;
        const double efficiency = alone[training] / (p * cost.seconds);
        if (world.rank() == 0) {
          std::printf("%-20s %6d %10.2f %8.0f %% %12.3f %12.2f %10.2f\n", name, p,
                      cost.seconds * 1e3, 100 * efficiency, cost.received * 1e-6,
                      cost.communication * 1e3, cost.exposed * 1e3);
          std::fflush(stdout);
        }
        rows.push_back({{"pass", name},
                        {"ranks", p},
                        {"ms", cost.seconds * 1e3},
                        {"efficiency", efficiency},
                        {"received_bytes", cost.received},
                        {"communication_ms", cost.communication * 1e3},
                        {"exposed_ms", cost.exposed * 1e3}});
      }
      world.sum(0, "the ranks that had no part in it");
    }
  }
  return rows;
}

}  // namespace

void CommBench::add_to(CLI::App& app) {
  app.add_flag("--comm", wanted,
               "under mpirun: time collectives by size, and one Evoformer block on 1, 2, 4, ... "
               "and all ranks, instead of the network");
  app.add_option("--comm-largest", largest,
                 "bytes of --comm's largest collective, or with a unit (default 64MiB)")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(kSmallest, int64_t(1) << 40));
  ranks.add_to(app, false);
}

int bench_comm(const CommBench& options, const ComputeOptions& compute, const CommBenchBlock& block,
               int64_t repeat, const std::string& json) {
  return on_ranks(options.ranks, [&](const Group& world) {
    if (world.size() == 1)
      fail(Exit::kUsage, "bench --comm needs several ranks; start it with mpirun -np RANKS");
    if (!timeline_active()) start_timeline();
    const Device device = compute.apply(world);
    std::set<std::string> hosts;
    for (int r = 0; r < world.size(); ++r) hosts.insert(world.host(r));
    if (world.rank() == 0)
      std::printf("%d ranks on %zu %s\n", world.size(), hosts.size(),
                  hosts.size() == 1 ? "host" : "hosts");
    const nlohmann::json by_size =
                             collectives(world, device, options.largest, kCollectiveRuns * repeat),
                         scaling = block_scaling(world, device, block, repeat);
    if (world.rank() != 0 || json.empty()) return int(Exit::kDone);
    write_file(json, nlohmann::json{{"ranks", world.size()},
                                    {"hosts", hosts.size()},
                                    {"threads", omp_get_max_threads()},
                                    {"device", compute.device},
                                    {"precision", name_of(block.dtype)},
                                    {"preset", block.preset},
                                    {"n_res", block.n_res},
                                    {"n_seq", block.n_seq},
                                    {"collectives", by_size},
                                    {"blocks", scaling}}
                             .dump(2) +
                         "\n");
    return int(Exit::kDone);
  });
}

}  // namespace ff
