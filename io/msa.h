// Multiple sequence alignments in A3M (HHblits, ColabFold) and Stockholm (jackhmmer) format.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ff {

/// Rows of equal length over the query's residues; row 0 is the query.
struct Msa {
  std::vector<std::string> sequences;  ///< 'A' to 'Z' and '-', insertions removed
  /// [row][column]: residues inserted before the column.
  std::vector<std::vector<int>> deletion_matrix;
  std::vector<std::string> descriptions;
};

/// As alphafold/data/parsers.py, parse_a3m: lower-case letters are insertions. A first line
/// '#length 1' (ColabFold, one chain) and other comments before the first record are skipped, and
/// so are the zero bytes with which ColabFold's server separates blocks. Throws Exit::kInput with
/// `name`, the record's number (from 1) and title on rows of other lengths, other characters and
/// empty files.
Msa parse_a3m(std::string_view text, const std::string& name);

/// As alphafold/data/parsers.py, parse_stockholm: columns where the query has '-' are insertions.
/// The same errors.
Msa parse_stockholm(std::string_view text, const std::string& name);

/// Reads a file (plain or gzip) of either format, told apart by its first line.
Msa read_msa(const std::string& path);

}  // namespace ff
