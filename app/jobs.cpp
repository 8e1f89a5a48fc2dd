// Finds each target's alignments.
#include "app/jobs.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "core/base/error.h"
#include "io/fasta.h"
#include "io/file.h"

namespace fs = std::filesystem;

namespace ff {

namespace {

/// "hits" of "hits.a3m.gz" where it is an alignment's name, else "".
std::string alignment_stem(const fs::path& file) {
  const fs::path name = file.extension() == ".gz" ? file.stem() : file.filename();
  const bool alignment = name.extension() == ".a3m" || name.extension() == ".sto";
  return alignment ? name.stem() : "";
}

/// AlphaFold merges UniRef90, BFD and MGnify in this order; -1 for what it reads for other ends:
/// template hits, and UniProt for pairing chains.
int merge_rank(const std::string& stem) {
  for (const char* other : {"hmm_output", "hmmsearch_output", "pdb_hits", "uniprot_hits"})
    if (stem == other) return -1;
  const std::pair<const char*, int> kOrder[] = {
      {"uniref90", 0}, {"bfd", 1}, {"small_bfd", 1}, {"mgnify", 2}};
  for (const auto& [prefix, rank] : kOrder)
    if (stem.rfind(prefix, 0) == 0) return rank;
  return 3;
}

/// The alignments in a folder, each once where it is there as a3m and as Stockholm or packed.
std::vector<std::string> alignments_in(const fs::path& folder) {
  std::map<std::pair<int, std::string>, std::string> found;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());  // .a3m before .a3m.gz before .sto
  for (const fs::path& file : files) {
    const std::string stem = alignment_stem(file);
    if (!stem.empty() && merge_rank(stem) >= 0)
      found.emplace(std::pair(merge_rank(stem), stem), file);
  }
  std::vector<std::string> paths;
  for (const auto& [key, path] : found) paths.push_back(path);
  return paths;
}

/// The alignments of the target that goes by one of `names`, below `folder`.
std::vector<std::string> find_alignments(const fs::path& folder,
                                         const std::vector<std::string>& names, bool only_target) {
  for (const std::string& name : names) {
    for (const fs::path& place : {folder / name, folder / name / "msas"})
      if (fs::is_directory(place))
        if (auto found = alignments_in(place); !found.empty()) return found;
    for (const char* end : {".a3m", ".a3m.gz", ".sto", ".sto.gz"})
      if (const fs::path file = folder / (name + end); fs::is_regular_file(file)) return {file};
  }
  return only_target ? alignments_in(folder) : std::vector<std::string>{};
}

}  // namespace

std::vector<Job> plan_jobs(const std::vector<std::string>& inputs, const std::string& alignments,
                           const std::string& msa) {
  std::vector<std::pair<std::string, FastaRecord>> records;
  for (const std::string& input : inputs)
    for (FastaRecord& record : read_fasta(input)) records.emplace_back(input, std::move(record));
  if (!msa.empty() && records.size() != 1)
    fail(Exit::kUsage, "--msa is the alignment of one target, but there are ", records.size(),
         "; use --alignments FOLDER with one folder for each");
  check_input(msa.empty() || fs::is_regular_file(msa), msa, ": no such file (--msa)");
  check_input(alignments.empty() || fs::is_directory(alignments), alignments,
              ": no such folder (--alignments)");

  std::vector<Job> jobs;
  std::set<std::string> taken;
  for (auto& [input, record] : records) {
    Job job;
    job.tag = record.tag;
    for (int i = 2; !taken.insert(job.tag).second; ++i) job.tag = cat(record.tag, "_", i);
    job.sequence = std::move(record.sequence);
    if (!msa.empty()) job.alignments = {msa};
    if (!alignments.empty()) {
      // OpenFold's tag ends at the first '|'.
      std::vector<std::string> names{record.tag};
      const std::string first = record.title.substr(0, record.title.find_first_of("| \t"));
      if (!first.empty() && first != "." && first != ".." && first.find('/') == std::string::npos)
        names.push_back(first);
      job.alignments = find_alignments(alignments, names, records.size() == 1);
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

std::vector<Msa> read_alignments(const Job& job) {
  std::vector<Msa> all;
  for (const std::string& path : job.alignments) {
    all.push_back(read_msa(path));
    const std::string& query = all.back().sequences.front();
    if (query == job.sequence) continue;
    const size_t at =
        std::mismatch(query.begin(), query.end(), job.sequence.begin(), job.sequence.end()).first -
        query.begin();
    fail(Exit::kInput, path, ": is an alignment of another sequence than ", job.tag,
         ": its first row has ", query.size(), " residues, the target ", job.sequence.size(),
         ", and they differ at residue ", at + 1);
  }
  return all;
}

void make_output_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !fs::is_directory(path))
    fail(Exit::kUsage, path, ": cannot be made a folder",
         error ? ": " + error.message() : std::string(), "; choose another with -o");
  AtomicFile probe(fs::path(path) / ".fastfold-probe");
  probe.write("x");
}

}  // namespace ff
