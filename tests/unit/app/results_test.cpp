// The files of a target: their forms, names in the three layouts, completeness whenever the writer
// is killed, and the lock.
#include "app/results.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <new>
#include <random>

#include "core/base/rng.h"
#include "core/geometry/residue_constants.h"
#include "io/file.h"
#include "io/npz.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
namespace fs = std::filesystem;

static thread_local int64_t g_allocations = 0;  // of this thread, so far

[[gnu::noinline]] void* operator new(size_t bytes) {
  ++g_allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace {

constexpr int64_t kMostBytes = 1 << 30;

Tensor random_tensor(const Dims& shape, float least, float most, uint64_t stream) {
  const Tensor t = Tensor::empty(shape);
  const Rng random(5, {stream});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = least + (most - least) * unit_float(random.word(uint64_t(i)));
  return t;
}

Prediction predicted(int64_t n, const std::string& model, uint64_t seed, bool ptm = true) {
  Prediction p;
  p.model = model;
  p.seed = seed;
  p.aatype = Tensor::zeros({n}, Dtype::i32);
  p.positions = random_tensor({n, kAtom37, 3}, -50, 50, seed);
  p.mask = Tensor::zeros({n, kAtom37});
  for (int64_t i = 0; i < n; ++i)
    for (int a : {kAtomN, kAtomCa, kAtomC, kAtomCb, kAtomO})
      p.mask.data<float>()[i * kAtom37 + a] = 1;
  p.plddt = random_tensor({n}, 0, 100, seed + 1);
  p.mean_plddt = 90 - double(seed);
  if (ptm) {
    p.pae = random_tensor({n, n}, 0, 31, seed + 2);
    p.max_pae = 31.75;
    p.ptm = 0.8;
  }
  return p;
}

TargetResults results(int count, int64_t n = 12) {
  TargetResults r;
  r.tag = "target";
  r.title = "target some protein";
  for (int i = 0; i < count; ++i) r.ranked.push_back(predicted(n, "model_1_ptm", uint64_t(i)));
  r.timings = {{"features", 1.5}};
  r.run = {{"version", "0"}};
  r.msa_a3m = ">target\nAAAAAAAAAAAA\n";
  r.report_html = "<!doctype html>";
  r.coverage_svg = r.plddt_svg = r.pae_svg = "<svg/>";
  r.fingerprint = "abc";
  return r;
}

using Names = std::vector<std::string>;
Names names_in(const fs::path& folder) {
  Names names;
  for (const auto& file : fs::directory_iterator(folder))
    names.push_back(file.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("scores have ColabFold's keys, PAE AlphaFold's form") {
  Prediction p = predicted(2, "model_1_ptm", 0);
  // Halves to even, as NumPy rounds.
  const float plddt[] = {0.125f, 99.996f}, pae[] = {0, 0.25f, 12.375f, 31.0f};
  p.plddt = Tensor::of<float>({2}, plddt);
  p.pae = Tensor::of<float>({2, 2}, pae);
  p.ptm = 0.5;
  CHECK(
      scores_json(p) ==
      "{\"plddt\":[0.12,100.0],\"max_pae\":31.0,\"pae\":[[0.0,0.25],[12.38,31.0]],\"ptm\":0.5}\n");
  CHECK(pae_json(p) ==
        "[{\"predicted_aligned_error\":[[0.0,0.2],[12.4,31.0]],"
        "\"max_predicted_aligned_error\":31.75}]\n");
  CHECK(colabfold_pae_json(p) ==
        "{\"predicted_aligned_error\":[[0.0,0.25],[12.38,31.0]],"
        "\"max_predicted_aligned_error\":31.0}\n");
  const float edges[] = {49.99f, 50, 70, 90};
  p.plddt = Tensor::of<float>({4}, edges);
  CHECK(confidence_json(p) ==
        "{\"residueNumber\":[1,2,3,4],\"confidenceScore\":[49.99,50.0,70.0,90.0],"
        "\"confidenceCategory\":[\"D\",\"L\",\"M\",\"H\"]}\n");

  const Prediction plain = predicted(2, "model_1", 0, false);
  const auto json = nlohmann::json::parse(scores_json(plain));
  CHECK(json.size() == 1);
  CHECK(json["plddt"].size() == 2);
  p.plddt.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(scores_json(p), Error);
}

TEST_CASE("every number is the value rounded") {
  const Prediction p = predicted(40, "model_1_ptm", 3);
  const auto scores = nlohmann::json::parse(scores_json(p));
  const auto pae = nlohmann::json::parse(pae_json(p));
  double worst = 0, worst_pae = 0;
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t j = 0; j < 40; ++j) {
      const double x = p.pae.data<float>()[i * 40 + j];
      worst = std::max(worst, std::abs(double(scores["pae"][i][j]) - x));
      worst_pae =
          std::max(worst_pae, std::abs(double(pae[0]["predicted_aligned_error"][i][j]) - x));
    }
  CHECK(worst <= 0.005 + 1e-9);
  CHECK(worst_pae <= 0.05 + 1e-9);
}

TEST_CASE("3,000 residues: nine million numbers without an allocation for each") {
  const Prediction p = predicted(3000, "model_1_ptm", 0);
  const int64_t before = g_allocations;
  const std::string scores = scores_json(p), pae = pae_json(p);
  CHECK(g_allocations - before < 1000);
  CHECK(nlohmann::json::accept(scores));
  CHECK(nlohmann::json::accept(pae));
}

TEST_CASE("ranking is AlphaFold's ranking_debug") {
  const std::vector<Prediction> ranked = {predicted(3, "model_2_ptm", 5),
                                          predicted(3, "model_1_ptm", 9),
                                          predicted(3, "model_1_ptm", 8)};
  CHECK(ranking_json(ranked, "plddt").dump() ==
        "{\"plddts\":{\"model_2_ptm_pred_0\":85.0,\"model_1_ptm_pred_1\":81.0,"
        "\"model_1_ptm_pred_0\":82.0},\"order\":[\"model_2_ptm_pred_0\",\"model_1_ptm_pred_1\","
        "\"model_1_ptm_pred_0\"]}");
  CHECK(ranking_json(ranked, "ptm")["ptms"]["model_1_ptm_pred_0"] == 0.8);
}

TEST_CASE("the files of each layout") {
  const Scratch scratch;
  TargetResults r = results(2);
  r.arrays = {{{"single", Tensor::zeros({2, 2})}}, {}};
  ResultOptions options{.folder = scratch / "out"};
  write_results(r, options);
  CHECK(names_in(scratch / "out/target") ==
        Names{"arrays_rank_000.npz", "complete.json", "coverage.svg", "msa.a3m", "pae.svg",
              "pae_rank_000.json", "pae_rank_001.json", "plddt.svg", "ranked_000.cif",
              "ranked_000.pdb", "ranked_001.cif", "ranked_001.pdb", "ranking.json", "report.html",
              "run.json", "scores_rank_000.json", "scores_rank_001.json", "timings.json"});
  CHECK(best_structure_path(r, options) == scratch / "out/target/ranked_000.pdb");
  CHECK(read_npz(scratch / "out/target/arrays_rank_000.npz").count("single") == 1);

  options = {.folder = scratch / "af", .layout = Layout::kAlphafold, .format = Format::kPdb};
  r.arrays.clear();
  r.ranked[1].ptm.reset();
  r.ranked[1].pae = {};
  write_results(r, options);
  CHECK(names_in(scratch / "af/target") ==
        Names{"complete.json", "confidence_model_1_ptm_pred_0.json",
              "confidence_model_1_ptm_pred_1.json", "coverage.svg", "msa.a3m", "pae.svg",
              "pae_model_1_ptm_pred_0.json", "plddt.svg", "ranked_0.pdb", "ranked_1.pdb",
              "ranking_debug.json", "report.html", "run.json", "timings.json",
              "unrelaxed_model_1_ptm_pred_0.pdb", "unrelaxed_model_1_ptm_pred_1.pdb"});

  r = results(2);
  r.ranked[1] = predicted(12, "model_3_ptm", 1);
  options = {.folder = scratch / "cf", .layout = Layout::kColabfold, .format = Format::kPdb};
  write_results(r, options);
  CHECK(names_in(scratch / "cf") ==
        Names{"target.a3m", "target.done.txt", "target_coverage.svg", "target_pae.svg",
              "target_plddt.svg", "target_predicted_aligned_error_v1.json", "target_report.html",
              "target_run.json", "target_scores_rank_001_alphafold2_ptm_model_1_seed_000.json",
              "target_scores_rank_002_alphafold2_ptm_model_3_seed_001.json", "target_timings.json",
              "target_unrelaxed_rank_001_alphafold2_ptm_model_1_seed_000.pdb",
              "target_unrelaxed_rank_002_alphafold2_ptm_model_3_seed_001.pdb"});
  for (const Layout layout : {Layout::kFastfold, Layout::kAlphafold, Layout::kColabfold}) {
    const char* folders[] = {"out", "af", "cf"};
    const Completion found =
        check_complete("target", {.folder = scratch / folders[int(layout)], .layout = layout});
    CHECK(found.state == Completion::kComplete);
    CHECK(found.fingerprint == "abc");
  }
}

TEST_CASE("what the PDB format cannot hold is written as mmCIF alone") {
  const Scratch scratch;
  TargetResults r = results(1);
  r.ranked[0].positions.data<float>()[0] = 12345;
  write_results(r, {.folder = scratch.path(), .format = Format::kPdb});
  CHECK(fs::exists(scratch / "target/ranked_000.cif"));
  CHECK_FALSE(fs::exists(scratch / "target/ranked_000.pdb"));
}

TEST_CASE("damage is found and named") {
  const Scratch scratch;
  const ResultOptions options{.folder = scratch.path()};
  const auto state = [&] { return check_complete("target", options); };
  CHECK(state().state == Completion::kMissing);
  write_results(results(1), options);
  CHECK(state().state == Completion::kComplete);

  const std::string pdb = scratch / "target/ranked_000.pdb";
  const std::string text = read_text_file(pdb, kMostBytes);
  scratch.write("target/ranked_000.pdb", text.substr(0, text.size() / 2));
  CHECK(state().state == Completion::kDamaged);
  CHECK_THAT(state().damage, Catch::Contains("ranked_000.pdb has"));
  std::string changed = text;
  changed[100] ^= 1;
  scratch.write("target/ranked_000.pdb", changed);
  CHECK(state().damage == "ranked_000.pdb was changed");
  fs::remove(pdb);
  CHECK(state().damage == "ranked_000.pdb is missing");
  scratch.write("target/ranked_000.pdb", text);
  CHECK(state().state == Completion::kComplete);
  for (const char* marker :
       {"", "{", "[]", "{\"files\": 1}", "{\"files\": [1]}", "{\"files\": [{\"name\": 1}]}",
        "{\"files\": [{\"name\": \"../x\", \"bytes\": 1, \"sha256\": \"\"}]}"}) {
    scratch.write("target/complete.json", marker);
    CHECK(state().state == Completion::kDamaged);
  }
}

TEST_CASE("a run with fewer ranks leaves nothing of the run before, nor of a killed one") {
  const Scratch scratch;
  const ResultOptions options{.folder = scratch.path()};
  write_results(results(4), options);
  CHECK(fs::exists(scratch / "target/ranked_003.pdb"));
  scratch.write("target/notes.txt", "the user's");
  scratch.write("target/.ranked_001.pdb.12345-6.tmp", "left by a killed process");
  // Names that lead elsewhere are not removed.
  scratch.write("victim", "");
  scratch.write("target/.pending.json", "{\"files\": [{\"name\": \"../victim\"}]}");
  write_results(results(1), options);
  CHECK(names_in(scratch / "target") ==
        Names{"complete.json", "coverage.svg", "msa.a3m", "notes.txt", "pae.svg",
              "pae_rank_000.json", "plddt.svg", "ranked_000.cif", "ranked_000.pdb", "ranking.json",
              "report.html", "run.json", "scores_rank_000.json", "timings.json"});
  CHECK(fs::exists(scratch / "victim"));
}

TEST_CASE("what a killed run left beside a complete target goes, and nothing else") {
  for (const Layout layout : {Layout::kFastfold, Layout::kColabfold}) {
    const Scratch scratch;
    const ResultOptions options{.folder = scratch.path(), .layout = layout};
    write_results(results(2), options);
    const bool flat = layout == Layout::kColabfold;
    const std::string folder = flat ? "" : "target/", prefix = flat ? "target" : "";
    const Names whole = names_in(scratch / folder);
    const std::string marker = flat ? "target.done.txt" : "complete.json";
    const std::string list = flat ? ".target.pending.json" : ".pending.json";
    fs::copy_file(scratch / folder + marker, scratch / folder + list);
    for (const std::string& name : {marker, list, prefix + (flat ? "_pae.svg" : "pae.svg")})
      scratch.write(folder + "." + name + ".12345-6.tmp", "cut off");
    const std::string other = folder + ".notes.txt.12345-6.tmp";
    scratch.write(other, "the user's");
    remove_leftovers("target", options);
    CHECK(fs::remove(scratch / other));
    CHECK(names_in(scratch / folder) == whole);
    CHECK(check_complete("target", options).state == Completion::kComplete);
  }
}

TEST_CASE("a full disk leaves no marker") {
  const Scratch scratch;
  const ResultOptions options{.folder = scratch.path()};
  write_results(results(1, 100), options);
  {
    const FileSizeLimit limit(5000);
    CHECK_THROWS_WITH(write_results(results(1, 100), options), Catch::Contains("free some space"));
  }
  CHECK(check_complete("target", options).state == Completion::kMissing);
  write_results(results(1, 100), options);
  CHECK(check_complete("target", options).state == Completion::kComplete);
  CHECK_FALSE(fs::exists(scratch / "target/.pending.json"));
}

TEST_CASE("killed at any moment: a complete set or no marker") {
  for (const Layout layout : {Layout::kFastfold, Layout::kColabfold}) {
    const Scratch scratch;
    const ResultOptions options{.folder = scratch.path(), .layout = layout};
    std::mt19937 random(1);
    constexpr int kKills = 40;
    int complete = 0;
    for (int i = 0; i < kKills; ++i) {
      const pid_t child = fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        for (int n = 1;; n = n % 3 + 1) write_results(results(n, 30), options);
      }
      usleep(random() % 60000);
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
      const Completion found = check_complete("target", options);
      INFO(found.damage);
      CHECK(found.state != Completion::kDamaged);
      complete += found.state == Completion::kComplete;
    }
    std::cout << "complete after " << complete << " of " << kKills << " kills\n";
    write_results(results(1, 30), options);
    CHECK(check_complete("target", options).state == Completion::kComplete);
    const fs::path folder =
        layout == Layout::kFastfold ? fs::path(scratch / "target") : fs::path(scratch.path());
    for (const std::string& name : names_in(folder)) {
      CHECK(name[0] != '.');
      CHECK(name.find("rank_002") == std::string::npos);
    }
  }
}

TEST_CASE("one target, one writer") {
  const Scratch scratch;
  {
    const TargetLock lock(scratch / "new/out", "a target");
    CHECK_THROWS_WITH(
        TargetLock(scratch / "new/out", "a target"),
        Catch::StartsWith(
            cat("a target is being written by another fastfold (process ", getpid(), " on ")));
    const TargetLock other(scratch / "new/out", "another");
  }
  CHECK(names_in(scratch / "new/out").empty());
  // A file left by a killed process holds nobody up.
  scratch.write(".t.lock", "process 1 on elsewhere\n");
  { const TargetLock lock(scratch.path(), "t"); }
  CHECK_FALSE(fs::exists(scratch / ".t.lock"));
  const TargetLock long_name(scratch.path(), std::string(250, 'x'));
  CHECK_THROWS(TargetLock(scratch.path(), std::string(250, 'x')));
}

TEST_CASE("many processes take the lock in turns") {
  const Scratch scratch;
  constexpr int kProcesses = 4, kTurns = 300;
  std::vector<pid_t> children;
  for (int c = 0; c < kProcesses; ++c) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child) {
      children.push_back(child);
      continue;
    }
    int bad = 0;
    for (int turns = 0; turns < kTurns;) {
      try {
        const TargetLock lock(scratch.path(), "t");
        ++turns;
        // Only the holder may make and remove this folder.
        const std::string alone = scratch / "alone";
        bad += mkdir(alone.c_str(), 0777) != 0;
        rmdir(alone.c_str());
      } catch (const Error&) {
        usleep(50);
      }
    }
    _exit(bad != 0);
  }
  for (const pid_t child : children) {
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
  }
}
