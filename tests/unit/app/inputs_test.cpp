// Which targets there are, which alignments belong to them, and which preset to a parameter file.
#include "app/inputs.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "app/model_file.h"
#include "core/base/error.h"
#include "core/model/params.h"
#include "io/npz.h"
#include "tests/unit/compare.h"

using namespace ff;
namespace fs = std::filesystem;

namespace {

class Folder {
 public:
  Folder() : root_(fs::temp_directory_path() / cat("ff_inputs_", getpid())) {
    fs::create_directories(root_);
  }
  ~Folder() { fs::remove_all(root_); }
  std::string put(const std::string& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
    return root_ / name;
  }
  std::string path(const std::string& name = "") const { return root_ / name; }
  std::vector<std::string> names(const Job& job) const {
    std::vector<std::string> out;
    for (const std::string& file : job.alignments) out.push_back(fs::relative(file, root_));
    return out;
  }

 private:
  fs::path root_;
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("alignments are found in OpenFold's and AlphaFold's layouts, in the order of merging") {
  const Folder f;
  const std::string fasta =
      f.put("q.fasta", ">1ABC_1|Chain A\nMKT\n>two\nMKA\n>three x\nMKL\n>four\nMKV\n");
  for (const char* name :
       {"mgnify_hits.sto", "bfd_uniref_hits.a3m", "uniref90_hits.sto.gz", "hmm_output.sto",
        "pdb70_hits.hhr", "uniprot_hits.sto", "pairing.a3m", "z.a3m", "notes.txt"})
    f.put(cat("msas/1ABC_1/", name), "");
  f.put("msas/two.a3m.gz", "");
  f.put("msas/three/msas/uniref90_hits.sto", "");
  f.put("msas/three/msas/uniref90_hits.a3m", "");
  f.put("msas/three/msas/pdb_hits.hhr.gz", "");
  InputOptions o;
  o.inputs = {fasta};
  o.alignments = f.path("msas");
  std::vector<Job> jobs = o.jobs();
  REQUIRE(jobs.size() == 4);
  CHECK(f.names(jobs[0]) == Names{"msas/1ABC_1/uniref90_hits.sto.gz",
                                  "msas/1ABC_1/bfd_uniref_hits.a3m", "msas/1ABC_1/mgnify_hits.sto",
                                  "msas/1ABC_1/z.a3m"});
  CHECK(jobs[0].template_hits == Names{f.path("msas/1ABC_1/pdb70_hits.hhr")});
  CHECK(jobs[0].title == "1ABC_1|Chain A");
  CHECK(f.names(jobs[1]) == Names{"msas/two.a3m.gz"});
  CHECK(f.names(jobs[2]) == Names{"msas/three/msas/uniref90_hits.a3m"});
  CHECK(jobs[2].template_hits == Names{f.path("msas/three/msas/pdb_hits.hhr.gz")});
  for (int i : {0, 1, 2}) CHECK(jobs[i].error.empty());
  CHECK(jobs[3].alignments.empty());
  CHECK_THAT(jobs[3].error, Catch::Contains("msas/four (not there)"));
  CHECK_THROWS_WITH(read_inputs(jobs[3], o), Catch::Contains("msas/four (not there)"));

  o.msa_mode = "single_sequence";
  o.templates = "none";
  for (const Job& job : o.jobs()) {
    CHECK(job.alignments.empty());
    CHECK(job.template_hits.empty());
    CHECK(job.error.empty());
  }
}

TEST_CASE("a folder without alignments is named in the error") {
  const Folder f;
  f.put("msas/one/notes.txt", "");
  f.put("msas/two/hits.a3m", "");
  InputOptions o;
  o.inputs = {f.put("q.fasta", ">one\nMKT\n>two\nMKA\n")};
  o.alignments = f.path("msas");
  const std::vector<Job> jobs = o.jobs();
  CHECK_THAT(jobs[0].error, Catch::Contains(f.path("msas/one")) &&
                                Catch::Contains(f.path("msas/one/msas")) &&
                                Catch::Contains("*.a3m"));
  CHECK(jobs[1].error.empty());
}

TEST_CASE("a folder of alignments serves the only target, and never one of several") {
  const Folder f;
  InputOptions one, both;
  one.inputs = {f.put("one.fasta", ">one\nMKT\n")};
  both.inputs = {one.inputs[0], f.put("two.fasta", ">one\nMKA\n")};
  f.put("msas/hits.a3m", "");
  f.put("out/msas/bfd_uniref_hits.a3m", "");
  one.alignments = both.alignments = f.path("msas");
  CHECK(f.names(one.jobs()[0]) == Names{"msas/hits.a3m"});
  one.alignments = f.path("out");  // AlphaFold's OUT/TARGET itself
  CHECK(f.names(one.jobs()[0]) == Names{"out/msas/bfd_uniref_hits.a3m"});
  const std::vector<Job> jobs = both.jobs();
  CHECK(jobs[0].alignments.empty());
  CHECK_FALSE(jobs[0].error.empty());
  CHECK(jobs[0].tag == "one");
  CHECK(jobs[1].tag == "one_2");
  both.alignments = "";
  both.msa = f.path("msas/hits.a3m");
  CHECK_THROWS_WITH(both.jobs(), Catch::Contains("--msa"));
  one.alignments = f.path("none");
  CHECK_THROWS_WITH(one.jobs(), Catch::Contains("no such folder"));
}

TEST_CASE("titles with blanks, slashes and UTF-8 become safe tags and find their folders") {
  const Folder f;
  f.put("secret/hits.a3m", "");
  f.put("msas/prot\xc3\xa9ine/hits.a3m", "");
  f.put("msas/my_protein__v2_.a3m", "");
  f.put("msas/solo/msas/hits.a3m", "");
  InputOptions o;
  o.inputs = {f.put("q.fasta", cat(">../secret\nMKT\n>..|x\nMKT\n>prot\xc3\xa9ine\nMKT\n"
                                   ">my protein (v2)\nMKT\n>\nMKT\n>-rf\nMKT\n>a/b c\nMKT\n>",
                                   std::string(300, 'x'), "\nMKT\n")),
              f.put("solo.fasta", ">other title\nMKA\n")};
  o.alignments = f.path("msas");
  const std::vector<Job> jobs = o.jobs();
  REQUIRE(jobs.size() == 9);
  for (int i : {0, 1, 4, 5, 6, 7}) {
    CHECK(jobs[i].alignments.empty());
    CHECK_FALSE(jobs[i].error.empty());
  }
  CHECK(f.names(jobs[2]) == Names{"msas/prot\xc3\xa9ine/hits.a3m"});
  CHECK(f.names(jobs[3]) == Names{"msas/my_protein__v2_.a3m"});
  CHECK(f.names(jobs[8]) == Names{"msas/solo/msas/hits.a3m"});
  for (const Job& job : jobs) {
    CHECK_FALSE(job.tag.empty());
    CHECK(job.tag.size() <= 200);
    CHECK(job.tag.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                    "._-") == std::string::npos);
    CHECK((job.tag[0] != '.' && job.tag[0] != '-'));
  }
}

TEST_CASE("folders, tables and ColabFold's a3m as inputs") {
  const Folder f;
  f.put("in/b.csv", "id,sequence\nx,mkt\n\"y z\",\"MKA\"\n");
  f.put("in/a.fa", ">one\nMKT\n");
  f.put("in/my protein.a3m", "#3\t1\n>101\nMKV\n>hit\nM-Vaa\n");
  f.put("in/notes.txt", "");
  f.put("in/z.a3m", ">q\nMkV\n");
  InputOptions o;
  o.inputs = {f.path("in")};
  const std::vector<Job> jobs = o.jobs();
  REQUIRE(jobs.size() == 5);
  CHECK(jobs[0].tag == "one");
  CHECK(jobs[1].tag == "x");
  CHECK(jobs[1].sequence == "MKT");
  CHECK(jobs[2].title == "y z");
  CHECK(jobs[3].tag == "my_protein");
  CHECK(jobs[3].sequence == "MKV");
  CHECK(f.names(jobs[3]) == Names{"in/my protein.a3m"});
  CHECK_THAT(jobs[4].error, Catch::Contains("z.a3m") && Catch::Contains("capital letters"));
  const TargetInputs in = read_inputs(jobs[3], o);
  CHECK(in.raw.n_seq == 2);
  CHECK(in.msa_a3m == ">101\nMKV\n>hit\nM-Vaa\n");
  CHECK(in.warnings.empty());
  CHECK(read_inputs(jobs[0], o).msa_a3m == ">one\nMKT\n");

  o.inputs = {f.put("empty/notes.txt", "").substr(0, f.path("empty").size())};
  CHECK_THROWS_WITH(o.jobs(), Catch::Contains("holds no input"));
  o.inputs = {f.path("in/my protein.a3m")};
  o.msa = f.path("in/z.a3m");
  CHECK_THROWS_WITH(o.jobs(), Catch::Contains("is an alignment itself"));
  o.msa = "";
  o.inputs = {f.put("bad.csv", "name,seq\n")};
  CHECK_THROWS_WITH(o.jobs(), Catch::Contains("'id' and 'sequence'"));
}

TEST_CASE(
    "templates: the user's first, then the hits', and hits without structures are warned about") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const std::string data = std::string(shared) + "/fixtures/features_q73/input/";
  InputOptions o;
  o.inputs = {data + "query.fasta"};
  o.alignments = data;
  const Job job = o.jobs().at(0);
  REQUIRE(job.template_hits == Names{data + "pdb70_hits.hhr"});
  TargetInputs in = read_inputs(job, o);
  CHECK(in.raw.templates.size() == 0);
  REQUIRE(in.warnings.size() == 1);
  CHECK_THAT(in.warnings[0],
             Catch::Contains("pdb70_hits.hhr: 10 hits") && Catch::Contains("--template-mmcif-dir"));

  o.search.mmcif_dir = data + "mmcif";
  in = read_inputs(job, o);
  const int64_t n = in.raw.templates.size();
  CHECK(n == 7);
  CHECK(in.templates.size() == 7);
  const Arrays want = read_npz(TEST_DATA "/features_q73/expected_raw_features.npz");
  const Arrays got = to_arrays(in.raw);
  CHECK(got.size() == want.size());
  for (const auto& [name, t] : got) {
    INFO(name);
    test::compare(name, t, want.at(name), t.dtype() == Dtype::i32 ? 0 : 1e-5);
  }

  // What features writes is what predict takes back, bit for bit.
  const Folder f;
  write_npz(f.path("features.npz"), got);
  InputOptions back;
  back.features = f.path("features.npz");
  const TargetInputs again = read_inputs(back.jobs().at(0), back);
  for (const auto& [name, t] : to_arrays(again.raw)) test::compare(name, t, got.at(name), 0);
  CHECK(again.raw.profile == in.raw.profile);
  CHECK(again.templates.size() == 7);

  std::string first;
  for (const auto& entry : fs::directory_iterator(data + "mmcif"))
    if (first.empty() || entry.path() < first) first = entry.path();
  o.template_files = {first};
  const TargetInputs more = read_inputs(job, o);
  CHECK(more.raw.templates.size() > n);
  CHECK(more.templates[0].source == first);
  o.templates = "custom";
  CHECK(read_inputs(job, o).raw.templates.size() == more.raw.templates.size() - n);
}

TEST_CASE("a long a3m is read no further than its query") {
  const Folder f;
  const std::string query(40'000, 'M');
  std::string text = ">q\n" + query + "\n";
  for (int i = 0; i < 20; ++i) text += cat(">", i, "\n", query, "\n");
  InputOptions o;
  o.inputs = {f.put("q.a3m", text)};
  CHECK(o.jobs().at(0).sequence == query);
}

TEST_CASE(
    "an alignment of another sequence is refused with the place, and X stands for any residue") {
  const Folder f;
  Job job;
  job.tag = "q";
  job.sequence = "MKTA";
  job.alignments = {f.put("q.a3m", ">q\nMKTW\n>x\nMKTA\n")};
  CHECK_THROWS_WITH(read_inputs(job, {}), Catch::Contains("q.a3m") && Catch::Contains("residue 4"));
  job.sequence = "MKT";
  CHECK_THROWS_WITH(read_inputs(job, {}), Catch::Contains("4 residues, the target 3"));
  job.sequence = "MKTX";
  CHECK(read_inputs(job, {}).raw.n_seq == 2);
}

TEST_CASE("AlphaFold's msas folder is cut as AlphaFold cuts it, OpenFold's is not") {
  const Folder f;
  std::string text = "# STOCKHOLM 1.0\n";
  for (int i = 0; i < 600; ++i)
    text += cat("r", i, " MK", char('A' + i % 26), char('A' + i / 26), "\n");
  text.replace(text.find("MKAA"), 4, "MKTA");
  Job job;
  job.tag = "q";
  job.sequence = "MKTA";
  for (const auto& [name, rows] :
       {std::pair("msas/mgnify_hits.sto", 501), std::pair("msas/small_bfd_hits.sto", 600),
        std::pair("q/mgnify_hits.sto", 600)}) {
    job.alignments = {f.put(name, text + "//\n")};
    CHECK(read_inputs(job, {}).rows[0].second == rows);
  }
}

TEST_CASE("ten thousand records with and without a folder each are planned at once") {
  const Folder f;
  std::string fasta;
  for (int i = 0; i < 10'000; ++i) fasta += cat(">target", i % 5000, " x\nMKT\n");
  for (int i = 0; i < 5000; i += 10) f.put(cat("msas/target", i, "/hits.a3m"), "");
  InputOptions o;
  o.inputs = {f.put("q.fasta", fasta), f.put("again.fasta", fasta)};
  o.alignments = f.path("msas");
  const auto start = std::chrono::steady_clock::now();
  const std::vector<Job> jobs = o.jobs();
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 5);
  CHECK(jobs.size() == 20'000);
  CHECK(jobs[10].alignments.size() == 1);
  CHECK_FALSE(jobs[11].error.empty());
}

TEST_CASE("options that contradict each other or do not exist") {
  const Folder f;
  InputOptions good;
  good.inputs = {f.put("q.fasta", ">q\nMKT\n")};
  const auto refused = [&](auto change, const char* text) {
    InputOptions o = good;
    change(o);
    CHECK_THROWS_WITH(o.jobs(), Catch::Contains(text));
  };
  for (const char* date : {"2020-13-01", "2021-02-29", "20-01-01", "2020/01/01", "2020-1-011", "x"})
    refused([&](InputOptions& o) { o.search.max_date = date; }, "YYYY-MM-DD");
  refused([](InputOptions& o) { o.templates = "custom"; }, "--template FILE");
  refused([](InputOptions& o) { o.templates = "none", o.template_files = {"x.pdb"}; }, "exclude");
  refused([](InputOptions& o) { o.template_files = {"x.pdb:A"}; }, "x.pdb:A: no such file");
  refused([](InputOptions& o) { o.search.mmcif_dir = "nowhere"; }, "--template-mmcif-dir");
  refused([](InputOptions& o) { o.search.obsolete_file = "nowhere"; }, "--obsolete-pdbs-path");
  refused([](InputOptions& o) { o.features = "nowhere.npz"; }, "--features");
  refused([](InputOptions& o) { o.inputs = {}; }, "no INPUT");
  refused([](InputOptions& o) { o.inputs = {"nowhere.fasta"}; }, "nowhere.fasta");
  good.search.max_date = "2024-02-29";
  CHECK(good.jobs().size() == 1);
}

TEST_CASE("the preset of a parameter file, from its name or its contents") {
  CHECK(preset_of_name("/x/params_model_1_ptm.npz") == "model_1_ptm");
  CHECK(preset_of_name("params_model_5.npz") == "model_5");
  CHECK(preset_of_name("params_model_1_multimer_v3.npz").empty());
  CHECK(preset_of_name("params_model_6.npz").empty());
  CHECK(preset_of_name("supermodel_1.npz").empty());
  CHECK(preset_of_name("demo.npz").empty());
  Arrays arrays;
  for (const ParamSpec& spec : param_specs(preset_config("demo")))
    arrays[spec.name] = Tensor::zeros(spec.shape);
  CHECK(preset_of_arrays(arrays) == "demo");
  arrays.erase(arrays.begin());
  CHECK(preset_of_arrays(arrays).empty());
}
