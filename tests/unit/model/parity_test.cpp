// The whole network against AlphaFold's own numbers: outputs of every fixture, intermediates of
// tiny, in every precision. Tolerances are the fixtures' suggested ones (five to twenty times
// AlphaFold's own f32 rounding).
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "core/predict/predictor.h"
#include "tests/norm_error.h"
#include "tests/unit/compare.h"
#include "tests/unit/model/fixture.h"

using namespace ff;
using test::Fixture;

namespace {

/// Keys that need labels (losses, violations, renaming) belong to training.
bool needs_labels(const std::string& key) {
  for (const char* part : {"/loss", "true_dist", "violations", "metrics", "renamed", "alt_naming",
                           "fape", "chi_loss", "angle_norm_loss"})
    if (key.find(part) != std::string::npos) return true;
  return false;
}

/// The part of a padded array that belongs to real residues.
Tensor real(Tensor t, int64_t n_res, int64_t n_real) {
  for (int i = 0; i < t.rank(); ++i)
    if (t.size(i) == n_res) t = t.narrow(i, 0, n_real);
  return t;
}

Arrays run(const Fixture& f, int64_t recycles, Dtype dtype = Dtype::f32,
           const std::function<void(const std::string&, const Tensor&)>& trace = {}) {
  const AlphaFold model(f.config, f.params(), dtype);
  RunOptions options;
  options.num_recycle = recycles;
  options.num_ensemble = f.num_ensemble();
  options.trace = trace;
  return predict(
      model, [&](int64_t i) { return f.slice(i); }, options);
}

void compare_outputs(const std::string& folder, int64_t recycles, double tol,
                     Dtype dtype = Dtype::f32) {
  const Fixture f(folder);
  const Arrays got = run(f, recycles, dtype);
  const Arrays want = read_npz(test::data_path(cat(folder, "/outputs_r", recycles, ".npz")));
  const int64_t n_res = f.batch.at("aatype").size(1);
  int64_t n_real = 0;
  for (int64_t i = 0; i < n_res; ++i) n_real += f.batch.at("seq_mask").data<float>()[i] != 0;
  int compared = 0;
  for (const auto& [key, value] : want) {
    if (needs_labels(key)) continue;
    INFO(folder << " r" << recycles << " " << key);
    REQUIRE(got.count(key) == 1);
    const bool angles = key.find("angles") != std::string::npos;
    test::compare(key, real(got.at(key), n_res, n_real), real(value, n_res, n_real),
                  angles ? std::max(tol, 2e-4) : tol);
    ++compared;
  }
  REQUIRE(compared >= 21);
}

/// x [n, m, c] with zeros where mask [n, m] is zero.
Tensor masked(const Tensor& x, const Tensor& mask) {
  const Tensor y = x.clone();
  for (int64_t i = 0; i < mask.numel(); ++i)
    for (int64_t c = 0; c < y.size(2); ++c)
      y.data<float>()[i * y.size(2) + c] *= mask.data<float>()[i];
  return y;
}

}  // namespace

TEST_CASE("the fixtures' parameter rule gives tiny's stored parameters", "[parity]") {
  const Fixture f("tiny");
  for (const auto& [key, value] : read_npz(test::data_path("tiny/params.npz"))) {
    const Tensor made = test::fixture_parameter(key, value.shape(), f.seed);
    for (int64_t i = 0; i < value.numel(); ++i)
      REQUIRE(made.data<float>()[i] == value.data<float>()[i]);
  }
}

TEST_CASE("tiny without recycling equals AlphaFold", "[parity]") {
  compare_outputs("tiny", 0, 2e-5);
}
TEST_CASE("tiny with two recycles equals AlphaFold", "[parity]") {
  compare_outputs("tiny", 2, 2e-5);
}
TEST_CASE("tiny_shallow equals AlphaFold", "[parity]") { compare_outputs("tiny_shallow", 0, 2e-5); }
TEST_CASE("tiny_ensemble equals AlphaFold", "[parity]") {
  compare_outputs("tiny_ensemble", 1, 2e-5);
}
TEST_CASE("tiny_no_template equals AlphaFold", "[parity]") {
  compare_outputs("tiny_no_template", 1, 2e-5);
}
TEST_CASE("tiny_padded equals AlphaFold on its real residues", "[parity]") {
  compare_outputs("tiny_padded", 1, 1e-4);
}
TEST_CASE("wide equals AlphaFold", "[parity]") { compare_outputs("wide", 0, 1e-4); }
TEST_CASE("wide with a recycle equals AlphaFold", "[parity]") { compare_outputs("wide", 1, 1e-4); }
TEST_CASE("tiny in f64 equals AlphaFold", "[parity]") {
  compare_outputs("tiny", 2, 2e-5, Dtype::f64);
}

TEST_CASE("a head without weight does not exist", "[parity]") {
  const Arrays out = run(Fixture("tiny_no_template"), 0);
  REQUIRE(out.count("predicted_aligned_error/logits") == 0);
  REQUIRE(out.count("confidence/ptm") == 0);
  REQUIRE(out.count("confidence/plddt") == 1);
}

TEST_CASE("every submodule of the trunk equals AlphaFold's", "[parity]") {
  for (int64_t recycles : {0, 2}) {
    const Arrays want = read_npz(test::data_path(cat("tiny/intermediates_r", recycles, ".npz")));
    int compared = 0;
    run(Fixture("tiny"), recycles, Dtype::f32, [&](const std::string& name, const Tensor& value) {
      // Template residues without psi may hold rounding noise; the mask keeps it from everything
      // else.
      if (!want.count(name) || name.find("embed/template_") != std::string::npos) return;
      const bool angles = name.find("angles") != std::string::npos;
      const bool msa = name.find("evoformer_block") != std::string::npos &&
                       (name.find("/msa_") != std::string::npos || name.ends_with("/msa"));
      const std::string mask = name.substr(0, name.find('/')) + "/evoformer_block0/mask/msa";
      if (msa && !want.count(mask)) return;
      test::compare(name, msa ? masked(value, want.at(mask)) : value,
                    msa ? masked(want.at(name), want.at(mask)) : want.at(name),
                    angles ? 2e-4 : 2e-5);
      ++compared;
    });
    REQUIRE(compared >= (recycles ? 20 : 80));
  }
}

TEST_CASE("bf16 stays within 3e-2 of AlphaFold's f32, norm-wise", "[parity]") {
  for (const char* folder : {"tiny", "wide"}) {
    const Arrays want = read_npz(test::data_path(cat(folder, "/outputs_r0.npz")));
    const Arrays got = run(Fixture(folder), 0, Dtype::bf16);
    for (const char* key : {"single", "pair", "msa", "msa_first_row"}) {
      const double error = test::norm_error(got.at(cat("representations/", key)),
                                            want.at(cat("representations/", key)));
      INFO(folder << " " << key << ": " << error);
      REQUIRE(error < 3e-2);
    }
  }
}

TEST_CASE("two runs give the same bits, and recycling stops early when asked", "[parity]") {
  const Fixture f("tiny");
  const Arrays a = run(f, 1), b = run(f, 1);
  for (const auto& [key, value] : a)
    REQUIRE(std::memcmp(value.contiguous().raw(), b.at(key).contiguous().raw(),
                        value.numel() * size_of(value.dtype())) == 0);
  const AlphaFold model(f.config, f.params());
  RunOptions options;
  options.num_recycle = 2;
  options.recycle_early_stop_tolerance = 1e6;
  REQUIRE(model.run([&](int64_t i) { return f.slice(i); }, options).at("num_recycles").item() == 1);
}

TEST_CASE("a recycle's trunk needs no more memory than the first pass's and what it goes on from") {
  const Fixture f("tiny");
  const AlphaFold model(f.config, f.params(), Dtype::f32);
  const Arrays slice = f.slice(0);
  const auto peak = [&](int64_t recycles) {
    const int64_t before = memory_count().current;
    int64_t most = 0;
    RunOptions options;
    options.num_recycle = recycles;
    options.progress = [&](const std::string& what, double) {
      if (what.ends_with("structure module")) most = memory_count().peak - before;
    };
    reset_memory_peak();
    model.run([&](int64_t) { return slice; }, options);
    return most;
  };
  const int64_t n = slice.at("aatype").size(0), first = peak(0), second = peak(1);
  CHECK(first > 0);
  CHECK(second <= first + 4 * n * (n * f.config.pair_channel + f.config.msa_channel + 37 * 3));
  CHECK(peak(3) == second);
}
