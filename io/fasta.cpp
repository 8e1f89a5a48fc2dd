// The FASTA parser, and tags that are safe as file names.
#include "io/fasta.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kMaxBytes = 256 << 20;
constexpr size_t kMaxResidues = 100'000, kMaxRecords = 1'000'000, kMaxTag = 100;

bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }

void make_tags_unique(std::vector<FastaRecord>& records) {
  std::set<std::string> taken;
  std::map<std::string, int> next;
  for (FastaRecord& r : records) {
    const std::string wanted = r.tag;
    while (!taken.insert(r.tag).second) r.tag = wanted + "_" + std::to_string(++next[wanted] + 1);
  }
}

/// Appends residues; `ended` by '*'. `place` is "file:line" for errors.
void add_letters(FastaRecord& record, std::string_view letters, bool& ended,
                 const std::string& place) {
  for (char c : letters) {
    if (c == ' ' || c == '\t' || c == '\v' || c == '\f') continue;
    if (is_lower(c)) c = char(c - 'a' + 'A');
    if (ended)
      fail(Exit::kInput, place, ": record ", show_text(record.title),
           " goes on after '*', which stands only at the end of a sequence");
    if (c == '*') {
      ended = true;
      continue;
    }
    if (!is_upper(c))
      fail(Exit::kInput, place, ": record ", show_text(record.title), " has ", show_char(c),
           ", expected the letters of amino acids",
           c == ':'   ? "; ':' joins the chains of a complex: give each chain its own record"
           : c == '-' ? "; a gap belongs to an alignment: give the plain sequence"
                      : "");
    if (record.sequence.size() == kMaxResidues)
      fail(Exit::kInput, place, ": record ", show_text(record.title), " has more than ",
           kMaxResidues, " residues, the limit; is it a protein?");
    record.sequence += c;
  }
}

/// The cells of a line, without the quotes around them.
std::vector<std::string_view> cells_of(std::string_view line, char separator) {
  std::vector<std::string_view> cells;
  for (bool more = true; more;) {
    const size_t end = line.find(separator);
    more = end != std::string_view::npos;
    std::string_view cell = trim(line.substr(0, end));
    if (cell.size() >= 2 && cell.front() == '"' && cell.back() == '"')
      cell = trim(cell.substr(1, cell.size() - 2));
    cells.push_back(cell);
    if (more) line.remove_prefix(end + 1);
  }
  return cells;
}

/// Text without the mark that some editors put in front.
std::string_view plain_text(std::string_view text, const std::string& name) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  check_input(text.find('\0') == std::string_view::npos, name,
              ": is a binary file (or UTF-16 text), expected FASTA in plain text");
  return text;
}

}  // namespace

std::string tag_of(std::string_view title, size_t record) {
  std::string tag(title.substr(0, std::min(title.find_first_of(" \t\v\f"), kMaxTag)));
  for (char& c : tag)
    if (!is_upper(c) && !is_lower(c) && !(c >= '0' && c <= '9') && c != '.' && c != '-') c = '_';
  if (tag.empty()) return "record_" + std::to_string(record);
  if (tag[0] == '.' || tag[0] == '-') tag[0] = '_';
  return tag;
}

std::vector<FastaRecord> parse_csv(std::string_view text, const std::string& name) {
  text = plain_text(text, name);
  std::vector<FastaRecord> records;
  size_t id = 0, sequence = 0, n_cells = 0;
  char separator = ',';
  int64_t line_number = 0;
  for (std::string_view line; next_line(text, line);) {
    ++line_number;
    if (trim(line).empty()) continue;
    if (n_cells == 0) {
      if (line.find('\t') != std::string_view::npos) separator = '\t';
      const std::vector<std::string_view> titles = cells_of(line, separator);
      id = std::find(titles.begin(), titles.end(), "id") - titles.begin();
      sequence = std::find(titles.begin(), titles.end(), "sequence") - titles.begin();
      n_cells = titles.size();
      check_input(id < n_cells && sequence < n_cells, name, ":", line_number, ": found ",
                  show_text(line), ", expected a line of titles with 'id' and 'sequence'");
      continue;
    }
    const std::vector<std::string_view> cells = cells_of(line, separator);
    check_input(cells.size() == n_cells, name, ":", line_number, ": ", cells.size(),
                " cells, expected ", n_cells, " as in the line of titles");
    check_input(records.size() < kMaxRecords, name, ":", line_number, ": more than ", kMaxRecords,
                " records; split the file");
    FastaRecord r;
    r.title = cells[id];
    r.tag = tag_of(r.title, records.size() + 1);
    bool ended = false;
    add_letters(r, cells[sequence], ended, cat(name, ":", line_number));
    check_input(!r.sequence.empty(), name, ":", line_number, ": record ", show_text(r.title),
                " has no sequence; remove it or add one");
    records.push_back(std::move(r));
  }
  check_input(!records.empty(), name, ": holds no record, expected lines of id and sequence");
  make_tags_unique(records);
  return records;
}

std::vector<FastaRecord> parse_fasta(std::string_view text, const std::string& name) {
  text = plain_text(text, name);
  std::vector<FastaRecord> records;
  bool ended = false;  // by '*'
  int64_t line_number = 0, title_line = 0;
  const auto finish = [&] {
    if (!records.empty() && records.back().sequence.empty())
      fail(Exit::kInput, name, ":", title_line, ": record ", show_text(records.back().title),
           " has no sequence; remove it or add one");
  };
  for (std::string_view line; next_line(text, line);) {
    ++line_number;
    line = trim(line);
    if (line.starts_with('>')) {
      finish();
      check_input(records.size() < kMaxRecords, name, ":", line_number, ": more than ", kMaxRecords,
                  " records; split the file");
      FastaRecord r;
      r.title = trim(line.substr(1));
      r.tag = tag_of(r.title, records.size() + 1);
      records.push_back(std::move(r));
      title_line = line_number;
      ended = false;
      continue;
    }
    if (line.empty()) continue;
    if (records.empty())
      fail(Exit::kInput, name, ":", line_number, ": found ", show_char(line[0]),
           " before the first record, expected a title line that begins with '>'");
    add_letters(records.back(), line, ended, cat(name, ":", line_number));
  }
  finish();
  check_input(!records.empty(), name,
              ": holds no record, expected FASTA: '>title', then a sequence");
  make_tags_unique(records);
  return records;
}

std::vector<FastaRecord> read_fasta(const std::string& path) {
  const std::string text = read_text_file(path, kMaxBytes);
  check_input(!text.empty(), path, ": is an empty file, expected sequences (FASTA)");
  std::string_view name = path;
  if (name.ends_with(".gz")) name.remove_suffix(3);
  const bool is_table = name.ends_with(".csv") || name.ends_with(".tsv");
  return is_table ? parse_csv(text, path) : parse_fasta(text, path);
}

}  // namespace ff
