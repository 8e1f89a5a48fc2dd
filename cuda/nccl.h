// NCCL, opened at run time: standard toolkits are without it, and one rank needs none.
#pragma once

#include <memory>
#include <string>

#include "comm/device.h"

namespace ff::cuda {

bool find_nccl(std::string& text);
std::string nccl_id();
std::unique_ptr<NcclGroup> join_nccl(const std::string& id, int rank, int size);

}  // namespace ff::cuda
