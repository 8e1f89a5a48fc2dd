// The record, the report and the plots of a target.
#include "app/predict_record.h"

#include <sys/utsname.h>

#include <cmath>
#include <ctime>
#include <filesystem>

#include "app/report.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "io/hash.h"
#include "io/html_report.h"

namespace ff {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

nlohmann::json run_record(const PredictOptions& o, const std::vector<PredictModel>& models,
                          const std::vector<std::shared_future<std::string>>& hashes,
                          const Job& job, const TargetInputs& in, const TargetResults& results,
                          const std::string& started) {
  nlohmann::json j;
  utsname host{};
  uname(&host);
  j["fastfold"] = FASTFOLD_VERSION;
  j["command"] = command_line();
  j["working_directory"] = std::filesystem::current_path();
  j["host"] = host.nodename;
  j["started"] = started;
  j["finished"] = utc_now();
  j["target"] = {{"tag", job.tag},
                 {"title", job.title},
                 {"sequence", job.sequence},
                 {"residues", job.sequence.size()}};
  nlohmann::json& inputs = j["inputs"];
  inputs["source"] = job.source;
  inputs["sequences"] = in.raw.n_seq;
  inputs["alignments"] = nlohmann::json::array();
  for (const auto& [path, rows] : in.rows)
    inputs["alignments"].push_back(
        {{"file", path}, {"rows", rows}, {"sha256", sha256_of_file(path)}});
  inputs["template_hits"] = job.template_hits;
  inputs["templates"] = nlohmann::json::array();
  for (const UsedTemplate& t : in.templates)
    inputs["templates"].push_back({{"name", t.name},
                                   {"file", t.source},
                                   {"sum_probs", t.sum_probs},
                                   {"aligned_residues", t.aligned},
                                   {"identity", t.identity}});
  j["warnings"] = in.warnings;
  j["settings"] = {{"num_seeds", o.num_seeds},
                   {"random_seed", o.random_seed},
                   {"rank_by", o.rank_by()},
                   {"precision", o.compute.precision},
                   {"device", o.compute.device},
                   {"threads", o.compute.threads > 0 ? o.compute.threads : available_threads()}};
  if (o.stop_at_score) j["settings"]["stop_at_score"] = *o.stop_at_score;
  for (size_t i = 0; i < models.size(); ++i) {
    const PredictModel& m = models[i];
    j["models"].push_back({{"name", m.name},
                           {"parameters", m.path},
                           {"sha256", hashes[i].get()},
                           {"num_recycle", m.options.num_recycle},
                           {"num_ensemble", m.options.num_ensemble},
                           {"recycle_early_stop_tolerance", m.options.recycle_early_stop_tolerance},
                           {"config", nlohmann::json::parse(config_json(m.network.config()))}});
  }
  for (const Prediction& p : results.ranked) {
    nlohmann::json one = {{"model", p.model},
                          {"seed", p.seed},
                          {"recycles", p.num_recycles},
                          {"mean_plddt", p.mean_plddt}};
    if (p.ptm) one["ptm"] = *p.ptm;
    j["predictions"].push_back(one);
  }
  return j;
}

void draw_results(const PredictOptions& o, const std::vector<PredictModel>& models, const Job& job,
                  const TargetInputs& in, TargetResults& results) {
  Report report{.tag = job.tag,
                .title = job.title,
                .sequence = job.sequence,
                .ranked = results.ranked,
                .coverage = coverage_of(in.raw),
                .tables = {},
                .warnings = in.warnings};
  std::vector<std::pair<std::string, std::string>> inputs{{"sequence", job.source}};
  for (const auto& [path, rows] : in.rows) inputs.emplace_back(path, cat(rows, " rows"));
  inputs.emplace_back("distinct sequences", cat(in.raw.n_seq));
  report.tables.emplace_back("Inputs", inputs);
  if (!in.templates.empty()) {
    std::vector<std::pair<std::string, std::string>> templates;
    for (const UsedTemplate& t : in.templates)
      templates.emplace_back(t.name,
                             cat(t.aligned, " residues, ", int(std::lround(100 * t.identity)),
                                 " % identical, ", t.source));
    report.tables.emplace_back("Templates", templates);
  }
  std::vector<std::pair<std::string, std::string>> settings{
      {"fastfold", FASTFOLD_VERSION},
      {"precision", o.compute.precision},
      {"ranked by", results.rank_by == "ptm" ? "pTM" : "mean pLDDT"}};
  for (const PredictModel& m : models) settings.emplace_back(m.name, m.path);
  report.tables.emplace_back("Settings", settings);
  std::vector<std::pair<std::string, std::string>> times;
  for (const auto& [key, value] : results.timings.items())
    if (value.is_number_float()) times.emplace_back(key, show_seconds(value.get<double>()));
  times.emplace_back("peak memory", show_bytes(peak_rss()));
  report.tables.emplace_back("Timings", times);
  results.report_html = report_html(report);
  results.coverage_svg = coverage_svg(report.coverage);
  results.plddt_svg = plddt_svg(results.ranked);
  results.pae_svg = pae_svg(results.ranked);
}

}  // namespace ff
