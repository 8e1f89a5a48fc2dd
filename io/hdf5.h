// HDF5's C interface made safe: handles that close themselves, one user at a time, quiet errors.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>

namespace ff {

/// Held while HDF5 is used, from the first call on: the library has no locks of its own. Also
/// silences its error printing and keeps it from cleaning up at the program's exit.
class Hdf5Lock {
 public:
  Hdf5Lock();

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

/// What HDF5 says about its last failure, innermost cause: " (unable to open file)"; may be empty.
std::string hdf5_reason();

/// An identifier of any kind; closed at the end of its life.
class Hid {
 public:
  explicit Hid(hid_t id = H5I_INVALID_HID) : id_(id) {}
  ~Hid() { close(); }
  Hid(Hid&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Hid& operator=(Hid&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  operator hid_t() const { return id_; }
  bool ok() const { return id_ >= 0; }
  /// False when closing failed, as for a file that cannot be written out.
  bool close() { return id_ < 0 || H5Idec_ref(std::exchange(id_, H5I_INVALID_HID)) >= 0; }

 private:
  hid_t id_;
};

}  // namespace ff
