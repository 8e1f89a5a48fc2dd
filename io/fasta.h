// FASTA files: the sequences to predict.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ff {

struct FastaRecord {
  std::string title;     ///< the line after '>'
  std::string tag;       ///< the title's first word as a file name; unique in its file
  std::string sequence;  ///< letters A to Z; features map those that are no amino acid
};

/// All records of a file (plain or gzip). Sequences become upper case; blanks inside them and a '*'
/// at their end are dropped. Throws Exit::kInput with file and line on anything that is no letter,
/// on records without a sequence or of more than 100,000 residues, and on files without records.
std::vector<FastaRecord> read_fasta(const std::string& path);

/// The same for a text; `name` stands for the file in errors.
std::vector<FastaRecord> parse_fasta(std::string_view text, const std::string& name);

}  // namespace ff
