// Flags that users of AlphaFold, OpenFold and ColabFold know and that have no counterpart here.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace ff {

/// Adds those that may ask for what predict does anyway, such as --models-to-relax none; another
/// value of theirs is refused.
void add_idle_flags(CLI::App& app);

/// What to do instead of `flag` ("--jackhmmer-binary-path"), or "" for one that nobody has.
std::string instead_of(const std::string& flag);

}  // namespace ff
