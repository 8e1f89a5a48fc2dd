// Gathers a run's records into charts and fills io/report/run.html.
#include "io/run_report.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr char kPage[] =
#include "run.html.inc"
    ;
constexpr char kCss[] =
#include "page.css.inc"
    ;
constexpr char kJs[] =
#include "run.js.inc"
    ;

constexpr int64_t kLargestLog = int64_t(1) << 30;
constexpr size_t kMostPoints = 1500;

using Curve = std::vector<std::pair<double, double>>;  ///< step, value

/// A chart takes the tags that begin with one of its words.
struct Chart {
  const char *title, *note;
  std::vector<std::string> tags;
};
const Chart kCharts[] = {
    {"Loss", "weighted total, means over each step's samples", {"loss/total"}},
    {"Loss terms", "each without its weight", {"loss/"}},
    {"lDDT-CA and TM-score",
     "0 to 1, higher is better",
     {"val/lddt_ca", "val/tm", "train/lddt_ca"}},
    {"GDT", "0 to 1, higher is better", {"val/gdt"}},
    {"RMSD", "angstrom, of CA, lower is better", {"val/rmsd", "val/drmsd"}},
    {"Learning rate", "", {"optim/lr"}},
    {"Gradient norm", "mean over samples, before clipping", {"optim/grad_norm"}},
    {"Clipped and skipped",
     "share of samples clipped; steps skipped so far",
     {"optim/clip_rate", "optim/skipped"}},
    {"Speed", "samples a second", {"run/samples_per_s"}},
    {"TFLOP/s", "", {"run/tflops"}},
    {"Shares",
     "of the time waiting for the loader, of the device's peak",
     {"run/loader_stall", "run/share_of_peak"}},
};

/// Of seconds that start anew where a run was resumed.
double total_seconds(const Curve& seconds) {
  double total = 0, before = 0;
  for (const auto& [step, value] : seconds) {
    if (value < before) total += before;
    before = value;
  }
  return total + before;
}

Curve thinned(const Curve& curve) {
  if (curve.size() <= kMostPoints) return curve;
  Curve out;
  for (size_t k = 0; k < kMostPoints; ++k) {
    const size_t from = k * curve.size() / kMostPoints, to = (k + 1) * curve.size() / kMostPoints;
    double sum = 0;
    for (size_t i = from; i < to; ++i) sum += curve[i].second;
    out.emplace_back(curve[to - 1].first, sum / double(to - from));
  }
  return out;
}

nlohmann::json chart_json(const std::string& title, const std::string& note,
                          const std::map<std::string, Curve>& curves) {
  nlohmann::json series = nlohmann::json::array();
  for (const auto& [tag, curve] : curves) series.push_back({{"name", tag}, {"at", thinned(curve)}});
  return {{"title", title}, {"note", note}, {"series", series}};
}

std::string filled(std::string page, const std::string& key, const std::string& value) {
  const std::string mark = "{{" + key + "}}";
  const size_t at = page.find(mark);
  check(at != std::string::npos, "run.html has no ", mark);
  return page.replace(at, mark.size(), value);
}

}  // namespace

std::string run_report_html(const std::string& run) {
  const std::string path = run + "/metrics.jsonl", text = read_text_file(path, kLargestLog);
  std::map<std::string, Curve> curves;
  int64_t bad = 0, records = 0, last = 0;
  std::string_view rest = text, line;
  while (next_line(rest, line)) {
    const nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (!record.is_object() || !record.contains("step") || !record["step"].is_number_integer()) {
      ++bad;
      continue;
    }
    ++records;
    last = std::max(last, record["step"].get<int64_t>());
    for (const auto& [tag, value] : record.items())
      if (tag != "step" && value.is_number())
        curves[tag].emplace_back(record["step"].get<double>(), value.get<double>());
  }
  check_input(records > 0, path, ": holds no record; is it the folder of a training run?");

  nlohmann::json facts = {{"steps", last}}, charts = nlohmann::json::array();
  for (const char* tag : {"run/samples", "run/seconds", "run/memory"})
    if (const auto found = curves.find(tag); found != curves.end()) {
      facts[tag] = tag == std::string("run/seconds") ? total_seconds(found->second)
                                                     : found->second.back().second;
      curves.erase(found);
    }
  for (const Chart& chart : kCharts) {
    std::map<std::string, Curve> taken;
    for (const std::string& word : chart.tags)
      for (auto at = curves.lower_bound(word); at != curves.end() && at->first.starts_with(word);) {
        taken.insert(*at);
        at = curves.erase(at);
      }
    if (!taken.empty()) charts.push_back(chart_json(chart.title, chart.note, taken));
  }
  for (const auto& item : curves) charts.push_back(chart_json(item.first, "", {item}));

  const nlohmann::json data = {{"name", std::filesystem::absolute(run).lexically_normal().string()},
                               {"facts", facts},
                               {"bad", bad},
                               {"charts", charts}};
  std::string json = data.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  for (size_t at = 0; (at = json.find('<', at)) != std::string::npos;)
    json.replace(at, 1, "\\u003c");
  std::string page = filled(kPage, "version", FASTFOLD_VERSION);
  page = filled(page, "css", kCss);
  page = filled(page, "js", kJs);
  return filled(page, "data", json);
}

}  // namespace ff
