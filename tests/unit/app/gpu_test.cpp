// Why there is no GPU: one sentence, on every machine.
#include "app/gpu.h"

#include <catch2/catch.hpp>

using namespace ff;

TEST_CASE("the reason why there is no GPU is one sentence") {
  const std::string reason = find_gpus().reason;
  if (reason.empty()) return;
  INFO(reason);
  CHECK(reason.size() > 20);
  CHECK(reason.find('\n') == std::string::npos);
  CHECK(reason.back() != '.');
}

TEST_CASE("a report names each GPU with its memory, or gives a reason") {
  const GpuReport report = find_gpus();
  INFO(report.reason);
  if (!*report.reason) {
    CHECK(report.count >= 1);
  }
  for (int i = 0; i < report.count && !*report.reason; ++i) {
    CHECK(*report.gpus[i].name);
    CHECK(report.gpus[i].compute_major >= 8);
    CHECK(report.gpus[i].total_bytes > 0);
    CHECK(report.gpus[i].free_bytes <= report.gpus[i].total_bytes);
  }
}
