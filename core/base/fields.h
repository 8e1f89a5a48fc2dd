// Configuration fields: dotted keys of YAML and JSON files and of key=value, bound to places in
// structs. One mechanism for presets, recipes and overrides.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace YAML {
class Node;
}

namespace ff {

/// A dotted key and the place its value goes to. A key that sets several places stands several
/// times. An optional number that is not set is written "auto".
struct Field {
  std::string key;
  std::variant<int64_t*, double*, bool*, std::string*, std::vector<std::string>*,
               std::array<double, 2>*, std::optional<int64_t>*>
      target;
  bool required = true;
  /// Numbers outside are refused.
  double least = -std::numeric_limits<double>::infinity(),
         most = std::numeric_limits<double>::infinity();
};
using Fields = std::vector<Field>;

/// The bytes of a configuration file. Throws Exit::kInput where it cannot be read or is larger than
/// any configuration.
std::string read_config_file(const std::string& path);

/// YAML or JSON text as a node. Throws Exit::kUsage naming `file` and the line where it is neither,
/// or no list of keys.
YAML::Node parse_config(const std::string& text, const std::string& file);

/// "model.num_recycle=5" as the node that a file of that key gives, and the name to call it in
/// errors. Throws Exit::kUsage without a key.
std::pair<YAML::Node, std::string> parse_assignment(const std::string& assignment);

/// Sets the fields that `node` of `file` names. Throws Exit::kUsage with file and line on an
/// unknown key (with the nearest name), one given twice, a wrong type and a number out of its
/// range.
void apply_fields(const Fields& fields, const YAML::Node& node, const std::string& file);

/// Every key with its value, nested.
nlohmann::ordered_json fields_json(const Fields& fields);

}  // namespace ff
