// Templates: from search hits and a folder of mmCIF files, or from structures that the user names,
// to AlphaFold's template features. AlphaFold's data/templates.py; Jumper et al. 2021,
// Suppl. 1.2.3.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "io/features.h"

namespace ff {

/// One hit of a template search, as AlphaFold's parsers.TemplateHit.
struct TemplateHit {
  int index = 0;     ///< from 1, the order in the file
  std::string name;  ///< "1ABC_A description..."
  int aligned_cols = 0;
  double sum_probs = 0;
  bool has_sum_probs = true;  ///< hmmsearch gives none
  std::string query, hit_sequence;
  std::vector<int> indices_query, indices_hit;  ///< a column each; -1 at a gap
};

struct TemplateOptions {
  std::string mmcif_dir;      ///< folder of 1abc.cif[.gz]
  std::string max_date;       ///< YYYY-MM-DD, templates released after it are left out; "": none
  std::string obsolete_file;  ///< PDB's obsolete.dat; "": none
  int max_hits = 20;
};

/// A template that is used.
struct UsedTemplate {
  std::string name;      ///< "1ABC_A"
  std::string source;    ///< file
  double sum_probs = 0;  ///< 1 for a structure that the user names
  int aligned = 0;       ///< query residues with a template residue
  double identity = 0;   ///< share of those that are the same amino acid
};

struct Templates {
  TemplateFeatures features;
  std::vector<UsedTemplate> used;     ///< as in features, best first
  std::vector<std::string> warnings;  ///< which hit or file failed or is doubtful, and why
};

/// Hits of an hhsearch .hhr or hmmsearch Stockholm file (plain or gzip), told apart by the text.
/// `sequence` is the query's. Throws Exit::kInput naming the file and line on damage.
std::vector<TemplateHit> read_template_hits(const std::string& path, const std::string& sequence);

/// Features of the best usable hits, by sum_probs (hmmsearch: in the file's order, the same
/// sequence once). A list that would take minutes to compare with its structures ends with a
/// warning.
Templates templates_of_hits(const std::string& sequence, std::span<const TemplateHit> hits,
                            const TemplateOptions& options);

/// Features of the chains in structure files (PDB or mmCIF, plain or gzip; "FILE:CHAIN" takes one
/// chain, else the one that agrees best), aligned to the query by sequence, in the order given. A
/// chain that is not related to it is used only where it has the query's length, residue by
/// residue.
Templates templates_of_files(const std::string& sequence, std::span<const std::string> files);

}  // namespace ff
