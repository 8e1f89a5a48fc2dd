// Multiple sequence alignments in A3M (HHblits, ColabFold) and Stockholm (jackhmmer) format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ff {

/// Rows over the query's residues; row 0 is the query. They are kept as A3M has them: 'A' to 'Z'
/// and '-' stand in a column, 'a' to 'z' are residues inserted before the next one.
struct Msa {
  std::vector<std::string> rows;
  std::vector<std::string> descriptions;
  size_t columns = 0;  ///< of every row

  size_t size() const { return rows.size(); }
  /// A row without its insertions.
  std::string aligned(size_t row) const;
  /// Residues that a row has inserted before each column, as AlphaFold's deletion matrix.
  std::vector<int32_t> deletions(size_t row) const;
};

/// As alphafold/data/parsers.py, parse_a3m: lower-case letters are insertions. '.' (A2M) is
/// dropped. A first line '#length 1' (ColabFold, one chain) and other comments before the first
/// record are skipped, and so are the zero bytes with which ColabFold's server separates blocks.
/// Throws Exit::kInput with `name`, the record's number (from 1) and title on rows of other
/// lengths, other characters and empty files.
Msa parse_a3m(std::string_view text, const std::string& name);

/// As alphafold/data/parsers.py, parse_stockholm: columns where the query has a gap are insertions.
/// Where AlphaFold fails, '.' is a gap and lower case is upper case. The same errors; a text
/// without '//' at its end is incomplete. Of more than `max_rows` sequences the first are taken (as
/// AlphaFold's truncate_stockholm_msa).
Msa parse_stockholm(std::string_view text, const std::string& name, size_t max_rows = SIZE_MAX);

/// Either format, told apart by the first line.
Msa parse_msa(std::string_view text, const std::string& name, size_t max_rows = SIZE_MAX);

/// Text of an alignment file, plain or gzip.
std::string read_msa_text(const std::string& path);

/// Reads a file (plain or gzip) of either format; `max_rows` is for Stockholm.
Msa read_msa(const std::string& path, size_t max_rows = SIZE_MAX);

/// The rows of all alignments in the order given, each once: of rows with the same columns the
/// first. Throws Exit::kInput where they have another number of columns than the first alignment.
Msa merge_msas(std::vector<Msa> msas);

/// A3M text, insertions kept: parse_a3m gives the same rows back.
std::string to_a3m(const Msa& msa);

/// The species in the name of a UniProt entry: "HUMAN" of "sp|P69905|HBA_HUMAN/2-142 ...", else "".
/// AlphaFold's msa_identifiers.get_identifiers.
std::string species_of(std::string_view description);

}  // namespace ff
