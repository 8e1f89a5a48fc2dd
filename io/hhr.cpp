// The parsers of template searches' results.
#include "io/hhr.h"

#include <charconv>
#include <cmath>
#include <unordered_map>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr int64_t kMaxBytes = int64_t(1) << 30;
constexpr int kMaxIndex = 10'000'000;

bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The number that follows `key` in a line of "key=value" pairs; NaN for none.
double value_of(std::string_view line, std::string_view key) {
  const size_t at = line.find(key);
  if (at == std::string_view::npos) return NAN;
  line.remove_prefix(at + key.size());
  while (line.starts_with(' ')) line.remove_prefix(1);
  double value = NAN;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
  return error == std::errc() ? value : NAN;
}

/// "   7 AEHH-KA   12 (73)" as a row of a block; false unless the text is one.
struct BlockRow {
  int start = 0, end = 0;
  std::string_view letters;

  bool parse(std::string_view text) {
    const auto skip = [&](auto is) {
      size_t n = 0;
      while (n < text.size() && is(text[n])) ++n;
      const std::string_view taken = text.substr(0, n);
      text.remove_prefix(n);
      return taken;
    };
    const auto number = [&](int& value) {
      const std::string_view digits = skip(is_digit);
      return std::from_chars(digits.data(), digits.data() + digits.size(), value).ec ==
                 std::errc() &&
             value <= kMaxIndex;
    };
    const auto blank = [](char c) { return c == ' ' || c == '\t'; };
    skip(blank);
    if (!number(start) || !text.starts_with(' ')) return false;
    text.remove_prefix(1);
    letters = skip([](char c) { return is_upper(c) || c == '-'; });
    skip(blank);
    if (!number(end) || !text.starts_with(" (")) return false;
    text.remove_prefix(2);
    skip(is_digit);
    return text.starts_with(')');
  }
};

void append_indices(std::string_view letters, int start, std::vector<int>& indices) {
  for (const char c : letters) indices.push_back(c == '-' ? -1 : start++);
}

/// Reads one paragraph after another.
class HhrParser {
 public:
  HhrParser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  std::vector<TemplateHit> run() {
    std::vector<TemplateHit> hits;
    bool more = next();
    while (more) {
      if (!line_.starts_with("No ")) {
        more = next();
        continue;
      }
      hits.emplace_back();
      more = paragraph(hits.back());
    }
    return hits;
  }

 private:
  bool next() {
    ++number_;
    return next_line(text_, line_);
  }
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... what) const {
    fail(Exit::kInput, name_, ":", number_, ": ", what..., "; is the .hhr file complete?");
  }

  /// From its line "No N" up to the next such line. Whether there is a next line.
  bool paragraph(TemplateHit& hit) {
    const std::string_view count = trim(line_.substr(3));
    const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), hit.index);
    if (error != std::errc() || end != count.data() + count.size())
      refuse("expected 'No' and a hit's number, found ", show_text(line_));
    if (!next() || !line_.starts_with('>')) refuse("expected '>' and the name of hit ", hit.index);
    hit.name = line_.substr(1);
    if (!next()) refuse("hit ", hit.index, " has no summary");
    const double columns = value_of(line_, "Aligned_cols=");
    hit.sum_probs = value_of(line_, "Sum_probs=");
    if (!(columns >= 0 && columns <= kMaxIndex) || !std::isfinite(hit.sum_probs))
      refuse("expected a summary with Aligned_cols= and Sum_probs=, found ", show_text(line_));
    hit.aligned_cols = int(columns);
    size_t block = 0;
    bool more;
    while ((more = next()) && !line_.starts_with("No ")) {
      const bool query = line_.starts_with("Q "), target = line_.starts_with("T ");
      if (!query && !target) continue;
      const std::string_view rest = line_.substr(2);
      if (rest.starts_with("ss_dssp") || rest.starts_with("ss_pred") ||
          rest.starts_with("Consensus"))
        continue;
      BlockRow row;
      constexpr size_t kNameColumns = 17;
      if (line_.size() < kNameColumns || !row.parse(line_.substr(kNameColumns)))
        refuse("expected 'start LETTERS end (length)' of hit ", hit.index, ", found ",
               show_text(line_));
      if (query) {
        int residues = 0;
        for (const char c : row.letters) residues += c != '-';
        if (row.start < 1 || row.end - row.start + 1 != residues)
          refuse("hit ", hit.index, ": ", residues, " residues of the query from ", row.start,
                 " to ", row.end);
        block = row.letters.size();
        hit.query += row.letters;
        append_indices(row.letters, row.start - 1, hit.indices_query);
      } else {
        if (row.start < 1 || row.letters.size() != block)
          refuse("hit ", hit.index, ": a row of ", row.letters.size(),
                 " letters under one of the query with ", block);
        hit.hit_sequence += row.letters;
        append_indices(row.letters, row.start - 1, hit.indices_hit);
      }
    }
    if (hit.query.size() != hit.hit_sequence.size())
      refuse("hit ", hit.index, " ends after a row of the query");
    if (!more && hit.query.size() < size_t(hit.aligned_cols))
      refuse("hit ", hit.index, ", the last, has ", hit.query.size(), " columns of ",
             hit.aligned_cols);
    return more;
  }

  std::string_view text_, line_;
  const std::string& name_;
  int64_t number_ = 0;
};

/// "4pqx_A/2-217": the first residue's number, from 1; 0 when the name has another form.
int start_of(std::string_view row_name) {
  const size_t slash = row_name.rfind('/');
  if (slash == std::string_view::npos) return 0;
  int start = 0, end = 0;
  const char* last = row_name.data() + row_name.size();
  const auto first = std::from_chars(row_name.data() + slash + 1, last, start);
  if (first.ec != std::errc() || first.ptr == last || *first.ptr != '-') return 0;
  const auto second = std::from_chars(first.ptr + 1, last, end);
  const bool ok = second.ec == std::errc() && second.ptr == last && start <= kMaxIndex;
  return ok && row_name.find('_') < slash ? start : 0;
}

}  // namespace

std::vector<TemplateHit> parse_hhr(std::string_view text, const std::string& name) {
  return HhrParser(text, name).run();
}

std::vector<TemplateHit> parse_hmmsearch(std::string_view text, const std::string& sequence,
                                         const std::string& name) {
  struct Row {
    std::string name, letters;
  };
  std::vector<Row> rows;
  std::unordered_map<std::string, size_t> index;
  std::unordered_map<std::string, std::string> descriptions;
  bool ended = false;
  int64_t number = 0;
  for (std::string_view line; next_line(text, line);) {
    ++number;
    line = trim(line);
    ended |= line.starts_with("//");
    const auto word = [&line] {
      const size_t end = std::min(line.find_first_of(" \t"), line.size());
      const std::string_view taken = line.substr(0, end);
      line = trim(line.substr(end));
      return taken;
    };
    if (line.starts_with("#=GS")) {
      word();
      const std::string row(word());
      if (word() == "DE") descriptions[row] = line;
      continue;
    }
    if (line.empty() || line[0] == '#' || line.starts_with("//")) continue;
    const std::string row(word());
    check_input(!line.empty(), name, ":", number, ": ", show_text(row), " has no sequence");
    const auto [found, is_new] = index.emplace(row, rows.size());
    if (is_new) rows.push_back({row, ""});
    for (const char c : line) {
      if (c == '.') continue;
      check_input(is_upper(c) || is_lower(c) || c == '-', name, ":", number, ": found ",
                  show_char(c), ", expected letters, '-' and '.'");
      rows[found->second].letters += c;
    }
  }
  check_input(ended, name, ": has no end ('//'); is the Stockholm file complete?");

  std::vector<TemplateHit> hits;
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    if (const auto found = descriptions.find(row.name);
        found == descriptions.end() || found->second.find("mol:protein") == std::string::npos)
      continue;
    const int start = start_of(row.name);
    check_input(start > 0, name, ": row ", show_text(row.name),
                " is not named ENTRY_CHAIN/FIRST-LAST, expected hmmsearch's output on pdb_seqres");
    TemplateHit hit;
    hit.index = int(r) + 1;
    hit.name = row.name.substr(0, row.name.rfind('/'));
    hit.has_sum_probs = false;
    int counter = start - 1;
    for (const char c : row.letters) {
      hit.hit_sequence += is_lower(c) ? char(c & ~0x20) : c;
      hit.aligned_cols += is_upper(c);
      if (!is_lower(c)) hit.indices_hit.push_back(c == '-' ? -1 : counter);
      counter += c != '-';
    }
    check_input(hit.indices_hit.size() == sequence.size(), name, ": row ", show_text(row.name),
                " has ", hit.indices_hit.size(), " match columns, expected one for each of the ",
                sequence.size(), " residues; is it the search of another sequence?");
    hit.query = sequence;
    for (size_t i = 0; i < sequence.size(); ++i) hit.indices_query.push_back(int(i));
    hits.push_back(std::move(hit));
  }
  return hits;
}

std::vector<TemplateHit> read_template_hits(const std::string& path, const std::string& sequence) {
  const std::string text = read_text_file(path, kMaxBytes);
  return text.starts_with("# STOCKHOLM") ? parse_hmmsearch(text, sequence, path)
                                         : parse_hhr(text, path);
}

}  // namespace ff
