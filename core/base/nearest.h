// The nearest known name to a mistyped one, for error messages.
#pragma once

#include <string>
#include <vector>

namespace ff {

/// Least number of letters to insert, delete, replace or swap with their neighbour to make b of a.
int edit_distance(const std::string& a, const std::string& b);

/// "; did you mean 'no_blocks'?" with the nearest of `known`, or "" where none is near.
std::string did_you_mean(const std::string& name, const std::vector<std::string>& known);

}  // namespace ff
