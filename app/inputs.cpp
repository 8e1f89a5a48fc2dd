// Finds each target's alignments and template hits, and reads them.
#include "app/inputs.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "core/geometry/residue_constants.h"
#include "io/fasta.h"
#include "io/file.h"
#include "io/hash.h"
#include "io/npz.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

constexpr size_t kMaxResidues = 100'000;

/// Where two tools left hits, the first of these is read. Each also packed.
constexpr const char* kHitFiles[] = {"pdb70_hits.hhr", "hhsearch_output.hhr",
                                     "pdb_hits.hhr",   "pdb_hits.sto",
                                     "hmm_output.sto", "hmmsearch_output.sto"};

/// The name without ".gz".
std::string unpacked_name(const fs::path& file) {
  return (file.extension() == ".gz" ? file.stem() : file.filename()).string();
}

/// The name without its endings: "x" of "x.a3m.gz".
std::string stem_of(const fs::path& file) { return fs::path(unpacked_name(file)).stem().string(); }

bool has_extension(const fs::path& file, std::initializer_list<const char*> extensions) {
  const std::string own = fs::path(unpacked_name(file)).extension().string();
  return std::find(extensions.begin(), extensions.end(), own) != extensions.end();
}

bool is_a3m(const fs::path& file) { return has_extension(file, {".a3m"}); }

/// AlphaFold merges UniRef90, BFD and MGnify in this order; -1 for what is read for other ends:
/// template hits, and the rows that pair chains (UniProt's, Protenix's pairing.a3m).
int merge_rank(const std::string& stem) {
  for (const char* other :
       {"hmm_output", "hmmsearch_output", "pdb_hits", "uniprot_hits", "pairing"})
    if (stem == other) return -1;
  const std::pair<const char*, int> kOrder[] = {
      {"uniref90", 0}, {"bfd", 1}, {"small_bfd", 1}, {"mgnify", 2}};
  for (const auto& [prefix, rank] : kOrder)
    if (stem.starts_with(prefix)) return rank;
  return 3;
}

/// Files of a folder, sorted; none where it cannot be read.
std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code unknown;
    if (entry->is_regular_file(unknown)) files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Each alignment once where it is there as a3m and as Stockholm or packed, and one file of hits.
AlignmentFiles found_in(const fs::path& folder) {
  std::map<std::pair<int, std::string>, std::string> alignments;
  std::map<int, std::string> hits;
  for (const fs::path& file : files_in(folder)) {  // .a3m before .a3m.gz before .sto
    const std::string name = unpacked_name(file), stem = stem_of(file);
    if (has_extension(file, {".a3m", ".sto"}) && merge_rank(stem) >= 0)
      alignments.emplace(std::pair(merge_rank(stem), stem), file);
    const auto hit = std::find(std::begin(kHitFiles), std::end(kHitFiles), name);
    if (hit != std::end(kHitFiles)) hits.emplace(hit - std::begin(kHitFiles), file);
  }
  AlignmentFiles found;
  for (const auto& [key, path] : alignments) found.alignments.push_back(path);
  if (!hits.empty()) found.hits = {hits.begin()->second};
  return found;
}

/// Names under which a target's alignments may be kept, each a plain name in a folder.
std::vector<std::string> names_of(const FastaRecord& record, const std::string& file_stem) {
  std::string colabfold = record.title;
  for (char& c : colabfold) {
    const bool kept = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                      c == '_' || c == '.' || c == '-' || c < 0;  // a byte of UTF-8
    if (!kept) c = '_';
  }
  std::vector<std::string> names;
  for (const std::string& name :
       {record.tag, record.title.substr(0, record.title.find_first_of("| \t")),
        record.title.substr(0, record.title.find_first_of(" \t")), colabfold, file_stem}) {
    const bool plain = !name.empty() && name != "." && name != ".." &&
                       name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
    if (plain && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

/// A target on its way to a job.
struct Target {
  Job job;
  std::vector<std::string> names;
};

/// The query of an alignment, which is its first record. Reads no more than it needs.
std::string query_of(const std::string& path) {
  constexpr int64_t kStart = 1 << 16, kMost = 1 << 22;
  for (int64_t bytes = kStart;; bytes *= 4) {
    std::string text = read_text_start(path, bytes);
    const size_t second = text.find("\n>", text.find('>') + 1);
    if (second == std::string::npos && int64_t(text.size()) == bytes && bytes < kMost) continue;
    const Msa head = parse_a3m(std::string_view(text).substr(0, second), path);
    const std::string& query = head.rows[0];
    check_input(query == head.aligned(0) && query.find('-') == std::string::npos, path,
                ": its first record ", show_text(head.descriptions[0]),
                " is the target, so it must be its whole sequence in capital letters; found gaps "
                "or lower-case letters");
    check_input(query.size() <= kMaxResidues, path, ": the target has more than ", kMaxResidues,
                " residues, the limit; is it a protein?");
    return query;
  }
}

/// The target of ColabFold's a3m: named by its file, as in ColabFold.
Target target_of_a3m(const std::string& path) {
  Target target;
  FastaRecord record;
  record.title = stem_of(path);
  std::string name = record.title;
  std::replace(name.begin(), name.end(), ' ', '_');
  record.tag = tag_of(name, 1);
  target.names = names_of(record, record.title);
  target.job.tag = record.tag;
  target.job.title = record.title;
  target.job.source = path;
  target.job.alignments = {path};
  try {
    target.job.sequence = query_of(path);
  } catch (const Error& e) {
    target.job.error = e.what();
  }
  return target;
}

std::vector<Target> targets_of_file(const std::string& path) {
  if (is_a3m(path)) return {target_of_a3m(path)};
  std::vector<Target> targets;
  std::vector<FastaRecord> records = read_fasta(path);
  for (FastaRecord& record : records) {
    Target target;
    target.names = names_of(record, records.size() == 1 ? stem_of(path) : "");
    target.job.tag = std::move(record.tag);
    target.job.title = std::move(record.title);
    target.job.sequence = std::move(record.sequence);
    target.job.source = path;
    targets.push_back(std::move(target));
  }
  return targets;
}

/// Files, with folders replaced by what they hold.
std::vector<std::string> expanded(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    if (!fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    const size_t before = files.size();
    for (const fs::path& file : files_in(input))
      if (has_extension(file, {".fasta", ".fa", ".faa", ".fas", ".a3m", ".csv", ".tsv"}))
        files.push_back(file);
    check_input(files.size() > before, input,
                ": holds no input, expected files named *.fasta, *.fa, *.faa, *.fas, *.a3m, *.csv "
                "or *.tsv (or .gz of these)");
  }
  return files;
}

/// "x.cif" of "x.cif:A".
std::string without_chain(const std::string& file) {
  const size_t colon = file.rfind(':');
  return colon == std::string::npos || fs::exists(file) ? file : file.substr(0, colon);
}

/// Structure files of --template.
std::vector<std::string> custom_templates(const InputOptions& options) {
  std::vector<std::string> files;
  for (const std::string& given : options.template_files) {
    if (!fs::is_directory(given)) {
      check_input(fs::exists(without_chain(given)), given, ": no such file (--template)");
      files.push_back(given);
      continue;
    }
    const size_t before = files.size();
    for (const fs::path& file : files_in(given))
      if (has_extension(file, {".pdb", ".ent", ".cif", ".mmcif"})) files.push_back(file);
    check_input(files.size() > before, given,
                ": holds no template, expected files named *.cif, *.mmcif, *.pdb or *.ent (or .gz "
                "of these)");
  }
  return files;
}

bool is_date(const std::string& text) {
  if (text.size() != 10 || text[4] != '-' || text[7] != '-') return false;
  const auto number = [&](size_t at, size_t n) {
    int value = 0;
    for (size_t i = at; i < at + n; ++i) {
      if (text[i] < '0' || text[i] > '9') return -1;
      value = value * 10 + (text[i] - '0');
    }
    return value;
  };
  const int year = number(0, 4), month = number(5, 2), day = number(8, 2);
  using namespace std::chrono;
  return year >= 0 && month > 0 && day > 0 &&
         year_month_day{std::chrono::year(year), std::chrono::month(unsigned(month)),
                        std::chrono::day(unsigned(day))}
             .ok();
}

/// What can be said against the options without reading any target.
void check_options(const InputOptions& o) {
  const auto no_folder = [](const std::string& path) {
    return !path.empty() && !fs::is_directory(path);
  };
  const auto no_file = [](const std::string& path) {
    return !path.empty() && !fs::is_regular_file(path);
  };
  const std::string& date = o.search.max_date;
  if (!date.empty() && !is_date(date))
    fail(Exit::kUsage, "--max-template-date ", date, ": expected a date as YYYY-MM-DD");
  if (o.templates == "custom" && o.template_files.empty())
    fail(Exit::kUsage, "--templates custom needs structures: --template FILE[:CHAIN]");
  if (o.templates == "none" && !o.template_files.empty())
    fail(Exit::kUsage, "--templates none and --template exclude each other; leave one of them out");
  if (!o.features.empty() && !(o.inputs.empty() && o.alignments.empty() && o.msa.empty()))
    fail(Exit::kUsage,
         "--features holds the target with its alignment: give no INPUT, "
         "--alignments or --msa with it");
  if (!o.features.empty() && !(o.template_files.empty() && o.search.mmcif_dir.empty()))
    fail(Exit::kUsage,
         "--features holds the templates too: give no --template or --template-mmcif-dir with it");
  if (o.features.empty() && o.inputs.empty())
    fail(Exit::kUsage, "no INPUT: expected a FASTA file, an a3m, or a folder of them");
  check_input(!no_file(o.msa), o.msa, ": no such file (--msa)");
  check_input(!no_file(o.features), o.features, ": no such file (--features)");
  check_input(!no_folder(o.alignments), o.alignments, ": no such folder (--alignments)");
  check_input(!no_folder(o.search.mmcif_dir), o.search.mmcif_dir,
              ": no such folder (--template-mmcif-dir)");
  check_input(!no_file(o.search.obsolete_file), o.search.obsolete_file,
              ": no such file (--obsolete-pdbs-path)");
  custom_templates(o);
}

/// The target of a file of features.
Job job_of_features(const std::string& path) {
  const RawFeatures raw = from_arrays(read_npz(path), path);
  Job job;
  job.title = stem_of(path);
  job.tag = tag_of(job.title, 1);
  job.source = path;
  for (int64_t i = 0; i < raw.n_res(); ++i)
    job.sequence += kRestypeLetters[raw.aatype.data<int32_t>()[i]];
  return job;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

/// Fills in what --alignments holds for a target.
void add_alignments(Target& target, const InputOptions& o, const AlignmentFolder& folder,
                    bool only_target) {
  Job& job = target.job;
  std::vector<std::string> looked;
  AlignmentFiles found = folder.find(target.names, only_target, looked);
  if (o.templates == "search") job.template_hits = std::move(found.hits);
  if (!job.alignments.empty() || o.msa_mode == "single_sequence") return;
  job.alignments = std::move(found.alignments);
  if (!job.alignments.empty() || !job.error.empty()) return;
  job.error = cat("no alignment of ", job.tag,
                  ": expected files named *.a3m or *.sto (or .gz of these) in ", joined(looked),
                  ", or the file ", (fs::path(o.alignments) / target.names.front()).string(),
                  ".a3m; --msa-mode single_sequence predicts without");
}

/// Rows that AlphaFold takes of a file when it uses precomputed alignments.
size_t most_rows(const fs::path& file) {
  const bool of_alphafold =
      file.parent_path().filename() == "msas" && has_extension(file, {".sto"});
  if (of_alphafold && stem_of(file) == "uniref90_hits") return 10'000;
  if (of_alphafold && stem_of(file) == "mgnify_hits") return 501;
  return SIZE_MAX;
}

/// Throws unless the alignment's first row is the target; X stands for any residue.
void check_query(const Msa& msa, const std::string& path, const Job& job) {
  const std::string query = msa.aligned(0);
  const auto agree = [](char a, char b) {
    return a == b || (a != '-' && b != '-' &&
                      (restype_index(a) == kUnknownRestype || restype_index(b) == kUnknownRestype));
  };
  const size_t at =
      std::mismatch(query.begin(), query.end(), job.sequence.begin(), job.sequence.end(), agree)
          .first -
      query.begin();
  if (at == query.size() && query.size() == job.sequence.size()) return;
  fail(Exit::kInput, path, ": is an alignment of another sequence than ", job.tag,
       ": its first row has ", query.size(), " residues, the target ", job.sequence.size(),
       ", and they differ at residue ", at + 1);
}

/// Both tensors, one after the other on the first axis; either may be undefined.
Tensor both(const Tensor& a, const Tensor& b) {
  if (!a || !b) return a ? a : b;
  Dims shape = a.shape();
  shape[0] += b.size(0);
  const Tensor all = Tensor::empty(shape, a.dtype());
  all.narrow(0, 0, a.size(0)).copy_from(a);
  all.narrow(0, a.size(0), b.size(0)).copy_from(b);
  return all;
}

void append(Templates& to, Templates from) {
  TemplateFeatures &a = to.features, &b = from.features;
  a = {both(a.aatype, b.aatype), both(a.all_atom_positions, b.all_atom_positions),
       both(a.all_atom_masks, b.all_atom_masks), both(a.sum_probs, b.sum_probs)};
  std::move(from.used.begin(), from.used.end(), std::back_inserter(to.used));
  std::move(from.warnings.begin(), from.warnings.end(), std::back_inserter(to.warnings));
}

/// The user's own templates, then those of the hits.
Templates templates_of(const Job& job, const InputOptions& options) {
  Templates all;
  const std::vector<std::string> custom = custom_templates(options);
  if (!custom.empty()) append(all, templates_of_files(job.sequence, custom));
  if (options.templates != "search") return all;
  for (const std::string& path : job.template_hits) {
    const std::vector<TemplateHit> hits = read_template_hits(path, job.sequence);
    if (options.search.mmcif_dir.empty())
      all.warnings.push_back(cat(path, ": ", hits.size(),
                                 " hits, but no --template-mmcif-dir with their structures: "
                                 "predicting without them"));
    else
      append(all, templates_of_hits(job.sequence, hits, options.search));
  }
  return all;
}

/// Features of a file, with what can be told of their templates.
TargetInputs inputs_of_features(const std::string& path) {
  TargetInputs in;
  in.raw = from_arrays(read_npz(path), path);
  in.rows = {{path, in.raw.n_seq}};
  in.msa_a3m = to_a3m(to_msa(in.raw));
  const TemplateFeatures& t = in.raw.templates;
  for (int64_t k = 0; k < t.size(); ++k)
    in.templates.push_back({.name = cat("template_", k + 1),
                            .source = path,
                            .sum_probs = t.sum_probs.data<float>()[k]});
  return in;
}

}  // namespace

AlignmentFolder::AlignmentFolder(const std::string& path) : root_(path) {
  std::error_code error;
  for (fs::directory_iterator entry(root_, error), end; !error && entry != end;
       entry.increment(error))
    names_.insert(entry->path().filename().string());
  check_input(!error, path, ": cannot read the folder: ", error.message());
}

AlignmentFiles AlignmentFolder::find(const std::vector<std::string>& names, bool only_target,
                                     std::vector<std::string>& looked) const {
  AlignmentFiles best;
  const auto look = [&](const fs::path& folder) {
    AlignmentFiles found = found_in(folder);
    if (best.hits.empty()) best.hits = std::move(found.hits);
    best.alignments = std::move(found.alignments);
    looked.push_back(folder.string());
    return !best.alignments.empty();
  };
  for (const std::string& name : names) {
    if (names_.contains(name) && (look(root_ / name) || look(root_ / name / "msas"))) return best;
    for (const char* end : {".a3m", ".a3m.gz", ".sto", ".sto.gz"})
      if (names_.contains(name + end)) {
        best.alignments = {root_ / (name + end)};
        return best;
      }
  }
  if (looked.empty()) looked.push_back((root_ / names.front()).string() + " (not there)");
  if (only_target && !look(root_)) look(root_ / "msas");
  return best;
}

void InputOptions::add_to(CLI::App& app) {
  app.add_option(
      "input", inputs,
      "FASTA files (each record is a target), ColabFold's a3m or csv, or folders of them");
  app.add_option("--fasta-paths", inputs, "the same, divided by commas")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--alignments,--use-precomputed-alignments", alignments,
                 "folder with TARGET/*.a3m or *.sto, TARGET/msas/ or TARGET.a3m (.gz of each); of "
                 "one target also the files themselves");
  app.add_option("--msa", msa, "the alignment of the one target, a3m or Stockholm")
      ->excludes("--alignments");
  app.add_option("--msa-mode", msa_mode,
                 "dir: the alignments given; single_sequence: none (default dir)")
      ->check(CLI::IsMember({"dir", "single_sequence"}));
  app.add_option("--templates", templates,
                 "search: by the hits (hhr, hmmsearch) among the alignments; custom: those of "
                 "--template alone; none (default search)")
      ->check(CLI::IsMember({"none", "search", "custom"}));
  app.add_option("--template,--custom-template-path", template_files,
                 "structure to use as template, FILE[:CHAIN], PDB or mmCIF, or a folder of them; "
                 "may be repeated")
      ->allow_extra_args(false);
  app.add_option("--template-mmcif-dir", search.mmcif_dir,
                 "folder with the hits' structures, 1abc.cif[.gz]");
  app.add_option("--max-template-date", search.max_date,
                 "leave out templates released after it, YYYY-MM-DD");
  app.add_option("--max-template-hits", search.max_hits, "templates at most (default 20)")
      ->check(CLI::Range(0, 1000));
  app.add_option("--obsolete-pdbs-path,--obsolete-pdbs-file-path", search.obsolete_file,
                 "PDB's obsolete.dat: entries that another replaces");
  app.add_option("--features", features,
                 "features.npz of 'fastfold features' instead of INPUT and alignments");
}

std::vector<Job> InputOptions::jobs() const {
  check_options(*this);
  if (!features.empty()) return {job_of_features(features)};
  std::vector<Target> targets;
  for (const std::string& file : expanded(inputs))
    for (Target& target : targets_of_file(file)) targets.push_back(std::move(target));

  const bool only_target = targets.size() == 1;
  const bool single_sequence = msa_mode == "single_sequence";
  if (!msa.empty()) {
    if (!only_target)
      fail(Exit::kUsage, "--msa is the alignment of one target, but there are ", targets.size(),
           "; use --alignments FOLDER with one folder for each");
    if (!targets[0].job.alignments.empty())
      fail(Exit::kUsage, targets[0].job.source,
           " is an alignment itself: give it or --msa, or the target as FASTA");
    targets[0].job.alignments = {msa};
  }
  if (single_sequence)
    for (Target& target : targets) target.job.alignments.clear();
  if (!alignments.empty()) {
    const AlignmentFolder folder(alignments);
    for (Target& target : targets) add_alignments(target, *this, folder, only_target);
  }

  std::vector<Job> jobs;
  std::unordered_set<std::string> taken;
  std::unordered_map<std::string, int> next;
  for (Target& target : targets) {
    const std::string wanted = target.job.tag;
    while (!taken.insert(target.job.tag).second)
      target.job.tag = cat(wanted, "_", ++next[wanted] + 1);
    jobs.push_back(std::move(target.job));
  }
  return jobs;
}

std::vector<std::string> hashes_of_inputs(const Job& job, const InputOptions& options) {
  if (!options.features.empty()) return {sha256_of_file(options.features)};
  std::vector<std::string> hashes;
  for (const std::string& path : job.alignments)
    hashes.push_back(cat(sha256_of_file(path), " ", most_rows(path)));
  for (const std::string& path : job.template_hits) hashes.push_back(sha256_of_file(path));
  for (const std::string& given : custom_templates(options)) {
    const std::string path = without_chain(given);
    hashes.push_back(sha256_of_file(path) + given.substr(path.size()));
  }
  return hashes;
}

TargetInputs read_inputs(const Job& job, const InputOptions& options) {
  if (!job.error.empty()) fail(Exit::kInput, job.error);
  if (!options.features.empty()) return inputs_of_features(options.features);
  TargetInputs in;
  std::vector<Msa> msas(job.alignments.size());
  std::vector<std::exception_ptr> errors(msas.size());
#pragma omp parallel for schedule(dynamic)
  for (size_t f = 0; f < msas.size(); ++f) try {
      msas[f] = read_msa(job.alignments[f], most_rows(job.alignments[f]));
      check_query(msas[f], job.alignments[f], job);
    } catch (...) {
      errors[f] = std::current_exception();
    }
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  for (size_t f = 0; f < msas.size(); ++f)
    in.rows.emplace_back(job.alignments[f], int64_t(msas[f].size()));
  if (msas.empty())
    msas.push_back(
        {.rows = {job.sequence}, .descriptions = {job.tag}, .columns = job.sequence.size()});
  const Msa merged = merge_msas(std::move(msas));
  Templates templates = templates_of(job, options);
  in.raw = make_raw_features(job.sequence, merged, std::move(templates.features));
  in.templates = std::move(templates.used);
  in.warnings = std::move(templates.warnings);
  in.msa_a3m = to_a3m(merged);
  return in;
}

void make_output_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !fs::is_directory(path))
    fail(Exit::kUsage, path, ": cannot be made a folder",
         error ? ": " + error.message() : std::string(), "; choose another with -o");
  // Asked, not tried with a file: one that a killed run left would stay.
  if (access(path.c_str(), W_OK | X_OK) != 0)
    fail(Exit::kUsage, path, ": cannot write there: ", std::strerror(errno),
         "; choose another with -o");
}

}  // namespace ff
