// The PDB format's columns, and ModelCIF's categories.
#include "io/structure_writer.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <gemmi/cifdoc.hpp>
#include <gemmi/to_cif.hpp>
#include <set>

#include "core/geometry/residue_constants.h"

namespace ff {

namespace {

constexpr int64_t kMostResidues = 9999;
constexpr int kMostSerials = 99999, kColumns = 80;
constexpr float kLeastCoordinate = -999.9995f, kMostCoordinate = 9999.9995f;
constexpr const char* kChain = "A";

/// A prediction's contiguous tensors, checked.
struct Atoms {
  explicit Atoms(const Prediction& p)
      : n(p.aatype.numel()),
        aatype(p.aatype.contiguous()),
        positions(p.positions.contiguous()),
        mask(p.mask.contiguous()),
        plddt(p.plddt.contiguous()) {
    check(n > 0 && positions.shape() == Dims{n, kAtom37, 3} && mask.shape() == Dims{n, kAtom37} &&
              plddt.shape() == Dims{n},
          "a prediction of ", n, " residues with positions ", positions.shape().str(), ", mask ",
          mask.shape().str(), ", pLDDT ", plddt.shape().str());
    for (int64_t i = 0; i < n; ++i) {
      const int type = aatype.data<int32_t>()[i];
      check(type >= 0 && type <= kUnknownRestype, "residue ", i + 1, " is of type ", type);
      check(std::isfinite(b(i)), "the pLDDT of residue ", i + 1, " is ", b(i));
    }
    each([](int64_t i, int a, const float* x) {
      for (int k = 0; k < 3; ++k)
        check(std::isfinite(x[k]), "the position of atom ", kAtomNames[a], " of residue ", i + 1,
              " is ", x[k]);
    });
  }

  /// Calls f(residue, atom37 place, position) for each atom that is there.
  template <class F>
  void each(F f) const {
    for (int64_t i = 0; i < n; ++i)
      for (int a = 0; a < kAtom37; ++a)
        if (mask.data<float>()[i * kAtom37 + a] >= 0.5f)
          f(i, a, positions.data<float>() + (i * kAtom37 + a) * 3);
  }
  std::string_view name(int64_t i) const { return kRestypeNames[aatype.data<int32_t>()[i]]; }
  float b(int64_t i) const { return plddt.data<float>()[i]; }

  int64_t n;
  Tensor aatype, positions, mask, plddt;
};

/// Why the PDB format cannot hold it; "" where it can.
std::string why_no_pdb(const Atoms& atoms) {
  if (atoms.n > kMostResidues)
    return cat(atoms.n, " residues do not fit the PDB format (at most ", kMostResidues, ")");
  int64_t serials = 1;  // of TER
  std::string why;
  atoms.each([&](int64_t i, int a, const float* x) {
    ++serials;
    for (int k = 0; k < 3; ++k)
      if (why.empty() && !(x[k] > kLeastCoordinate && x[k] < kMostCoordinate))
        why = cat("the position of atom ", kAtomNames[a], " of residue ", i + 1, " is ", x[k],
                  ", which the PDB format cannot hold");
  });
  if (serials > kMostSerials)
    return cat(serials - 1, " atoms do not fit the PDB format (at most ", kMostSerials - 1, ")");
  return why;
}

}  // namespace

bool fits_pdb(const Prediction& prediction) { return why_no_pdb(Atoms(prediction)).empty(); }

std::string to_pdb(const Prediction& prediction) {
  const Atoms atoms(prediction);
  const std::string why = why_no_pdb(atoms);
  check_input(why.empty(), why, "; write mmCIF");

  std::string out;
  char text[2 * kColumns];
  const auto line = [&] {
    std::string padded = text;
    padded.resize(kColumns, ' ');
    out += padded + "\n";
  };
  std::snprintf(text, sizeof text, "MODEL     1");
  line();
  int serial = 0;
  atoms.each([&](int64_t i, int a, const float* x) {
    const std::string name(kAtomNames[a]);
    std::snprintf(text, sizeof text,
                  "ATOM  %5d %-4s %3.3s %s%4d    %8.3f%8.3f%8.3f%6.2f%6.2f          %2c", ++serial,
                  (name.size() == 4 ? name : " " + name).c_str(), atoms.name(i).data(), kChain,
                  int(i + 1), x[0], x[1], x[2], 1.0, atoms.b(i), name[0]);
    line();
  });
  std::snprintf(text, sizeof text, "TER   %5d      %3.3s %s%4d", ++serial,
                atoms.name(atoms.n - 1).data(), kChain, int(atoms.n));
  line();
  std::snprintf(text, sizeof text, "ENDMDL");
  line();
  std::snprintf(text, sizeof text, "END");
  line();
  return out;
}

namespace {

namespace cif = gemmi::cif;
using Names = std::vector<std::string>;

/// Names of the residues, from the PDB's Chemical Component Dictionary.
constexpr const char* kComponentNames[kRestypes + 1] = {
    "ALANINE",       "ARGININE",      "ASPARAGINE", "ASPARTIC ACID", "CYSTEINE",  "GLUTAMINE",
    "GLUTAMIC ACID", "GLYCINE",       "HISTIDINE",  "ISOLEUCINE",    "LEUCINE",   "LYSINE",
    "METHIONINE",    "PHENYLALANINE", "PROLINE",    "SERINE",        "THREONINE", "TRYPTOPHAN",
    "TYROSINE",      "VALINE",        "UNKNOWN"};

/// Jumper et al. 2021, in the form of names that mmCIF asks for.
constexpr const char* kAuthors[] = {
    "Jumper, J.",     "Evans, R.",       "Pritzel, A.",         "Green, T.",
    "Figurnov, M.",   "Ronneberger, O.", "Tunyasuvunakool, K.", "Bates, R.",
    "Zidek, A.",      "Potapenko, A.",   "Bridgland, A.",       "Meyer, C.",
    "Kohl, S.A.A.",   "Ballard, A.J.",   "Cowie, A.",           "Romera-Paredes, B.",
    "Nikolov, S.",    "Jain, R.",        "Adler, J.",           "Back, T.",
    "Petersen, S.",   "Reiman, D.",      "Clancy, E.",          "Zielinski, M.",
    "Steinegger, M.", "Pacholska, M.",   "Berghammer, T.",      "Bodenstein, S.",
    "Silver, D.",     "Vinyals, O.",     "Senior, A.W.",        "Kavukcuoglu, K.",
    "Kohli, P.",      "Hassabis, D."};

std::string fixed(double x, int decimals) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, x, std::chars_format::fixed, decimals).ptr};
}

/// A user's text as a CIF value: printable ASCII on one line, as the format demands.
std::string cif_text(std::string_view text) {
  constexpr size_t kMost = 1000;  // a line holds 2,048
  std::string plain;
  for (const char c : text.substr(0, kMost)) {
    if (c > ' ' && c <= '~')
      plain += c;
    else if (c < 0)  // one ? for each character of UTF-8
      plain += (c & 0x40) ? "?" : "";
    else if (!plain.empty() && plain.back() != ' ')
      plain += ' ';
  }
  while (!plain.empty() && plain.back() == ' ') plain.pop_back();
  return plain.empty() ? "?" : cif::quote(plain);
}

std::string cif_name(std::string_view text) {
  std::string name(text.substr(0, 80));
  for (char& c : name)
    if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' ||
          c == '.' || c == '_'))
      c = '_';
  return name.empty() ? "model" : name;
}

/// A table, row by row.
class Table {
 public:
  Table(cif::Block& block, const std::string& category, const Names& items)
      : loop_(block.init_mmcif_loop(category, items)) {}
  template <class... Values>
  void row(Values&&... values) {
    check(sizeof...(values) == loop_.tags.size(), "a row of ", sizeof...(values), " values for ",
          loop_.tags.front());
    (loop_.values.emplace_back(std::forward<Values>(values)), ...);
  }

 private:
  cif::Loop& loop_;
};

/// Lines of 80 letters as a text field; short text as it is.
std::string wrapped(const std::string& text) {
  if (text.size() <= size_t(kColumns)) return cif::quote(text);
  std::string lines = ";";
  for (size_t i = 0; i < text.size(); i += kColumns) lines += text.substr(i, kColumns) + "\n";
  return lines + ";";
}

void add_method(cif::Block& block, const Prediction& p, const ModelInfo& info) {
  Table(block, "_audit_conform.", {"dict_name", "dict_version", "dict_location"})
      .row("mmcif_ma.dic", "1.3.9",
           "https://raw.githubusercontent.com/ihmwg/ModelCIF/master/dist/mmcif_ma.dic");
  Table(block, "_pdbx_data_usage.", {"id", "type", "details"})
      .row("1", "disclaimer",
           "'A prediction, not an experimental structure; the B factors are pLDDT, 0 to 100.'");
  Table(block, "_citation.",
        {"id", "title", "journal_full", "journal_abbrev", "journal_volume", "page_first",
         "page_last", "year", "journal_id_ASTM", "country", "journal_id_ISSN",
         "pdbx_database_id_PubMed", "pdbx_database_id_DOI"})
      .row("primary", "'Highly accurate protein structure prediction with AlphaFold'", "Nature",
           "Nature", "596", "583", "589", "2021", "NATUAS", "UK", "0028-0836", "34265844",
           "10.1038/s41586-021-03819-2");
  Table authors(block, "_citation_author.", {"citation_id", "name", "ordinal"});
  int ordinal = 0;
  for (const char* author : kAuthors)
    authors.row("primary", cif::quote(author), std::to_string(++ordinal));
  Table(block, "_software.",
        {"pdbx_ordinal", "name", "version", "type", "description", "classification"})
      .row("1", "fastfold", FASTFOLD_VERSION, "package",
           "\"Structure prediction with AlphaFold 2's network\"", "'model building'");
  Table(block, "_ma_software_group.", {"ordinal_id", "group_id", "software_id"}).row("1", "1", "1");
  Table data(block, "_ma_data.", {"id", "name", "content_type"});
  data.row("1", "'Target sequence'", "target");
  data.row("2", "Model", "'model coordinates'");
  Table(block, "_ma_model_list.",
        {"ordinal_id", "model_id", "model_group_id", "model_name", "model_group_name", "data_id",
         "model_type"})
      .row("1", "1", "1",
           info.rank == 0 ? "'Top ranked model'" : cif::quote(cat("Model of rank ", info.rank + 1)),
           cif_text(cat("fastfold ", FASTFOLD_VERSION, ", ", p.model, ", seed ", p.seed)), "2",
           "'Ab initio model'");
  Table steps(block, "_ma_protocol_step.",
              {"ordinal_id", "protocol_id", "step_id", "method_type", "step_name", "details",
               "software_group_id"});
  int step = 0;
  const auto add = [&](const char* type, const char* name, const std::string& details) {
    const std::string number = std::to_string(++step);
    steps.row(number, "1", number, type, name, cif_text(details), "1");
  };
  if (info.alignment)
    add("'coevolution MSA'", "'Multiple sequence alignment'", "As given to the program.");
  if (info.templates)
    add("'template search'", "'Structural templates'", "As given to the program.");
  add("modeling", "Prediction",
      cat("Parameters ", p.model, ", random seed ", p.seed, ", ", p.num_recycles, " recycles."));
}

void add_target(cif::Block& block, const Atoms& atoms, const std::string& title) {
  Table(block, "_entity.",
        {"id", "type", "src_method", "pdbx_description", "pdbx_number_of_molecules"})
      .row("1", "polymer", "?", title, "1");
  std::string letters, canonical;
  std::set<int> kinds;
  for (int64_t i = 0; i < atoms.n; ++i) {
    const int type = atoms.aatype.data<int32_t>()[i];
    kinds.insert(type);
    canonical += kRestypeLetters[size_t(type)];
    letters += type == kUnknownRestype ? "(UNK)" : canonical.substr(canonical.size() - 1);
  }
  Table(block, "_entity_poly.",
        {"entity_id", "type", "nstd_linkage", "nstd_monomer", "pdbx_seq_one_letter_code",
         "pdbx_seq_one_letter_code_can", "pdbx_strand_id"})
      .row("1", "polypeptide(L)", "no", "no", wrapped(letters), wrapped(canonical), kChain);
  Table components(block, "_chem_comp.", {"id", "type", "name"});
  for (const int type : kinds)
    components.row(std::string(kRestypeNames[type]),
                   type == kGly ? "'peptide linking'" : "'L-peptide linking'",
                   cif::quote(kComponentNames[type]));
  Table(block, "_struct_asym.", {"id", "entity_id", "details"}).row(kChain, "1", "?");
  Table(block, "_ma_target_entity.", {"entity_id", "data_id", "origin"}).row("1", "1", ".");
  Table(block, "_ma_target_entity_instance.", {"asym_id", "entity_id", "details"})
      .row(kChain, "1", ".");
  Table sequence(block, "_entity_poly_seq.", {"entity_id", "num", "mon_id", "hetero"});
  for (int64_t i = 0; i < atoms.n; ++i)
    sequence.row("1", std::to_string(i + 1), std::string(atoms.name(i)), "n");
}

void add_confidence(cif::Block& block, const Prediction& p, const Atoms& atoms) {
  Table metrics(block, "_ma_qa_metric.", {"id", "name", "type", "mode", "software_group_id"});
  metrics.row("1", "pLDDT", "pLDDT", "global", "1");
  metrics.row("2", "pLDDT", "pLDDT", "local", "1");
  if (p.ptm) metrics.row("3", "pTM", "pTM", "global", "1");
  Table global(block, "_ma_qa_metric_global.",
               {"ordinal_id", "model_id", "metric_id", "metric_value"});
  global.row("1", "1", "1", fixed(p.mean_plddt, 2));
  if (p.ptm) global.row("2", "1", "3", fixed(*p.ptm, 4));
  Table local(block, "_ma_qa_metric_local.",
              {"ordinal_id", "model_id", "label_asym_id", "label_seq_id", "label_comp_id",
               "metric_id", "metric_value"});
  for (int64_t i = 0; i < atoms.n; ++i) {
    const std::string number = std::to_string(i + 1);
    local.row(number, "1", kChain, number, std::string(atoms.name(i)), "2", fixed(atoms.b(i), 2));
  }
}

void add_atoms(cif::Block& block, const Atoms& atoms) {
  std::vector<bool> modelled(size_t(atoms.n), false);
  std::set<char> elements;
  atoms.each([&](int64_t i, int a, const float*) {
    modelled[size_t(i)] = true;
    elements.insert(kAtomNames[a][0]);
  });
  Table scheme(
      block, "_pdbx_poly_seq_scheme.",
      {"asym_id", "entity_id", "seq_id", "mon_id", "ndb_seq_num", "pdb_seq_num", "auth_seq_num",
       "pdb_mon_id", "auth_mon_id", "pdb_strand_id", "pdb_ins_code", "hetero"});
  for (int64_t i = 0; i < atoms.n; ++i) {
    const std::string number = std::to_string(i + 1), name(atoms.name(i));
    const bool there = modelled[size_t(i)];
    scheme.row(kChain, "1", number, name, number, number, there ? number : "?", there ? name : "?",
               there ? name : "?", kChain, ".", "n");
  }
  Table types(block, "_atom_type.", {"symbol"});
  for (const char element : elements) types.row(std::string(1, element));
  Table sites(block, "_atom_site.", {"group_PDB",      "id",
                                     "type_symbol",    "label_atom_id",
                                     "label_alt_id",   "label_comp_id",
                                     "label_asym_id",  "label_entity_id",
                                     "label_seq_id",   "pdbx_PDB_ins_code",
                                     "Cartn_x",        "Cartn_y",
                                     "Cartn_z",        "occupancy",
                                     "B_iso_or_equiv", "auth_seq_id",
                                     "auth_comp_id",   "auth_asym_id",
                                     "auth_atom_id",   "pdbx_PDB_model_num"});
  int64_t id = 0;
  atoms.each([&](int64_t i, int a, const float* x) {
    const std::string number = std::to_string(i + 1), name(atoms.name(i)), atom(kAtomNames[a]);
    sites.row("ATOM", std::to_string(++id), atom.substr(0, 1), atom, ".", name, kChain, "1", number,
              "?", fixed(x[0], 3), fixed(x[1], 3), fixed(x[2], 3), "1.00", fixed(atoms.b(i), 2),
              number, name, kChain, atom, "1");
  });
}

}  // namespace

std::string to_mmcif(const Prediction& prediction, const ModelInfo& info) {
  const Atoms atoms(prediction);
  cif::Document document;
  cif::Block& block = document.add_new_block(cif_name(info.entry));
  const std::string title = cif_text(info.title.empty() ? info.entry : info.title);
  block.set_pair("_entry.id", cif::quote(block.name));
  block.set_pair("_struct.entry_id", cif::quote(block.name));
  block.set_pair("_struct.title", title);
  add_method(block, prediction, info);
  add_target(block, atoms, title);
  add_confidence(block, prediction, atoms);
  add_atoms(block, atoms);
  std::ostringstream out;
  cif::write_cif_to_stream(out, document, cif::Style::Pdbx);
  return out.str();
}

}  // namespace ff
