// Results of template searches: hhsearch's .hhr and hmmsearch's Stockholm output. AlphaFold's
// data/parsers.py.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/templates.h"

namespace ff {

/// As parse_hhr: the paragraphs that begin with "No N". Throws Exit::kInput with `name` and line on
/// a paragraph that is cut off or whose rows do not agree with their numbers.
std::vector<TemplateHit> parse_hhr(std::string_view text, const std::string& name);

/// As AlphaFold reads hmmsearch's alignment (convert_stockholm_to_a3m, parse_hmmsearch_a3m): a hit
/// for each row that is a protein, in the file's order. `sequence` is the query, one match column a
/// residue. The same errors.
std::vector<TemplateHit> parse_hmmsearch(std::string_view text, const std::string& sequence,
                                         const std::string& name);

}  // namespace ff
