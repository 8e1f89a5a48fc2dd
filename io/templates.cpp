// Chooses templates and copies their atoms onto the query.
#include "io/templates.h"

#include <algorithm>
#include <filesystem>
#include <gemmi/seqalign.hpp>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "core/geometry/residue_constants.h"
#include "io/file.h"
#include "io/structure_reader.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

// AlphaFold's _assess_hhsearch_hit.
constexpr double kMinAlignRatio = 0.1, kMaxSubsequenceRatio = 0.95;
constexpr size_t kLeastResidues = 10;
constexpr double kLeastIdentityOfVersions = 0.9;  // _realign_pdb_template_to_query
constexpr double kMaxCaCaDistance = 150;          // angstrom, _extract_template_features
constexpr int kLeastAtoms = 5;
constexpr double kMaxAlignment = 1e8;  // cells of the alignment's matrix
constexpr size_t kMostWarnings = 20;
constexpr double kLeastIdentityOfCustom = 0.1;

/// Why a template is not used.
struct Unusable {
  std::string reason;
};
/// A hit that AlphaFold leaves out without a word.
struct Filtered : Unusable {};

template <class... Parts>
[[noreturn]] void unusable(const Parts&... parts) {
  throw Unusable{cat(parts...)};
}

/// Query residue to residue of the template's chain.
using Mapping = std::map<int64_t, int64_t>;

/// Pairs of residues of the global alignment (BLOSUM62, gaps 10 + 1) of two sequences.
struct Aligned {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  int64_t identical = 0;
};

Aligned align(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return {};
  if (double(a.size()) * double(b.size()) > kMaxAlignment)
    unusable("too long to be aligned: ", a.size(), " and ", b.size(), " residues");
  static const gemmi::AlignmentScoring scoring = [] {
    // gemmi's matrix is in the order of our restypes; X joins, which agrees with nothing.
    gemmi::AlignmentScoring with_x = gemmi::prepare_blosum62_scoring();
    const std::vector<std::int8_t> matrix = with_x.score_matrix;
    constexpr int kLetters = kRestypes + 1;
    with_x.score_matrix.assign(size_t(kLetters) * kLetters, -1);
    for (int i = 0; i < kRestypes; ++i)
      std::copy_n(matrix.begin() + i * kRestypes, kRestypes,
                  with_x.score_matrix.begin() + i * kLetters);
    with_x.matrix_encoding.push_back("UNK");
    return with_x;
  }();
  const auto encoded = [](const std::string& letters) {
    std::vector<std::uint8_t> codes;
    for (const char c : letters) codes.push_back(std::uint8_t(restype_index(c)));
    return codes;
  };
  const gemmi::AlignmentResult result =
      gemmi::align_sequences(encoded(a), encoded(b), {}, kRestypes + 1, scoring);
  Aligned aligned;
  int64_t i = 0, j = 0;
  for (const gemmi::AlignmentResult::Item item : result.cigar) {
    const int64_t n = item.len();
    if (item.op() == 'M')
      for (int64_t k = 0; k < n; ++k) {
        aligned.pairs.emplace_back(i + k, j + k);
        aligned.identical += a[size_t(i + k)] == b[size_t(j + k)];
      }
    i += item.op() == 'D' ? 0 : n;
    j += item.op() == 'I' ? 0 : n;
  }
  return aligned;
}

/// Replacements of entries that were withdrawn; "" for none. As _parse_obsolete.
std::map<std::string, std::string> read_obsolete(const std::string& path) {
  constexpr int64_t kMaxBytes = int64_t(64) << 20;
  std::map<std::string, std::string> map;
  if (path.empty()) return map;
  const auto lower = [](std::string_view text) {
    std::string out(text);
    for (char& c : out) c = c >= 'A' && c <= 'Z' ? char(c | 0x20) : c;
    return out;
  };
  const std::string file = read_text_file(path, kMaxBytes);
  std::string_view text = file;
  for (std::string_view line; next_line(text, line);) {
    line = trim(line);
    if (!line.starts_with("OBSLTE")) continue;
    if (line.size() > 30)
      map[lower(line.substr(20, 4))] = lower(line.substr(29, 4));
    else if (line.size() == 24)
      map[lower(line.substr(20, 4))] = "";
  }
  check_input(!map.empty(), path, ": names no obsolete entry, expected lines 'OBSLTE date ID ...'");
  return map;
}

/// "1abc" and "A" of "1ABC_A description".
std::pair<std::string, std::string> entry_and_chain(const std::string& name) {
  const auto alnum = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
  };
  constexpr size_t kEntry = 4;
  size_t end = kEntry + 1;
  while (end < name.size() && (alnum(name[end]) || name[end] == '.')) ++end;
  const bool ok = name.size() > kEntry + 1 && end > kEntry + 1 && name[kEntry] == '_' &&
                  std::all_of(name.begin(), name.begin() + kEntry, alnum);
  if (!ok) unusable("its name does not begin with ENTRY_CHAIN");
  std::string entry = name.substr(0, kEntry);
  for (char& c : entry) c = c >= 'A' && c <= 'Z' ? char(c | 0x20) : c;
  return {entry, name.substr(kEntry + 1, end - kEntry - 1)};
}

std::string find_entry(const std::string& folder, const std::string& entry) {
  for (const fs::path& place : {fs::path(folder), fs::path(folder) / entry.substr(1, 2)})
    for (const char* end : {".cif", ".cif.gz"})
      if (const fs::path file = place / (entry + end); fs::is_regular_file(file)) return file;
  unusable("no ", (fs::path(folder) / (entry + ".cif")).string(), " (or .cif.gz)");
}

std::string without_gaps(std::string letters) {
  std::erase(letters, '-');
  return letters;
}

/// As _assess_hhsearch_hit.
void prefilter(const TemplateHit& hit, const std::string& sequence) {
  const std::string letters = without_gaps(hit.hit_sequence);
  const auto n = double(sequence.size());
  const auto filtered = [](auto&&... why) { throw Filtered{{cat(why...)}}; };
  if (hit.aligned_cols / n <= kMinAlignRatio) filtered("too few residues aligned");
  if (double(letters.size()) / n > kMaxSubsequenceRatio &&
      sequence.find(letters) != std::string::npos)
    filtered("the query itself");
  if (letters.size() < kLeastResidues) filtered("too short");
}

/// As _build_query_to_hit_index_mapping.
Mapping query_to_hit(const TemplateHit& hit, const std::string& sequence) {
  const auto first = [](const std::vector<int>& indices) {
    int least = INT32_MAX;
    for (const int i : indices)
      if (i >= 0) least = std::min(least, i);
    return least;
  };
  const size_t offset = sequence.find(without_gaps(hit.query));
  if (offset == std::string::npos) unusable("its query is not part of the target's sequence");
  const auto residues = int64_t(without_gaps(hit.hit_sequence).size());
  const int query0 = first(hit.indices_query), hit0 = first(hit.indices_hit);
  Mapping mapping;
  for (size_t c = 0; c < std::min(hit.indices_query.size(), hit.indices_hit.size()); ++c) {
    if (hit.indices_query[c] < 0 || hit.indices_hit[c] < 0) continue;
    const int64_t q = hit.indices_query[c] - query0 + int64_t(offset),
                  t = hit.indices_hit[c] - hit0;
    if (t < residues && q < int64_t(sequence.size())) mapping[q] = t;
  }
  if (mapping.empty()) unusable("no residue aligned");
  return mapping;
}

/// Where `part` stands in `whole`, X agreeing with any; npos for nowhere.
size_t find_fuzzy(const std::string& whole, const std::string& part) {
  if (double(whole.size()) * double(part.size()) > kMaxAlignment) return std::string::npos;
  for (size_t at = 0; at + part.size() <= whole.size(); ++at) {
    size_t i = 0;
    while (i < part.size() && (whole[at + i] == part[i] || part[i] == 'X' || whole[at + i] == 'X'))
      ++i;
    if (i == part.size()) return at;
  }
  return std::string::npos;
}

/// A chain of the entry, where the hit's residues begin in it.
struct Found {
  const ChainStructure* chain = nullptr;
  size_t offset = 0;
};

/// As _find_template_in_pdb.
std::optional<Found> find_chain(const StructureEntry& entry, const std::string& chain_name,
                                const std::string& letters) {
  for (const ChainStructure& chain : entry.chains)
    if (chain.name == chain_name)
      if (const size_t at = chain.sequence.find(letters); at != std::string::npos)
        return Found{&chain, at};
  for (const ChainStructure& chain : entry.chains)
    if (const size_t at = chain.sequence.find(letters); at != std::string::npos)
      return Found{&chain, at};
  for (const ChainStructure& chain : entry.chains)
    if (const size_t at = find_fuzzy(chain.sequence, letters); at != std::string::npos)
      return Found{&chain, at};
  return std::nullopt;
}

/// As _realign_pdb_template_to_query, with a pairwise alignment in place of kalign's. Query
/// residues whose partner is gone have none (AlphaFold gives them the chain's last residue).
const ChainStructure& realign(const StructureEntry& entry, const std::string& chain_name,
                              const std::string& letters, Mapping& mapping) {
  const ChainStructure* chain = nullptr;
  for (const ChainStructure& c : entry.chains)
    if (c.name == chain_name) chain = &c;
  if (!chain && entry.chains.size() == 1) chain = &entry.chains[0];
  if (!chain) unusable("the entry has no protein chain ", chain_name);
  const Aligned aligned = align(letters, chain->sequence);
  const double identity =
      double(aligned.identical) / double(std::min(letters.size(), chain->sequence.size()));
  if (identity < kLeastIdentityOfVersions)
    unusable("the hit's sequence is not that of chain ", chain->name, " (", int(100 * identity),
             " % identical, 90 needed)");
  const std::map<int64_t, int64_t> new_of(aligned.pairs.begin(), aligned.pairs.end());
  Mapping moved;
  for (const auto& [q, t] : mapping)
    if (const auto found = new_of.find(t); found != new_of.end()) moved[q] = found->second;
  mapping = std::move(moved);
  return *chain;
}

/// As _check_residue_distances.
void check_distances(const ChainStructure& chain) {
  const float *x = chain.positions.data<float>(), *mask = chain.mask.data<float>();
  for (int64_t i = 1; i < chain.mask.size(0); ++i) {
    if (!mask[i * kAtom37 + kAtomCa] || !mask[(i - 1) * kAtom37 + kAtomCa]) continue;
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
      const double d =
          double(x[(i * kAtom37 + kAtomCa) * 3 + k]) - x[((i - 1) * kAtom37 + kAtomCa) * 3 + k];
      sum += d * d;
    }
    if (sum > kMaxCaCaDistance * kMaxCaCaDistance)
      unusable("residues ", i, " and ", i + 1, " of chain ", chain.name, " are further apart than ",
               kMaxCaCaDistance, " angstrom");
  }
}

/// One template's features over the query.
struct Row {
  std::string letters;  // '-' without a partner
  std::vector<float> positions, mask;
  UsedTemplate used;
};

/// Copies the chain's residues onto the query: `mapping` with `offset` added gives places in the
/// chain. `letters` are the template's own, by the mapping without offset.
Row row_of(const ChainStructure& chain, const Mapping& mapping, size_t offset,
           const std::string& letters, const std::string& sequence) {
  check_distances(chain);
  Row row;
  row.letters.assign(sequence.size(), '-');
  row.positions.assign(sequence.size() * kAtom37 * 3, 0);
  row.mask.assign(sequence.size() * kAtom37, 0);
  int64_t identical = 0;
  for (const auto& [q, t] : mapping) {
    const int64_t at = t + int64_t(offset);
    check(at < chain.mask.size(0) && t < int64_t(letters.size()), "template residue ", at);
    std::copy_n(chain.positions.data<float>() + at * kAtom37 * 3, kAtom37 * 3,
                row.positions.begin() + q * kAtom37 * 3);
    std::copy_n(chain.mask.data<float>() + at * kAtom37, kAtom37, row.mask.begin() + q * kAtom37);
    row.letters[size_t(q)] = letters[size_t(t)];
    identical += letters[size_t(t)] == sequence[size_t(q)];
  }
  if (std::accumulate(row.mask.begin(), row.mask.end(), 0.0f) < kLeastAtoms)
    unusable("none of its aligned residues was seen in the structure");
  row.used.aligned = int(mapping.size());
  row.used.identity = double(identical) / double(std::max<size_t>(1, mapping.size()));
  return row;
}

TemplateFeatures stack(const std::vector<Row>& rows, int64_t n) {
  TemplateFeatures out;
  if (rows.empty()) return out;
  const auto count = int64_t(rows.size());
  out.aatype = Tensor::zeros({count, n, kMsaLetters});
  out.all_atom_positions = Tensor::empty({count, n, kAtom37, 3});
  out.all_atom_masks = Tensor::empty({count, n, kAtom37});
  out.sum_probs = Tensor::empty({count, 1});
  for (int64_t t = 0; t < count; ++t) {
    const Row& row = rows[size_t(t)];
    for (int64_t i = 0; i < n; ++i) {
      const int id = hhblits_id(row.letters[size_t(i)]);
      out.aatype.data<float>()[(t * n + i) * kMsaLetters + (id < 0 ? hhblits_id('X') : id)] = 1;
    }
    std::copy(row.positions.begin(), row.positions.end(),
              out.all_atom_positions.data<float>() + t * n * kAtom37 * 3);
    std::copy(row.mask.begin(), row.mask.end(), out.all_atom_masks.data<float>() + t * n * kAtom37);
    out.sum_probs.data<float>()[t] = float(row.used.sum_probs);
  }
  return out;
}

/// Entries, the last one kept: hits of one entry often follow each other.
class Entries {
 public:
  const StructureEntry& read(const std::string& path) {
    if (path != path_) {
      path_.clear();
      entry_ = read_structure(path);
      path_ = path;
    }
    return entry_;
  }

 private:
  std::string path_;
  StructureEntry entry_;
};

Row row_of_hit(const TemplateHit& hit, const std::string& sequence, const TemplateOptions& options,
               const std::map<std::string, std::string>& obsolete, Entries& entries) {
  auto [entry_id, chain_name] = entry_and_chain(hit.name);
  if (const auto found = obsolete.find(entry_id); found != obsolete.end()) {
    if (found->second.empty()) unusable("the entry is obsolete, without a successor");
    entry_id = found->second;
  }
  prefilter(hit, sequence);
  Mapping mapping = query_to_hit(hit, sequence);
  std::string letters = without_gaps(hit.hit_sequence);
  const std::string path = find_entry(options.mmcif_dir, entry_id);
  const StructureEntry& entry = entries.read(path);
  if (!options.max_date.empty()) {
    if (entry.release_date.empty()) unusable(path, " tells no release date");
    if (entry.release_date > options.max_date)
      throw Filtered{{cat("released after ", options.max_date)}};
  }
  const std::optional<Found> found = find_chain(entry, chain_name, letters);
  const ChainStructure& chain =
      found ? *found->chain : realign(entry, chain_name, letters, mapping);
  if (!found) letters = chain.sequence;
  Row row = row_of(chain, mapping, found ? found->offset : 0, letters, sequence);
  row.used.name = cat(entry_id, "_", chain.name);
  row.used.source = path;
  row.used.sum_probs = hit.sum_probs;
  return row;
}

void limit(std::vector<std::string>& warnings) {
  if (warnings.size() <= kMostWarnings) return;
  const size_t more = warnings.size() - kMostWarnings;
  warnings.resize(kMostWarnings);
  warnings.push_back(cat("and ", more, " more templates that could not be used"));
}

}  // namespace

Templates templates_of_hits(const std::string& sequence, std::span<const TemplateHit> hits,
                            const TemplateOptions& options) {
  Templates out;
  const std::map<std::string, std::string> obsolete = read_obsolete(options.obsolete_file);
  std::vector<const TemplateHit*> order;
  for (const TemplateHit& hit : hits) order.push_back(&hit);
  std::stable_sort(order.begin(), order.end(), [](const TemplateHit* a, const TemplateHit* b) {
    return a->sum_probs > b->sum_probs;
  });
  std::vector<Row> rows;
  std::set<std::string> seen;
  std::map<std::string, int> filtered;
  Entries entries;
  for (const TemplateHit* hit : order) {
    if (std::ssize(rows) >= options.max_hits) break;
    try {
      Row row = row_of_hit(*hit, sequence, options, obsolete, entries);
      // hmmsearch finds each copy of a chain; AlphaFold takes the first.
      if (!hit->has_sum_probs && !seen.insert(row.letters).second) continue;
      rows.push_back(std::move(row));
    } catch (const Filtered& why) {
      ++filtered[why.reason];
    } catch (const Unusable& why) {
      out.warnings.push_back(cat("template ", show_text(hit->name.substr(0, hit->name.find(' '))),
                                 " (hit ", hit->index, ") is not used: ", why.reason));
    } catch (const Error& e) {
      out.warnings.push_back(cat("template ", show_text(hit->name.substr(0, hit->name.find(' '))),
                                 " (hit ", hit->index, ") is not used: ", e.what()));
    }
  }
  limit(out.warnings);
  if (rows.empty() && !filtered.empty()) {
    std::string reasons;
    for (const auto& [reason, count] : filtered)
      reasons += cat(reasons.empty() ? "" : ", ", count, " ", reason);
    out.warnings.push_back(cat("no template: of ", hits.size(), " hits ", reasons));
  }
  out.features = stack(rows, int64_t(sequence.size()));
  for (Row& row : rows) out.used.push_back(std::move(row.used));
  return out;
}

Templates templates_of_files(const std::string& sequence, std::span<const std::string> files) {
  Templates out;
  std::vector<Row> rows;
  for (const std::string& given : files) {
    const size_t colon = fs::exists(given) ? std::string::npos : given.rfind(':');
    const std::string path = given.substr(0, colon);
    const std::string wanted = colon == std::string::npos ? "" : given.substr(colon + 1);
    try {
      const StructureEntry entry = read_structure(path);
      const ChainStructure* best = nullptr;
      Aligned aligned;
      std::string names;
      for (const ChainStructure& chain : entry.chains) {
        names += (names.empty() ? "" : ", ") + chain.name;
        if (!wanted.empty() && chain.name != wanted) continue;
        Aligned candidate = align(sequence, chain.sequence);
        if (best && candidate.identical <= aligned.identical) continue;
        best = &chain;
        aligned = std::move(candidate);
      }
      if (!best) unusable("has no protein chain ", wanted, " (chains: ", names, ")");
      const double identity =
          double(aligned.identical) / double(std::max<size_t>(1, aligned.pairs.size()));
      if (aligned.pairs.size() < kLeastResidues || identity < kLeastIdentityOfCustom)
        unusable("chain ", best->name, " is not related: ", aligned.pairs.size(),
                 " residues aligned, ", int(100 * identity), " % identical");
      const Mapping mapping(aligned.pairs.begin(), aligned.pairs.end());
      Row row = row_of(*best, mapping, 0, best->sequence, sequence);
      row.used.name = cat(fs::path(path).filename().string(), ":", best->name);
      row.used.source = path;
      row.used.sum_probs = double(aligned.identical);
      rows.push_back(std::move(row));
    } catch (const Unusable& why) {
      out.warnings.push_back(cat("template ", given, " is not used: ", why.reason));
    } catch (const Error& e) {
      out.warnings.push_back(cat("template ", given, " is not used: ", e.what()));
    }
  }
  limit(out.warnings);
  out.features = stack(rows, int64_t(sequence.size()));
  for (Row& row : rows) out.used.push_back(std::move(row.used));
  return out;
}

}  // namespace ff
