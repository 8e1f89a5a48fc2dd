// CUDA's libraries, found where a toolkit, a Python wheel or the system put them: a program that
// needed them to start would start nowhere else.
#pragma once

#include <string>

namespace ff::cuda {

struct LibraryFile {
  void* handle = nullptr;  ///< dlopen's; it stays open
  std::string text;        ///< the file, or where it was looked for and what the last try said
};

/// `name` as "libnccl.so.2".
LibraryFile find_library(const std::string& name);

}  // namespace ff::cuda
