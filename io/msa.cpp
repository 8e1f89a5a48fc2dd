// The A3M and Stockholm parsers.
#include "io/msa.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_map>
#include <unordered_set>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kMaxBytes = int64_t(2) << 30;
constexpr size_t kMaxRows = 4'000'000;

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

/// What a character of an alignment is.
enum Kind : uint8_t { kOther, kColumn, kInsertion, kDot };
constexpr auto kKinds = [] {
  std::array<Kind, 256> kinds{};
  for (int c = 'A'; c <= 'Z'; ++c) kinds[c] = kColumn;
  for (int c = 'a'; c <= 'z'; ++c) kinds[c] = kInsertion;
  kinds['-'] = kColumn;
  kinds['.'] = kDot;
  return kinds;
}();
Kind kind_of(char c) { return kKinds[static_cast<unsigned char>(c)]; }

/// Appends a row that has `columns` columns.
void add_row(Msa& msa, std::string row, std::string title, size_t columns,
             const std::string& name) {
  if (msa.rows.empty()) {
    if (columns == 0)
      fail(Exit::kInput, record(name, 0, title),
           " has no aligned residue, expected the query; lower-case letters are insertions");
    msa.columns = columns;
  }
  if (columns != msa.columns)
    fail(Exit::kInput, record(name, msa.size(), title), " has ", columns,
         " aligned columns, expected ", msa.columns, " as in record 1 ",
         show_text(msa.descriptions[0]), "; the file is damaged or not an alignment to this query");
  msa.rows.push_back(std::move(row));
  msa.descriptions.push_back(std::move(title));
}

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/// Letters and digits at the start of `text`.
std::string_view leading_word(std::string_view text) {
  return text.substr(0, std::find_if_not(text.begin(), text.end(), is_alphanumeric) - text.begin());
}

/// Takes `start` off the front of `text`, where it is there.
bool skip(std::string_view& text, std::string_view start) {
  const bool found = text.starts_with(start);
  if (found) text.remove_prefix(start.size());
  return found;
}

}  // namespace

std::string Msa::aligned(size_t row) const {
  std::string out(columns + 1, '\0');  // one more for insertions after the last column
  size_t length = 0;
  for (const char c : rows[row]) {
    out[length] = c;
    length += c < 'a';
  }
  out.resize(length);
  return out;
}

std::vector<int32_t> Msa::deletions(size_t row) const {
  std::vector<int32_t> out;
  out.reserve(columns);
  int32_t pending = 0;
  for (const char c : rows[row]) {
    if (kind_of(c) == kInsertion) {
      ++pending;
    } else {
      out.push_back(pending);
      pending = 0;
    }
  }
  return out;
}

Msa parse_a3m(std::string_view text, const std::string& name) {
  Msa msa;
  std::string row, title;
  bool any = false;
  size_t expected = 0, columns = 0;
  int64_t line_number = 0;
  const auto finish = [&] {
    add_row(msa, row, title, columns, name);
    row.clear();
    columns = 0;
  };
  for (std::string_view line; next_line(text, line);) {
    ++line_number;
    line.remove_prefix(std::min(line.find_first_not_of('\0'), line.size()));
    line = trim(line);
    if (line.starts_with('>')) {
      if (any) finish();
      check_rows(msa.size(), name);
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
    bool dots = false;
    for (const char c : line) {
      const Kind kind = kind_of(c);
      if (kind == kOther)
        fail(Exit::kInput, record(name, msa.size(), title), ", line ", line_number, ": found ",
             show_char(c), ", expected letters and '-'");
      columns += kind == kColumn;
      dots |= kind == kDot;
    }
    row += line;
    if (dots) std::erase(row, '.');
  }
  check_input(any, name, ": holds no record, expected an A3M alignment");
  finish();
  check_input(expected == 0 || expected == msa.columns, name, ":1: promises a chain of ", expected,
              " residues, found a query of ", msa.columns);
  return msa;
}

Msa parse_stockholm(std::string_view text, const std::string& name, size_t max_rows) {
  std::vector<std::string> names, rows;
  std::unordered_map<std::string_view, size_t> index;
  int64_t line_number = 0;
  bool ended = false;
  for (std::string_view line; next_line(text, line);) {
    ++line_number;
    line = trim(line);
    ended |= line.starts_with("//");
    if (line.empty() || line[0] == '#' || line.starts_with("//")) continue;
    const size_t space = std::find_if(line.begin(), line.end(), is_blank) - line.begin();
    const std::string_view row_name = line.substr(0, space), part = trim(line.substr(space));
    if (part.empty())
      fail(Exit::kInput, name, ":", line_number, ": ", show_text(row_name),
           " has no sequence, expected 'name sequence'",
           text.empty() ? "; the file is incomplete: copy it again" : "");
    auto found = index.find(row_name);
    if (found == index.end()) {
      if (names.size() >= max_rows) continue;
      check_rows(names.size(), name);
      found = index.emplace(row_name, names.size()).first;
      names.emplace_back(row_name);
      rows.emplace_back();
    }
    std::string& row = rows[found->second];
    const size_t start = row.size();
    row += part;
    int unusual = 0;  // a loop without branches, for nearly all files hold nothing else
    for (const char c : part) unusual |= (uint8_t(c - 'A') >= 26) & (c != '-');
    for (size_t i = start; unusual && i < row.size(); ++i) {
      const Kind kind = kind_of(row[i]);
      if (kind == kOther)
        fail(Exit::kInput, record(name, found->second, names[found->second]), ", line ",
             line_number, ": found ", show_char(row[i]), ", expected letters, '-' and '.'");
      if (kind == kInsertion) row[i] = char(row[i] - 'a' + 'A');
      if (kind == kDot) row[i] = '-';
    }
  }
  check_input(!rows.empty(), name, ": holds no sequence, expected a Stockholm alignment",
              ended ? "" : "; it does not end with '//' either: copy the file again");
  check_input(ended, name,
              ": is incomplete: it does not end with '//' as a Stockholm file does; copy it again");
  Msa msa;
  const std::string query = rows[0];
  const auto n_columns = size_t(std::ssize(query) - std::count(query.begin(), query.end(), '-'));
  // Letters where the query has a gap become lower case, which is one bit more; gaps there go.
  constexpr char kLower = 'a' - 'A';
  std::string row(query.size(), '-');
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].size() != query.size())
      fail(Exit::kInput, record(name, i, names[i]), " has ", rows[i].size(), " columns, expected ",
           query.size(), " as in record 1 ", show_text(names[0]),
           "; the file is damaged or incomplete");
    size_t length = 0;
    for (size_t c = 0; c < query.size(); ++c) {
      const char letter = rows[i][c];
      const bool inserted = query[c] == '-';
      row[length] = inserted ? char(letter | kLower) : letter;
      length += !inserted | (letter != '-');
    }
    add_row(msa, row.substr(0, length), std::move(names[i]), n_columns, name);
    rows[i] = {};
  }
  return msa;
}

Msa parse_msa(std::string_view text, const std::string& name, size_t max_rows) {
  const bool is_stockholm = text.starts_with("# STOCKHOLM");
  return is_stockholm ? parse_stockholm(text, name, max_rows) : parse_a3m(text, name);
}

std::string read_msa_text(const std::string& path) {
  std::string text = read_text_file(path, kMaxBytes);
  check_input(!text.empty(), path, ": is an empty file, expected an alignment (A3M or Stockholm)");
  return text;
}

Msa read_msa(const std::string& path, size_t max_rows) {
  return parse_msa(read_msa_text(path), path, max_rows);
}

Msa merge_msas(std::vector<Msa> msas) {
  Msa merged;
  std::unordered_set<std::string> seen;
  for (size_t a = 0; a < msas.size(); ++a) {
    Msa& msa = msas[a];
    check_input(msa.size() > 0, "alignment ", a + 1, " has no rows, expected the query at least");
    if (a == 0) merged.columns = msa.columns;
    check_input(msa.columns == merged.columns, "alignment ", a + 1, " has ", msa.columns,
                " columns, expected one for each of the query's ", merged.columns, " residues");
    for (size_t s = 0; s < msa.size(); ++s) {
      if (!seen.insert(msa.aligned(s)).second) continue;
      merged.rows.push_back(std::move(msa.rows[s]));
      merged.descriptions.push_back(std::move(msa.descriptions[s]));
    }
  }
  return merged;
}

std::string to_a3m(const Msa& msa) {
  size_t bytes = 0;
  for (size_t s = 0; s < msa.size(); ++s)
    bytes += msa.rows[s].size() + msa.descriptions[s].size() + 3;
  std::string text;
  text.reserve(bytes);
  for (size_t s = 0; s < msa.size(); ++s)
    text.append(">").append(msa.descriptions[s]).append("\n").append(msa.rows[s]).append("\n");
  return text;
}

std::string species_of(std::string_view description) {
  description = trim(description);
  std::string_view id = description.substr(0, description.find_first_of(" \t\v\f/"));
  if (!skip(id, "tr|") && !skip(id, "sp|")) return "";
  constexpr size_t kLeastAccession = 6, kMostAccession = 10, kMostSpecies = 5;
  const std::string_view accession = leading_word(id);
  id.remove_prefix(accession.size());
  if (accession.size() < kLeastAccession || accession.size() > kMostAccession) return "";
  const auto skip_number = [&](size_t most_digits) {  // "_1"
    if (!id.starts_with('_')) return;
    const size_t end = std::min(id.find_first_not_of("0123456789", 1), id.size());
    if (end > 1 && end - 1 <= most_digits) id.remove_prefix(end);
  };
  skip_number(1);
  if (!skip(id, "|")) return "";
  const std::string_view entry = leading_word(id);
  id.remove_prefix(entry.size());
  if (entry.empty() || !skip(id, "_")) return "";
  const std::string_view species = leading_word(id);
  id.remove_prefix(species.size());
  skip_number(SIZE_MAX);
  const bool fits = !species.empty() && species.size() <= kMostSpecies && id.empty();
  return fits ? std::string(species) : "";
}

}  // namespace ff
