// What a fuzz target gives its driver: driver.cpp here, or libFuzzer (-fsanitize=fuzzer).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace ff {

/// Small valid inputs to begin with, and pieces of the format to mix in. For driver.cpp.
std::vector<std::string> fuzz_seeds();
std::vector<std::string> fuzz_words();

/// How the last input ended: "" when accepted, else the error. Inputs with a new kind of end are
/// kept and mutated further.
inline std::string g_fuzz_outcome;

/// Runs a parser: only ff::Error with Exit::kInput may come out of it.
template <class Parse>
void fuzz(Parse parse) {
  g_fuzz_outcome.clear();
  try {
    parse();
  } catch (const Error& e) {
    if (e.code() != Exit::kInput) throw;
    g_fuzz_outcome = e.what();
  }
}

/// For what must hold of accepted inputs.
inline void fuzz_check(bool ok, const char* what) {
  if (!ok) fail(Exit::kBug, what);
}

}  // namespace ff
