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

/// Letters, digits, '.', '-' and '_' stay, the rest becomes '_'; never empty, never a hidden file.
std::string safe_tag(std::string_view title, size_t record) {
  std::string tag(title.substr(0, std::min(title.find_first_of(" \t\v\f"), kMaxTag)));
  for (char& c : tag)
    if (!is_upper(c) && !is_lower(c) && !(c >= '0' && c <= '9') && c != '.' && c != '-') c = '_';
  if (tag.empty()) return "record_" + std::to_string(record);
  if (tag[0] == '.' || tag[0] == '-') tag[0] = '_';
  return tag;
}

void make_tags_unique(std::vector<FastaRecord>& records) {
  std::set<std::string> taken;
  std::map<std::string, int> next;
  for (FastaRecord& r : records) {
    const std::string wanted = r.tag;
    while (!taken.insert(r.tag).second) r.tag = wanted + "_" + std::to_string(++next[wanted] + 1);
  }
}

}  // namespace

std::vector<FastaRecord> parse_fasta(std::string_view text, const std::string& name) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // the mark of some editors
  check_input(text.find('\0') == std::string_view::npos, name,
              ": is a binary file (or UTF-16 text), expected FASTA in plain text");
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
      r.tag = safe_tag(r.title, records.size() + 1);
      records.push_back(std::move(r));
      title_line = line_number;
      ended = false;
      continue;
    }
    if (line.empty()) continue;
    if (records.empty())
      fail(Exit::kInput, name, ":", line_number, ": found ", show_char(line[0]),
           " before the first record, expected a title line that begins with '>'");
    std::string& sequence = records.back().sequence;
    for (char c : line) {
      if (c == ' ' || c == '\t' || c == '\v' || c == '\f') continue;
      if (is_lower(c)) c = char(c - 'a' + 'A');
      if (ended)
        fail(Exit::kInput, name, ":", line_number, ": record ", show_text(records.back().title),
             " goes on after '*', which stands only at the end of a sequence");
      if (c == '*') {
        ended = true;
        continue;
      }
      if (!is_upper(c))
        fail(Exit::kInput, name, ":", line_number, ": record ", show_text(records.back().title),
             " has ", show_char(c), ", expected the letters of amino acids",
             c == ':'   ? "; ':' joins the chains of a complex: give each chain its own record"
             : c == '-' ? "; a gap belongs to an alignment: give the plain sequence"
                        : "");
      if (sequence.size() == kMaxResidues)
        fail(Exit::kInput, name, ":", line_number, ": record ", show_text(records.back().title),
             " has more than ", kMaxResidues, " residues, the limit; is it a protein?");
      sequence += c;
    }
  }
  finish();
  check_input(!records.empty(), name,
              ": holds no record, expected FASTA: '>title', then a sequence");
  make_tags_unique(records);
  return records;
}

std::vector<FastaRecord> read_fasta(const std::string& path) {
  return parse_fasta(read_text_file(path, kMaxBytes), path);
}

}  // namespace ff
