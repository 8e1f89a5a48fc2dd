// The lock around HDF5 and its error stack.
#include "io/hdf5.h"

#include <algorithm>
#include <string_view>

namespace ff {
namespace {

std::recursive_mutex& hdf5_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

}  // namespace

Hdf5Lock::Hdf5Lock() : lock_(hdf5_mutex()) {
  // HDF5's clean-up at exit stops with a segmentation fault when a file could not be written.
  static const herr_t without_atexit = H5dont_atexit();
  static_cast<void>(without_atexit);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string hdf5_reason() {
  std::string reason;
  const auto first = [](unsigned n, const H5E_error2_t* error, void* to) -> herr_t {
    if (n == 0 && error->desc) *static_cast<std::string*>(to) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first, &reason);
  // Of "file write failed: time = ..., error message = 'No space left on device', buf = ..."
  constexpr std::string_view kSystem = "error message = '";
  if (const size_t at = reason.find(kSystem); at != std::string::npos) {
    reason.erase(0, at + kSystem.size());
    reason.resize(std::min(reason.find('\''), reason.size()));
  }
  return reason.empty() ? reason : " (" + reason + ")";
}

}  // namespace ff
