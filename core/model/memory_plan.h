// How many bytes of tensors a step of training has at most, in closed form, and how much of the
// trunk is therefore kept for the backward instead of being computed again.
//
// A block's form is a sum over its modules, and a module's follows from what the backward functions
// of its operations hold (core/ops): who changes those changes the module's term.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/model/flops.h"
#include "core/tensor/tensor.h"

namespace ff {

/// What beside the sizes decides the bytes of a pass.
struct MemorySetting {
  Dtype dtype = Dtype::bf16;  ///< of activations
  Device::Kind device = Device::cuda;
  int64_t dap = 1;       ///< ranks that share the sample; the forms are those of the first
  bool dropout = true;   ///< at the configuration's rates
  bool recycles = true;  ///< whether passes without gradients come before
};

/// One module of a block, in bytes.
struct ModuleMemory {
  const char* name;  ///< its scope's
  bool pair;         ///< whether it updates z, not m
  int64_t kept;      ///< on the tape behind its forward, its output with it
  int64_t backward;  ///< at most in its backward: of that, of gradients (but those of the one of m
                     ///< and z that it does not update) and of temporaries
  int64_t parameters = 0;  ///< gradients of its parameters, those of all blocks
};
std::vector<ModuleMemory> block_memory(const ModelConfig& config, const PassSizes& sizes,
                                       const MemorySetting& setting, bool extra);

/// One sample's pass with its backward.
class PassMemory {
 public:
  PassMemory(const ModelConfig& config, const PassSizes& sizes, const MemorySetting& setting);

  /// Blocks of the trunk: the extra MSA's and the Evoformer's.
  int64_t blocks() const { return extra_.blocks + evoformer_.blocks; }
  /// The most bytes alive where the first `recompute` blocks of the trunk are checkpoints,
  /// parameters' gradients among them.
  int64_t peak(int64_t recompute) const;
  /// The same of a whole step with `samples` passes at a time: their copies of the parameters and
  /// the sum of the gradients, too.
  int64_t step_peak(int64_t samples, int64_t recompute) const;

 private:
  struct Stack {
    int64_t blocks = 0, m = 0;  ///< m: bytes of its m
    std::vector<ModuleMemory> modules;
  };
  Stack extra_, evoformer_;
  int64_t z_ = 0;
  bool dap_ = false;
  int64_t start_ = 0, templates_ = 0, replay_ = 0;  ///< before the trunk; templates kept; one again
  int64_t logits_ = 0, end_ = 0;                    ///< to the end; all behind the trunk
  int64_t parameters_ = 0, end_parameters_ = 0, copies_ = 0;  ///< gradients; in another precision
};

/// How many blocks a setting's value says are computed again: none for "auto". Throws Exit::kUsage
/// in the name of `key` for what is neither "auto", "blocks" (all), "none" nor a number.
std::optional<int64_t> recomputed_blocks(const std::string& value, const std::string& key);

struct RecomputePlan {
  int64_t samples = 1;    ///< at a time
  int64_t recompute = 0;  ///< blocks of the trunk, the first ones, that are checkpoints
  int64_t blocks = 0;     ///< of the trunk in all
  int64_t peak = 0;       ///< predicted, of all tensors
  int64_t room = 0;       ///< for them; -1: not known
  /// Whether they leave a tenth of the room to what is not counted.
  bool fits() const { return room < 0 || peak <= room - room / 10; }
  /// "keeps 31 of 52 blocks for the backward; predicted peak of tensors 61.2 of 79.1 GiB", and how
  /// many samples go side by side where it is more than one.
  std::string text() const;
};

/// As many blocks kept as `free` bytes hold, less a tenth that is left for what is not counted; or
/// what `choice` (of recomputed_blocks) says. `there`: bytes of tensors alive before the step.
RecomputePlan plan_recompute(const PassMemory& pass, int64_t samples, int64_t there, int64_t free,
                             std::optional<int64_t> choice);

}  // namespace ff
