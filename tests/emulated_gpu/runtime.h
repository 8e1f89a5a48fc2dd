// What the parts of the emulated GPU share.
#pragma once

#include "cuda_runtime_api.h"

namespace ff::emulated {

/// What cudaGetLastError gives next.
void set_last_error(cudaError_t status);
/// That a block may have at most.
size_t shared_bytes();

}  // namespace ff::emulated
