// Reading and writing of configuration fields.
#include "core/base/fields.h"

#include <yaml-cpp/yaml.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"
#include "core/base/nearest.h"

namespace ff {
namespace {

constexpr std::streamoff kLargestFile = 16 << 20;

/// "file:line"; a key=value, which is in quotes, has no lines.
std::string place_of(const std::string& file, const YAML::Node& node) {
  return file.starts_with('\'') ? file : cat(file, ":", node.Mark().line + 1);
}

std::string shown(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.15g", x);
  return text;
}

void read(const YAML::Node& node, std::vector<std::string>& value) {
  value.clear();
  if (node.IsSequence())
    value = node.as<std::vector<std::string>>();
  else if (!node.IsNull() && !node.Scalar().empty())
    value = {node.as<std::string>()};
}
void read(const YAML::Node& node, std::string& value) {
  value = node.IsNull() ? "" : node.as<std::string>();
}
void read(const YAML::Node& node, std::optional<int64_t>& value) {
  value.reset();
  if (node.as<std::string>() != "auto") value = node.as<int64_t>();
}
template <class T>
void read(const YAML::Node& node, T& value) {
  value = node.as<T>();
}

std::vector<double> numbers(int64_t v) { return {double(v)}; }
std::vector<double> numbers(double v) { return {v}; }
std::vector<double> numbers(const std::array<double, 2>& v) { return {v[0], v[1]}; }
std::vector<double> numbers(const std::optional<int64_t>& v) {
  return v ? numbers(*v) : std::vector<double>{};
}
template <class T>
std::vector<double> numbers(const T&) {
  return {};
}

void apply(const Fields& fields, const YAML::Node& node, const std::string& file,
           const std::string& prefix) {
  std::set<std::string> given;
  for (const auto& item : node) {
    const auto fail_at = [&](const YAML::Node& at, const auto&... what) {
      fail(Exit::kUsage, place_of(file, at), ": ", what...);
    };
    if (!item.first.IsScalar()) fail_at(item.first, "expected 'key: value'");
    const std::string name = item.first.as<std::string>(), key = prefix + name;
    std::vector<std::string> siblings;
    bool known = false, section = false;
    for (const Field& field : fields) {
      if (field.key.rfind(prefix, 0) != 0) continue;
      const std::string rest = field.key.substr(prefix.size());
      const std::string sibling = rest.substr(0, rest.find('.'));
      siblings.push_back(sibling);
      known |= sibling == name;
      section |= sibling == name && rest != sibling;
    }
    if (!known) fail_at(item.first, "unknown key '", key, "'", did_you_mean(name, siblings));
    if (!given.insert(name).second) fail_at(item.first, "'", key, "' is given twice");
    if (section != item.second.IsMap())
      fail_at(item.first, "'", key, "' is ", section ? "a section" : "a value");
    if (section) {
      apply(fields, item.second, file, key + ".");
      continue;
    }
    for (const Field& field : fields) {
      if (field.key != key) continue;
      try {
        std::visit([&](auto* value) { read(item.second, *value); }, field.target);
      } catch (const YAML::Exception&) {
        fail_at(item.second, "'", key, "' cannot be '", item.second.Scalar(), "'");
      }
      for (const double x : std::visit([](const auto* v) { return numbers(*v); }, field.target))
        if (!(x >= field.least && x <= field.most))
          fail_at(item.second, "'", key, "' is ", shown(x), ", expected ", shown(field.least),
                  " to ", shown(field.most));
    }
  }
}

}  // namespace

std::string read_config_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  check_input(in.good(), path, ": cannot be opened");
  check_input(in.tellg() >= 0 && in.tellg() <= kLargestFile, path,
              ": is larger than any configuration");
  std::string text(size_t(in.tellg()), '\0');
  in.seekg(0).read(text.data(), std::streamsize(text.size()));
  check_input(in.good(), path, ": cannot be read");
  return text;
}

YAML::Node parse_config(const std::string& text, const std::string& file) {
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& e) {
    fail(Exit::kUsage, file, ":", e.mark.line + 1, ": is not YAML: ", e.msg);
  }
  if (!root.IsMap())
    fail(Exit::kUsage, file, ": expected sections and keys as in configs/presets.yaml");
  return root;
}

std::pair<YAML::Node, std::string> parse_assignment(const std::string& assignment) {
  const size_t equal = assignment.find('=');
  std::string key = assignment.substr(0, equal);
  if (equal == std::string::npos || key.empty())
    fail(Exit::kUsage, "'", assignment, "': expected key=value, such as model.num_recycle=5");
  const std::string name = "'" + assignment + "'";
  YAML::Node node;
  try {
    node = YAML::Load(assignment.substr(equal + 1));
  } catch (const YAML::Exception& e) {
    fail(Exit::kUsage, name, ": is not YAML: ", e.msg);
  }
  for (size_t dot; !key.empty(); key.resize(dot == std::string::npos ? 0 : dot)) {
    dot = key.rfind('.');
    YAML::Node outer(YAML::NodeType::Map);
    outer[key.substr(dot == std::string::npos ? 0 : dot + 1)] = node;
    node.reset(outer);
  }
  return {node, name};
}

void apply_fields(const Fields& fields, const YAML::Node& node, const std::string& file) {
  apply(fields, node, file, "");
}

nlohmann::ordered_json fields_json(const Fields& fields) {
  nlohmann::ordered_json root;
  for (const Field& field : fields) {
    nlohmann::ordered_json* at = &root;
    std::string key = field.key;
    for (size_t dot; (dot = key.find('.')) != std::string::npos; key.erase(0, dot + 1))
      at = &(*at)[key.substr(0, dot)];
    const auto put = [&](const auto& value) {
      if constexpr (std::is_same_v<decltype(value), const std::optional<int64_t>&>)
        value ? (*at)[key] = *value : (*at)[key] = "auto";
      else
        (*at)[key] = value;
    };
    std::visit([&](const auto* value) { put(*value); }, field.target);
  }
  return root;
}

}  // namespace ff
