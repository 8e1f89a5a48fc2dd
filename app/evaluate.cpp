// fastfold evaluate: predicted structures against experimental ones.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <gemmi/seqalign.hpp>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/geometry/residue_constants.h"
#include "core/train/metrics.h"
#include "io/structure_reader.h"

namespace ff {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string predicted, reference, chain;
  bool json = false;
};

struct Pair {
  std::string name, predicted, reference;
};

struct Result {
  Pair pair;
  std::string error;  ///< why there are no scores
  std::string predicted_chain, reference_chain;
  double identity = 0;  ///< of the residues compared, the share of the same type
  ChainScores scores;
};

/// The scores in the order of the table: key in JSON, title, decimals.
struct Column {
  const char *key, *title;
  double ChainScores::*value;
  int decimals;
};
constexpr Column kColumns[] = {
    {"lddt_ca", "lDDT-CA", &ChainScores::lddt_ca, 4}, {"lddt", "lDDT", &ChainScores::lddt, 4},
    {"gdt_ts", "GDT-TS", &ChainScores::gdt_ts, 4},    {"gdt_ha", "GDT-HA", &ChainScores::gdt_ha, 4},
    {"tm_score", "TM-score", &ChainScores::tm, 4},    {"rmsd", "RMSD", &ChainScores::rmsd, 3},
    {"drmsd", "dRMSD", &ChainScores::drmsd, 3},
};

/// Residues of a chain by their places in another.
struct Alignment {
  std::vector<int64_t> place;  ///< of the first chain's residues in the second, -1 for none
  int64_t identical = 0;
};

/// Where an alignment may open a gap for nothing: at both ends, and where the chain is broken, for
/// there residues were not seen. [n + 1] flags.
std::vector<bool> free_gaps(const ChainStructure& chain) {
  const size_t n = chain.sequence.size();
  std::vector<bool> free(n + 1);
  free.front() = free[n] = true;
  for (size_t i = 1; i < n; ++i) {
    const int64_t c = int64_t(i - 1) * kAtom37 + kAtomC, next = int64_t(i) * kAtom37 + kAtomN;
    if (chain.mask.data<float>()[c] == 0 || chain.mask.data<float>()[next] == 0) continue;
    double squares = 0;
    for (int k = 0; k < 3; ++k) {
      const double d = double(chain.positions.data<float>()[3 * c + k]) -
                       chain.positions.data<float>()[3 * next + k];
      squares += d * d;
    }
    constexpr double kLongestBond = 2.5;
    free[i] = squares > kLongestBond * kLongestBond;
  }
  return free;
}

std::vector<std::string> letters(const std::string& sequence) {
  std::vector<std::string> out;
  for (const char c : sequence) out.emplace_back(1, kRestypeLetters[size_t(restype_index(c))]);
  return out;
}

/// BLOSUM62 with its gap costs, X against anything -1.
gemmi::AlignmentScoring scoring() {
  gemmi::AlignmentScoring s = gemmi::prepare_blosum62_scoring();
  constexpr size_t kKnown = kRestypes;
  std::vector<int8_t> matrix;
  for (size_t i = 0; i <= kKnown; ++i)
    for (size_t j = 0; j <= kKnown; ++j)
      matrix.push_back(i < kKnown && j < kKnown ? s.score_matrix[i * kKnown + j] : int8_t(-1));
  s.score_matrix = matrix;
  for (std::string& name : s.matrix_encoding)
    name = std::string(1, kRestypeLetters[size_t(restype_index(name))]);
  s.matrix_encoding.emplace_back("X");
  return s;
}

Alignment align(const ChainStructure& a, const ChainStructure& b) {
  Alignment out;
  out.place.assign(a.sequence.size(), -1);
  if (a.sequence == b.sequence) {
    for (size_t i = 0; i < out.place.size(); ++i) out.place[i] = int64_t(i);
    out.identical = int64_t(out.place.size());
    return out;
  }
  // Gaps of the second sequence are the ones that can be free: the shorter one's.
  const bool swapped = a.sequence.size() < b.sequence.size();
  const ChainStructure &query = swapped ? b : a, &target = swapped ? a : b;
  const gemmi::AlignmentResult result = gemmi::align_string_sequences(
      letters(query.sequence), letters(target.sequence), free_gaps(target), scoring());
  int64_t q = 0, t = 0;
  for (const gemmi::AlignmentResult::Item item : result.cigar)
    for (uint32_t k = 0; k < item.len(); ++k) {
      if (item.op() == 'M') {
        out.place[size_t(swapped ? t : q)] = swapped ? q : t;
        out.identical += query.sequence[size_t(q)] == target.sequence[size_t(t)];
      }
      q += item.op() != 'D';
      t += item.op() != 'I';
    }
  return out;
}

std::string names_of(const StructureEntry& entry) {
  std::string out;
  for (const ChainStructure& chain : entry.chains) out += (out.empty() ? "" : ", ") + chain.name;
  return out;
}

Result compare(const Pair& pair, const std::string& chain) {
  const StructureEntry predicted = read_structure(pair.predicted),
                       reference = read_structure(pair.reference);
  Result out{pair, {}, {}, {}, 0, {}};
  // The two chains whose sequences agree best, of equals those named alike, then the first.
  const ChainStructure *p_best = nullptr, *r_best = nullptr;
  Alignment best;
  constexpr double kMaxAlignment = 1e8, kMaxAlignments = 2e9;  // cells
  double cells = 0;
  for (const ChainStructure& r : reference.chains) {
    if (!chain.empty() && r.name != chain) continue;
    for (const ChainStructure& p : predicted.chains) {
      const double these = double(r.sequence.size()) * double(p.sequence.size());
      cells += these;
      check_input(these <= kMaxAlignment && cells <= kMaxAlignments, pair.predicted, " and ",
                  pair.reference, ": too long to be aligned (chains of ", p.sequence.size(),
                  " and ", r.sequence.size(), " residues); give one chain of each");
      Alignment alignment = align(p, r);
      const auto agreement = [](const Alignment& a, const ChainStructure& x,
                                const ChainStructure& y) {
        return std::pair(a.identical, x.name == y.name);
      };
      if (p_best && agreement(alignment, p, r) <= agreement(best, *p_best, *r_best)) continue;
      best = std::move(alignment);
      p_best = &p;
      r_best = &r;
    }
  }
  check_input(r_best, pair.reference, ": has no protein chain '", chain, "', its chains are ",
              names_of(reference), "; choose one with --chain");
  out.predicted_chain = p_best->name;
  out.reference_chain = r_best->name;

  const auto n = int64_t(r_best->sequence.size());
  const Tensor aatype = Tensor::zeros({n}, Dtype::i32), x = Tensor::zeros({n, kAtom37, 3}),
               mask = Tensor::zeros({n, kAtom37});
  int64_t same = 0;
  for (size_t i = 0; i < best.place.size(); ++i) {
    const int64_t row = best.place[i];
    if (row < 0) continue;
    aatype.data<int32_t>()[row] = restype_index(p_best->sequence[i]);
    x.select(0, row).copy_from(p_best->positions.select(0, int64_t(i)));
    mask.select(0, row).copy_from(p_best->mask.select(0, int64_t(i)));
    same += mask.data<float>()[row * kAtom37 + kAtomCa] > 0 &&
            r_best->mask.data<float>()[row * kAtom37 + kAtomCa] > 0 &&
            p_best->sequence[i] == r_best->sequence[size_t(row)];
  }
  try {
    out.scores = compare_chains(aatype, x, mask, r_best->positions, r_best->mask);
  } catch (const Error& e) {
    fail(e.code(), pair.predicted, " (chain ", p_best->name, ") against ", pair.reference,
         " (chain ", r_best->name, "): ", e.what());
  }
  out.identity = double(same) / double(out.scores.compared);
  constexpr double kLowIdentity = 0.3;
  if (out.identity < kLowIdentity)
    log_warning(pair.predicted, " (chain ", p_best->name, ") and ", pair.reference, " (chain ",
                r_best->name, "): only ", same, " of ", out.scores.compared,
                " residues compared are of the same type; are these the same protein?");
  return out;
}

/// A file's name without its ending; "" for what is no structure. `rank` orders files of one name.
std::string structure_name(const fs::path& path, int& rank) {
  fs::path name = path.filename();
  if (name.extension() == ".gz") name = name.stem();
  const std::string ending = name.extension().string();
  rank = ending == ".cif" || ending == ".mmcif" ? 0 : 1;
  if (rank && ending != ".pdb" && ending != ".ent") return "";
  std::string stem = name.stem().string();
  // ColabFold's names: the first-ranked prediction of a target, the relaxed one if there is one.
  for (const std::string_view kind : {"_relaxed_rank_", "_unrelaxed_rank_"}) {
    const auto at = stem.find(kind);
    if (at == std::string::npos || at == 0) continue;
    if (!stem.substr(at + kind.size()).starts_with("001_")) return "";
    rank += kind[1] == 'u' ? 4 : 2;
    return stem.substr(0, at);
  }
  return stem;
}

/// A folder's structures by name: its files, and the first-ranked ones of the folders that predict
/// writes for each target.
std::map<std::string, std::string> structures_in(const std::string& folder) {
  std::map<std::string, std::pair<int, std::string>> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    int rank = 0;
    std::string name, path;
    std::error_code ignored;
    if (it->is_directory(ignored)) {
      for (const char* file :
           {"ranked_000.cif", "ranked_000.pdb", "ranked_0.cif", "ranked_0.pdb"}) {
        path = (it->path() / file).string();
        if (fs::exists(path, ignored)) {
          name = it->path().filename().string();
          break;
        }
      }
    } else {
      path = it->path().string();
      name = structure_name(it->path(), rank);
    }
    if (name.empty()) continue;
    const std::pair<int, std::string> value(rank, path);
    const auto [at, added] = found.emplace(name, value);
    if (!added) at->second = std::min(at->second, value);
  }
  check_input(!error, folder, ": cannot be listed: ", error.message());
  check_input(!found.empty(), folder, ": holds no structure, expected NAME.pdb or NAME.cif, plain ",
              "or .gz, or the folders that predict writes");
  std::map<std::string, std::string> out;
  for (const auto& [name, value] : found) out[name] = value.second;
  return out;
}

std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) out += (i ? ", " : "") + names[i];
  return out + (names.size() > kShown ? ", ..." : "");
}

std::vector<Pair> pairs_of(const Options& o) {
  std::error_code ignored;
  const bool folders = fs::is_directory(o.predicted, ignored);
  if (folders != fs::is_directory(o.reference, ignored))
    fail(Exit::kUsage, "evaluate takes two files or two folders; ",
         folders ? o.predicted : o.reference, " is a folder, ", folders ? o.reference : o.predicted,
         " is none");
  if (!folders) {
    int rank = 0;
    const std::string name = structure_name(o.predicted, rank);
    return {{name.empty() ? o.predicted : name, o.predicted, o.reference}};
  }
  const auto predicted = structures_in(o.predicted), reference = structures_in(o.reference);
  std::vector<Pair> pairs;
  std::vector<std::string> alone, missing;
  for (const auto& [name, path] : predicted) {
    const auto found = reference.find(name);
    if (found == reference.end())
      alone.push_back(name);
    else
      pairs.push_back({name, path, found->second});
  }
  for (const auto& [name, path] : reference)
    if (!predicted.count(name)) missing.push_back(name);
  check_input(!pairs.empty(), o.predicted, " and ", o.reference,
              ": no two structures have the same name (", some_of(alone), " and ", some_of(missing),
              "); name them alike");
  if (!alone.empty())
    log_warning(o.reference, ": no reference for ", alone.size(), " predictions: ", some_of(alone));
  if (!missing.empty())
    log_warning(o.predicted, ": no prediction for ", missing.size(),
                " references: ", some_of(missing));
  return pairs;
}

double coverage(const Result& r) { return double(r.scores.compared) / double(r.scores.reference); }

/// The mean over the pairs that were compared.
template <class Value>
double mean(const std::vector<Result>& results, Value value) {
  double sum = 0, count = 0;
  for (const Result& r : results)
    if (r.error.empty()) sum += value(r), ++count;
  return sum / count;
}

void print_json(const std::vector<Result>& results, size_t good) {
  nlohmann::ordered_json all;
  all["pairs"] = nlohmann::ordered_json::array();
  for (const Result& r : results) {
    nlohmann::ordered_json one = {
        {"name", r.pair.name}, {"predicted", r.pair.predicted}, {"reference", r.pair.reference}};
    if (!r.error.empty()) {
      one["error"] = r.error;
    } else {
      one["predicted_chain"] = r.predicted_chain;
      one["reference_chain"] = r.reference_chain;
      one["residues"] = r.scores.compared;
      one["reference_residues"] = r.scores.reference;
      one["coverage"] = coverage(r);
      one["identity"] = r.identity;
      for (const Column& c : kColumns) one[c.key] = r.scores.*c.value;
    }
    all["pairs"].push_back(one);
  }
  if (good) {
    all["mean"]["coverage"] = mean(results, coverage);
    for (const Column& c : kColumns)
      all["mean"][c.key] = mean(results, [&](const Result& r) { return r.scores.*c.value; });
  }
  std::puts(all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void print_table(const std::vector<Result>& results, size_t good) {
  size_t width = 4;
  for (const Result& r : results) width = std::max(width, r.pair.name.size());
  const auto name = [&](const std::string& text) { std::printf("%-*s", int(width), text.c_str()); };
  name("name");
  std::printf("  %8s  %8s", "residues", "coverage");
  for (const Column& c : kColumns) std::printf("  %8s", c.title);
  std::puts("");
  for (const Result& r : results) {
    name(r.pair.name);
    if (r.error.empty()) {
      std::printf("  %8lld  %8.4f", static_cast<long long>(r.scores.compared), coverage(r));
      for (const Column& c : kColumns) std::printf("  %8.*f", c.decimals, r.scores.*c.value);
    } else {
      std::printf("  failed");
    }
    std::puts("");
  }
  if (good < 2) return;
  name("mean");
  std::printf("  %8s  %8.4f", "", mean(results, coverage));
  for (const Column& c : kColumns)
    std::printf("  %8.*f", c.decimals,
                mean(results, [&](const Result& r) { return r.scores.*c.value; }));
  std::puts("");
}

int run(const Options& o) {
  const std::vector<Pair> pairs = pairs_of(o);
  const bool one = !fs::is_directory(o.predicted);
  std::vector<Result> results;
  size_t good = 0;
  for (const Pair& pair : pairs) {
    throw_if_stopped();
    try {
      results.push_back(compare(pair, o.chain));
      ++good;
    } catch (const Error& e) {
      if (one) throw;
      log_message(Level::kError, e.what());
      results.push_back({pair, e.what(), {}, {}, 0, {}});
    }
  }
  if (o.json)
    print_json(results, good);
  else
    print_table(results, good);
  return int(good == pairs.size() ? Exit::kDone : Exit::kPartial);
}

}  // namespace

Command add_evaluate(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "evaluate", "compare predicted structures with experimental ones: lDDT, GDT, TM-score, RMSD");
  app->add_option("PREDICTED", o->predicted, "PDB or mmCIF, plain or .gz, or a folder of them")
      ->required();
  app->add_option("REFERENCE", o->reference,
                  "the same; of two folders the structures with the same names are compared")
      ->required();
  app->add_option("--chain", o->chain,
                  "the reference's chain (default: the one whose sequence agrees best)");
  app->add_flag("--json", o->json, "print JSON");
  app->footer(
      "Residues are paired by aligning the sequences. lDDT, GDT and TM-score are out of all the "
      "reference's residues that were seen, from 0 to 1; RMSD and dRMSD (of CA, in angstrom) are "
      "over the residues compared.");
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
