// A command on all the ranks that mpirun or srun started.
#pragma once

#include <functional>
#include <string>

#include "comm/grid.h"

namespace CLI {
class App;
}

namespace ff {

/// What commands of several ranks take.
struct RankOptions {
  int dap = 1;
  double timeout = 600;
  std::string profile;

  /// Adds --comm-timeout and --profile; --dap too where `with_dap`.
  void add_to(CLI::App& app, bool with_dap);
};

/// f(world) on every rank. An error that one rank meets alone is told by it and ends them all with
/// its exit code; a SharedError is told once. Writes the timeline, and says what communication was
/// not hidden, where --profile asks for it.
int on_ranks(const RankOptions& options, const std::function<int(const Group& world)>& f);

/// Says what the exception in flight means, `where` it was met, and returns its exit code. What is
/// wrong with the command line is the same on all ranks: rank 0 says it.
int tell_error(const std::string& where = "");

}  // namespace ff
