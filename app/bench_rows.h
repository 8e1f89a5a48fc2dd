// The table of fastfold bench: rows of times, floors and memory; the modules of a block.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/autograd/tape.h"
#include "core/model/flops.h"
#include "core/model/memory_plan.h"
#include "core/model/params.h"

namespace ff {

struct Bench {
  struct Sizes {
    int64_t n_res = 185, n_seq = 512, n_extra = 1024, repeat = 2;
  };
  /// What a row does, for its floor.
  struct Work {
    Work(double flop) : flop(flop) {}  // NOLINT: all of a row that is one whole
    Work(Flops f, double bytes = 0, double exponentials = 0)
        : flop(f.forward()),
          backward_flop(f.backward()),
          bytes(bytes),
          exponentials(exponentials) {}
    double flop, backward_flop = 0;
    double bytes = 0;         ///< that a forward must read and write
    double exponentials = 0;  ///< of softmax
    double backward = 2;      ///< times `bytes` of the backward
  };

  /// What the machine could do at best; infinite where it does not count.
  struct Ceilings {
    double flops, bytes, exponentials;
  };

  const ModelConfig& config;
  const Params& params;
  Sizes n;
  Dtype dtype;
  Device device;
  Ceilings ceiling;
  bool training, graphs;                 ///< graphs: rows beside one of all that they do
  const std::vector<std::string>& only;  ///< names of rows; empty: all
  nlohmann::json rows = nlohmann::json::array();
  std::vector<std::shared_ptr<GradSlot>> leaves = {};

  /// The table's head.
  void head() const;

  /// Whether a row is asked for.
  bool wants(const std::string& name) const;
  /// f returns Vars; while training with a tape, whose backward begins from all ones. False where
  /// the row is not asked for. Without a tape no fewer than `calls` in a row are timed as one.
  bool row(const std::string& name, const Work& work, const std::function<Vars()>& f,
           int calls = 1);

  /// What the host did for one run of f on a GPU, and what of it each module took.
  void host_side(const std::string& name, const std::function<Vars()>& f);

  /// Of the row that was printed last: what it costs to give its launches one by one, beside
  /// `graph`, which makes them as one CUDA graph, `turns` times. Seconds of `copies` count for
  /// neither.
  void beside_graph(const std::function<void()>& one_by_one, const std::function<void()>& graph,
                    double copies = 0, int calls = 1, int turns = 1);
  /// The same, recorded here. Nothing on a CPU.
  void beside_graph(const std::function<void()>& all, double copies = 0);

  /// Of the row that was printed last.
  void plan_beside_peak(const RecomputePlan& plan);

  /// The modules of one block; FLOPs and bytes by the counts of Jumper et al.'s layers (a
  /// multiply-add is two; everything fused that reads the same).
  void block(bool extra);

 private:
  /// Inputs in turn, so many that together no cache holds them.
  struct Inputs {
    Vars copies;
    size_t turn = 0;
    const Var& next() { return copies[turn++ % copies.size()]; }
  };
  Inputs inputs(const Dims& shape, uint64_t stream);
  /// Asks for a leaf's gradient, which a row's backward makes anew.
  void watch(Var& leaf);
  /// The most memory in use while f and its backward run, without the tape's copies of the seeds.
  int64_t backward_peak(const std::function<Vars()>& f, const std::vector<Tensor>& seeds);
  /// What stands alone: the triangle attention's core, and what memory bounds, of z of Z bytes.
  void operations(Inputs& z, double Z);
};

/// Measured here.
Bench::Ceilings ceilings(Dtype dtype, Device device);

}  // namespace ff
