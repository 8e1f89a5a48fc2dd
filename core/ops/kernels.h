// The kernel table: every kernel's signature once. The CPU fills one table per instruction set, the
// CUDA module another; an operation takes its table by its tensors' device. Kernels write into
// tensors that the operation has allocated and never allocate results themselves.
#pragma once

#include "core/tensor/tensor.h"

namespace ff {

enum class Activation;

struct Kernels {
  const char* name;  ///< "cpu v4 (AVX-512)", ...
};

/// The table for a device. The CPU's is chosen once by what the processor has; FASTFOLD_ISA=v3 forces
/// the AVX2 one.
const Kernels& kernels(Device device);
void register_kernels(Device::Kind kind, const Kernels* table);

}  // namespace ff
