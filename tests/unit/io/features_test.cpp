// The feature pipeline against AlphaFold's, step by step (fixtures' features_q73), with AlphaFold's
// random choices; then our own choices.
#include "io/features.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>

#include "core/geometry/residue_constants.h"
#include "io/choices.h"
#include "io/npz.h"
#include "io/transforms.h"
#include "tests/unit/compare.h"

using namespace ff;
using test::compare;

namespace {

/// atan in f32, as XLA or TensorFlow compute it, against the C library's; everything else is exact.
constexpr double kFloat = 1e-5;

RawFeatures query_73() {
  const std::string path = TEST_DATA "/features_q73/expected_raw_features.npz";
  return from_arrays(read_npz(path), path);
}

struct Fixture {
  const char* file;
  DataConfig config;
  Padding padding;
};

Fixture plain() {
  return {"expected_transforms.npz",
          {.max_msa_clusters = 20,
           .max_extra_msa = 40,
           .max_templates = 4,
           .use_templates = true,
           .reduce_msa_clusters_by_max_templates = true},
          {}};
}

Fixture padded() {
  return {"expected_transforms_padded.npz",
          {.max_msa_clusters = 16,
           .max_extra_msa = 24,
           .max_templates = 9,
           .use_templates = true,
           .reduce_msa_clusters_by_max_templates = true},
          {.n_res = 80}};
}

template <class To = int32_t>
std::vector<To> values(const Tensor& t) {
  const Tensor i = t.to(Dtype::i32);
  return {i.data<int32_t>(), i.data<int32_t>() + i.numel()};
}

/// Integers exactly, floats to kFloat.
void same(const std::string& name, const Tensor& got, const Tensor& want) {
  INFO(name);
  REQUIRE(got.dtype() == want.dtype());
  compare(name, got, want, want.dtype() == Dtype::i32 ? 0 : kFloat);
}

void same(const Arrays& got, const Arrays& want) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, t] : want) {
    REQUIRE(got.count(name) == 1);
    same(name, got.at(name), t);
  }
}

/// The arrays of one step, without its name and the slash.
Arrays step(const Arrays& all, const std::string& name) {
  Arrays out;
  for (const auto& [key, t] : all)
    if (key.rfind(name + "/", 0) == 0) out[key.substr(name.size() + 1)] = t;
  return out;
}

/// Rows of the alignment as [rows, n_res].
Tensor letters(const RawFeatures& raw, std::span<const int32_t> rows) {
  Tensor t = Tensor::empty({std::ssize(rows), raw.n_res()}, Dtype::i32);
  for (size_t s = 0; s < rows.size(); ++s)
    std::copy_n(raw.row(rows[s]), raw.n_res(), t.data<int32_t>() + s * raw.n_res());
  return t;
}

Tensor deletions(const RawFeatures& raw, std::span<const int32_t> rows) {
  Tensor t = Tensor::empty({std::ssize(rows), raw.n_res()});
  for (size_t s = 0; s < rows.size(); ++s)
    std::copy_n(raw.deletions(rows[s]), raw.n_res(), t.data<float>() + s * raw.n_res());
  return t;
}

/// Row s has s residues inserted before each column.
Msa alignment(const std::vector<std::string>& rows) {
  Msa msa;
  for (size_t s = 0; s < rows.size(); ++s) {
    std::string& row = msa.rows.emplace_back();
    for (const char c : rows[s]) row += std::string(s, 'x') + c;
    msa.descriptions.push_back("row" + std::to_string(s));
  }
  msa.columns = rows.empty() ? 0 : rows[0].size();
  return msa;
}

DataConfig small() { return {.max_msa_clusters = 4, .max_extra_msa = 6}; }

/// A deep alignment of random letters.
RawFeatures random_alignment(int64_t n_seq, int64_t n_res) {
  RawFeatures raw;
  raw.aatype = Tensor::zeros({n_res}, Dtype::i32);
  raw.residue_index = Tensor::zeros({n_res}, Dtype::i32);
  raw.n_seq = n_seq;
  raw.msa.resize(n_seq * n_res);
  raw.deletion_matrix.resize(n_seq * n_res);
  const Rng rng(1, {});
  for (size_t i = 0; i < raw.msa.size(); ++i) raw.msa[i] = int8_t(rng.word(i) % kMsaLetters);
  raw.profile.assign(n_res * kMsaLetters, 1.0f / kMsaLetters);
  return raw;
}

std::string error_of(const std::function<void()>& f, Exit code) {
  try {
    f();
  } catch (const Error& e) {
    REQUIRE(e.code() == code);
    return e.what();
  }
  FAIL("no error");
  return {};
}

}  // namespace

TEST_CASE("raw features survive a round trip under AlphaFold's names") {
  const Arrays want = read_npz(TEST_DATA "/features_q73/expected_raw_features.npz");
  same(to_arrays(query_73()), want);
}

TEST_CASE("alignment files become AlphaFold's raw features") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const std::string folder = std::string(shared) + "/fixtures/features_q73/input/";
  std::vector<Msa> msas;
  for (const char* file : {"uniref90_hits.sto", "bfd_uniclust_hits.a3m", "mgnify_hits.sto"})
    msas.push_back(read_msa(folder + file));
  const Arrays got = to_arrays(make_raw_features(msas[0].aligned(0), merge_msas(msas)));
  const Arrays want = read_npz(TEST_DATA "/features_q73/expected_raw_features.npz");
  REQUIRE(got.size() == 7);
  for (const auto& [name, t] : got) same(name, t, want.at(name));
}

TEST_CASE("features that do not depend on chance") {
  const RawFeatures raw = query_73();
  const Arrays want =
      step(read_npz(TEST_DATA "/features_q73/expected_transforms.npz"), "nonensembled");
  std::vector<int32_t> all(raw.n_seq);
  for (size_t s = 0; s < all.size(); ++s) all[s] = int32_t(s);
  same("msa", letters(raw, all), want.at("msa"));
  same("deletion_matrix", deletions(raw, all), want.at("deletion_matrix"));
  same("hhblits_profile", Tensor::of({raw.n_res(), kMsaLetters}, raw.profile.data()),
       want.at("hhblits_profile"));

  // With room for all templates a slice holds the others unchanged.
  DataConfig config = plain().config;
  config.max_templates = raw.templates.size();
  const Arrays slice = make_slice(raw, config, 0, 0);
  for (const char* name :
       {"aatype", "residue_index", "seq_length", "seq_mask", "atom14_atom_exists",
        "atom37_atom_exists", "residx_atom14_to_atom37", "residx_atom37_to_atom14",
        "template_aatype", "template_all_atom_masks", "template_all_atom_positions",
        "template_mask", "template_pseudo_beta", "template_pseudo_beta_mask", "template_sum_probs"})
    same(name, slice.at(name), want.at(name));
}

TEST_CASE("the steps of a slice, with AlphaFold's choices") {
  for (const Fixture& f : {plain(), padded()}) {
    INFO(f.file);
    const RawFeatures raw = query_73();
    const Arrays all = read_npz(std::string(TEST_DATA "/features_q73/") + f.file);
    const Choices choices = choices_from_arrays(all, f.file, raw, f.config).at(0);

    const RowSplit rows = split_rows(cluster_count(f.config), choices.shuffle0);
    same("step0 msa", letters(raw, rows.centers), all.at("step0/msa"));
    same("step0 deletions", deletions(raw, rows.centers), all.at("step0/deletion_matrix"));
    same("step0 extra msa", letters(raw, rows.extra), all.at("step0/extra_msa"));
    same("step0 extra deletions", deletions(raw, rows.extra),
         all.at("step0/extra_deletion_matrix"));

    // Step 1 replaces letters of the centres only where it masks them.
    same("step1 true msa", letters(raw, rows.centers), all.at("step1/true_msa"));
    for (size_t e = 0; e < choices.msa.size(); ++e)
      REQUIRE(
          (choices.bert_mask[e] || choices.msa[e] == all.at("step1/true_msa").data<int32_t>()[e]));

    const std::vector<int32_t> nearest = nearest_clusters(raw, rows.extra, choices.msa);
    REQUIRE(nearest == values(all.at("step2/extra_cluster_assignment")));

    const ClusterSummary summary = summarize_clusters(raw, rows, choices.msa, nearest);
    const int64_t n = std::ssize(rows.centers);
    same("step3 profile", Tensor::of({n, raw.n_res(), kMsaClasses}, summary.profile.data()),
         all.at("step3/cluster_profile"));
    same("step3 deletions", Tensor::of({n, raw.n_res()}, summary.deletion_mean.data()),
         all.at("step3/cluster_deletion_mean"));

    const Arrays slice = make_slice(raw, f.config, choices, f.padding);
    same(slice, step(all, "final"));
    // Step 4 takes the first of the extra rows, whose deletions step 5 makes features of.
    const int64_t n_kept = all.at("step4/extra_msa").size(0);
    std::vector<int32_t> kept(n_kept);
    for (int64_t s = 0; s < n_kept; ++s) kept[s] = rows.extra[choices.shuffle1[s]];
    same("step4 extra deletions", deletions(raw, kept), all.at("step4/extra_deletion_matrix"));
    // Steps 4 to 8 are corners of the padded tensors.
    int compared = 0;
    for (const auto& [name, want] : all) {
      if (name < "step4/" || name >= "step9/" || name == "step4/extra_deletion_matrix") continue;
      INFO(name);
      Tensor got = slice.at(name.substr(6));
      for (int axis = 0; axis < want.rank(); ++axis) got = got.narrow(axis, 0, want.size(axis));
      same(name, got, want);
      ++compared;
    }
    REQUIRE(compared == 3 + 4 + 24 + 26);
  }
}

// tests/data/features_6kwc/make.py made the expected values with AlphaFold's and OpenFold's Python.
TEST_CASE("other proteins: merged alignments and a slice's steps against AlphaFold and OpenFold") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const Arrays want = read_npz(TEST_DATA "/features_6kwc/expected.npz");
  const auto fnv = [](const Tensor& t) {
    uint64_t value = 0xcbf29ce484222325;
    const auto* bytes = static_cast<const unsigned char*>(t.raw());
    for (int64_t i = 0; i < t.numel() * 4; ++i) value = (value ^ bytes[i]) * 0x100000001b3;
    return int32_t(value & 0x7fffffff);
  };
  RawFeatures raw;  // of the last, 6KWC_1
  const std::vector<std::string> three{"uniref90_hits.sto", "bfd_uniclust_hits.a3m",
                                       "mgnify_hits.sto"};
  for (const auto& [tag, files] :
       {std::pair("2q2k_A", three), std::pair("small", three),
        std::pair("6KWC_1",
                  std::vector<std::string>{"bfd_uniref_hits.a3m", "mgnify_hits.sto.gz"})}) {
    INFO(tag);
    std::vector<Msa> msas;
    for (const std::string& file : files)
      msas.push_back(read_msa(cat(shared, "/data/alignments/", tag, "/", file)));
    raw = make_raw_features(msas[0].aligned(0), merge_msas(msas));
    const Arrays got = to_arrays(raw);
    const auto expected = [&](const char* what) { return want.at(cat(tag, "/", what)); };
    REQUIRE(values(expected("shape")) ==
            std::vector<int32_t>{int32_t(raw.n_seq), int32_t(raw.n_res())});
    REQUIRE(fnv(got.at("msa")) == int32_t(expected("msa_fnv").item()));
    REQUIRE(fnv(got.at("deletion_matrix_int")) ==
            int32_t(expected("deletion_matrix_int_fnv").item()));
    int64_t deleted = 0;
    for (const int32_t count : raw.deletion_matrix) deleted += count;
    REQUIRE(deleted == int64_t(expected("deletions").item()));
  }

  const DataConfig config{.max_msa_clusters = 16, .max_extra_msa = 24};
  const Choices choices = choices_from_arrays(want, "expected.npz", raw, config).at(0);
  const RowSplit rows = split_rows(16, choices.shuffle0);
  const std::vector<int32_t> nearest = nearest_clusters(raw, rows.extra, choices.msa);
  REQUIRE(nearest == values(want.at("extra_cluster_assignment")));
  same("profile", Tensor::of({raw.n_res(), kMsaLetters}, raw.profile.data()), want.at("profile"));
  const ClusterSummary summary = summarize_clusters(raw, rows, choices.msa, nearest);
  same("deletions", Tensor::of({16, raw.n_res()}, summary.deletion_mean.data()),
       want.at("cluster_deletion_mean"));
  const Arrays slice = make_slice(raw, config, choices);
  for (const char* name : {"msa_feat", "extra_msa", "extra_has_deletion", "extra_deletion_value"})
    same(name, slice.at(name), want.at(name));
}

TEST_CASE("choices of slices are written and read back") {
  const RawFeatures raw = query_73(), alone = make_raw_features("ACD", {});
  for (const RawFeatures* r : {&raw, &alone}) {
    const DataConfig config = plain().config;
    std::vector<Choices> some;
    for (int slice = 0; slice < 3; ++slice) some.push_back(draw_choices(*r, config, 3, slice));
    const Arrays arrays = to_arrays(some, r->n_res());
    const std::vector<Choices> again = choices_from_arrays(arrays, "x", *r, config);
    REQUIRE(again.size() == 3);
    for (int slice = 0; slice < 3; ++slice) {
      REQUIRE(again[slice].shuffle0 == some[slice].shuffle0);
      REQUIRE(again[slice].shuffle1 == some[slice].shuffle1);
      REQUIRE(again[slice].bert_mask == some[slice].bert_mask);
      REQUIRE(again[slice].msa == some[slice].msa);
    }
  }
  const DataConfig config = plain().config;
  const Choices one = draw_choices(raw, config, 3, 0);
  Arrays good;
  for (const auto& [name, t] : to_arrays({&one, 1}, raw.n_res())) good["choices/" + name] = t;
  const auto refusal = [&](const char* key, const std::function<void(Tensor&)>& change) {
    Arrays bad = good;
    Tensor& t = bad.at(std::string("choices/") + key);
    t = t.clone();
    change(t);
    return error_of([&] { choices_from_arrays(bad, "c.npz", raw, config); }, Exit::kInput);
  };
  using Catch::Contains;
  REQUIRE(choices_from_arrays(good, "c.npz", raw, config).size() == 1);
  REQUIRE_THAT(
      refusal("random/shuffle0", [](Tensor& t) { t.data<int32_t>()[3] = t.data<int32_t>()[4]; }),
      Contains("c.npz") && Contains("random/shuffle0") && Contains("twice"));
  REQUIRE_THAT(refusal("random/shuffle1", [](Tensor& t) { t.data<int32_t>()[3] = 1120; }),
               Contains("1120"));
  REQUIRE_THAT(refusal("step1/msa", [](Tensor& t) { t.data<int32_t>()[3] = -1; }),
               Contains("expected 0 to 22"));
  REQUIRE_THAT(refusal("step1/bert_mask", [](Tensor& t) { t.data<float>()[3] = 0.5f; }),
               Contains("0.5"));
  REQUIRE_THAT(refusal("step1/bert_mask", [](Tensor& t) { t.data<float>()[3] = NAN; }),
               Contains("nan"));
  REQUIRE_THAT(refusal("step1/msa", [](Tensor& t) { t = t.narrow(1, 0, 15); }),
               Contains("[1, 15, 73]"));
  Arrays other = good;
  other.erase("choices/step1/msa");
  REQUIRE_THAT(error_of([&] { choices_from_arrays(other, "c.npz", raw, config); }, Exit::kInput),
               Contains("no array 'step1/msa'"));
  REQUIRE_THAT(error_of([&] { choices_from_arrays(good, "c.npz", alone, config); }, Exit::kInput),
               Contains("another alignment"));
}

TEST_CASE("features as an alignment give the same features") {
  const RawFeatures raw = query_73();
  const Msa again = parse_a3m(to_a3m(to_msa(raw)), "x");
  const RawFeatures same_again = make_raw_features(again.aligned(0), again);
  REQUIRE(same_again.msa == raw.msa);
  REQUIRE(same_again.deletion_matrix == raw.deletion_matrix);
  REQUIRE(same_again.profile == raw.profile);
}

TEST_CASE("least padding leaves out rows of zeros and changes nothing else") {
  const RawFeatures raw = make_raw_features("ACDEF", alignment({"ACDEF", "AC-EF"}));
  DataConfig config = small();
  config.use_templates = true;
  const Choices choices = draw_choices(raw, config, 5, 0);
  const Arrays full = make_slice(raw, config, choices);
  const Arrays least = make_slice(raw, config, choices, {.rows = Padding::kLeast});
  REQUIRE(least.at("msa_feat").shape() == Dims{2, 5, 49});
  REQUIRE(least.at("extra_msa").shape() == Dims{1, 5});
  REQUIRE(least.at("template_mask").shape() == Dims{1});
  REQUIRE(full.at("msa_feat").shape() == Dims{4, 5, 49});
  REQUIRE(full.at("extra_msa").shape() == Dims{6, 5});
  REQUIRE(full.at("template_mask").shape() == Dims{4});
  REQUIRE(full.size() == least.size());
  for (const auto& [name, t] : least) {
    Tensor head = full.at(name);
    if (t.rank()) head = head.narrow(0, 0, t.size(0));
    compare(name, head, t, 0);
  }
}

TEST_CASE("several alignments: order kept, duplicate rows dropped") {
  Msa first = alignment({"ACDEF", "AC-EF"}), second = alignment({"ACDEF", "GCDEF", "AC-EF"});
  const RawFeatures raw = make_raw_features("ACDEF", merge_msas({first, second}));
  REQUIRE(raw.n_seq == 3);
  const Arrays a = to_arrays(raw);
  // A C D E F in the alignment's alphabet are 0 to 4, G is 5.
  REQUIRE(values(a.at("msa")) ==
          std::vector<int32_t>{0, 1, 2, 3, 4, 0, 1, 21, 3, 4, 5, 1, 2, 3, 4});
  REQUIRE(values(a.at("deletion_matrix_int")) ==
          std::vector<int32_t>{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  REQUIRE(values(a.at("num_alignments")) == std::vector<int32_t>(5, 3));
  REQUIRE(raw.profile[0 * kMsaLetters + restype_index('A')] == Approx(2 / 3.0));
}

TEST_CASE("a sequence without alignment, and letters that are no amino acid's own") {
  const RawFeatures raw = make_raw_features("MBXUZ", {});
  REQUIRE(raw.n_seq == 1);
  const int32_t x = kUnknownRestype;
  REQUIRE(values(raw.aatype) == std::vector<int32_t>{restype_index('M'), x, x, x, x});
  REQUIRE(values(to_arrays(raw).at("msa")) == std::vector<int32_t>{10, 2, 20, 1, 3});

  const Arrays slice = make_slice(raw, small(), 0, 0);
  REQUIRE(slice.at("msa_feat").shape() == Dims{4, 5, 49});
  REQUIRE(values(slice.at("msa_row_mask")) == std::vector<int32_t>{1, 0, 0, 0});
  REQUIRE(values(slice.at("extra_msa_row_mask")) == std::vector<int32_t>(6, 0));
  REQUIRE(values(slice.at("seq_length")) == std::vector<int32_t>{5});
  REQUIRE(slice.count("template_mask") == 0);
}

TEST_CASE("fewer rows than clusters") {
  const RawFeatures raw = make_raw_features("ACDEF", alignment({"ACDEF", "AC-EF", "GGDEF"}));
  const Arrays slice = make_slice(raw, small(), 3, 1);
  REQUIRE(values(slice.at("msa_row_mask")) == std::vector<int32_t>{1, 1, 1, 0});
  REQUIRE(values(slice.at("extra_msa_row_mask")) == std::vector<int32_t>(6, 0));
  // Each row is its own cluster: profiles are the masked letters, up to AlphaFold's 1e-6.
  const Tensor feat = slice.at("msa_feat");
  for (int64_t e = 0; e < 3 * 5; ++e)
    for (int c = 0; c < kMsaClasses; ++c)
      REQUIRE(feat.data<float>()[e * 49 + 25 + c] ==
              Approx(feat.data<float>()[e * 49 + c]).margin(2e-6));
}

TEST_CASE("choices: same for the same seed and slice, different for others") {
  const RawFeatures raw = query_73();
  DataConfig config = plain().config;
  const auto slice = [&](uint64_t seed, int64_t index) {
    return make_slice(raw, config, seed, index);
  };
  const Arrays a = slice(1, 0);
  for (const auto& [name, t] : slice(1, 0)) compare(name, a.at(name), t, 0);
  for (const Arrays& b : {slice(1, 1), slice(2, 0)})
    for (const char* name : {"msa_feat", "true_msa", "bert_mask", "extra_msa"})
      REQUIRE(values(b.at(name)) != values(a.at(name)));
  // The query stays first, whatever is drawn.
  for (int64_t index : {0, 1, 2})
    REQUIRE(std::equal(raw.row(0), raw.row(1), slice(1, index).at("true_msa").data<int32_t>()));

  config.resample_msa_in_recycling = false;
  config.num_ensemble = 2;
  REQUIRE(draw_choices(raw, config, 1, 0).shuffle0 == draw_choices(raw, config, 1, 4).shuffle0);
  REQUIRE(draw_choices(raw, config, 1, 0).shuffle0 != draw_choices(raw, config, 1, 5).shuffle0);
}

TEST_CASE("masking has the configured frequencies") {
  const RawFeatures raw = query_73();
  const DataConfig config{.max_msa_clusters = 1000};
  int64_t masked = 0, total = 0, token = 0, same_letter = 0;
  double expected_same = 0;
  for (int64_t slice = 0; slice < 4; ++slice) {
    const Choices c = draw_choices(raw, config, 11, slice);
    const RowSplit rows = split_rows(1000, c.shuffle0);
    for (size_t e = 0; e < c.msa.size(); ++e) {
      const int64_t i = int64_t(e) % raw.n_res();
      const int8_t truth = raw.row(rows.centers[e / raw.n_res()])[i];
      ++total;
      if (!c.bert_mask[e]) {
        REQUIRE(c.msa[e] == truth);
        continue;
      }
      ++masked;
      token += c.msa[e] == kMaskRestype;
      same_letter += c.msa[e] == truth;
      expected_same += 0.1 + 0.1 * raw.profile[i * kMsaLetters + truth] +
                       (truth < kRestypes ? 0.1 / kRestypes : 0);
    }
  }
  // About 44,000 masked of 292,000; five standard deviations.
  REQUIRE(double(masked) / total == Approx(0.15).margin(5 * 0.357 / std::sqrt(total)));
  REQUIRE(double(token) / masked == Approx(0.7).margin(5 * 0.458 / std::sqrt(masked)));
  REQUIRE(double(same_letter) / masked ==
          Approx(expected_same / masked).margin(5 * 0.4 / std::sqrt(masked)));
}

TEST_CASE("clusters: ties go to the first centre, gaps and masks agree with nothing") {
  RawFeatures raw =
      make_raw_features("ACDEF", alignment({"ACDEF", "ACDEG", "-----", "A----", "AC--G", "GGGGG"}));
  const std::vector<int32_t> extra = {2, 3, 4, 5};
  std::vector<int8_t> centers(raw.row(0), raw.row(2));
  centers.insert(centers.end(), 5, int8_t(kGapRestype));
  REQUIRE(nearest_clusters(raw, extra, centers) == std::vector<int32_t>{0, 0, 1, 1});
  centers[9] = kMaskRestype;
  REQUIRE(nearest_clusters(raw, extra, centers) == std::vector<int32_t>{0, 0, 0, 0});
}

TEST_CASE("clusters of long and deep alignments, against a plain count") {
  // More residues than a byte counts, more centres than one tile holds.
  const RawFeatures raw = random_alignment(340, 700);
  std::vector<int8_t> centers(raw.row(0), raw.row(300));
  for (size_t i = 0; i < centers.size(); i += 7) centers[i] = kMaskRestype;
  // An extra row that agrees everywhere: 700 agreements do not fit a byte.
  std::vector<int32_t> extra(40);
  for (int s = 0; s < 40; ++s) extra[s] = 300 + s;
  extra.push_back(271);
  const std::vector<int32_t> got = nearest_clusters(raw, extra, centers);
  for (size_t s = 0; s < extra.size(); ++s) {
    int best = 0, most = -1;
    for (int k = 0; k < 300; ++k) {
      int agreements = 0;
      for (int i = 0; i < 700; ++i)
        agreements += raw.row(extra[s])[i] == centers[k * 700 + i] && raw.row(extra[s])[i] < 21;
      if (agreements > most) {
        most = agreements;
        best = k;
      }
    }
    REQUIRE(got[s] == best);
  }
  REQUIRE(got.back() == 271);
}

TEST_CASE("speed of a slice", "[.bench]") {
  for (const auto& [n_seq, n_res] : {std::pair(3512, 185), std::pair(50000, 400)}) {
    const RawFeatures raw = random_alignment(n_seq, n_res);
    const DataConfig config;
    const Choices choices = draw_choices(raw, config, 0, 0);
    const RowSplit rows = split_rows(512, choices.shuffle0);
    const auto timed = [&](const char* what, auto&& f) {
      const auto start = std::chrono::steady_clock::now();
      f();
      WARN(what << ", " << n_seq << " x " << n_res << ": "
                << std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()
                << " s");
    };
    timed("draw_choices", [&] { draw_choices(raw, config, 0, 0); });
    timed("nearest_clusters", [&] { nearest_clusters(raw, rows.extra, choices.msa); });
    timed("make_slice", [&] { make_slice(raw, config, choices); });
  }
}

TEST_CASE("bad input is named") {
  const auto raw = [](const std::string& sequence, std::vector<std::string> rows) {
    return [=] { make_raw_features(sequence, alignment(rows)); };
  };
  using Catch::Contains;
  REQUIRE_THAT(error_of([] { make_raw_features("", {}); }, Exit::kInput), Contains("empty"));
  REQUIRE_THAT(error_of([] { make_raw_features("AC*", {}); }, Exit::kInput),
               Contains("residue 3") && Contains("'*'"));
  REQUIRE_THAT(error_of([] { make_raw_features("Ac", {}); }, Exit::kInput), Contains("'c'"));
  REQUIRE_THAT(error_of([] { merge_msas({Msa{}}); }, Exit::kInput),
               Contains("alignment 1 has no rows"));
  REQUIRE_THAT(error_of(
                   [] {
                     merge_msas({alignment({"ACD"}), alignment({"AC"})});
                   },
                   Exit::kInput),
               Contains("alignment 2 has 2 columns") && Contains("3 residues"));
  REQUIRE_THAT(error_of(raw("ACD", {"ACD", "ACDE"}), Exit::kInput), Contains("beyond"));
  REQUIRE_THAT(error_of(raw("ACD", {"ACD", "AC"}), Exit::kInput),
               Contains("row 2 'row1'") && Contains("2 columns") && Contains("3 residues"));
  REQUIRE_THAT(error_of(raw("ACD", {"ACD", "A?D"}), Exit::kInput),
               Contains("row 2") && Contains("column 2 is '?'"));
  REQUIRE_THAT(error_of(raw("ACD", {"ACE"}), Exit::kInput),
               Contains("must be the query") && Contains("column 3"));
  REQUIRE_THAT(error_of(raw("ACD", {"A-D"}), Exit::kInput), Contains("must be the query"));

  const std::string path = TEST_DATA "/features_q73/expected_raw_features.npz";
  const Arrays good = read_npz(path);
  Arrays bad = good;
  bad.erase("msa");
  REQUIRE_THAT(error_of([&] { from_arrays(bad, path); }, Exit::kInput),
               Contains(path) && Contains("'msa'"));
  bad = good;
  bad["msa"] = good.at("msa").clone();
  bad["msa"].data<int32_t>()[5] = 22;
  REQUIRE_THAT(error_of([&] { from_arrays(bad, path); }, Exit::kInput), Contains("22"));
  bad = good;
  bad["template_sum_probs"] = Tensor::zeros({3, 1});
  REQUIRE_THAT(error_of([&] { from_arrays(bad, path); }, Exit::kInput), Contains("[3, 1]"));

  const RawFeatures query = make_raw_features("ACD", {});
  DataConfig config = small();
  config.profile_prob = 0.9;
  REQUIRE_THAT(error_of([&] { draw_choices(query, config, 0, 0); }, Exit::kUsage),
               Contains("more than 1"));
  config = small();
  config.reduce_msa_clusters_by_max_templates = true;
  REQUIRE_THAT(error_of([&] { draw_choices(query, config, 0, 0); }, Exit::kUsage),
               Contains("max_msa_clusters is 4"));
}
