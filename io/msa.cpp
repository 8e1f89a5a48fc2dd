// The A3M and Stockholm parsers.
#include "io/msa.h"

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kMaxBytes = int64_t(2) << 30;
constexpr size_t kMaxRows = 4'000'000;

bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_column(char c) { return (c >= 'A' && c <= 'Z') || c == '-'; }

/// "file: record 3 'title'"
std::string record(const std::string& name, size_t row, const std::string& title) {
  return cat(name, ": record ", row + 1, " ", show_text(title));
}

void check_rows(size_t rows, const std::string& name) {
  check_input(rows < kMaxRows, name, ": more than ", kMaxRows, " rows, the limit; filter it");
}

/// ColabFold's first line, '#length,length<TAB>copies,copies': returns the length of the one chain,
/// 0 when the line is another comment.
size_t chain_length(std::string_view line, const std::string& name) {
  line.remove_prefix(1);
  size_t length = 0, copies = 0;
  const char* end = line.data() + line.size();
  auto [p, error] = std::from_chars(line.data(), end, length);
  if (error != std::errc() || p == end || (*p != '\t' && *p != ',')) return 0;
  const bool is_one = *p == '\t' && std::from_chars(p + 1, end, copies).ptr == end && copies == 1;
  check_input(is_one, name, ":1: is the alignment of a complex (", show_text(line),
              "), expected one chain; give each chain its own alignment");
  return length;
}

/// Appends a row of letters and '-' to the aligned sequence and its deletion counts.
struct RowBuilder {
  std::string sequence;
  std::vector<int> deletions;
  int pending = 0;

  void add(char c, bool is_insertion) {
    if (is_insertion) {
      ++pending;
    } else {
      sequence += c;
      deletions.push_back(pending);
      pending = 0;
    }
  }
  void finish(Msa& msa, const std::string& title, const std::string& name) {
    const size_t row = msa.sequences.size();
    if (row == 0 && sequence.empty())
      fail(Exit::kInput, record(name, row, title),
           " has no aligned residue, expected the query; lower-case letters are insertions");
    if (row > 0 && sequence.size() != msa.sequences[0].size())
      fail(Exit::kInput, record(name, row, title), " has ", sequence.size(),
           " aligned columns, expected ", msa.sequences[0].size(), " as in record 1 ",
           show_text(msa.descriptions[0]),
           "; the file is damaged or not an alignment to this query");
    msa.sequences.push_back(sequence);
    msa.deletion_matrix.push_back(deletions);
    msa.descriptions.push_back(title);
    sequence.clear();
    deletions.clear();
    pending = 0;
  }
};

}  // namespace

Msa parse_a3m(std::string_view text, const std::string& name) {
  Msa msa;
  RowBuilder row;
  std::string title;
  bool any = false;
  size_t expected = 0;
  int64_t line_number = 0;
  for (std::string_view line; next_line(text, line);) {
    ++line_number;
    line.remove_prefix(std::min(line.find_first_not_of('\0'), line.size()));
    line = trim(line);
    if (line.starts_with('>')) {
      if (any) row.finish(msa, title, name);
      check_rows(msa.sequences.size(), name);
      any = true;
      title = line.substr(1);
      continue;
    }
    if (line.empty()) continue;
    if (!any && line[0] == '#') {
      if (line_number == 1) expected = chain_length(line, name);
      continue;
    }
    if (!any)
      fail(Exit::kInput, name, ":", line_number, ": found ", show_char(line[0]),
           " before the first record, expected A3M: a title line that begins with '>'");
    for (const char c : line) {
      if (!is_lower(c) && !is_column(c))
        fail(Exit::kInput, record(name, msa.sequences.size(), title), ", line ", line_number,
             ": found ", show_char(c), ", expected letters and '-'");
      row.add(c, is_lower(c));
    }
  }
  check_input(any, name, ": holds no record, expected an A3M alignment");
  row.finish(msa, title, name);
  check_input(expected == 0 || expected == msa.sequences[0].size(), name,
              ":1: promises a chain of ", expected, " residues, found a query of ",
              msa.sequences[0].size());
  return msa;
}

Msa parse_stockholm(std::string_view text, const std::string& name) {
  std::vector<std::string> names, rows;
  std::unordered_map<std::string_view, size_t> index;
  int64_t line_number = 0;
  for (std::string_view line; next_line(text, line);) {
    ++line_number;
    line = trim(line);
    if (line.empty() || line[0] == '#' || line.starts_with("//")) continue;
    const size_t space = line.find_first_of(" \t\v\f");
    const std::string_view row_name = line.substr(0, space);
    const std::string_view part =
        space == std::string_view::npos ? std::string_view() : trim(line.substr(space));
    if (part.empty())
      fail(Exit::kInput, name, ":", line_number, ": ", show_text(row_name),
           " has no sequence, expected 'name sequence'");
    const auto [found, is_new] = index.emplace(row_name, names.size());
    if (is_new) {
      check_rows(names.size(), name);
      names.emplace_back(row_name);
      rows.emplace_back();
    }
    for (const char c : part)
      if (!is_column(c))
        fail(Exit::kInput, record(name, found->second, names[found->second]), ", line ",
             line_number, ": found ", show_char(c), ", expected capital letters and '-'");
    rows[found->second] += part;
  }
  check_input(!rows.empty(), name, ": holds no sequence, expected a Stockholm alignment");
  Msa msa;
  RowBuilder row;
  const std::string query = rows[0];
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].size() != query.size())
      fail(Exit::kInput, record(name, i, names[i]), " has ", rows[i].size(), " columns, expected ",
           query.size(), " as in record 1 ", show_text(names[0]),
           "; the file is damaged or incomplete");
    for (size_t c = 0; c < query.size(); ++c)
      if (rows[i][c] != '-' || query[c] != '-') row.add(rows[i][c], query[c] == '-');
    row.finish(msa, names[i], name);
    rows[i] = {};
  }
  return msa;
}

Msa read_msa(const std::string& path) {
  const std::string text = read_text_file(path, kMaxBytes);
  return text.starts_with("# STOCKHOLM") ? parse_stockholm(text, path) : parse_a3m(text, path);
}

}  // namespace ff
