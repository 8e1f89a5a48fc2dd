// fastfold prepare: structures and alignments to shards of training chains, and what is in them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/prepare_build.h"
#include "core/base/machine.h"
#include "core/base/progress.h"
#include "core/base/stop.h"
#include "io/dataset_writer.h"

namespace ff {
namespace {

namespace fs = std::filesystem;

constexpr double kWorstResolution = 9;

// ---- verify

/// Shards of files and folders, also where some of a build are missing.
std::vector<std::string> shards_in(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const size_t before = files.size();
    for (const auto& entry : fs::directory_iterator(path)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(".h5") && name[0] != '.') files.push_back(entry.path().string());
    }
    check_input(files.size() > before, path,
                ": holds no shard, expected the files *.h5 that 'fastfold prepare build' writes");
    std::sort(files.begin() + std::ptrdiff_t(before), files.end());
  }
  return files;
}

int verify(const std::vector<std::string>& paths, int jobs) {
  const std::vector<std::string> files = shards_in(paths);
  std::vector<std::vector<ShardDamage>> found(files.size());
  std::vector<std::exception_ptr> errors(files.size());
  int64_t chains = 0, damaged = 0;
  {
    Progress progress("verify");
    size_t done = 0;
#pragma omp parallel for schedule(dynamic) num_threads(jobs ? jobs : available_threads())
    for (size_t f = 0; f < files.size(); ++f) {
      if (stop_requested()) continue;
      int64_t here = 0;
      try {
        found[f] = verify_shard(files[f], &here);
      } catch (const Error& e) {
        found[f] = {{"", e.what()}};
        if (e.code() != Exit::kInput) errors[f] = std::current_exception();
      } catch (...) {
        errors[f] = std::current_exception();
      }
#pragma omp critical
      {
        chains += here;
        ++done;
        progress.update(cat(done, " of ", files.size(), " shards"),
                        double(done) / double(files.size()));
      }
    }
  }
  throw_if_stopped();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  std::string first;
  for (size_t f = 0; f < files.size(); ++f) {
    damaged += !found[f].empty();
    for (const ShardDamage& damage : found[f]) {
      if (first.empty()) first = damage.what;
      std::printf("damaged\t%s\t%s\t%s\n", files[f].c_str(), damage.chain.c_str(),
                  one_line(damage.what).c_str());
    }
  }
  if (damaged) fail(Exit::kInput, damaged, " of ", files.size(), " shards are damaged: ", first);
  const Dataset complete(paths);  // no shard of a folder is missing
  std::printf("%zu shards, %lld chains: all whole\n", files.size(), static_cast<long long>(chains));
  return int(Exit::kDone);
}

// ---- stats

/// Of a list of numbers; all 0 for none.
struct Spread {
  double least = 0, quarter = 0, median = 0, three_quarters = 0, most = 0, mean = 0;
  size_t count = 0;

  explicit Spread(std::vector<double> values) : count(values.size()) {
    if (values.empty()) return;
    std::sort(values.begin(), values.end());
    const auto at = [&](double share) {
      return values[size_t(share * double(values.size() - 1) + 0.5)];
    };
    least = values.front(), quarter = at(0.25), median = at(0.5), three_quarters = at(0.75);
    most = values.back();
    for (const double v : values) mean += v / double(values.size());
  }
};

int stats(const std::vector<std::string>& paths, bool json) {
  const Dataset data(paths);
  std::vector<double> length, seen, depth, resolution, templates, in_cluster;
  std::map<int64_t, double> clusters;
  int64_t unclustered = 0, single = 0, distilled = 0, residues = 0, one_residue = 0, coarse = 0;
  std::string first_date, last_date;
  for (const ChainInfo& chain : data.chains()) {
    length.push_back(double(chain.n_res()));
    seen.push_back(100 * double(chain.n_seen) / double(chain.n_res()));
    depth.push_back(double(chain.n_msa));
    templates.push_back(double(chain.n_templates));
    if (chain.resolution > 0) resolution.push_back(chain.resolution);
    if (chain.cluster >= 0)
      ++clusters[chain.cluster];
    else
      ++unclustered;
    residues += chain.n_res();
    single += chain.n_msa == 1;
    distilled += chain.distillation;
    coarse += chain.resolution > kWorstResolution;
    std::map<char, int64_t> letters;
    for (const char c : chain.sequence) ++letters[c];
    one_residue += std::any_of(letters.begin(), letters.end(), [&](const auto& letter) {
      return double(letter.second) > kMostOfOneResidue * double(chain.n_res());
    });
    if (!chain.date.empty()) {
      if (first_date.empty() || chain.date < first_date) first_date = chain.date;
      last_date = std::max(last_date, chain.date);
    }
  }
  for (const auto& [cluster, size] : clusters) in_cluster.push_back(size);
  const std::vector<std::string> shards = shards_in(paths);
  int64_t bytes = 0;
  for (const std::string& shard : shards) bytes += read_shard_header(shard).bytes;

  struct Row {
    const char *key, *title;
    Spread spread;
    int decimals;
  };
  const Row rows[] = {{"length", "residues", Spread(length), 0},
                      {"seen_percent", "residues seen, %", Spread(seen), 1},
                      {"msa_rows", "alignment rows", Spread(depth), 0},
                      {"templates", "templates", Spread(templates), 0},
                      {"resolution", "resolution, A", Spread(resolution), 2},
                      {"cluster_chains", "chains a cluster", Spread(in_cluster), 0}};
  const std::pair<const char*, int64_t> counts[] = {
      {"chains", std::ssize(data.chains())},
      {"shards", std::ssize(shards)},
      {"bytes", bytes},
      {"residues", residues},
      {"clusters", std::ssize(clusters)},
      {"in_no_cluster", unclustered},
      {"single_sequence", single},
      {"distillation", distilled},
      {"resolution_unknown", std::ssize(data.chains()) - std::ssize(resolution)},
      {"resolution_above_9", coarse},
      {"one_residue_above_80_percent", one_residue}};
  if (json) {
    nlohmann::ordered_json out;
    for (const auto& [key, value] : counts) out[key] = value;
    out["first_date"] = first_date;
    out["last_date"] = last_date;
    for (const Row& row : rows) {
      const Spread& s = row.spread;
      out[row.key] = {{"count", s.count},   {"min", s.least},         {"q1", s.quarter},
                      {"median", s.median}, {"q3", s.three_quarters}, {"max", s.most},
                      {"mean", s.mean}};
    }
    std::puts(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return int(Exit::kDone);
  }
  for (const auto& [key, value] : counts) {
    std::string title = key;
    std::replace(title.begin(), title.end(), '_', ' ');
    std::printf("%-28s  %lld\n", title.c_str(), static_cast<long long>(value));
  }
  if (!first_date.empty())
    std::printf("%-28s  %s to %s\n", "released", first_date.c_str(), last_date.c_str());
  std::printf("\n%-17s", "");
  for (const char* title : {"min", "q1", "median", "q3", "max", "mean"})
    std::printf("  %8s", title);
  std::puts("");
  for (const Row& row : rows) {
    if (row.spread.count == 0) continue;
    const Spread& s = row.spread;
    std::printf("%-17s", row.title);
    for (const double v : {s.least, s.quarter, s.median, s.three_quarters, s.most})
      std::printf("  %8.*f", row.decimals, v);
    std::printf("  %8.*f\n", std::max(row.decimals, 1), s.mean);
  }
  return int(Exit::kDone);
}

}  // namespace

Command add_prepare(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "prepare", "make, check and describe training data: structures and alignments to shards");
  app->require_subcommand(0, 1);

  const auto o = std::make_shared<BuildOptions>();
  CLI::App* building = app->add_subcommand("build", "structures and alignments to HDF5 shards");
  o->add_to(*building);

  const auto paths = std::make_shared<std::vector<std::string>>();
  const auto json = std::make_shared<bool>(false);
  CLI::App* verifying = app->add_subcommand(
      "verify", "read shards whole: checksums, sizes, letters; names the damage");
  CLI::App* describing = app->add_subcommand("stats", "lengths, alignments, resolution, clusters");
  for (CLI::App* command : {verifying, describing})
    command->add_option("SHARDS", *paths, "shards, or folders of them")->required();
  verifying->add_option("--jobs", o->jobs, "shards read at once (default: all processors)")
      ->check(CLI::Range(1, 1024));
  describing->add_flag("--json", *json, "print JSON");
  for (CLI::App* command : {building, verifying, describing}) command->allow_extras();
  return {app, [=] {
            if (app->get_subcommands().empty())
              fail(Exit::kUsage,
                   "prepare: say what to do: build, verify or stats; see fastfold "
                   "prepare --help");
            if (building->parsed()) return build_shards(*o);
            return verifying->parsed() ? verify(*paths, o->jobs) : stats(*paths, *json);
          }};
}

}  // namespace ff
