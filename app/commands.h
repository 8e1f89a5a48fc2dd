// The subcommands. Each file registers its own with the program's root.
#pragma once

#include <functional>
#include <string>

#include "comm/group.h"

namespace CLI {
class App;
}

namespace ff {

struct Command {
  CLI::App* app;             ///< its command line; its options live as long as `run`
  std::function<int()> run;  ///< returns the exit code or throws
  bool many_ranks = false;   ///< whether mpirun may start it as several
};

Command add_predict(CLI::App& root);
Command add_features(CLI::App& root);
Command add_parity(CLI::App& root);
Command add_init(CLI::App& root);
Command add_convert(CLI::App& root);
Command add_bench(CLI::App& root);
Command add_doctor(CLI::App& root);
Command add_evaluate(CLI::App& root);
Command add_report(CLI::App& root);
Command add_prepare(CLI::App& root);
Command add_train(CLI::App& root);

/// What every command that computes takes.
struct ComputeOptions {
  int threads = 0;  ///< 0: available_threads()
  bool quiet = false;
  std::string precision = "f32", device = "cpu";

  Device::Kind kind() const { return device == "cpu" ? Device::cpu : Device::cuda; }

  /// Adds --threads, --quiet, --device and --precision (f32, tf32, bf16 and, for tests, f64).
  void add_to(CLI::App& app, bool with_f64);
  /// Sets threads and quiet, and returns the device, on several ranks each its own; throws
  /// Exit::kDevice where it cannot be had.
  Device apply(const Group& world = {}) const;
};

}  // namespace ff
