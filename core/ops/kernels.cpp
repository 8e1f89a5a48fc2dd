// Which table of kernels serves which device.
#include "core/ops/kernels.h"

#include <cstdlib>
#include <string_view>

namespace ff {

namespace cpu::v3 {
extern const Kernels kTable;
}
namespace cpu::v4 {
extern const Kernels kTable;
}

namespace {

const Kernels* cpu_table() {
  const char* forced = std::getenv("FASTFOLD_ISA");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 && !(forced && std::string_view(forced) == "v3") ? &cpu::v4::kTable : &cpu::v3::kTable;
}

const Kernels* g_tables[2] = {cpu_table(), nullptr};

}  // namespace

const Kernels& kernels(Device device) {
  const Kernels* table = g_tables[device.kind];
  check(table != nullptr, "no kernels for this kind of device");
  return *table;
}

bool& tf32_products() {
  static bool allowed = false;
  return allowed;
}

void register_kernels(Device::Kind kind, const Kernels* table) { g_tables[kind] = table; }

}  // namespace ff
