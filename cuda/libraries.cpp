// Where CUDA's libraries are.
#include "cuda/libraries.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "core/base/error.h"

namespace ff::cuda {
namespace {

/// Files that may be the library, the likeliest first; patterns of glob(7).
std::vector<std::string> places(const std::string& name) {
  std::vector<std::string> found;
  const auto toolkit = [&](const std::string& root) {
    for (const char* lib : {"/lib64/", "/lib/"}) found.push_back(root + lib + name);
  };
  const auto wheels = [&](const std::string& prefix) {
    for (const char* packages : {"/site-packages", "/dist-packages"})
      found.push_back(prefix + "/lib/python3*" + packages + "/nvidia/*/lib/" + name);
  };
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* root = std::getenv(variable)) toolkit(root);
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* root = std::getenv(variable)) wheels(root);
  // Beside each folder of programs: where an nvcc or a python3 is, its libraries are.
  std::string path = std::getenv("PATH") ? std::getenv("PATH") : "";
  for (size_t start = 0, end; start < path.size(); start = end + 1) {
    end = std::min(path.find(':', start), path.size());
    const std::string root = path.substr(start, end - start) + "/..";
    toolkit(root);
    wheels(root);
  }
  toolkit("/usr/local/cuda");
  wheels("/usr/local");
  wheels("/usr");
  if (const char* home = std::getenv("HOME")) wheels(std::string(home) + "/.local");
  return found;
}

LibraryFile opened(void* handle) {
  link_map* map = nullptr;
  const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map && *map->l_name;
  return {handle, known ? map->l_name : ""};
}

}  // namespace

LibraryFile find_library(const std::string& name) {
  if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return opened(handle);
  std::string error = dlerror();
  for (const std::string& pattern : places(name)) {
    glob_t files{};
    void* handle = nullptr;
    if (glob(pattern.c_str(), 0, nullptr, &files) == 0)
      for (size_t i = 0; i < files.gl_pathc && !handle; ++i) {
        handle = dlopen(files.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
        if (!handle) error = dlerror();
      }
    globfree(&files);
    if (handle) return opened(handle);
  }
  return {
      nullptr,
      cat("not in the loader's path, in CUDA_HOME, beside nvcc or in a Python's nvidia packages "
          "(",
          error, ")")};
}

}  // namespace ff::cuda
