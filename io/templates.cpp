// Chooses templates and copies their atoms onto the query.
#include "io/templates.h"

#include <string.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <gemmi/seqalign.hpp>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <unordered_map>

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
constexpr double kMaxAlignment = 1e8;  // cells of an alignment's matrix
constexpr double kMaxWork = 1e9;       // cells and letters compared for one list of templates
constexpr int64_t kMaxKept = int64_t(1) << 28;  // bytes of entries kept for later hits
constexpr size_t kMostWarnings = 20;
// Of the user's own templates: how often chance gives as good an alignment.
constexpr double kMostChance = 1, kDoubtfulChance = 1e-3;

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

/// Pairs of a query residue and a residue of the template's chain.
using Mapping = std::vector<std::pair<int64_t, int64_t>>;

/// Comparing of sequences that may still be done: a list of hits made to take long ends.
class Work {
 public:
  void use(double amount) {
    if ((left_ -= amount) < 0)
      unusable("comparing the templates before it with their structures took too long");
  }

 private:
  double left_ = kMaxWork;
};

/// Pairs of residues of the alignment (BLOSUM62, gaps 10 + 1) of two sequences.
struct Aligned {
  Mapping pairs;
  int64_t identical = 0;
  int score = 0;      ///< of its best part
  double chance = 0;  ///< how many parts as good two random sequences have (Karlin and Altschul)
};

/// The ends of the longer sequence are left over without cost of opening a gap, or the other's last
/// residues would be torn off to match residues far away.
Aligned align(const std::string& a, const std::string& b, Work& work) {
  if (a.empty() || b.empty()) return {};
  const double cells = double(a.size()) * double(b.size());
  if (cells > kMaxAlignment)
    unusable("too long to be aligned: ", a.size(), " and ", b.size(), " residues");
  work.use(cells);
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
  constexpr double kK = 0.041, kLambda = 0.267;  // of this scoring (Altschul and Gish, 1996)
  const auto encoded = [](const std::string& letters) {
    std::vector<std::uint8_t> codes;
    for (const char c : letters) codes.push_back(std::uint8_t(restype_index(c)));
    return codes;
  };
  const bool swapped = a.size() < b.size();
  const std::string &longer = swapped ? b : a, &shorter = swapped ? a : b;
  std::vector<bool> free_gaps(shorter.size() + 1);
  free_gaps.front() = free_gaps.back() = true;
  const std::vector<std::uint8_t> long_codes = encoded(longer), short_codes = encoded(shorter);
  const gemmi::AlignmentResult result =
      gemmi::align_sequences(long_codes, short_codes, free_gaps, kRestypes + 1, scoring);
  Aligned aligned;
  int64_t i = 0, j = 0;  // in longer and shorter
  int score = 0;         // of the part that ends here
  for (const gemmi::AlignmentResult::Item item : result.cigar) {
    const int64_t n = item.len();
    if (item.op() != 'M') score = std::max<int64_t>(0, score + scoring.gapo + n * scoring.gape);
    if (item.op() == 'M')
      for (int64_t k = 0; k < n; ++k) {
        const auto x = size_t(i + k), y = size_t(j + k);
        aligned.pairs.emplace_back(swapped ? y : x, swapped ? x : y);
        aligned.identical += longer[x] == shorter[y];
        score += scoring.score_matrix[size_t(long_codes[x]) * (kRestypes + 1) + short_codes[y]];
        score = std::max(0, score);
        aligned.score = std::max(aligned.score, score);
      }
    i += item.op() == 'D' ? 0 : n;
    j += item.op() == 'I' ? 0 : n;
  }
  aligned.chance = kK * cells * std::exp(-kLambda * aligned.score);
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
      if (std::error_code e; fs::is_regular_file(place / (entry + end), e))
        return place / (entry + end);
  unusable("no ", (fs::path(folder) / (entry + ".cif")).string(), " (or .cif.gz)");
}

std::string without_gaps(std::string letters) {
  std::erase(letters, '-');
  return letters;
}

/// Where `part` begins in `whole`; npos for nowhere. Linear, whatever the texts.
size_t find_exact(const std::string& whole, const std::string& part) {
  const void* at = memmem(whole.data(), whole.size(), part.data(), part.size());
  return at ? size_t(static_cast<const char*>(at) - whole.data()) : std::string::npos;
}

/// As _assess_hhsearch_hit.
void prefilter(const TemplateHit& hit, const std::string& sequence) {
  const std::string letters = without_gaps(hit.hit_sequence);
  const auto n = double(sequence.size());
  const auto filtered = [](auto&&... why) { throw Filtered{{cat(why...)}}; };
  if (hit.aligned_cols / n <= kMinAlignRatio) filtered("too few residues aligned");
  if (double(letters.size()) / n > kMaxSubsequenceRatio &&
      find_exact(sequence, letters) != std::string::npos)
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
  const size_t offset = find_exact(sequence, without_gaps(hit.query));
  if (offset == std::string::npos) unusable("its query is not part of the target's sequence");
  const auto residues = int64_t(without_gaps(hit.hit_sequence).size());
  const int query0 = first(hit.indices_query), hit0 = first(hit.indices_hit);
  Mapping mapping;
  for (size_t c = 0; c < std::min(hit.indices_query.size(), hit.indices_hit.size()); ++c) {
    if (hit.indices_query[c] < 0 || hit.indices_hit[c] < 0) continue;
    const int64_t q = hit.indices_query[c] - query0 + int64_t(offset),
                  t = hit.indices_hit[c] - hit0;
    if (t < residues && q < int64_t(sequence.size())) mapping.emplace_back(q, t);
  }
  if (mapping.empty()) unusable("no residue aligned");
  return mapping;
}

/// Where `part` stands in `whole`, X agreeing with any; npos for nowhere.
size_t find_fuzzy(const std::string& whole, const std::string& part, Work& work) {
  for (size_t at = 0; at + part.size() <= whole.size(); ++at) {
    size_t i = 0;
    while (i < part.size() && (whole[at + i] == part[i] || part[i] == 'X' || whole[at + i] == 'X'))
      ++i;
    if (i == part.size()) return at;
    work.use(double(i + 1));
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
                                const std::string& letters, Work& work) {
  for (const ChainStructure& chain : entry.chains) work.use(double(chain.sequence.size()));
  for (const ChainStructure& chain : entry.chains)
    if (chain.name == chain_name)
      if (const size_t at = find_exact(chain.sequence, letters); at != std::string::npos)
        return Found{&chain, at};
  for (const ChainStructure& chain : entry.chains)
    if (const size_t at = find_exact(chain.sequence, letters); at != std::string::npos)
      return Found{&chain, at};
  for (const ChainStructure& chain : entry.chains)
    if (const size_t at = find_fuzzy(chain.sequence, letters, work); at != std::string::npos)
      return Found{&chain, at};
  return std::nullopt;
}

/// As _realign_pdb_template_to_query, with a pairwise alignment in place of kalign's. Query
/// residues whose partner is gone have none (AlphaFold gives them the chain's last residue).
const ChainStructure& realign(const StructureEntry& entry, const std::string& chain_name,
                              const std::string& letters, Mapping& mapping, Work& work) {
  const ChainStructure* chain = nullptr;
  for (const ChainStructure& c : entry.chains)
    if (c.name == chain_name) chain = &c;
  if (!chain && entry.chains.size() == 1) chain = &entry.chains[0];
  if (!chain) unusable("the entry has no protein chain ", chain_name);
  const Aligned aligned = align(letters, chain->sequence, work);
  const double identity =
      double(aligned.identical) / double(std::min(letters.size(), chain->sequence.size()));
  if (identity < kLeastIdentityOfVersions)
    unusable("the hit's sequence is not that of chain ", chain->name, " (", int(100 * identity),
             " % identical, 90 needed)");
  std::vector<int64_t> new_of(letters.size(), -1);
  for (const auto& [old, now] : aligned.pairs) new_of[size_t(old)] = now;
  Mapping moved;
  for (const auto& [q, t] : mapping)
    if (new_of[size_t(t)] >= 0) moved.emplace_back(q, new_of[size_t(t)]);
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
           const std::string& letters, const std::string& sequence, Work& work) {
  work.use(double(chain.sequence.size()) + double(sequence.size()) * kAtom37 * 4);
  check_distances(chain);
  Row row;
  row.letters.assign(sequence.size(), '-');
  row.positions.assign(sequence.size() * kAtom37 * 3, 0);
  row.mask.assign(sequence.size() * kAtom37, 0);
  for (const auto& [q, t] : mapping) {
    const int64_t at = t + int64_t(offset);
    check(at < chain.mask.size(0) && t < int64_t(letters.size()), "template residue ", at);
    std::copy_n(chain.positions.data<float>() + at * kAtom37 * 3, kAtom37 * 3,
                row.positions.begin() + q * kAtom37 * 3);
    std::copy_n(chain.mask.data<float>() + at * kAtom37, kAtom37, row.mask.begin() + q * kAtom37);
    row.letters[size_t(q)] = letters[size_t(t)];
  }
  if (std::accumulate(row.mask.begin(), row.mask.end(), 0.0f) < kLeastAtoms)
    unusable("none of its aligned residues was seen in the structure");
  int identical = 0;
  for (size_t q = 0; q < sequence.size(); ++q) {
    row.used.aligned += row.letters[q] != '-';
    identical += row.letters[q] == sequence[q];
  }
  row.used.identity = double(identical) / std::max(1, row.used.aligned);
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

/// Entries, each read once though several hits name it.
class Entries {
 public:
  const StructureEntry& read(const std::string& path) {
    if (kept_ > kMaxKept) {
      std::erase_if(entries_, [](const auto& e) { return e.second.failure.empty(); });
      kept_ = 0;
    }
    const auto [found, is_new] = entries_.try_emplace(path);
    Read& read = found->second;
    if (is_new) try {
        read.entry = read_structure(path);
        for (const ChainStructure& chain : read.entry.chains)
          kept_ += (chain.positions.numel() + chain.mask.numel()) * int64_t(sizeof(float));
      } catch (const Error& e) {
        read.failure = e.what();
      }
    if (!read.failure.empty()) unusable(read.failure);
    return read.entry;
  }

 private:
  struct Read {
    StructureEntry entry;
    std::string failure;
  };
  std::unordered_map<std::string, Read> entries_;
  int64_t kept_ = 0;  // bytes
};

/// What the hits of a list share.
struct List {
  const std::string& sequence;
  const TemplateOptions& options;
  std::map<std::string, std::string> obsolete;
  Entries entries = {};
  Work work = {};
};

Row row_of_hit(const TemplateHit& hit, List& list) {
  auto [entry_id, chain_name] = entry_and_chain(hit.name);
  if (const auto found = list.obsolete.find(entry_id); found != list.obsolete.end()) {
    if (found->second.empty()) unusable("the entry is obsolete, without a successor");
    entry_id = found->second;
  }
  prefilter(hit, list.sequence);
  Mapping mapping = query_to_hit(hit, list.sequence);
  std::string letters = without_gaps(hit.hit_sequence);
  const std::string path = find_entry(list.options.mmcif_dir, entry_id);
  const StructureEntry& entry = list.entries.read(path);
  const std::string& max_date = list.options.max_date;
  if (!max_date.empty()) {
    if (entry.release_date.empty()) unusable(path, " tells no release date");
    if (entry.release_date > max_date) throw Filtered{{cat("released after ", max_date)}};
  }
  const std::optional<Found> found = find_chain(entry, chain_name, letters, list.work);
  const ChainStructure& chain =
      found ? *found->chain : realign(entry, chain_name, letters, mapping, list.work);
  if (!found) letters = chain.sequence;
  Row row = row_of(chain, mapping, found ? found->offset : 0, letters, list.sequence, list.work);
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
  List list{sequence, options, read_obsolete(options.obsolete_file)};
  std::vector<const TemplateHit*> order;
  for (const TemplateHit& hit : hits) order.push_back(&hit);
  std::stable_sort(order.begin(), order.end(), [](const TemplateHit* a, const TemplateHit* b) {
    return a->sum_probs > b->sum_probs;
  });
  std::vector<Row> rows;
  std::set<std::string> seen;
  std::map<std::string, int> filtered;
  for (const TemplateHit* hit : order) {
    if (std::ssize(rows) >= options.max_hits) break;
    try {
      Row row = row_of_hit(*hit, list);
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
  Work work;
  for (const std::string& given : files) {
    std::error_code none;
    const size_t colon = fs::exists(given, none) ? std::string::npos : given.rfind(':');
    const std::string path = given.substr(0, colon);
    const std::string wanted = colon == std::string::npos ? "" : given.substr(colon + 1);
    try {
      const StructureEntry entry = read_structure(path);
      const ChainStructure* best = nullptr;
      Aligned aligned;
      std::string names;
      std::set<std::string> seen;  // an assembly may have hundreds of copies of a chain
      for (const ChainStructure& chain : entry.chains) {
        names += (names.empty() ? "" : ", ") + chain.name;
        if (!wanted.empty() && chain.name != wanted) continue;
        if (!seen.insert(chain.sequence).second) continue;
        Aligned candidate = align(sequence, chain.sequence, work);
        if (best && candidate.score <= aligned.score) continue;
        best = &chain;
        aligned = std::move(candidate);
      }
      if (!best) unusable("has no protein chain ", wanted, " (chains: ", names, ")");
      const std::string numbers =
          cat(aligned.pairs.size(), " residues aligned, ",
              100 * aligned.identical / std::max<int64_t>(1, std::ssize(aligned.pairs)),
              " % identical, a best part of score ", aligned.score);
      const bool related = aligned.chance <= kMostChance;
      if (!related && best->sequence.size() == sequence.size()) {
        // As OpenFold's: a backbone for the target, with another sequence or none.
        aligned.pairs.clear();
        for (size_t i = 0; i < sequence.size(); ++i) aligned.pairs.emplace_back(i, i);
      } else if (!related || aligned.pairs.size() < kLeastResidues) {
        unusable("chain ", best->name, " is not related: ", numbers,
                 ", as unrelated sequences have");
      }
      Row row = row_of(*best, aligned.pairs, 0, best->sequence, sequence, work);
      row.used.name = cat(fs::path(path).filename().string(), ":", best->name);
      row.used.source = path;
      row.used.sum_probs = 1;  // as OpenFold's custom templates
      if (aligned.chance > kDoubtfulChance)
        out.warnings.push_back(cat("template ", given, ": chain ", best->name,
                                   related ? " may be aligned wrongly: "
                                           : " is taken residue by residue, it has the target's "
                                             "length but is not related: ",
                                   numbers));
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
