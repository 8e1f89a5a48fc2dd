// Names and forms of a target's files in three layouts, and their safe replacement.
#include "app/results.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>

#include "core/base/log.h"
#include "io/file.h"
#include "io/hash.h"
#include "io/npz.h"
#include "io/structure_writer.h"

namespace fs = std::filesystem;

namespace ff {

namespace {

constexpr int64_t kMostMarkerBytes = 1 << 24;

/// Numbers as JSON, fast: a matrix of 3,000 residues has nine million.
class Numbers {
 public:
  explicit Numbers(int decimals) : decimals_(decimals), factor_(std::pow(10.0, decimals)) {}

  /// Appends x rounded to the decimals, halves to even as NumPy does, without zeros at the end but
  /// for the first decimal.
  void add(double x, std::string& out) const {
    check(std::isfinite(x) && std::abs(x) < 1e12, "a score is ", x);
    auto scaled = int64_t(std::nearbyint(x * factor_));
    if (scaled < 0) out += '-', scaled = -scaled;
    char text[24];
    char *end = text + sizeof text, *at = end;
    int digits = decimals_;
    while (digits > 1 && scaled % 10 == 0) scaled /= 10, --digits;
    for (; digits > 0; --digits, scaled /= 10) *--at = char('0' + scaled % 10);
    *--at = '.';
    do *--at = char('0' + scaled % 10);
    while (scaled /= 10);
    out.append(at, end);
  }
  std::string text(double x) const {
    std::string out;
    add(x, out);
    return out;
  }
  void add_list(const float* values, int64_t n, std::string& out) const {
    out += '[';
    for (int64_t i = 0; i < n; ++i) {
      if (i) out += ',';
      add(values[i], out);
    }
    out += ']';
  }
  void add_matrix(const Tensor& matrix, std::string& out) const {
    constexpr int64_t kRoom = 7;
    out.reserve(out.size() + size_t(matrix.numel() * kRoom));
    for (int64_t i = 0; i < matrix.size(0); ++i) {
      out += i ? ',' : '[';
      add_list(matrix.data<float>() + i * matrix.size(1), matrix.size(1), out);
    }
    out += ']';
  }

 private:
  int decimals_;
  double factor_;
};

/// [n_res, n_res], contiguous.
Tensor pae_of(const Prediction& p) {
  const int64_t n = p.plddt.numel();
  check(n > 0 && p.pae.shape() == Dims{n, n}, "predicted aligned errors ", p.pae.shape().str(),
        " for ", n, " residues");
  return p.pae.contiguous();
}

double largest(const Tensor& values) {
  return *std::max_element(values.data<float>(), values.data<float>() + values.numel());
}

std::string pae_object(const Tensor& pae, double max_pae, int decimals) {
  std::string out = "{\"predicted_aligned_error\":";
  Numbers(decimals).add_matrix(pae, out);
  return out + ",\"max_predicted_aligned_error\":" + Numbers(2).text(max_pae) + "}";
}

std::string padded(size_t number, size_t width) {
  const std::string text = std::to_string(number);
  return std::string(width - std::min(width, text.size()), '0') + text;
}

/// ColabFold's "rank_001_alphafold2_ptm_model_1_seed_000".
std::string colabfold_rank(const Prediction& p, size_t rank) {
  constexpr std::string_view kPtm = "_ptm";
  std::string model = p.model;
  if (model.ends_with(kPtm)) model.resize(model.size() - kPtm.size());
  return cat("rank_", padded(rank + 1, 3), p.ptm ? "_alphafold2_ptm_" : "_alphafold2_", model,
             "_seed_", padded(p.seed, 3));
}

/// Where a target's files stand.
struct Place {
  Place(const std::string& tag, const ResultOptions& options) {
    check(!tag.empty() && tag != "." && tag != ".." && tag.find('/') == std::string::npos &&
              tag.find('\0') == std::string::npos,
          "a target's tag is ", show_text(tag));
    const bool flat = options.layout == Layout::kColabfold;
    folder = flat ? fs::path(options.folder) : fs::path(options.folder) / tag;
    marker = flat ? tag + ".done.txt" : "complete.json";
    pending = flat ? "." + tag + ".pending.json" : ".pending.json";
    prefix = flat ? tag : "";
  }

  fs::path folder;
  std::string marker;   ///< lists all files, last written
  std::string pending;  ///< names all files that may be there while there is no marker
  std::string prefix;   ///< of all names
};

struct Entry {
  int64_t bytes = 0;
  std::string sha256;
};
using Entries = std::map<std::string, Entry>;

struct Marker {
  std::string fingerprint;
  Entries files;
};

/// A marker or list of pending files; nothing where it is not there or makes no sense. Names that
/// lead out of the folder or are no files of the target are left out: they may be removed.
std::optional<Marker> read_marker(const Place& place, const std::string& name) {
  std::string text;
  try {
    text = read_text_file(place.folder / name, kMostMarkerBytes);
  } catch (const Error&) {
    return {};
  }
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("files") || !json["files"].is_array()) return {};
  Marker marker;
  if (json.contains("fingerprint") && json["fingerprint"].is_string())
    marker.fingerprint = json["fingerprint"];
  for (const auto& file : json["files"]) {
    if (!file.is_object() || !file.contains("name") || !file["name"].is_string()) return {};
    const std::string path = file["name"];
    if (path.empty() || path[0] == '.' || path.find('/') != std::string::npos ||
        !path.starts_with(place.prefix))
      return {};
    Entry& entry = marker.files[path];
    if (file.contains("bytes") && file["bytes"].is_number_integer()) entry.bytes = file["bytes"];
    if (file.contains("sha256") && file["sha256"].is_string()) entry.sha256 = file["sha256"];
  }
  return marker;
}

std::string marker_json(const std::string& fingerprint, const Entries& files) {
  nlohmann::ordered_json json = {{"fastfold", FASTFOLD_VERSION}, {"fingerprint", fingerprint}};
  nlohmann::ordered_json& list = json["files"] = nlohmann::ordered_json::array();
  for (const auto& [name, entry] : files)
    list.push_back({{"name", name}, {"bytes", entry.bytes}, {"sha256", entry.sha256}});
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

/// What the marker and the list of pending files name.
Entries named_files(const Place& place) {
  Entries files;
  for (const std::string& name : {place.marker, place.pending})
    if (const std::optional<Marker> list = read_marker(place, name))
      for (const auto& [file, entry] : list->files) files[file];
  return files;
}

/// Removes the temporaries that a killed run left of these files, of the marker and of the list.
void remove_temporaries_of(const Place& place, const Entries& files) {
  std::set<std::string> names;
  for (const auto& [name, entry] : files) names.insert(name.substr(0, AtomicFile::kMostName));
  for (const std::string& name : {place.marker, place.pending})
    names.insert(name.substr(0, AtomicFile::kMostName));
  remove_temporaries(place.folder, [&](const std::string& name) { return names.contains(name); });
}

/// A file and how its contents are made: one at a time is in memory.
struct Output {
  std::string name;
  std::function<std::string()> text;
  const Arrays* arrays = nullptr;  ///< for an .npz file, instead of `text`
};

class Outputs {
 public:
  void add(const std::string& name, std::function<std::string()> text) {
    list.push_back({name, std::move(text)});
  }
  /// Nothing where the text is empty.
  void add_text(const std::string& name, const std::string& text) {
    if (!text.empty()) add(name, [&text] { return text; });
  }
  void add_json(const std::string& name, const nlohmann::json& json) {
    if (!json.is_null())
      add(name, [&json] {
        return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
      });
  }
  std::vector<Output> list;
};

/// The suffixes of a structure's files: ".pdb", ".cif".
std::vector<std::string> suffixes(const Prediction& p, Format format) {
  const bool pdb = format != Format::kCif && fits_pdb(p);
  std::vector<std::string> list;
  if (pdb) list.push_back(".pdb");
  if (!pdb || format == Format::kBoth) list.push_back(".cif");
  return list;
}

Outputs plan(const TargetResults& r, const ResultOptions& options) {
  Outputs out;
  const bool has_pae = std::any_of(r.ranked.begin(), r.ranked.end(),
                                   [](const Prediction& p) { return p.pae.defined(); });
  const std::vector<std::string> names = alphafold_names(r.ranked);
  for (size_t rank = 0; rank < r.ranked.size(); ++rank) {
    const Prediction& p = r.ranked[rank];
    const auto structure = [&](const std::string& name) {
      for (const std::string& suffix : suffixes(p, options.format))
        out.add(name + suffix, [&r, &p, rank, suffix] {
          if (suffix == ".pdb") return to_pdb(p);
          return to_mmcif(p, {.entry = r.tag,
                              .title = r.title,
                              .rank = int64_t(rank),
                              .alignment = r.alignment,
                              .templates = p.templates});
        });
    };
    const auto scores = [&p] { return scores_json(p); };
    const auto pae = [&p] { return pae_json(p); };
    std::string arrays;
    if (options.layout == Layout::kFastfold) {
      const std::string number = padded(rank, 3);
      structure("ranked_" + number);
      out.add("scores_rank_" + number + ".json", scores);
      if (p.pae.defined()) out.add("pae_rank_" + number + ".json", pae);
      arrays = "arrays_rank_" + number;
    } else if (options.layout == Layout::kAlphafold) {
      structure(cat("ranked_", rank));
      structure("unrelaxed_" + names[rank]);
      out.add("confidence_" + names[rank] + ".json", [&p] { return confidence_json(p); });
      if (p.pae.defined()) out.add("pae_" + names[rank] + ".json", pae);
      arrays = "arrays_" + names[rank];
    } else {
      const std::string name = colabfold_rank(p, rank);
      structure(r.tag + "_unrelaxed_" + name);
      out.add(r.tag + "_scores_" + name + ".json", scores);
      arrays = r.tag + "_arrays_" + name;
    }
    if (!r.arrays.empty() && !r.arrays[rank].empty())
      out.list.push_back({arrays + ".npz", {}, &r.arrays[rank]});
  }

  const bool flat = options.layout == Layout::kColabfold;
  const std::string before = flat ? r.tag + "_" : "";
  if (flat && has_pae && r.ranked[0].pae.defined())
    out.add(before + "predicted_aligned_error_v1.json",
            [&r] { return colabfold_pae_json(r.ranked[0]); });
  if (!flat)
    out.add(options.layout == Layout::kAlphafold ? "ranking_debug.json" : "ranking.json",
            [&r] { return ranking_json(r.ranked, r.rank_by).dump(4) + "\n"; });
  out.add_text(flat ? r.tag + ".a3m" : "msa.a3m", r.msa_a3m);
  out.add_text(before + "coverage.svg", r.coverage_svg);
  out.add_text(before + "plddt.svg", r.plddt_svg);
  out.add_text(before + "pae.svg", r.pae_svg);
  out.add_text(before + "report.html", r.report_html);
  out.add_json(before + "timings.json", r.timings);
  out.add_json(before + "run.json", r.run);
  return out;
}

}  // namespace

Layout layout_of_name(const std::string& name) {
  if (name == "fastfold") return Layout::kFastfold;
  if (name == "alphafold") return Layout::kAlphafold;
  if (name == "colabfold") return Layout::kColabfold;
  fail(Exit::kUsage, "unknown layout '", name, "' (fastfold, alphafold, colabfold)");
}

Format format_of_name(const std::string& name) {
  if (name == "pdb") return Format::kPdb;
  if (name == "cif") return Format::kCif;
  if (name == "both") return Format::kBoth;
  fail(Exit::kUsage, "unknown format '", name, "' (pdb, cif, both)");
}

std::string scores_json(const Prediction& p) {
  const Numbers numbers(2);
  const Tensor plddt = p.plddt.contiguous();
  std::string out = "{\"plddt\":";
  numbers.add_list(plddt.data<float>(), plddt.numel(), out);
  if (p.pae.defined()) {
    const Tensor pae = pae_of(p);
    out += ",\"max_pae\":" + numbers.text(largest(pae)) + ",\"pae\":";
    numbers.add_matrix(pae, out);
  }
  if (p.ptm) out += ",\"ptm\":" + numbers.text(*p.ptm);
  return out + "}\n";
}

std::string pae_json(const Prediction& p) {
  return "[" + pae_object(pae_of(p), p.max_pae, 1) + "]\n";
}

std::string colabfold_pae_json(const Prediction& p) {
  const Tensor pae = pae_of(p);
  return pae_object(pae, largest(pae), 2) + "\n";
}

std::string confidence_json(const Prediction& p) {
  const Tensor plddt = p.plddt.contiguous();
  const int64_t n = plddt.numel();
  std::string numbers, categories, scores;
  for (int64_t i = 0; i < n; ++i) {
    const float x = plddt.data<float>()[i];
    numbers += cat(i ? "," : "", i + 1);
    categories += cat(i ? ",\"" : "\"", x < 50 ? 'D' : x < 70 ? 'L' : x < 90 ? 'M' : 'H', '"');
  }
  Numbers(2).add_list(plddt.data<float>(), n, scores);
  return "{\"residueNumber\":[" + numbers + "],\"confidenceScore\":" + scores +
         ",\"confidenceCategory\":[" + categories + "]}\n";
}

std::vector<std::string> alphafold_names(const std::vector<Prediction>& ranked) {
  std::vector<std::string> names;
  for (const Prediction& p : ranked) {
    const auto lower = std::count_if(ranked.begin(), ranked.end(), [&p](const Prediction& other) {
      return other.model == p.model && other.seed < p.seed;
    });
    names.push_back(cat(p.model, "_pred_", lower));
  }
  return names;
}

nlohmann::ordered_json ranking_json(const std::vector<Prediction>& ranked,
                                    const std::string& rank_by) {
  const std::vector<std::string> names = alphafold_names(ranked);
  nlohmann::ordered_json values = nlohmann::ordered_json::object();
  for (size_t i = 0; i < ranked.size(); ++i)
    values[names[i]] = rank_by == "ptm" ? ranked[i].ptm.value_or(0) : ranked[i].mean_plddt;
  return {{rank_by + "s", values}, {"order", names}};
}

std::string best_structure_path(const TargetResults& r, const ResultOptions& options) {
  return Place(r.tag, options).folder / plan(r, options).list.at(0).name;
}

void write_results(const TargetResults& r, const ResultOptions& options) {
  const Place place(r.tag, options);
  check(!r.ranked.empty() && (r.arrays.empty() || r.arrays.size() == r.ranked.size()), r.tag, ": ",
        r.ranked.size(), " predictions, ", r.arrays.size(), " sets of arrays");
  const Outputs outputs = plan(r, options);
  if (options.format != Format::kCif && !fits_pdb(r.ranked[0]))
    log_warning(r.tag, ": does not fit the PDB format; the structure is written as mmCIF");
  std::error_code error;
  fs::create_directories(place.folder, error);
  if (error)
    fail(Exit::kUsage, place.folder.string(), ": cannot make this folder: ", error.message());

  // First a list of all that may be there from now on, so that a run after a killed one knows.
  std::set<std::string> now;
  for (const Output& output : outputs.list)
    check(now.insert(output.name).second, r.tag, ": two files are named ", output.name);
  Entries pending = named_files(place);
  for (const std::string& name : now) pending[name];
  write_file(place.folder / place.pending, marker_json("", pending));
  remove_file(place.folder / place.marker);
  for (const auto& [name, entry] : pending)
    if (!now.count(name)) remove_file(place.folder / name);
  remove_temporaries_of(place, pending);

  Entries written;
  for (const Output& output : outputs.list) {
    const fs::path path = place.folder / output.name;
    if (output.arrays) {
      write_npz(path, *output.arrays);
      written[output.name] = {int64_t(fs::file_size(path)), sha256_of_file(path)};
    } else {
      const std::string text = output.text();
      write_file(path, text);
      written[output.name] = {int64_t(text.size()), sha256(text)};
    }
  }
  write_file(place.folder / place.marker, marker_json(r.fingerprint, written));
  remove_file(place.folder / place.pending);
}

Completion check_complete(const std::string& tag, const ResultOptions& options) {
  const Place place(tag, options);
  std::error_code error;
  if (!fs::exists(place.folder / place.marker, error)) return {};
  const std::optional<Marker> marker = read_marker(place, place.marker);
  if (!marker) return {Completion::kDamaged, place.marker + " is damaged", ""};
  Completion found{Completion::kComplete, "", marker->fingerprint};
  const auto damaged = [&](const std::string& why) {
    found.state = Completion::kDamaged;
    found.damage = why;
    return found;
  };
  for (const auto& [name, entry] : marker->files) {
    const fs::path path = place.folder / name;
    const auto bytes = fs::file_size(path, error);
    if (error) return damaged(name + " is missing");
    if (int64_t(bytes) != entry.bytes)
      return damaged(cat(name, " has ", bytes, " bytes, written were ", entry.bytes));
    try {
      if (sha256_of_file(path) != entry.sha256) return damaged(name + " was changed");
    } catch (const Error& e) {
      return damaged(e.what());
    }
  }
  return found;
}

void remove_leftovers(const std::string& tag, const ResultOptions& options) {
  const Place place(tag, options);
  remove_temporaries_of(place, named_files(place));
  remove_file(place.folder / place.pending);
}

TargetLock::TargetLock(const std::string& folder, const std::string& tag) {
  constexpr size_t kMostName = 150;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail(Exit::kUsage, folder, ": cannot make this folder: ", error.message());
  const std::string name =
      tag.size() <= kMostName ? tag : cat(tag.substr(0, kMostName), "-", sha256(tag).substr(0, 16));
  lock_.emplace(fs::path(folder) / ("." + name + ".lock"), tag);
}

}  // namespace ff
