// The structure module, the heads, the confidence scores and the template features alone, each fed
// with AlphaFold's own inputs.
#include "core/model/structure.h"

#include <catch2/catch.hpp>

#include "core/model/heads.h"
#include "core/model/template_features.h"
#include "core/predict/confidence.h"
#include "tests/unit/compare.h"
#include "tests/unit/model/fixture.h"

using namespace ff;
using test::Tolerance;

namespace {

constexpr const char* kRoot = "alphafold/alphafold_iteration";

double tolerance(const std::string& key) {
  return key.find("angles") != std::string::npos ? Tolerance::kAngle : Tolerance::kOutput;
}

Arrays fold_tiny(Dtype dtype, const test::Fixture& f, const Arrays& inputs, const Trace& trace) {
  const NoGrad no_grad;
  const Params params = f.params().in_precision(dtype);
  return structure_module(Scope(params, kRoot) / "structure_module", f.config.structure,
                          inputs.at("representations/single").to(dtype),
                          inputs.at("representations/pair").to(dtype), f.slice(0), trace);
}

}  // namespace

TEST_CASE("the structure module alone equals AlphaFold's, layer by layer", "[structure]") {
  const test::Fixture f("tiny");
  const Arrays want = read_npz(test::data_path("tiny/outputs_r0.npz"));
  const Arrays inside = read_npz(test::data_path("tiny/intermediates_r0.npz"));
  for (Dtype dtype : {Dtype::f32, Dtype::f64}) {
    int traced = 0, outputs = 0;
    const Trace trace([&](const std::string& name, const Tensor& value) {
      REQUIRE(inside.count(name) == 1);
      test::compare(name, value, inside.at(name), tolerance(name));
      ++traced;
    });
    for (const auto& [key, value] : fold_tiny(dtype, f, want, trace / "cycle0")) {
      REQUIRE(value.dtype() == (key.find("mask") == std::string::npos ? dtype : Dtype::f32));
      test::compare(key, value, want.at(key), tolerance(key));
      ++outputs;
    }
    REQUIRE(traced == 3 + 12 * f.config.structure.num_layer);
    REQUIRE(outputs == 11);
  }
}

TEST_CASE("the structure module names a feature that does not fit", "[structure]") {
  test::Fixture f("tiny");
  const Arrays want = read_npz(test::data_path("tiny/outputs_r0.npz"));
  f.batch.at("aatype") = f.batch.at("aatype").clone();
  f.batch.at("aatype").data<int32_t>()[3] = 21;
  REQUIRE_THROWS_WITH(fold_tiny(Dtype::f32, f, want, Trace()),
                      "feature 'aatype' holds 21, expected 0 to 20");
  f.batch.erase("seq_mask");
  REQUIRE_THROWS_WITH(fold_tiny(Dtype::f32, f, want, Trace()),
                      "the batch has no feature 'seq_mask'");
}

TEST_CASE("the heads alone equal AlphaFold's", "[structure]") {
  const test::Fixture f("tiny");
  const NoGrad no_grad;
  const Arrays want = read_npz(test::data_path("tiny/outputs_r0.npz"));
  for (Dtype dtype : {Dtype::f32, Dtype::f64}) {
    Arrays out;
    for (const char* key : {"single", "pair", "msa", "structure_module"})
      out[cat("representations/", key)] = want.at(cat("representations/", key)).to(dtype);
    const Params params = f.params().in_precision(dtype);
    run_heads(Scope(params, kRoot), f.config.heads, out);
    add_confidence(f.config.heads, out);
    REQUIRE(out.size() == 4 + 7 + 4);
    for (const auto& [key, value] : out)
      test::compare(key, value, want.at(key), Tolerance::kOutput);
  }
}

TEST_CASE("a head whose weight is zero does not exist", "[structure]") {
  const test::Fixture f("tiny");
  const Params params = f.params();
  HeadsConfig config;
  config.distogram_weight = config.masked_msa_weight = config.plddt_weight = config.pae_weight =
      config.experimentally_resolved_weight = 0;
  Arrays out;
  run_heads(Scope(params, kRoot), config, out);
  add_confidence(config, out);
  REQUIRE(out.empty());
}

TEST_CASE("confidence scores equal AlphaFold's formulas", "[structure]") {
  const Arrays a = read_npz(test::data_path("scores.npz"));
  for (const std::string set : {"a", "b", "c"}) {
    INFO(set);
    const auto get = [&](const char* name) { return a.at(set + "/" + name); };
    test::compare("plddt", plddt(get("plddt_logits")), get("plddt"), 1e-6);
    if (!a.count(set + "/pae_logits")) continue;
    const Tensor logits = get("pae_logits"), breaks = get("pae_breaks");
    const AlignedError error = predicted_aligned_error(logits, breaks);
    test::compare("pae", error.expected, get("pae"), 1e-6);
    REQUIRE(error.max == Approx(get("max_pae").item()).epsilon(1e-6));
    REQUIRE(predicted_tm_score(logits, breaks) == Approx(get("ptm").item()).epsilon(1e-6));
    REQUIRE(predicted_tm_score(logits, breaks, {}, get("asym_id")) ==
            Approx(get("iptm").item()).epsilon(1e-6));
  }
}

TEST_CASE("residues of weight zero do not touch the predicted TM-score", "[structure]") {
  const Arrays a = read_npz(test::data_path("scores.npz"));
  const Tensor logits = a.at("b/pae_logits"), breaks = a.at("b/pae_breaks");
  const int64_t kept = 30;
  const Tensor weights = Tensor::zeros({logits.size(0)});
  for (int64_t i = 0; i < kept; ++i) weights.data<float>()[i] = 1;
  REQUIRE(predicted_tm_score(logits, breaks, weights) ==
          Approx(predicted_tm_score(logits.narrow(0, 0, kept).narrow(1, 0, kept), breaks))
              .epsilon(1e-9));
}

TEST_CASE("template pair features equal AlphaFold's", "[structure]") {
  const test::Fixture f("tiny");
  const Arrays inside = read_npz(test::data_path("tiny/intermediates_r0.npz"));
  const Arrays features = f.slice(0);
  for (int64_t t = 0; t < 2; ++t) {
    const Tensor got = template_pair_features(features, t, f.config.templates, 0, 22);
    test::compare("pair features", got,
                  inside.at(cat("cycle0/template", t, "/embedding2d_input_features")), 0);
  }
}

TEST_CASE("template unit vectors point from residue to residue in its frame", "[structure]") {
  const test::Fixture f("tiny");
  TemplateConfig config = f.config.templates;
  config.use_template_unit_vector = true;
  const Arrays features = f.slice(0);
  const Tensor got = template_pair_features(features, 0, config, 0, 22);
  const Tensor atoms = features.at("template_all_atom_positions").select(0, 0);
  const auto at = [&](int64_t i, int64_t atom, int64_t x) {
    return double(atoms.select(0, i).select(0, atom).select(0, x).item());
  };
  int checked = 0;
  for (int64_t i = 0; i < 22; ++i)
    for (int64_t j = 0; j < 22; ++j) {
      const Tensor row = got.select(0, i).select(0, j).narrow(0, 84, 4);
      const float* v = row.data<float>();
      if (v[3] == 0 || i == j) continue;
      double dot = 0, ca = 0, cc = 0, length = 0;
      for (int64_t x = 0; x < 3; ++x) {
        const double to_c = at(i, 2, x) - at(i, 1, x), to_j = at(j, 1, x) - at(i, 1, x);
        dot += to_c * to_j;
        cc += to_c * to_c;
        ca += to_j * to_j;
        length += double(v[x]) * v[x];
      }
      // The frame's x axis is CA to C.
      REQUIRE(double(v[0]) == Approx(dot / std::sqrt(ca * cc)).margin(1e-5));
      REQUIRE(length == Approx(1).margin(1e-5));
      ++checked;
    }
  REQUIRE(checked > 100);
}

TEST_CASE("template torsion features equal AlphaFold's", "[structure]") {
  const test::Fixture f("tiny");
  const Arrays inside = read_npz(test::data_path("tiny/intermediates_r0.npz"));
  const TemplateTorsions got = template_torsion_features(f.slice(0));
  const Tensor& want = inside.at("cycle0/embed/template_torsion_features");
  int compared = 0;
  for (int64_t t = 0; t < 2; ++t)
    for (int64_t i = 0; i < want.size(1); ++i) {
      // The last channels are the angles' masks; psi, the third, tells whether the row is read.
      const Tensor row = want.select(0, t).select(0, i);
      REQUIRE(got.mask.select(0, t).select(0, i).item() == row.select(0, 50 + 2).item());
      if (row.select(0, 50 + 2).item() == 0) continue;
      test::compare(cat("template ", t, " residue ", i), got.features.select(0, t).select(0, i),
                    row, Tolerance::kOutput);
      ++compared;
    }
  REQUIRE(compared > 20);
}
