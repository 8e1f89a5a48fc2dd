// report.html and the plots beside it: one prediction run as a self-contained page.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/features.h"
#include "io/prediction.h"

namespace ff {

/// A plot's data: for the alignment, best row first.
struct Coverage {
  int64_t n_seq = 0, n_res = 0;
  std::vector<float> identity;  ///< [n_seq] of each row with the query, over its aligned columns
  std::vector<int8_t> present;  ///< [n_seq, n_res], 1 = not a gap
};
Coverage coverage_of(const RawFeatures& raw);

struct Report {
  std::string tag, title, sequence;
  std::span<const Prediction> ranked;  ///< best first
  Coverage coverage;
  /// Tables of (name, value) with a heading each: inputs, templates, settings, timings.
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, std::string>>>> tables;
  std::vector<std::string> warnings;
};

/// The page: nothing in it is loaded from elsewhere.
std::string report_html(const Report& report);

/// SVG plots. coverage: rows over residues, coloured by identity; plddt and pae: one curve / map a
/// prediction.
std::string coverage_svg(const Coverage& coverage);
std::string plddt_svg(std::span<const Prediction> ranked);
std::string pae_svg(std::span<const Prediction> ranked);

}  // namespace ff
