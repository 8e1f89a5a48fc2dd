// fastfold prepare: structures and alignments to shards of training chains, and what is in them.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>
#include <unordered_map>

#include "app/commands.h"
#include "app/inputs.h"
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

constexpr double kMostOfOneResidue = 0.8;  // AlphaFold's training filter (Suppl. 1.2.5)
constexpr double kWorstResolution = 9;
constexpr float kLeastConfidence = 50;  // of predicted structures' residues, as OpenFold

struct BuildOptions {
  std::vector<std::string> inputs, chains;
  InputOptions search;  ///< its alignments, templates and search
  std::string clusters, out;
  int64_t shard_size = 256, min_residues = 10;
  int jobs = 0;
  bool single_sequence = false, distillation = false, overwrite = false, quiet = false;
};

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

/// Marks the shards that are there; with those of another build --overwrite is wanted.
void find_done(const BuildOptions& o, std::vector<Plan>& plans) {
  std::map<std::string, Plan*> by_name;
  for (Plan& plan : plans) by_name[fs::path(plan.path).filename().string()] = &plan;
  std::vector<fs::path> superfluous;
  for (const auto& entry : fs::directory_iterator(o.out)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".chains-") && name.ends_with(".tmp")) fs::remove(entry.path());
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

std::string one_line(std::string text) {
  for (char& c : text)
    if (c == '\t' || c == '\n' || c == '\r') c = ' ';
  return text;
}

int build(BuildOptions& o) {
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

  AtomicFile list((fs::path(o.out) / "rejected.tsv").string());
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

// ---- verify

/// Shards of files and folders, also where some of a build are missing.
std::vector<std::string> shards_in(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const size_t before = files.size();
    for (const auto& entry : fs::directory_iterator(path)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(".h5") && name[0] != '.') files.push_back(entry.path().string());
    }
    check_input(files.size() > before, path,
                ": holds no shard, expected the files *.h5 that 'fastfold prepare build' writes");
    std::sort(files.begin() + std::ptrdiff_t(before), files.end());
  }
  return files;
}

int verify(const std::vector<std::string>& paths, int jobs) {
  const std::vector<std::string> files = shards_in(paths);
  std::vector<std::vector<ShardDamage>> found(files.size());
  std::vector<std::exception_ptr> errors(files.size());
  int64_t chains = 0, damaged = 0;
  {
    Progress progress("verify");
    size_t done = 0;
#pragma omp parallel for schedule(dynamic) num_threads(jobs ? jobs : available_threads())
    for (size_t f = 0; f < files.size(); ++f) {
      if (stop_requested()) continue;
      int64_t here = 0;
      try {
        found[f] = verify_shard(files[f], &here);
      } catch (const Error& e) {
        found[f] = {{"", e.what()}};
        if (e.code() != Exit::kInput) errors[f] = std::current_exception();
      } catch (...) {
        errors[f] = std::current_exception();
      }
#pragma omp critical
      {
        chains += here;
        ++done;
        progress.update(cat(done, " of ", files.size(), " shards"),
                        double(done) / double(files.size()));
      }
    }
  }
  throw_if_stopped();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  std::string first;
  for (size_t f = 0; f < files.size(); ++f) {
    damaged += !found[f].empty();
    for (const ShardDamage& damage : found[f]) {
      if (first.empty()) first = damage.what;
      std::printf("damaged\t%s\t%s\t%s\n", files[f].c_str(), damage.chain.c_str(),
                  one_line(damage.what).c_str());
    }
  }
  if (damaged) fail(Exit::kInput, damaged, " of ", files.size(), " shards are damaged: ", first);
  const Dataset complete(paths);  // no shard of a folder is missing
  std::printf("%zu shards, %lld chains: all whole\n", files.size(), static_cast<long long>(chains));
  return int(Exit::kDone);
}

// ---- stats

/// Of a list of numbers; all 0 for none.
struct Spread {
  double least = 0, quarter = 0, median = 0, three_quarters = 0, most = 0, mean = 0;
  size_t count = 0;

  explicit Spread(std::vector<double> values) : count(values.size()) {
    if (values.empty()) return;
    std::sort(values.begin(), values.end());
    const auto at = [&](double share) {
      return values[size_t(share * double(values.size() - 1) + 0.5)];
    };
    least = values.front(), quarter = at(0.25), median = at(0.5), three_quarters = at(0.75);
    most = values.back();
    for (const double v : values) mean += v / double(values.size());
  }
};

int stats(const std::vector<std::string>& paths, bool json) {
  const Dataset data(paths);
  std::vector<double> length, seen, depth, resolution, templates, in_cluster;
  std::map<int64_t, double> clusters;
  int64_t unclustered = 0, single = 0, distilled = 0, residues = 0, one_residue = 0, coarse = 0;
  std::string first_date, last_date;
  for (const ChainInfo& chain : data.chains()) {
    length.push_back(double(chain.n_res()));
    seen.push_back(100 * double(chain.n_seen) / double(chain.n_res()));
    depth.push_back(double(chain.n_msa));
    templates.push_back(double(chain.n_templates));
    if (chain.resolution > 0) resolution.push_back(chain.resolution);
    if (chain.cluster >= 0)
      ++clusters[chain.cluster];
    else
      ++unclustered;
    residues += chain.n_res();
    single += chain.n_msa == 1;
    distilled += chain.distillation;
    coarse += chain.resolution > kWorstResolution;
    std::map<char, int64_t> letters;
    for (const char c : chain.sequence) ++letters[c];
    one_residue += std::any_of(letters.begin(), letters.end(), [&](const auto& letter) {
      return double(letter.second) > kMostOfOneResidue * double(chain.n_res());
    });
    if (!chain.date.empty()) {
      if (first_date.empty() || chain.date < first_date) first_date = chain.date;
      last_date = std::max(last_date, chain.date);
    }
  }
  for (const auto& [cluster, size] : clusters) in_cluster.push_back(size);
  const std::vector<std::string> shards = shards_in(paths);
  int64_t bytes = 0;
  for (const std::string& shard : shards) bytes += read_shard_header(shard).bytes;

  struct Row {
    const char *key, *title;
    Spread spread;
    int decimals;
  };
  const Row rows[] = {{"length", "residues", Spread(length), 0},
                      {"seen_percent", "residues seen, %", Spread(seen), 1},
                      {"msa_rows", "alignment rows", Spread(depth), 0},
                      {"templates", "templates", Spread(templates), 0},
                      {"resolution", "resolution, A", Spread(resolution), 2},
                      {"cluster_chains", "chains a cluster", Spread(in_cluster), 0}};
  const std::pair<const char*, int64_t> counts[] = {
      {"chains", std::ssize(data.chains())},
      {"shards", std::ssize(shards)},
      {"bytes", bytes},
      {"residues", residues},
      {"clusters", std::ssize(clusters)},
      {"in_no_cluster", unclustered},
      {"single_sequence", single},
      {"distillation", distilled},
      {"resolution_unknown", std::ssize(data.chains()) - std::ssize(resolution)},
      {"resolution_above_9", coarse},
      {"one_residue_above_80_percent", one_residue}};
  if (json) {
    nlohmann::ordered_json out;
    for (const auto& [key, value] : counts) out[key] = value;
    out["first_date"] = first_date;
    out["last_date"] = last_date;
    for (const Row& row : rows) {
      const Spread& s = row.spread;
      out[row.key] = {{"count", s.count},   {"min", s.least},         {"q1", s.quarter},
                      {"median", s.median}, {"q3", s.three_quarters}, {"max", s.most},
                      {"mean", s.mean}};
    }
    std::puts(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return int(Exit::kDone);
  }
  for (const auto& [key, value] : counts) {
    std::string title = key;
    std::replace(title.begin(), title.end(), '_', ' ');
    std::printf("%-28s  %lld\n", title.c_str(), static_cast<long long>(value));
  }
  if (!first_date.empty())
    std::printf("%-28s  %s to %s\n", "released", first_date.c_str(), last_date.c_str());
  std::printf("\n%-17s", "");
  for (const char* title : {"min", "q1", "median", "q3", "max", "mean"})
    std::printf("  %8s", title);
  std::puts("");
  for (const Row& row : rows) {
    if (row.spread.count == 0) continue;
    const Spread& s = row.spread;
    std::printf("%-17s", row.title);
    for (const double v : {s.least, s.quarter, s.median, s.three_quarters, s.most})
      std::printf("  %8.*f", row.decimals, v);
    std::printf("  %8.*f\n", std::max(row.decimals, 1), s.mean);
  }
  return int(Exit::kDone);
}

}  // namespace

Command add_prepare(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "prepare", "make, check and describe training data: structures and alignments to shards");
  app->require_subcommand(0, 1);

  const auto o = std::make_shared<BuildOptions>();
  CLI::App* building = app->add_subcommand("build", "structures and alignments to HDF5 shards");
  building
      ->add_option("STRUCTURES", o->inputs,
                   "mmCIF or PDB files, plain or .gz, or folders of them (with their folders)")
      ->required();
  building->add_option("-o,--out", o->out, "folder for the shards")->required();
  building->add_option("--alignments", o->search.alignments,
                       "folder with 1abc_A/*.a3m or *.sto (.gz of each), OpenFold's layout");
  building->add_flag("--single-sequence", o->single_sequence,
                     "take chains without an alignment too, with their sequence alone");
  building->add_option("--clusters", o->clusters,
                       "cluster file: a line a cluster, '1abc_A 2xyz_B'");
  building->add_option("--chains", o->chains, "only these chains, '1abc_A,2xyz_B'")->delimiter(',');
  building->add_option("--template-mmcif-dir", o->search.search.mmcif_dir,
                       "folder with the structures of the hits (hhr, hmmsearch) that stand beside "
                       "the alignments: templates are stored");
  building->add_option("--max-template-date", o->search.search.max_date,
                       "no templates released after it; never ones released later than 60 days "
                       "before the chain");
  building
      ->add_option("--max-template-hits", o->search.search.max_hits,
                   "templates at most for each chain (default 20)")
      ->check(CLI::Range(0, 1000));
  building->add_option("--obsolete-pdbs-path,--obsolete-pdbs-file-path",
                       o->search.search.obsolete_file, "PDB's obsolete.dat");
  building->add_flag(
      "--distillation", o->distillation,
      "predicted structures, for self-distillation: marked so, and residues whose pLDDT "
      "(B-factor) is not above 50 count as not seen");
  building
      ->add_option("--min-residues", o->min_residues,
                   "chains with fewer residues seen are left out (default 10)")
      ->check(CLI::Range(1, 10'000));
  building->add_option("--shard-size", o->shard_size, "structure files a shard (default 256)")
      ->check(CLI::Range(1, 1'000'000));
  building->add_option("--jobs", o->jobs, "files read at once (default: all processors)")
      ->check(CLI::Range(1, 1024));
  building->add_flag("--overwrite", o->overwrite, "replace the shards that are in the folder");
  building->add_flag("-q,--quiet", o->quiet, "say nothing but warnings and errors");
  building->footer(
      "A build that was stopped goes on where it was: finished shards are kept. What was left out, "
      "and why, stands in OUT/rejected.tsv.");

  const auto paths = std::make_shared<std::vector<std::string>>();
  const auto json = std::make_shared<bool>(false);
  CLI::App* verifying = app->add_subcommand(
      "verify", "read shards whole: checksums, sizes, letters; names the damage");
  CLI::App* describing = app->add_subcommand("stats", "lengths, alignments, resolution, clusters");
  for (CLI::App* command : {verifying, describing})
    command->add_option("SHARDS", *paths, "shards, or folders of them")->required();
  verifying->add_option("--jobs", o->jobs, "shards read at once (default: all processors)")
      ->check(CLI::Range(1, 1024));
  describing->add_flag("--json", *json, "print JSON");
  for (CLI::App* command : {building, verifying, describing}) command->allow_extras();
  return {app, [=] {
            if (app->get_subcommands().empty())
              fail(Exit::kUsage,
                   "prepare: say what to do: build, verify or stats; see fastfold "
                   "prepare --help");
            if (building->parsed()) return build(*o);
            return verifying->parsed() ? verify(*paths, o->jobs) : stats(*paths, *json);
          }};
}

}  // namespace ff
