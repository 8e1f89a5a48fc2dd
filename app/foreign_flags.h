// Flags that users of AlphaFold, OpenFold and ColabFold know and that have no counterpart here.
#pragma once

#include <string>

namespace ff {

/// What to do instead of `flag` ("--jackhmmer-binary-path"), or "" for one that nobody has.
std::string instead_of(const std::string& flag);

}  // namespace ff
