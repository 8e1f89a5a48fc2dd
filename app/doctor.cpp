// fastfold doctor: what this machine and this build offer, and what is missing for what.
#include <oneapi/dnnl/dnnl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "app/commands.h"
#include "app/gpu.h"
#include "app/model_file.h"
#include "comm/link.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/model/config.h"
#include "core/ops/kernels.h"
#include "io/hdf5.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

/// "ok", "note" (something is not there that prediction can do without), "bad".
struct Finding {
  std::string name, state, text;
  nlohmann::ordered_json values;
  Exit code = Exit::kDone;  ///< of a run that meets it, where the state is bad
};

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += (all.empty() ? "" : ", ") + part;
  return all;
}

/// The value of a line "KEY : value" of a file in /proc.
std::string proc_value(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t end = line.find_last_not_of(" \t", colon - 1);
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    if (end != std::string::npos && line.substr(0, end + 1) == key)
      return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

Finding processor() {
  constexpr std::pair<const char*, const char*> kFeatures[] = {{"avx2", "AVX2"},
                                                               {"fma", "FMA"},
                                                               {"avx512f", "AVX-512"},
                                                               {"avx512_bf16", "AVX-512 bf16"},
                                                               {"amx_bf16", "AMX bf16"}};
  std::istringstream words(proc_value("/proc/cpuinfo", "flags"));
  const std::set<std::string> flags{std::istream_iterator<std::string>(words), {}};
  std::vector<std::string> names;
  nlohmann::ordered_json features;
  for (const auto& [flag, name] : kFeatures) {
    features[flag] = flags.count(flag) > 0;
    if (flags.count(flag)) names.push_back(name);
  }
  const std::string model = proc_value("/proc/cpuinfo", "model name");
  Finding f{"processor", "ok", cat(model, ": ", joined(names)), {{"model", model}}};
  f.values["features"] = features;
  if (!flags.count("avx2") || !flags.count("fma")) {
    f.state = "bad";
    f.code = Exit::kDevice;
    f.text += "; needed are AVX2 and FMA (x86-64-v3)";
  }
  return f;
}

Finding kernel_table() {
  const dnnl_version_t* v = dnnl_version();
  const std::string version = cat(v->major, ".", v->minor, ".", v->patch);
  const char* name = kernels({}).name;
  const bool fast_bf16 = dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core_bf16;
  return {"kernels",
          "ok",
          cat(name, ", matrix products by oneDNN ", version,
              fast_bf16 ? "; --precision bf16 uses the processor's own instructions"
                        : "; the processor has no bf16 instructions: no speed from --precision "
                          "bf16"),
          {{"name", name}, {"onednn", version}, {"native_bf16", fast_bf16}}};
}

Finding threads() {
  const int allowed = available_threads();
  const long there = sysconf(_SC_NPROCESSORS_ONLN);
  const double limit = cgroup_cpu_limit();
  Finding f{"threads", "ok", cat(allowed, " of ", there, " processors"), {}};
  if (limit > 0) f.text += cat(" (the container's limit is ", limit, ")");
  f.values = {{"allowed", allowed}, {"processors", there}};
  if (limit > 0) f.values["cgroup_limit"] = limit;
  return f;
}

Finding memory() {
  constexpr int64_t kLeast = int64_t(1) << 30;
  const int64_t free = available_memory();
  const int64_t total = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  Finding f{"memory",
            "ok",
            cat(show_bytes(free), " to be had of ", show_bytes(total)),
            {{"available_bytes", free}, {"total_bytes", total}}};
  if (free < 0) {
    f.text = "unknown";
    f.state = "note";
  } else if (free < kLeast) {
    f.state = "bad";
    f.code = Exit::kDevice;
    f.text += "; DeepMind's networks need about " + show_bytes(kLeast) + " for 200 residues";
  }
  return f;
}

Finding gpu() {
  const GpuReport report = find_gpus();
  Finding f{"gpu", "ok", report.gpus[0].name, {}};
  if (*report.reason) {
    f.state = "note";
    f.text = cat("none used: ", report.reason);
  }
  f.values["gpus"] = nlohmann::ordered_json::array();
  for (int i = 0; i < report.count; ++i)
    f.values["gpus"].push_back({{"name", report.gpus[i].name},
                                {"compute_capability", cat(report.gpus[i].compute_major, ".",
                                                           report.gpus[i].compute_minor)},
                                {"total_bytes", report.gpus[i].total_bytes},
                                {"free_bytes", report.gpus[i].free_bytes}});
  return f;
}

Finding cublas() {
  std::string text;
  const bool found = find_blas(text);
  return {"cublas", found ? "ok" : "note", text, {{"found", found}}};
}

Finding nccl() {
  std::string text;
  const bool found = find_nccl(text);
  Finding f{"nccl", found ? "ok" : "note", text, {{"found", found}}};
  if (!found) f.text = "ranks on GPUs exchange through their hosts' memory: " + text;
  return f;
}

Finding mpi() {
  std::vector<std::string> seen;
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_JOB_ID", "SLURM_NTASKS"})
    if (const char* value = std::getenv(name)) {
      variables[name] = value;
      seen.push_back(cat(name, "=", value));
    }
  const std::string version = mpi_version();
  return {
      "mpi",
      version.empty() ? "note" : "ok",
      cat(version.empty() ? "not in this build: one process works alone" : version,
          "; of a launcher's variables ", seen.empty() ? "none is" : joined(seen) + " are", " set"),
      {{"compiled_in", !version.empty()}, {"version", version}, {"variables", variables}}};
}

Finding hdf5() {
  const Hdf5Lock lock;
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  const std::string version = cat(major, ".", minor, ".", release);
  return {"hdf5", "ok", version, {{"version", version}}};
}

Finding output_folder(const std::string& path) {
  constexpr int64_t kLittle = int64_t(1) << 30;
  std::error_code error;
  fs::path there = fs::absolute(path, error);
  while (!there.empty() && there != there.root_path() && !fs::exists(there, error))
    there = there.parent_path();
  struct statvfs disk {};
  const bool known = statvfs(there.c_str(), &disk) == 0;
  const int64_t free = known ? int64_t(disk.f_bavail) * int64_t(disk.f_frsize) : -1;
  Finding f{"folder",
            "ok",
            cat(path, ": ", known ? show_bytes(free) + " free" : "space unknown"),
            {{"path", path}, {"free_bytes", free}}};
  f.values["writable"] = fs::is_directory(there, error) && access(there.c_str(), W_OK | X_OK) == 0;
  if (!f.values["writable"]) {
    f.state = "bad";
    f.code = Exit::kUsage;
    f.text = cat(path, ": nothing can be written there; give another folder with -o");
  } else if (known && free < kLittle) {
    f.state = "note";
    f.text += "; a prediction of 3,000 residues takes 100 MiB";
  }
  return f;
}

Finding presets() {
  const std::vector<std::string> names = preset_names();
  return {"presets", "ok", joined(names), {{"names", names}}};
}

Finding parameters() {
  return {"parameters", "note", "none are part of this program: " + where_parameters_are(), {}};
}

struct Options {
  std::string output = ".";
  bool json = false;
};

int run(const Options& o) {
  const Finding findings[] = {
      processor(), kernel_table(),          threads(), memory(),    gpu(), cublas(), nccl(), mpi(),
      hdf5(),      output_folder(o.output), presets(), parameters()};
  std::vector<std::string> bad;
  Exit code = Exit::kDone;
  for (const Finding& f : findings)
    if (f.state == "bad") {
      bad.push_back(cat(f.name, " (", f.text, ")"));
      if (code == Exit::kDone) code = f.code;
    }
  if (o.json) {
    nlohmann::ordered_json all = {{"version", FASTFOLD_VERSION}, {"can_predict", bad.empty()}};
    for (const Finding& f : findings) {
      nlohmann::ordered_json& one = all[f.name] = {{"state", f.state}, {"text", f.text}};
      for (const auto& [key, value] : f.values.items()) one[key] = value;
    }
    std::puts(all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::printf("fastfold %s\n", FASTFOLD_VERSION);
    for (const Finding& f : findings)
      std::printf("  %-5s %-11s %s\n", f.state.c_str(), f.name.c_str(), f.text.c_str());
    if (bad.empty()) std::puts("fastfold predict can run here, on the CPU.");
  }
  if (!bad.empty()) fail(code, "predict cannot run here: ", joined(bad));
  return int(Exit::kDone);
}

}  // namespace

Command add_doctor(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "doctor", "say what this machine and this build offer, and what is missing for what");
  app->add_option("-o,--output-dir,--out", o->output,
                  "folder that predictions shall be written to (default: here)");
  app->add_flag("--json", o->json, "print JSON");
  return {app, [o] { return run(*o); }};
}

}  // namespace ff
