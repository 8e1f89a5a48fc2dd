// Checkpoints of training, and the folder that holds them.
#include "core/train/train_state.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "core/base/log.h"
#include "core/model/params.h"
#include "core/train/optimizer.h"
#include "core/train/train_config.h"
#include "io/checkpoint.h"
#include "io/file.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

constexpr const char *kBest = "best.h5", *kSecondName = ".second.tmp";
const std::string kTrain = "train/";

/// Each group of a state with its place in the file.
template <class State>
auto groups(State& s) {
  return std::array{std::pair{std::string(), &s.ema}, std::pair{kTrain + "params/", &s.params},
                    std::pair{kTrain + "adam_m/", &s.m}, std::pair{kTrain + "adam_v/", &s.v}};
}

bool is_step_file(const std::string& name) {
  constexpr size_t kDigits = 8;
  if (!name.starts_with("step_") || !name.ends_with(".h5")) return false;
  const std::string digits = name.substr(5, name.size() - 8);
  return digits.size() >= kDigits && digits.size() < 19 &&
         digits.find_first_not_of("0123456789") == std::string::npos;
}

std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%a", value);  // exact
  return text;
}

}  // namespace

TrainState initial_state(Arrays params) {
  TrainState s;
  for (const auto& [name, t] : params) s.ema.emplace(name, t.clone());
  s.m = zeros_like(params);
  s.v = zeros_like(params);
  s.params = std::move(params);
  return s;
}

void write_train_state(const std::string& path, const TrainState& state) {
  Arrays arrays;
  for (const auto& [prefix, group] : groups(state))
    for (const auto& [name, t] : *group) arrays.emplace(prefix + name, t.to(Device{}));
  Attributes texts = {{"kind", "training"},
                      {"model", state.model},
                      {"config", state.config},
                      {"step", cat(state.step)},
                      {"samples", cat(state.samples)},
                      {"adam_step", cat(state.adam_step)},
                      {"skipped", cat(state.skipped)},
                      {"best_step", cat(state.best_step)}};
  if (state.best) texts["best"] = shown(*state.best);
  write_checkpoint(path, arrays, texts);
}

TrainState read_train_state(const std::string& path) {
  Attributes texts;
  Arrays arrays = read_checkpoint(path, &texts);
  check_input(texts["kind"] == "training", path,
              ": holds parameters only, not the state of a training run; begin from it with "
              "--weights-only");
  TrainState s;
  for (const auto& [prefix, group] : groups(s)) {
    if (prefix.empty()) continue;
    for (auto at = arrays.lower_bound(prefix);
         at != arrays.end() && at->first.starts_with(prefix);) {
      group->emplace(at->first.substr(prefix.size()), at->second);
      at = arrays.erase(at);
    }
  }
  s.ema = std::move(arrays);
  for (const auto& [prefix, group] : groups(s)) {
    const bool same =
        std::equal(group->begin(), group->end(), s.params.begin(), s.params.end(),
                   [](const auto& a, const auto& b) {
                     return a.first == b.first && a.second.shape() == b.second.shape();
                   });
    check_input(same, path, ": the arrays under '", prefix, "' are not those of ", kTrain,
                "params; use another checkpoint");
  }
  const auto number = [&](const char* name) {
    const std::string& text = texts[name];
    char* end = nullptr;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    check_input(!text.empty() && *end == 0 && value >= 0, path, ": '", name, "' is '", text,
                "', expected a number; use another checkpoint");
    return int64_t(value);
  };
  s.model = texts["model"];
  s.config = texts["config"];
  s.step = number("step");
  s.samples = number("samples");
  s.adam_step = number("adam_step");
  s.skipped = number("skipped");
  s.best_step = number("best_step");
  if (texts.count("best")) s.best = std::strtod(texts["best"].c_str(), nullptr);
  return s;
}

Arrays averaged_params(Arrays arrays) {
  std::erase_if(arrays, [](const auto& item) { return item.first.starts_with(kTrain); });
  return arrays;
}

void check_same_model(const TrainState& state, const ModelConfig& model,
                      const std::string& config_json, const std::string& file) {
  constexpr size_t kMost = 8;
  std::vector<std::string> wrong;
  std::set<std::string> expected;
  for (const ParamSpec& spec : param_specs(model)) {
    expected.insert(spec.name);
    const auto found = state.params.find(spec.name);
    if (found == state.params.end())
      wrong.push_back(cat(spec.name, ": missing"));
    else if (!(found->second.shape() == spec.shape))
      wrong.push_back(
          cat(spec.name, ": checkpoint ", found->second.shape(), ", model ", spec.shape));
  }
  for (const auto& [name, t] : state.params)
    if (!expected.count(name)) wrong.push_back(cat(name, ": not in this model"));
  if (wrong.empty()) return;
  std::string text;
  if (state.model != model.name)
    text += cat("\n  preset: checkpoint ", state.model, ", configuration ", model.name);
  std::vector<std::string> all = config_differences(state.config, config_json, "model.");
  all.insert(all.end(), wrong.begin(), wrong.end());
  for (size_t i = 0; i < std::min(all.size(), kMost); ++i) text += "\n  " + all[i];
  if (all.size() > kMost) text += cat("\n  and ", all.size() - kMost, " more");
  fail(Exit::kInput, file, ": is a checkpoint of another model (checkpoint, configuration):", text,
       "\nchoose another run.logdir, or the configuration that it was trained with");
}

std::string best_checkpoint(const std::string& folder) {
  if (const std::string best = folder + "/" + kBest; fs::exists(best)) return best;
  const std::vector<std::string> all = checkpoints_in(folder);
  return all.empty() ? "" : all.back();
}

RunFolder::RunFolder(const std::string& path) : path_(path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail(Exit::kUsage, path, ": cannot make this folder: ", error.message());
  lock_.emplace(path + "/.train.lock", path);
  remove_file(path + "/" + kSecondName);
  remove_temporaries(path, [](const std::string& name) {
    return is_step_file(name) || name == kBest || name == kRunConfig;
  });
}

std::vector<std::string> checkpoints_in(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  for (const auto& entry : fs::directory_iterator(folder))
    if (const std::string name = entry.path().filename(); is_step_file(name))
      found.emplace_back(std::strtoll(name.c_str() + 5, nullptr, 10), entry.path());
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::string RunFolder::save(const TrainState& state, int64_t keep, bool is_best) const {
  char name[40];
  std::snprintf(name, sizeof name, "step_%08lld.h5", static_cast<long long>(state.step));
  const std::string path = path_ + "/" + name, best = path_ + "/" + kBest;
  // The best first: a run killed between the two does this step again.
  write_train_state(is_best ? best : path, state);
  if (is_best) {
    // The same file under a second name, where the file system can.
    const std::string second = path_ + "/" + kSecondName;
    remove_file(second);
    if (link(best.c_str(), second.c_str()) != 0 || rename(second.c_str(), path.c_str()) != 0)
      write_train_state(path, state);
    remove_file(second);  // rename() leaves it where both already are one file
  }
  std::vector<std::string> old = checkpoints_in(path_);
  std::error_code error;
  for (size_t i = 0; i + size_t(keep) < old.size(); ++i)
    if (old[i] != path) fs::remove(old[i], error);
  return path;
}

std::optional<std::pair<TrainState, std::string>> RunFolder::latest() const {
  std::vector<std::string> paths = checkpoints_in(path_);
  std::string reason;
  for (auto path = paths.rbegin(); path != paths.rend(); ++path) try {
      return std::pair{read_train_state(*path), *path};
    } catch (const Error& e) {
      if (e.code() != Exit::kInput) throw;
      reason = e.what();
      log_warning(reason, "; trying the one before");
    }
  check_input(paths.empty(), path_, ": none of its ", paths.size(),
              " checkpoints can be read; the oldest: ", reason);
  return std::nullopt;
}

}  // namespace ff
