// Builds shards: which files and chains, read by several threads, written in their order.
#include "app/prepare_build.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "core/geometry/residue_constants.h"
#include "io/dataset_writer.h"
#include "io/file.h"
#include "io/hash.h"

namespace ff {
namespace {

namespace fs = std::filesystem;

constexpr float kLeastConfidence = 50;  // of predicted structures' residues, as OpenFold

// ---- What is to be built

std::string upper(std::string text) {
  for (char& c : text) c = c >= 'a' && c <= 'z' ? char(c & ~0x20) : c;
  return text;
}

std::string lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? char(c | 0x20) : c;
  return text;
}

/// Letters that may stand in a chain's name.
std::string plain(std::string text) {
  for (char& c : text) {
    const bool kept = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                      c == '.' || c == '-' || c == '+' || c == '_';
    if (!kept) c = '_';
  }
  return text;
}

/// "1abc" of "1abc.cif.gz" and of the PDB's "pdb1abc.ent.gz"; "" for what is no structure.
std::string entry_name(const fs::path& path) {
  fs::path name = path.filename();
  if (name.extension() == ".gz") name = name.stem();
  const std::string ending = lower(name.extension().string()), stem = name.stem().string();
  if (ending != ".cif" && ending != ".mmcif" && ending != ".pdb" && ending != ".ent") return "";
  constexpr size_t kPdbId = 4;
  if (ending == ".ent" && stem.size() == 3 + kPdbId && lower(stem).starts_with("pdb"))
    return stem.substr(3);
  return plain(stem);
}

struct SourceFile {
  std::string entry, path;
  int64_t bytes = 0;
  std::vector<std::string> same_entry;  ///< other files of that name, which are left out
};

/// All structure files of the inputs, by entry.
std::vector<SourceFile> source_files(const std::vector<std::string>& inputs) {
  std::vector<SourceFile> files;
  const auto add = [&](const fs::path& path, const std::string& entry) {
    std::error_code error;
    const auto bytes = int64_t(fs::file_size(path, error));
    files.push_back({entry, path.string(), error ? 0 : bytes, {}});
  };
  for (const std::string& input : inputs) {
    std::error_code error;
    if (!fs::is_directory(input, error)) {
      check_input(fs::exists(input, error), input, ": no such file or folder");
      const std::string entry = entry_name(input);
      check_input(!entry.empty(), input,
                  ": is not named as a structure, expected *.cif, *.mmcif, *.pdb or *.ent, plain "
                  "or .gz");
      add(input, entry);
      continue;
    }
    const size_t before = files.size();
    for (fs::recursive_directory_iterator it(input, error), end; !error && it != end;
         it.increment(error))
      if (std::error_code unknown; it->is_regular_file(unknown))
        if (const std::string entry = entry_name(it->path()); !entry.empty())
          add(it->path(), entry);
    check_input(!error, input, ": cannot be listed: ", error.message());
    check_input(files.size() > before, input,
                ": holds no structure, expected files named *.cif, *.mmcif, *.pdb or *.ent, plain "
                "or .gz");
  }
  std::sort(files.begin(), files.end(), [](const SourceFile& a, const SourceFile& b) {
    return std::tie(a.entry, a.path) < std::tie(b.entry, b.path);
  });
  std::vector<SourceFile> out;
  for (SourceFile& file : files)
    if (out.empty() || out.back().entry != file.entry)
      out.push_back(std::move(file));
    else if (out.back().path != file.path)
      out.back().same_entry.push_back(file.path);
  return out;
}

/// The entry's part in capitals: tools write "102m_A" and "102M_A".
std::string cluster_key(const std::string& id) {
  const size_t end = std::min(id.rfind('_'), id.size());
  return upper(id.substr(0, end)) + id.substr(end);
}

/// A cluster file: the chains of a cluster on a line, divided by blanks.
struct Clusters {
  std::unordered_map<std::string, int64_t> of_chain;  ///< cluster_key to line
  std::vector<int64_t> sizes;
  std::string hash;

  void read(const std::string& path) {
    constexpr int64_t kMaxBytes = int64_t(1) << 30;
    const std::string text = read_text_file(path, kMaxBytes);
    hash = sha256(text);
    std::string_view rest = text;
    for (std::string_view line; next_line(rest, line); sizes.push_back(0)) {
      for (std::string_view left = trim(line); !left.empty(); left = trim(left)) {
        const size_t end = std::min(left.find_first_of(" \t"), left.size());
        const std::string id(left.substr(0, end));
        left.remove_prefix(end);
        const int64_t line_number = of_chain.emplace(cluster_key(id), sizes.size()).first->second;
        check_input(line_number == std::ssize(sizes), path, ":", sizes.size() + 1, ": ",
                    show_text(id), " stands in another cluster too (line ", line_number + 1,
                    "); each chain belongs to one");
      }
    }
    for (const auto& [id, line] : of_chain) ++sizes[size_t(line)];
    check_input(!of_chain.empty(), path,
                ": names no chain, expected the chains of a cluster on each line, as '1abc_A "
                "2xyz_B'");
  }
};

// ---- Chains of a file

struct Built {
  std::vector<PackedChain> chains;
  std::vector<BuildNote> notes;
};

class Builder {
 public:
  explicit Builder(const BuildOptions& options) : o_(options) {
    if (!o_.clusters.empty()) clusters_.read(o_.clusters);
    if (!o_.search.alignments.empty())
      alignments_ = std::make_unique<AlignmentFolder>(o_.search.alignments);
    for (const std::string& id : o_.chains) wanted_.insert(cluster_key(id));
  }

  const Clusters& clusters() const { return clusters_; }

  /// Whether a file may hold chains of --chains.
  bool wants(const SourceFile& file) const {
    if (wanted_.empty()) return true;
    const std::string prefix = upper(file.entry) + "_";
    const auto at = wanted_.lower_bound(prefix);
    return wanted_.contains(cluster_key(file.entry)) ||
           (at != wanted_.end() && at->starts_with(prefix));
  }

  Built build(const SourceFile& file) const {
    Built out;
    const auto note = [&](bool rejected, const std::string& chain, const std::string& reason) {
      out.notes.push_back({rejected, fs::path(file.path).filename().string(), chain, reason});
    };
    for (const std::string& other : file.same_entry)
      note(true, "", cat(other, " is another file of this entry"));
    StructureEntry entry;
    try {
      entry = read_structure(file.path);
    } catch (const Error& e) {
      if (e.code() != Exit::kInput) throw;
      note(true, "", e.what());
      return out;
    }
    if (entry.several_models) note(false, "", "has several models; the first was taken");
    if (entry.resolution == 0) note(false, "", "tells no resolution");
    std::set<std::string> ids;
    for (const ChainStructure& chain : entry.chains) {
      ChainInfo info;
      info.id = id_of(file, entry, chain);
      if (!wanted_.empty() && !wanted_.contains(cluster_key(info.id))) continue;
      try {
        check_input(ids.insert(info.id).second, "another chain of the file has this name");
        out.chains.push_back(chain_of(file, entry, chain, std::move(info), out.notes));
      } catch (const Error& e) {
        if (e.code() != Exit::kInput) throw;
        note(true, chain.name, e.what());
      }
    }
    return out;
  }

 private:
  /// "1abc_A"; of a file 1abc_A.pdb that holds one chain, its name.
  static std::string id_of(const SourceFile& file, const StructureEntry& entry,
                           const ChainStructure& chain) {
    constexpr size_t kLongestChain = 3;
    const size_t at = file.entry.rfind('_');
    const bool named = entry.chains.size() == 1 && at != std::string::npos &&
                       at + 1 < file.entry.size() && file.entry.size() - at - 1 <= kLongestChain;
    return named ? file.entry : plain(file.entry + "_" + chain.name);
  }

  PackedChain chain_of(const SourceFile& file, const StructureEntry& entry,
                       const ChainStructure& chain, ChainInfo info,
                       std::vector<BuildNote>& notes) const {
    const auto n = std::ssize(chain.sequence);
    int64_t seen = 0;
    for (int64_t i = 0; i < n; ++i) seen += chain.mask.data<float>()[i * kAtom37 + kAtomCa] != 0;
    check_input(seen > 0, "has no C-alpha atoms");
    check_input(seen >= o_.min_residues, "is too short: ", seen,
                " residues with a C-alpha atom, at least ", o_.min_residues,
                " expected (--min-residues)");
    constexpr int64_t kMostResidues = 10'000;
    check_input(n <= kMostResidues, "is too long: ", n, " residues, the limit is ", kMostResidues);
    const std::string source = fs::path(file.path).filename().string();
    std::map<char, int64_t> letters;
    for (const char c : chain.sequence) ++letters[c];
    for (const auto& [letter, count] : letters)
      if (double(count) > kMostOfOneResidue * double(n))
        notes.push_back({false, source, chain.name,
                         cat(100 * count / n, " % of its residues are ", letter,
                             "; AlphaFold's training filter leaves it out")});

    Job job;
    job.tag = info.id;
    job.title = info.id;
    job.sequence = chain.sequence;
    job.source = file.path;
    InputOptions inputs = o_.search;
    if (alignments_) {
      std::vector<std::string> looked, names = {info.id};
      for (const std::string& entry_part : {lower(file.entry), upper(file.entry)})
        if (const std::string name = entry_part + "_" + plain(chain.name); name != info.id)
          names.push_back(name);
      AlignmentFiles found = alignments_->find(names, false, looked);
      job.alignments = std::move(found.alignments);
      job.template_hits = std::move(found.hits);
    }
    check_input(!job.alignments.empty() || o_.single_sequence, "has no alignment",
                alignments_ ? cat(" in ", o_.search.alignments) : "",
                "; --single-sequence takes such chains with their sequence alone");
    if (const std::string day = template_day(entry.release_date);
        !day.empty() && (inputs.search.max_date.empty() || day < inputs.search.max_date))
      inputs.search.max_date = day;
    if (inputs.search.mmcif_dir.empty()) job.template_hits.clear();
    const TargetInputs in = read_inputs(job, inputs);
    for (const std::string& warning : in.warnings)
      notes.push_back({false, source, chain.name, warning});

    info.date = entry.release_date;
    info.method = entry.method;
    info.resolution = std::isfinite(entry.resolution) ? std::max(entry.resolution, 0.0) : 0;
    info.source = source;
    info.distillation = o_.distillation;
    if (const auto found = clusters_.of_chain.find(cluster_key(info.id));
        found != clusters_.of_chain.end()) {
      info.cluster = found->second;
      info.cluster_size = clusters_.sizes[size_t(found->second)];
    } else if (!o_.clusters.empty()) {
      notes.push_back({false, source, chain.name, "is in no cluster of " + o_.clusters});
    }
    return pack_chain(std::move(info), in.raw, o_.distillation ? confident(chain) : chain);
  }

  /// A predicted chain without the atoms of residues of low pLDDT, which stands in the B-factors.
  static ChainStructure confident(ChainStructure chain) {
    chain.positions = chain.positions.clone();
    chain.mask = chain.mask.clone();
    const Tensor none = Tensor::zeros({kAtom37}), nowhere = Tensor::zeros({kAtom37, 3});
    for (size_t i = 0; i < chain.sequence.size(); ++i)
      if (!(chain.b_factors[i] > kLeastConfidence)) {
        chain.mask.select(0, int64_t(i)).copy_from(none);
        chain.positions.select(0, int64_t(i)).copy_from(nowhere);
      }
    return chain;
  }

  /// AlphaFold takes templates that were released 60 days before the chain or earlier.
  static std::string template_day(const std::string& released) {
    int year = 0;
    unsigned month = 0, day = 0;
    if (std::sscanf(released.c_str(), "%4d-%2u-%2u", &year, &month, &day) != 3) return "";
    using namespace std::chrono;
    const year_month_day date{std::chrono::year(year), std::chrono::month(month),
                              std::chrono::day(day)};
    if (!date.ok()) return "";
    const year_month_day before(sys_days(date) - days(60));
    char text[32];
    std::snprintf(text, sizeof text, "%04d-%02u-%02u", int(before.year()), unsigned(before.month()),
                  unsigned(before.day()));
    return text;
  }

  const BuildOptions& o_;
  Clusters clusters_;
  std::unique_ptr<AlignmentFolder> alignments_;
  std::set<std::string> wanted_;
};

// ---- Building

/// Files built by several threads, taken in order. Few are waiting at a time.
class Pipeline {
 public:
  Pipeline(const Builder& builder, std::vector<SourceFile> files, int jobs)
      : builder_(builder), files_(std::move(files)), ahead_(2 * size_t(jobs)) {
    for (int j = 0; j < jobs; ++j) threads_.emplace_back([this] { work(); });
  }
  ~Pipeline() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// The next file's chains; what building it threw is thrown.
  Built next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_.contains(taken_); });
    Result result = std::move(done_.extract(taken_++).mapped());
    changed_.notify_all();
    if (result.error) std::rethrow_exception(result.error);
    return std::move(result.built);
  }

 private:
  struct Result {
    Built built;
    std::exception_ptr error;
  };

  void work() {
    set_threads(1);
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(
          lock, [&] { return stop_ || started_ == files_.size() || started_ < taken_ + ahead_; });
      if (stop_ || started_ == files_.size()) return;
      const size_t mine = started_++;
      lock.unlock();
      Result result;
      try {
        throw_if_stopped();
        result.built = builder_.build(files_[mine]);
      } catch (...) {
        result.error = std::current_exception();
      }
      lock.lock();
      done_.emplace(mine, std::move(result));
      changed_.notify_all();
    }
  }

  const Builder& builder_;
  const std::vector<SourceFile> files_;
  const size_t ahead_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<size_t, Result> done_;
  size_t started_ = 0, taken_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

/// One build at a time in a folder. The kernel lets go of it however the process ends.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder)
      : fd_(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (fd_ >= 0 && flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      fail(Exit::kUsage, folder,
           ": another build is writing there; wait for it, or choose another folder with --out");
  }
  ~FolderLock() { close(fd_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

struct Plan {
  std::string path;
  ShardHeader header;
  std::vector<SourceFile> files;
  bool done = false;
};

std::vector<Plan> plan_of(const BuildOptions& o, const Builder& builder) {
  std::vector<SourceFile> files = source_files(o.inputs);
  std::erase_if(files, [&](const SourceFile& file) { return !builder.wants(file); });
  check_input(!files.empty(), "--chains: none of the inputs holds one of these chains");
  std::string settings =
      cat("format 1 program ", FASTFOLD_VERSION, " alignments ", !o.search.alignments.empty(),
          " single ", o.single_sequence, " distillation ", o.distillation, " min ", o.min_residues,
          " clusters ", builder.clusters().hash, " templates ",
          o.search.search.mmcif_dir.empty() ? "" : "search", " ", o.search.search.max_date, " ",
          o.search.search.max_hits, "\n");
  std::vector<std::string> wanted = o.chains;
  std::sort(wanted.begin(), wanted.end());
  for (const std::string& id : wanted) settings += "chain " + id + "\n";
  const int64_t parts = (std::ssize(files) + o.shard_size - 1) / o.shard_size;
  std::vector<Plan> plans;
  for (int64_t p = 0; p < parts; ++p) {
    char name[64];
    std::snprintf(name, sizeof name, "chains-%05lld-of-%05lld.h5", static_cast<long long>(p + 1),
                  static_cast<long long>(parts));
    Plan plan;
    plan.path = (fs::path(o.out) / name).string();
    std::string inputs = settings;
    const int64_t end = std::min(std::ssize(files), (p + 1) * o.shard_size);
    for (int64_t f = p * o.shard_size; f < end; ++f) {
      inputs += cat(files[size_t(f)].entry, " ", files[size_t(f)].bytes, "\n");
      plan.files.push_back(std::move(files[size_t(f)]));
    }
    plan.header = {.part = p + 1, .parts = parts, .fingerprint = sha256(inputs), .bytes = 0};
    plans.push_back(std::move(plan));
  }
  return plans;
}

constexpr char kRejected[] = "rejected.tsv";

/// Marks the shards that are there; with those of another build --overwrite is wanted.
void find_done(const BuildOptions& o, std::vector<Plan>& plans) {
  std::map<std::string, Plan*> by_name;
  for (Plan& plan : plans) by_name[fs::path(plan.path).filename().string()] = &plan;
  remove_temporaries(o.out, [](const std::string& name) {
    return name.starts_with("chains-") || name == kRejected;
  });
  std::vector<fs::path> superfluous;
  for (const auto& entry : fs::directory_iterator(o.out)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("chains-") || !name.ends_with(".h5")) continue;
    const auto found = by_name.find(name);
    ShardHeader there;
    try {
      there = read_shard_header(entry.path().string());
    } catch (const Error& e) {
      if (found == by_name.end()) throw;
      log_warning(e.what(), "; building it again");
      continue;
    }
    if (found != by_name.end() && there.fingerprint == found->second->header.fingerprint)
      found->second->done = true;
    else if (o.overwrite)
      superfluous.push_back(entry.path());
    else
      fail(Exit::kUsage, entry.path().string(),
           ": is of other inputs or settings; choose another folder with --out, or replace it with "
           "--overwrite");
  }
  for (const fs::path& path : superfluous) fs::remove(path);
  if (o.overwrite)
    for (Plan& plan : plans) plan.done = false;
}

}  // namespace

std::string one_line(std::string text) {
  for (char& c : text)
    if (c == '\t' || c == '\n' || c == '\r') c = ' ';
  return text;
}

void BuildOptions::add_to(CLI::App& app) {
  app.add_option("STRUCTURES", inputs,
                 "mmCIF or PDB files, plain or .gz, or folders of them (with their folders)")
      ->required();
  app.add_option("-o,--out", out, "folder for the shards")->required();
  app.add_option("--alignments", search.alignments,
                 "folder with 1abc_A/*.a3m or *.sto (.gz of each), OpenFold's layout");
  app.add_flag("--single-sequence", single_sequence,
               "take chains without an alignment too, with their sequence alone");
  app.add_option("--clusters", clusters, "cluster file: a line a cluster, '1abc_A 2xyz_B'");
  app.add_option("--chains", chains, "only these chains, '1abc_A,2xyz_B'")->delimiter(',');
  app.add_option("--template-mmcif-dir", search.search.mmcif_dir,
                 "folder with the structures of the hits (hhr, hmmsearch) that stand beside "
                 "the alignments: templates are stored");
  app.add_option("--max-template-date", search.search.max_date,
                 "no templates released after it; never ones released later than 60 days "
                 "before the chain");
  app.add_option("--max-template-hits", search.search.max_hits,
                 "templates at most for each chain (default 20)")
      ->check(CLI::Range(0, 1000));
  app.add_option("--obsolete-pdbs-path,--obsolete-pdbs-file-path", search.search.obsolete_file,
                 "PDB's obsolete.dat");
  app.add_flag("--distillation", distillation,
               "predicted structures, for self-distillation: marked so, and residues whose pLDDT "
               "(B-factor) is not above 50 count as not seen");
  app.add_option("--min-residues", min_residues,
                 "chains with fewer residues seen are left out (default 10)")
      ->check(CLI::Range(1, 10'000));
  app.add_option("--shard-size", shard_size, "structure files a shard (default 256)")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--jobs", jobs, "files read at once (default: all processors)")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--overwrite", overwrite, "replace the shards that are in the folder");
  app.add_flag("-q,--quiet", quiet, "say nothing but warnings and errors");
  app.footer(
      "A build that was stopped goes on where it was: finished shards are kept. What was left out, "
      "and why, stands in OUT/rejected.tsv.");
}

int build_shards(const BuildOptions& o) {
  set_quiet(o.quiet);
  const auto no_folder = [](const std::string& path, const char* flag) {
    check_input(path.empty() || fs::is_directory(path), path, ": no such folder (", flag, ")");
  };
  no_folder(o.search.alignments, "--alignments");
  no_folder(o.search.search.mmcif_dir, "--template-mmcif-dir");
  if (o.search.alignments.empty() && !o.single_sequence)
    fail(Exit::kUsage,
         "no alignments: give --alignments DIR (DIR/1abc_A/*.a3m, *.sto), or --single-sequence to "
         "train on sequences alone");
  const Builder builder(o);
  std::vector<Plan> plans = plan_of(o, builder);
  make_output_folder(o.out);
  const FolderLock folder_lock(o.out);
  find_done(o, plans);
  const auto start = std::chrono::steady_clock::now();
  size_t files = 0, done_files = 0;
  for (const Plan& plan : plans) files += plan.done ? 0 : plan.files.size();
  const auto kept = std::count_if(plans.begin(), plans.end(), [](auto& plan) { return plan.done; });
  if (kept > 0) log_notice(o.out, ": ", kept, " of ", plans.size(), " shards are there already");
  {
    Progress progress("prepare");
    for (const Plan& plan : plans) {
      if (plan.done) continue;
      ShardWriter writer(plan.path, plan.header);
      std::vector<BuildNote> notes;
      Pipeline pipeline(builder, plan.files, o.jobs ? o.jobs : available_threads());
      for (size_t f = 0; f < plan.files.size(); ++f) {
        throw_if_stopped();
        Built built = pipeline.next();
        for (const PackedChain& chain : built.chains) writer.add(chain);
        std::move(built.notes.begin(), built.notes.end(), std::back_inserter(notes));
        progress.update(cat("shard ", plan.header.part, " of ", plans.size()),
                        double(++done_files) / double(files));
      }
      writer.commit(notes);
    }
  }

  AtomicFile list((fs::path(o.out) / kRejected).string());
  list.write("kind\tfile\tchain\treason\n");
  int64_t rejected = 0, bytes = 0;
  std::string first;
  std::vector<std::string> paths;
  for (const Plan& plan : plans) {
    paths.push_back(plan.path);
    bytes += read_shard_header(plan.path).bytes;
    for (const BuildNote& note : read_shard_notes(plan.path)) {
      rejected += note.rejected;
      if (note.rejected && first.empty())
        first =
            cat(note.source, note.chain.empty() ? "" : " chain " + note.chain, ": ", note.reason);
      list.write(cat(note.rejected ? "rejected" : "note", "\t", one_line(note.source), "\t",
                     one_line(note.chain), "\t", one_line(note.reason), "\n"));
    }
  }
  list.commit();
  const Dataset data(paths);
  check_input(!data.chains().empty(), o.out, ": no chain could be taken of ",
              files == 1 ? "the file" : cat(files, " files"), " (",
              first.empty() ? "see --chains" : first, ")");
  std::set<std::string> ids;
  for (const ChainInfo& chain : data.chains()) ids.insert(cluster_key(chain.id));
  std::string missing;
  for (const std::string& id : o.chains)
    if (!ids.contains(cluster_key(id))) missing += (missing.empty() ? "" : ", ") + id;
  if (!missing.empty()) log_warning("--chains: not there or rejected: ", missing);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  log_notice(o.out, ": ", data.chains().size(), " chains in ", plans.size(), " shard",
             plans.size() == 1 ? "" : "s", ", ", show_bytes(bytes), ", in ", show_seconds(seconds),
             "; ", rejected, " rejected (", o.out, "/rejected.tsv)");
  return int(Exit::kDone);
}

}  // namespace ff
