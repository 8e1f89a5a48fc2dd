// Optimal string alignment distance and the choice of the nearest name.
#include "core/base/nearest.h"

#include <algorithm>

namespace ff {

int edit_distance(const std::string& a, const std::string& b) {
  const int n = int(a.size()), m = int(b.size());
  std::vector<std::vector<int>> d(n + 1, std::vector<int>(m + 1));
  for (int i = 0; i <= n; ++i)
    for (int j = 0; j <= m; ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      const int change = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[n][m];
}

std::string did_you_mean(const std::string& name, const std::vector<std::string>& known) {
  constexpr size_t kLongest = 100;  // a longer word is no mistyped name
  if (name.size() > kLongest) return "";
  int best = std::max(2, int(name.size()) / 3) + 1;
  const std::string* nearest = nullptr;
  for (const std::string& candidate : known) {
    const int distance = edit_distance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = &candidate;
    }
  }
  return nearest ? "; did you mean '" + *nearest + "'?" : "";
}

}  // namespace ff
