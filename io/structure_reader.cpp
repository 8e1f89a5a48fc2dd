// gemmi parses; the rest maps its residues to SEQRES positions and the atom37 layout.
#include "io/structure_reader.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <gemmi/align.hpp>
#include <gemmi/cif.hpp>
#include <gemmi/mmcif.hpp>
#include <gemmi/pdb.hpp>
#include <gemmi/polyheur.hpp>
#include <limits>
#include <map>

#include "core/geometry/residue_constants.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kMaxBytes = int64_t(1) << 30;
constexpr size_t kMaxResidues = 100'000;
constexpr double kMaxAlignment = 1e8;  // cells of the alignment of SEQRES with the residues seen

char letter_of(const std::string& residue) {
  const char code = gemmi::find_tabulated_residue(residue).one_letter_code;
  return code == ' ' || code == '\0' ? 'X' : char(code & ~0x20);
}

/// Fills one residue's row of the chain.
void place(const gemmi::Residue& residue, int64_t i, ChainStructure& chain) {
  std::array<float, kAtom37> occupancy;
  occupancy.fill(-1);
  float* x = chain.positions.data<float>() + i * kAtom37 * 3;
  float* mask = chain.mask.data<float>() + i * kAtom37;
  std::fill_n(x, kAtom37 * 3, 0.0f);
  std::fill_n(mask, kAtom37, 0.0f);
  for (const gemmi::Atom& atom : residue.atoms) {
    const bool selenium = residue.name == "MSE" && atom.name == "SE";
    const int a = atom37_index(selenium ? "SD" : atom.name);
    const bool finite =
        std::isfinite(atom.pos.x) && std::isfinite(atom.pos.y) && std::isfinite(atom.pos.z);
    if (a < 0 || !finite || !(atom.occ > occupancy[size_t(a)])) continue;
    occupancy[size_t(a)] = atom.occ;
    mask[a] = 1;
    x[3 * a] = float(atom.pos.x);
    x[3 * a + 1] = float(atom.pos.y);
    x[3 * a + 2] = float(atom.pos.z);
  }
  constexpr int kCd = atom37_index("CD"), kNh1 = atom37_index("NH1"), kNh2 = atom37_index("NH2");
  const auto distance2 = [&](int a, int b) {
    float sum = 0;
    for (int k = 0; k < 3; ++k)
      sum += (x[3 * a + k] - x[3 * b + k]) * (x[3 * a + k] - x[3 * b + k]);
    return sum;
  };
  if (residue.name == "ARG" && mask[kCd] && mask[kNh1] && mask[kNh2] &&
      distance2(kNh1, kCd) > distance2(kNh2, kCd))
    std::swap_ranges(x + 3 * kNh1, x + 3 * kNh1 + 3, x + 3 * kNh2);
}

/// The chain of an entity's residues, by their places in its sequence.
ChainStructure chain_of(const gemmi::Chain& chain, const gemmi::Entity& entity,
                        const std::string& subchain, const std::string& file) {
  ChainStructure out;
  out.name = chain.name;
  std::vector<const gemmi::Residue*> seen;
  for (const gemmi::Residue& residue : chain.residues)
    if (residue.subchain == subchain) seen.push_back(&residue);
  const bool has_seqres = !entity.full_sequence.empty();
  check_input(std::max(seen.size(), entity.full_sequence.size()) <= kMaxResidues, file, ": chain ",
              chain.name, " has more than ", kMaxResidues, " residues, the limit");
  if (has_seqres) {
    for (const std::string& monomer : entity.full_sequence)
      out.sequence += letter_of(gemmi::Entity::first_mon(monomer));
  } else {
    for (const gemmi::Residue* residue : seen) out.sequence += letter_of(residue->name);
  }
  const auto n = int64_t(out.sequence.size());
  out.positions = Tensor::zeros({n, kAtom37, 3});
  out.mask = Tensor::zeros({n, kAtom37});
  for (size_t k = 0; k < seen.size(); ++k) {
    // Of several residues at one place (microheterogeneity) the last stays, as in AlphaFold.
    const int64_t i =
        has_seqres ? int64_t(seen[k]->label_seq ? *seen[k]->label_seq : 0) - 1 : int64_t(k);
    if (i >= 0 && i < n) place(*seen[k], i, out);
  }
  return out;
}

bool is_protein(const gemmi::Entity& entity, const gemmi::Chain& chain,
                const std::string& subchain) {
  if (entity.entity_type != gemmi::EntityType::Polymer) return false;
  switch (entity.polymer_type) {
    case gemmi::PolymerType::Dna:
    case gemmi::PolymerType::Rna:
    case gemmi::PolymerType::DnaRnaHybrid:
    case gemmi::PolymerType::SaccharideD:
    case gemmi::PolymerType::SaccharideL:
      return false;
    default:
      break;
  }
  const auto amino_acid = [](const std::string& name) {
    return gemmi::find_tabulated_residue(name).is_amino_acid();
  };
  for (const std::string& monomer : entity.full_sequence)
    if (amino_acid(gemmi::Entity::first_mon(monomer))) return true;
  for (const gemmi::Residue& residue : chain.residues)
    if (residue.subchain == subchain && amino_acid(residue.name)) return true;
  return false;
}

std::vector<ChainStructure> chains_of(const gemmi::Structure& structure, const std::string& file) {
  std::vector<ChainStructure> chains;
  if (structure.models.empty()) return chains;
  // Where a subchain's residues are.
  std::map<std::string, const gemmi::Chain*> home;
  for (const gemmi::Chain& chain : structure.models[0].chains)
    for (const gemmi::Residue& residue : chain.residues) home.emplace(residue.subchain, &chain);
  for (const gemmi::Entity& entity : structure.entities)
    for (const std::string& subchain : entity.subchains) {
      const auto found = home.find(subchain);
      if (found == home.end() || !is_protein(entity, *found->second, subchain)) continue;
      chains.push_back(chain_of(*found->second, entity, subchain, file));
    }
  return chains;
}

/// The first value of the first of the tags that has one that is a number; 0 for none.
double first_number(const gemmi::cif::Block& block, std::initializer_list<const char*> tags) {
  for (const char* tag : tags)
    for (const std::string& text : const_cast<gemmi::cif::Block&>(block).find_values(tag)) {
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
  for (const std::string& method : block.find_values("_exptl.method")) {
    std::string lower = gemmi::cif::as_string(method);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    entry.method += (entry.method.empty() ? "" : ",") + lower;
  }
  entry.resolution = first_number(
      block,
      {"_refine.ls_d_res_high", "_em_3d_reconstruction.resolution", "_reflns.d_resolution_high"});
  const gemmi::Structure structure = gemmi::make_structure_from_block(block);
  entry.chains = chains_of(structure, name);
  return entry;
}

StructureEntry parse_pdb(std::string_view text, const std::string& name) {
  gemmi::Structure structure = gemmi::read_pdb_from_memory(text.data(), text.size(), name);
  gemmi::setup_entities(structure);
  for (gemmi::Entity& entity : structure.entities) {
    // A hostile SEQRES could ask for any amount of memory.
    size_t longest = 0;
    for (const gemmi::Model& model : structure.models)
      for (const gemmi::Chain& chain : model.chains)
        longest = std::max(longest, chain.residues.size());
    if (double(longest) * double(entity.full_sequence.size()) > kMaxAlignment)
      entity.full_sequence.clear();
  }
  gemmi::assign_label_seq_id(structure, false);
  StructureEntry entry;
  entry.resolution = structure.resolution;
  entry.method = structure.get_info("_exptl.method");
  std::transform(entry.method.begin(), entry.method.end(), entry.method.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  entry.chains = chains_of(structure, name);
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
