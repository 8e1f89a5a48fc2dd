// Which alignments belong to which target, and which preset to a parameter file.
#include "app/jobs.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "app/model_file.h"
#include "core/base/error.h"
#include "core/model/params.h"

using namespace ff;
namespace fs = std::filesystem;

namespace {

class Folder {
 public:
  Folder() : root_(fs::temp_directory_path() / cat("ff_jobs_", getpid())) {
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
        "pdb70_hits.hhr", "uniprot_hits.sto", "z.a3m", "notes.txt"})
    f.put(cat("msas/1ABC_1/", name), "");
  f.put("msas/two.a3m.gz", "");
  f.put("msas/three/msas/uniref90_hits.sto", "");
  f.put("msas/three/msas/uniref90_hits.a3m", "");
  const std::vector<Job> jobs = plan_jobs({fasta}, f.path("msas"), "");
  REQUIRE(jobs.size() == 4);
  CHECK(f.names(jobs[0]) == Names{"msas/1ABC_1/uniref90_hits.sto.gz",
                                  "msas/1ABC_1/bfd_uniref_hits.a3m", "msas/1ABC_1/mgnify_hits.sto",
                                  "msas/1ABC_1/z.a3m"});
  CHECK(f.names(jobs[1]) == Names{"msas/two.a3m.gz"});
  CHECK(f.names(jobs[2]) == Names{"msas/three/msas/uniref90_hits.a3m"});
  CHECK(jobs[3].alignments.empty());
}

TEST_CASE("a folder of alignments serves the only target, and never one of several") {
  const Folder f;
  const std::string one = f.put("one.fasta", ">one\nMKT\n"),
                    two = f.put("two.fasta", ">one\nMKA\n");
  f.put("msas/hits.a3m", "");
  CHECK(f.names(plan_jobs({one}, f.path("msas"), "")[0]) == Names{"msas/hits.a3m"});
  const std::vector<Job> both = plan_jobs({one, two}, f.path("msas"), "");
  CHECK(both[0].alignments.empty());
  CHECK(both[0].tag == "one");
  CHECK(both[1].tag == "one_2");
  CHECK_THROWS_WITH(plan_jobs({one, two}, "", f.path("msas/hits.a3m")), Catch::Contains("--msa"));
  CHECK_THROWS_WITH(plan_jobs({one}, f.path("none"), ""), Catch::Contains("no such folder"));
}

TEST_CASE("a record's title cannot lead out of the alignments folder") {
  const Folder f;
  f.put("secret/hits.a3m", "");
  fs::create_directories(f.path("msas"));
  const std::string fasta = f.put("q.fasta", ">../secret\nMKT\n>..|x\nMKT\n");
  for (const Job& job : plan_jobs({fasta}, f.path("msas"), "")) CHECK(job.alignments.empty());
}

TEST_CASE("an alignment of another sequence is refused with the place") {
  const Folder f;
  const Job job{"q", "MKTA", {f.put("q.a3m", ">q\nMKTW\n>x\nMKTA\n")}};
  CHECK_THROWS_WITH(read_alignments(job), Catch::Contains("q.a3m") && Catch::Contains("residue 4"));
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
