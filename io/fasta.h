// FASTA files and tables: the sequences to predict.
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

/// All records of a file (plain or gzip); .csv and .tsv are tables. Sequences become upper case;
/// blanks inside them and a '*' at their end are dropped. Throws Exit::kInput with file and line on
/// anything that is no letter, on records without a sequence or of more than 100,000 residues, and
/// on files without records.
std::vector<FastaRecord> read_fasta(const std::string& path);

/// The same for a text; `name` stands for the file in errors.
std::vector<FastaRecord> parse_fasta(std::string_view text, const std::string& name);

/// ColabFold's tables: a line of titles with `id` and `sequence`, divided by commas or tabs. The
/// same errors.
std::vector<FastaRecord> parse_csv(std::string_view text, const std::string& name);

/// The first word of a title as a file name: ASCII letters, digits, '.', '-' and '_', the rest
/// becomes '_'; at most 100 bytes, never empty ("record_N"), never with '.' or '-' in front.
std::string tag_of(std::string_view title, size_t record);

}  // namespace ff
