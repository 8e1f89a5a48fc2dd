// TensorBoard's event files against TensorBoard's own bytes; metrics.jsonl over kills and resumes.
#include "io/training_log.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "core/base/error.h"
#include "io/file.h"
#include "tests/unit/io/scratch.h"

using namespace ff;

namespace {
std::string hex(const std::string& bytes) {
  std::string out;
  for (const unsigned char c : bytes)
    out += "0123456789abcdef"[c >> 4], out += "0123456789abcdef"[c & 15];
  return out;
}
}  // namespace

TEST_CASE("an event is TensorBoard's, byte for byte") {
  // tensorboard 2.20: RecordWriter over Event(wall_time=1700000000.25, step=300, summary=...).
  CHECK(hex(tf_record(
            scalar_event(1700000000.25, 300, {{"loss/total", 1.5}, {"val/lddt_ca", -0.25}}))) ==
        "3500000000000000d6c55de60900001040fc54d94110ac022a270a110a0a6c6f73732f746f74616c150000c03f"
        "0a120a0b76616c2f6c6464745f636115000080be22b1c3d6");
}

TEST_CASE("event files begin with their version and do not overwrite each other") {
  const Scratch scratch;
  EventFile a(scratch.path(), 0), b(scratch.path(), 7);
  CHECK(a.path() != b.path());
  a.write(1, {{"x", 2}});
  CHECK(read_text_file(a.path(), 1 << 20).find("brain.Event:2") != std::string::npos);
  CHECK_THROWS_AS(EventFile(scratch / "missing", 0), Error);
}

TEST_CASE("a resumed log has each step once") {
  const Scratch scratch;
  const auto text = [&] { return read_text_file(scratch / "metrics.jsonl", 1 << 20); };
  {
    TrainingLog log(scratch.path(), 0);
    for (int64_t step = 1; step <= 4; ++step)
      log.write("train", step, {{"loss/total", 0.5 * double(step)}});
    log.write("validation", 4, {{"val/lddt_ca", std::nan("")}});
  }
  const std::string whole = text();
  CHECK(whole.substr(0, whole.find('\n')) == R"({"kind":"train","step":1,"loss/total":0.5})");
  CHECK(whole.ends_with("{\"kind\":\"validation\",\"step\":4,\"val/lddt_ca\":null}\n"));
  std::ofstream(scratch / "metrics.jsonl", std::ios::app) << "{\"kind\":\"train\",\"st";
  { const TrainingLog unfinished(scratch.path(), 4); }
  CHECK(text() == whole);
  {
    TrainingLog log(scratch.path(), 2);
    log.write("train", 3, {{"loss/total", 1.5}});
  }
  CHECK(text() == whole.substr(0, whole.find("{\"kind\":\"train\",\"step\":4")));
  { const TrainingLog fresh(scratch.path(), 0); }
  CHECK(text().empty());
  CHECK_THROWS_AS(TrainingLog(scratch / "missing", 0), Error);
}

TEST_CASE("a full disk stops the log with a clear error") {
  const Scratch scratch;
  TrainingLog log(scratch.path(), 0);
  const FileSizeLimit full(100);
  CHECK_THROWS_WITH(
      [&] {
        for (int64_t i = 0; i < 10; ++i) log.write("train", i, {{"a", 1}});
      }(),
      Catch::Contains("metrics.jsonl: writing failed"));
}
