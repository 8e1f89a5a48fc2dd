// gemmi parses; the rest maps atoms to SEQRES positions and the atom37 layout. mmCIF tables are
// read directly: gemmi's structures of them take quadratic time on files made to.
#include "io/structure_reader.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <gemmi/align.hpp>
#include <gemmi/cif.hpp>
#include <gemmi/numb.hpp>
#include <gemmi/pdb.hpp>
#include <gemmi/polyheur.hpp>
#include <unordered_map>
#include <unordered_set>

#include "core/geometry/residue_constants.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kMaxBytes = int64_t(1) << 29;
constexpr size_t kMaxPdbBytes = size_t(1) << 26;  // six times what the format can number
constexpr size_t kMaxResidues = 1'000'000;        // of an entry; a virus's capsid has 313,000
constexpr double kMaxAlignment = 4e8;  // cells of the alignments of SEQRES with the residues seen

/// AlphaFold's letter of a residue: a modified one's is its parent's.
char letter_of(const std::string& residue) {
  if (residue == "SEC") return 'A';
  const char code = gemmi::find_tabulated_residue(residue).one_letter_code;
  return code == ' ' || code == '\0' ? 'X' : char(code & ~0x20);
}

bool is_amino_acid(const std::string& residue) {
  return gemmi::find_tabulated_residue(residue).is_amino_acid();
}

std::string lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? char(c | 0x20) : c;
  return text;
}

/// A chain whose atoms come one by one.
struct OpenChain {
  std::string name, sequence;
  std::vector<std::string> residues;  ///< seen at each place; "" none. Of several the last.
  ChainStructure out;
  std::vector<float> occupancy;  ///< [n_res, 37] of the atoms in `out`

  /// Once `residues` are known.
  void allocate() {
    const auto n = int64_t(sequence.size());
    out = {.name = name,
           .sequence = sequence,
           .positions = Tensor::zeros({n, kAtom37, 3}),
           .mask = Tensor::zeros({n, kAtom37}),
           .b_factors = std::vector<float>(sequence.size())};
    occupancy.assign(size_t(n) * kAtom37, -1);
  }

  void put(size_t i, const std::string& residue, const std::string& atom,
           const std::array<double, 3>& x, float occ, double b_factor) {
    const int a = atom37_index(residue == "MSE" && atom == "SE" ? "SD" : atom);
    if (a < 0 || residue != residues[i]) return;
    for (const double v : x)
      if (!std::isfinite(v)) return;
    const size_t at = i * kAtom37 + size_t(a);
    if (!(occ > occupancy[at])) return;
    occupancy[at] = occ;
    out.b_factors[i] = std::max(out.b_factors[i], float(b_factor));
    out.mask.data<float>()[at] = 1;
    for (size_t k = 0; k < 3; ++k) out.positions.data<float>()[3 * at + k] = float(x[k]);
  }

  ChainStructure close() {
    constexpr int kCd = atom37_index("CD"), kNh1 = atom37_index("NH1"), kNh2 = atom37_index("NH2");
    for (size_t i = 0; i < residues.size(); ++i) {
      float* x = out.positions.data<float>() + i * kAtom37 * 3;
      const float* mask = out.mask.data<float>() + i * kAtom37;
      const auto distance2 = [&](int a, int b) {
        float sum = 0;
        for (int k = 0; k < 3; ++k)
          sum += (x[3 * a + k] - x[3 * b + k]) * (x[3 * a + k] - x[3 * b + k]);
        return sum;
      };
      if (residues[i] == "ARG" && mask[kCd] && mask[kNh1] && mask[kNh2] &&
          distance2(kNh1, kCd) > distance2(kNh2, kCd))
        std::swap_ranges(x + 3 * kNh1, x + 3 * kNh1 + 3, x + 3 * kNh2);
    }
    return std::move(out);
  }
};

/// Counts the residues of a file's chains; throws beyond the limit.
class Size {
 public:
  explicit Size(const std::string& file) : file_(file) {}
  void add(size_t residues) {
    residues_ += residues;
    check_input(residues_ <= kMaxResidues, file_, ": its protein chains have more than ",
                kMaxResidues, " residues, the limit");
  }

 private:
  const std::string& file_;
  size_t residues_ = 0;
};

bool integer(const std::string& text, int64_t& value) {
  int32_t parsed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  value = parsed;
  return error == std::errc() && end == text.data() + text.size();
}

/// The polymers of an mmCIF file by their SEQRES, as mmcif_parsing._get_protein_chains.
struct Polymers {
  struct Polymer {
    std::string entity;
    std::vector<std::string> monomers;
    int64_t first = 0, last = 0;  // numbers of the first and last monomer
    bool peptide = false;
    std::string canonical;  // one letter a monomer where the file says so
  };
  std::vector<Polymer> polymers;
  std::unordered_map<std::string, size_t> of_entity;
  std::vector<std::pair<std::string, size_t>> chains;  // label_asym_id (each once), polymer

  Polymers(gemmi::cif::Block& block, const std::string& file) {
    std::unordered_map<std::string, bool> peptide;
    for (auto row : block.find("_chem_comp.", {"id", "type"}))
      peptide[row.str(0)] = lower(row.str(1)).find("peptide") != std::string::npos;
    for (auto row : block.find("_entity_poly_seq.", {"entity_id", "num", "mon_id"})) {
      const auto [found, is_new] = of_entity.emplace(row.str(0), polymers.size());
      if (is_new) polymers.push_back({.entity = row.str(0), .monomers = {}, .canonical = ""});
      Polymer& p = polymers[found->second];
      int64_t number = 0;
      check_input(integer(row[1], number) &&
                      (p.monomers.empty() || number == p.last || number == p.last + 1),
                  file, ": _entity_poly_seq.num ", show_text(row[1]), " of entity ",
                  show_text(p.entity), ", expected ", p.last + 1);
      // A second monomer at one place (microheterogeneity) adds none; AlphaFold's is one longer.
      if (!p.monomers.empty() && number == p.last) continue;
      if (p.monomers.empty()) p.first = number;
      p.last = number;
      p.monomers.push_back(row.str(2));
      const auto known = peptide.find(p.monomers.back());
      p.peptide |= known != peptide.end() ? known->second : is_amino_acid(p.monomers.back());
    }
    for (auto row : block.find("_entity_poly.", {"entity_id", "pdbx_seq_one_letter_code_can"})) {
      const auto found = of_entity.find(row.str(0));
      if (found == of_entity.end()) continue;
      std::string& letters = polymers[found->second].canonical = row.str(1);
      std::erase_if(letters, [](char c) { return c < 'A' || c > 'Z'; });
    }
    std::vector<std::vector<std::string>> asyms(polymers.size());
    std::unordered_set<std::string> seen;
    for (auto row : block.find("_struct_asym.", {"id", "entity_id"}))
      if (const auto found = of_entity.find(row.str(1));
          found != of_entity.end() && seen.insert(row.str(0)).second)
        asyms[found->second].push_back(row.str(0));
    check_input(seen.size() <= kMaxResidues, file, ": more than ", kMaxResidues, " chains");
    for (size_t p = 0; p < polymers.size(); ++p)
      if (polymers[p].peptide)
        for (std::string& asym : asyms[p]) chains.emplace_back(std::move(asym), p);
  }

  std::string sequence(size_t polymer) const {
    const Polymer& p = polymers[polymer];
    std::string letters;
    for (const std::string& monomer : p.monomers) {
      letters += letter_of(monomer);
      // Modified residues that gemmi's table lacks.
      if (letters.back() == 'X' && p.canonical.size() == p.monomers.size())
        letters.back() = p.canonical[letters.size() - 1];
    }
    return letters;
  }
};

/// The protein chains of an mmCIF file's first model.
std::vector<ChainStructure> chains_of(gemmi::cif::Block& block, const std::string& file,
                                      bool& several_models) {
  enum { kAsym, kModel, kAuthAsym, kSeq, kAuthSeq, kInsertion, kComp, kAtom, kOcc, kX, kY, kZ, kB };
  gemmi::cif::Table atoms = block.find(
      "_atom_site.", {"label_asym_id", "?pdbx_PDB_model_num", "?auth_asym_id", "?label_seq_id",
                      "?auth_seq_id", "?pdbx_PDB_ins_code", "label_comp_id", "label_atom_id",
                      "?occupancy", "Cartn_x", "Cartn_y", "Cartn_z", "?B_iso_or_equiv"});
  const Polymers polymers(block, file);
  const bool has_seqres = !polymers.chains.empty();
  std::vector<OpenChain> chains(polymers.chains.size());
  std::unordered_map<std::string, size_t> index;  // of label_asym_id, or of the authors' chain
  for (size_t c = 0; c < chains.size(); ++c) index.emplace(polymers.chains[c].first, c);

  // First which residue is seen where, then its atoms.
  struct Place {
    int32_t chain = -1, residue = 0;
  };
  std::vector<Place> places(size_t(atoms.length()));
  std::vector<std::string> last_residue;
  std::string model;
  Size size(file);
  size_t r = 0;
  for (auto row : atoms) {
    Place& place = places[r++];
    if (row.has(kModel)) {
      if (model.empty()) model = row[kModel];
      if (row[kModel] != model) {
        several_models = true;
        continue;
      }
    }
    const std::string asym = row.str(kAsym);
    const std::string author = row.has2(kAuthAsym) ? row.str(kAuthAsym) : asym;
    const std::string residue = row.str(kComp);
    if (has_seqres) {
      const auto found = index.find(asym);
      int64_t number = 0;
      if (found == index.end() || !row.has2(kSeq) || !integer(row[kSeq], number)) continue;
      OpenChain& chain = chains[found->second];
      const auto& p = polymers.polymers[polymers.chains[found->second].second];
      if (number < p.first || number > p.last) continue;
      place = {int32_t(found->second), int32_t(number - p.first)};
      chain.name = author;
      if (chain.residues.empty()) {
        chain.sequence = polymers.sequence(polymers.chains[found->second].second);
        chain.residues.resize(chain.sequence.size());
        size.add(chain.residues.size());
      }
      chain.residues[size_t(place.residue)] = residue;
    } else if (is_amino_acid(residue)) {
      const auto [found, is_new] = index.emplace(author, chains.size());
      if (is_new) {
        chains.emplace_back().name = author;
        last_residue.emplace_back();
      }
      OpenChain& chain = chains[found->second];
      std::string id = residue;
      for (const int column : {kSeq, kAuthSeq, kInsertion})
        if (row.has(size_t(column))) id += "/" + row[size_t(column)];
      if (id != last_residue[found->second]) {
        last_residue[found->second] = id;
        chain.sequence += letter_of(residue);
        chain.residues.push_back(residue);
        size.add(1);
      }
      place = {int32_t(found->second), int32_t(chain.residues.size()) - 1};
    }
  }
  for (OpenChain& chain : chains)
    if (!chain.residues.empty()) chain.allocate();
  r = 0;
  for (auto row : atoms) {
    const Place place = places[r++];
    if (place.chain < 0) continue;
    const float occupancy = row.has2(kOcc) ? float(gemmi::cif::as_number(row[kOcc], 1.0)) : 1.0f;
    chains[size_t(place.chain)].put(size_t(place.residue), row.str(kComp), row.str(kAtom),
                                    {gemmi::cif::as_number(row[kX]), gemmi::cif::as_number(row[kY]),
                                     gemmi::cif::as_number(row[kZ])},
                                    occupancy, row.has2(kB) ? gemmi::cif::as_number(row[kB]) : 0);
  }
  std::vector<ChainStructure> closed;
  for (OpenChain& chain : chains)
    if (!chain.residues.empty()) closed.push_back(chain.close());
  return closed;
}

/// The first value of the first of the tags that has one that is a number; 0 for none.
double first_number(gemmi::cif::Block& block, std::initializer_list<const char*> tags) {
  for (const char* tag : tags)
    for (const std::string& text : block.find_values(tag)) {
      const double value = gemmi::cif::as_number(text);
      if (std::isfinite(value)) return value;
      break;
    }
  return 0;
}

StructureEntry parse_mmcif(std::string_view text, const std::string& name) {
  gemmi::cif::Document document = gemmi::cif::read_memory(text.data(), text.size(), name.c_str());
  check_input(!document.blocks.empty(), name, ": holds no mmCIF data block");
  gemmi::cif::Block& block = document.blocks[0];
  StructureEntry entry;
  for (const std::string& date : block.find_values("_pdbx_audit_revision_history.revision_date"))
    if (const std::string day = gemmi::cif::as_string(date);
        day.size() == 10 && (entry.release_date.empty() || day < entry.release_date))
      entry.release_date = day;
  for (const std::string& method : block.find_values("_exptl.method"))
    entry.method += (entry.method.empty() ? "" : ",") + lower(gemmi::cif::as_string(method));
  entry.resolution = first_number(
      block,
      {"_refine.ls_d_res_high", "_em_3d_reconstruction.resolution", "_reflns.d_resolution_high"});
  entry.chains = chains_of(block, name, entry.several_models);
  return entry;
}

/// Up to the end of the first model. Throws where chains alternate without end: gemmi joins their
/// pieces in quadratic time.
std::string_view first_model(std::string_view text, const std::string& name) {
  constexpr int kMaxPieces = 10'000;
  constexpr size_t kChain = 20, kChainEnd = 22;
  int pieces = 0;
  std::string_view rest = text, chain;
  for (std::string_view line; next_line(rest, line);) {
    if (line.starts_with("ENDMDL")) return text.substr(0, text.size() - rest.size());
    if (!(line.starts_with("ATOM") || line.starts_with("HETATM")) || line.size() < kChainEnd)
      continue;
    const std::string_view here = line.substr(kChain, kChainEnd - kChain);
    pieces += here != chain;
    chain = here;
    check_input(pieces <= kMaxPieces, name, ": its chains change more than ", kMaxPieces,
                " times, the limit");
  }
  return text;
}

StructureEntry parse_pdb(std::string_view text, const std::string& name) {
  const std::string_view first = first_model(text, name);
  const std::string_view others = text.substr(first.size());
  text = first;
  check_input(text.size() <= kMaxPdbBytes, name, ": ", text.size(),
              " bytes of PDB format, the limit is ", kMaxPdbBytes);
  gemmi::Structure structure = gemmi::read_pdb_from_memory(text.data(), text.size(), name);
  StructureEntry entry;
  entry.several_models = others.find("\nMODEL ") != others.npos || others.starts_with("MODEL ");
  entry.resolution = structure.resolution;
  entry.method = lower(structure.get_info("_exptl.method"));
  if (structure.models.empty()) return entry;
  gemmi::add_entity_types(structure, false);
  for (gemmi::Chain& chain : structure.models[0].chains)
    std::erase_if(chain.residues, [](const gemmi::Residue& residue) {
      return residue.entity_type != gemmi::EntityType::Polymer;
    });
  std::erase_if(structure.models[0].chains,
                [](const gemmi::Chain& chain) { return chain.residues.empty(); });
  gemmi::setup_entities(structure);
  double cells = 0;
  for (const gemmi::Chain& chain : structure.models[0].chains)
    if (const gemmi::Entity* entity = structure.get_entity_of(chain.get_polymer()))
      cells += double(chain.residues.size()) * double(entity->full_sequence.size());
  if (cells > kMaxAlignment)
    for (gemmi::Entity& entity : structure.entities) entity.full_sequence.clear();
  gemmi::assign_label_seq_id(structure, false);

  Size size(name);
  std::vector<OpenChain> chains;
  std::vector<std::pair<const gemmi::Chain*, bool>> sources;  // and whether there is a SEQRES
  for (const gemmi::Chain& chain : structure.models[0].chains) {
    const gemmi::Entity* entity = structure.get_entity_of(chain.get_polymer());
    if (!entity || gemmi::is_polynucleotide(entity->polymer_type)) continue;
    OpenChain open;
    open.name = chain.name;
    bool peptide = false;
    for (const std::string& monomers : entity->full_sequence) {
      const std::string monomer = gemmi::Entity::first_mon(monomers);
      open.sequence += letter_of(monomer);
      peptide |= is_amino_acid(monomer);
    }
    const bool has_seqres = !open.sequence.empty();
    for (const gemmi::Residue& residue : chain.residues) {
      peptide |= is_amino_acid(residue.name);
      if (!has_seqres) open.sequence += letter_of(residue.name);
    }
    if (!peptide) continue;
    open.residues.resize(open.sequence.size());
    sources.emplace_back(&chain, has_seqres);
    size.add(open.residues.size());
    chains.push_back(std::move(open));
  }
  for (size_t c = 0; c < chains.size(); ++c) {
    OpenChain& open = chains[c];
    const std::vector<gemmi::Residue>& seen = sources[c].first->residues;
    const auto place = [&](size_t k) {
      if (!sources[c].second) return int64_t(k);
      const int64_t i = seen[k].label_seq ? int64_t(*seen[k].label_seq) - 1 : -1;
      return i < std::ssize(open.residues) ? i : -1;
    };
    for (size_t k = 0; k < seen.size(); ++k)
      if (const int64_t i = place(k); i >= 0) open.residues[size_t(i)] = seen[k].name;
    open.allocate();
    for (size_t k = 0; k < seen.size(); ++k)
      if (const int64_t i = place(k); i >= 0)
        for (const gemmi::Atom& atom : seen[k].atoms)
          open.put(size_t(i), seen[k].name, atom.name, {atom.pos.x, atom.pos.y, atom.pos.z},
                   atom.occ, atom.b_iso);
    entry.chains.push_back(open.close());
  }
  return entry;
}

bool looks_like_mmcif(std::string_view text) {
  for (std::string_view line; next_line(text, line);) {
    line = trim(line);
    if (line.empty() || line[0] == '#') continue;
    return line.starts_with("data_") || line.starts_with("_") || line.starts_with("loop_");
  }
  return false;
}

}  // namespace

StructureEntry parse_structure(std::string_view text, const std::string& name) {
  StructureEntry entry;
  try {
    entry = looks_like_mmcif(text) ? parse_mmcif(text, name) : parse_pdb(text, name);
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {
    std::string what = e.what();
    std::replace(what.begin(), what.end(), '\n', ' ');
    fail(Exit::kInput, name, ": cannot be read as ", looks_like_mmcif(text) ? "mmCIF" : "PDB", ": ",
         what);
  }
  check_input(!entry.chains.empty(), name,
              ": holds no protein chain, expected a structure in mmCIF or PDB format");
  return entry;
}

StructureEntry read_structure(const std::string& path) {
  return parse_structure(read_text_file(path, kMaxBytes), path);
}

}  // namespace ff
