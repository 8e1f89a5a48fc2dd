// Fuzzes the reader of structures: mmCIF and PDB, with gemmi under it.
#include "core/geometry/residue_constants.h"
#include "io/structure_reader.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ff::fuzz([&] {
    const ff::StructureEntry entry =
        ff::parse_structure({reinterpret_cast<const char*>(data), size}, "input");
    ff::fuzz_check(!entry.chains.empty(), "no chains");
    for (const ff::ChainStructure& chain : entry.chains) {
      const auto n = int64_t(chain.sequence.size());
      ff::fuzz_check(n <= int64_t(size), "more residues than bytes");
      ff::fuzz_check(chain.positions.shape() == ff::Dims{n, ff::kAtom37, 3} &&
                         chain.mask.shape() == ff::Dims{n, ff::kAtom37},
                     "shapes");
    }
  });
  return 0;
}

std::vector<std::string> ff::fuzz_seeds() {
  return {
      "data_x\n_entry.id x\n_pdbx_audit_revision_history.revision_date 2000-01-01\n_exptl.method "
      "'X-RAY DIFFRACTION'\n_refine.ls_d_res_high 1.5\nloop_\n_entity.id\n_entity.type\n1 "
      "polymer\nloop_\n_entity_poly.entity_id\n_entity_poly.type\n1 "
      "'polypeptide(L)'\nloop_\n_struct_asym.id\n_struct_asym.entity_id\nA "
      "1\nloop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n1 1 "
      "GLY\n1 2 MSE\nloop_\n_atom_site.group_PDB\n_atom_site.id\n_atom_site.type_symbol\n_atom_"
      "site.label_atom_id\n_atom_site.label_alt_id\n_atom_site.label_comp_id\n_atom_site.label_"
      "asym_id\n_atom_site.label_entity_id\n_atom_site.label_seq_id\n_atom_site.pdbx_PDB_ins_"
      "code\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\n_atom_site.occupancy\n_"
      "atom_site.B_iso_or_equiv\n_atom_site.auth_seq_id\n_atom_site.auth_comp_id\n_atom_site."
      "auth_asym_id\n_atom_site.auth_atom_id\n_atom_site.pdbx_PDB_model_num\nATOM 1 C CA . GLY A 1 "
      "1 ? 1.0 2.0 3.0 1.0 9.0 1 GLY A CA 1\nHETATM 2 SE SE A MSE A 1 2 ? 4.0 5.0 6.0 0.5 9.0 2 "
      "MSE "
      "A SE 1\n",
      "data_y\nloop_\n_atom_site.label_asym_id\n_atom_site.label_comp_id\n_atom_site.label_atom_"
      "id\n_"
      "atom_site.label_seq_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\nA GLY "
      "CA 1 "
      "1 2 3\nA ARG NH1 2 4 5 6\nB ALA CA . 7 8 9\n",
      "HEADER    X                                       01-JAN-00   1ABC              \n"
      "SEQRES   1 A    2  GLY ALA                                                      \n"
      "ATOM      1  CA  GLY A   1       1.000   2.000   3.000  1.00 10.00           C  \n"
      "ATOM      2  CA AALA A   2       4.000   2.000   3.000  0.50 10.00           C  "
      "\nTER\nEND\n"};
}

std::vector<std::string> ff::fuzz_words() {
  return {"loop_\n",
          "data_y\n",
          "'",
          "\"",
          "\n;\n",
          "#",
          " ? ",
          " . ",
          " nan ",
          " 1e400 ",
          "MODEL        2\n",
          "ENDMDL\n",
          "TER\n",
          "SEQRES   1 A 9999  GLY GLY GLY\n",
          "HETATM",
          "ATOM  ",
          " 2147483648 ",
          "-1",
          "_atom_site.label_seq_id\n",
          "1 2 SER\n",
          "A 1\n",
          "_entity_poly.pdbx_seq_one_letter_code_can GA\n",
          "\r\n"};
}
