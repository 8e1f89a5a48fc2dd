// Tensor: a cheap handle on counted, shared storage. Views never copy; sizes and offsets are int64.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "core/base/error.h"

namespace ff {

/// bfloat16 storage: the upper half of a float. Arithmetic happens in float.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float f) {
    uint32_t u;
    __builtin_memcpy(&u, &f, 4);
    // Round to nearest even; a NaN stays one.
    bits = (u & 0x7fffffffu) > 0x7f800000u ? uint16_t(u >> 16 | 0x40)
                                           : uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t u = uint32_t(bits) << 16;
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
  }
};

enum class Dtype : uint8_t { f32, bf16, i32, f64 };
int64_t size_of(Dtype dtype);
const char* name_of(Dtype dtype);

template <class T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>)
    return Dtype::f32;
  else if constexpr (std::is_same_v<T, bf16>)
    return Dtype::bf16;
  else if constexpr (std::is_same_v<T, int32_t>)
    return Dtype::i32;
  else if constexpr (std::is_same_v<T, double>)
    return Dtype::f64;
  else
    static_assert(!sizeof(T), "no such dtype");
}

struct Device {
  enum Kind : uint8_t { cpu, cuda } kind = cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

/// Up to six sizes or strides, kept inline.
class Dims {
 public:
  static constexpr int kMax = 6;
  Dims() = default;
  Dims(std::initializer_list<int64_t> d) {
    check(d.size() <= kMax, "a tensor has at most ", kMax, " axes, asked for ", d.size());
    for (int64_t x : d) v_[n_++] = x;
  }
  explicit Dims(std::span<const int64_t> d) {
    check(d.size() <= kMax, "a tensor has at most ", kMax, " axes, asked for ", d.size());
    for (int64_t x : d) v_[n_++] = x;
  }
  int size() const { return n_; }
  int64_t operator[](int i) const { return v_[i]; }
  int64_t& operator[](int i) { return v_[i]; }
  const int64_t* begin() const { return v_.data(); }
  const int64_t* end() const { return v_.data() + n_; }
  void push_back(int64_t x) {
    check(n_ < kMax, "a tensor has at most ", kMax, " axes");
    v_[n_++] = x;
  }
  int64_t product() const {
    int64_t p = 1;
    for (int i = 0; i < n_; ++i) p *= v_[i];
    return p;
  }
  bool operator==(const Dims& o) const {
    if (n_ != o.n_) return false;
    for (int i = 0; i < n_; ++i)
      if (v_[i] != o.v_[i]) return false;
    return true;
  }
  /// "[48, 128, 4]"; streamed, so that a check's message costs nothing until it is needed.
  friend std::ostream& operator<<(std::ostream& out, const Dims& d);
  std::string str() const { return cat(*this); }

 private:
  std::array<int64_t, kMax> v_{};
  int n_ = 0;
};

/// Bytes of tensor storage alive and their highest count, per kind of device.
struct MemoryCount {
  int64_t current = 0, peak = 0;
};
MemoryCount memory_count(Device::Kind kind = Device::cpu);
void reset_memory_peak(Device::Kind kind = Device::cpu);

class Tensor;

/// What a device can do with memory; the CPU's is built in, the CUDA module registers its own.
/// Calls are ordered with each other and with the device's kernels, those of a Lane's thread with
/// the lane's; errors are thrown.
struct DeviceMemory {
  /// nullptr where there is none left.
  void* (*allocate)(int64_t bytes, int index) = nullptr;
  void (*release)(void* p, int64_t bytes, int index) = nullptr;
  void (*zero)(void* p, int64_t bytes) = nullptr;
  /// `from` is read before it returns; of a download all has arrived.
  void (*upload)(void* to, const void* from, int64_t bytes) = nullptr;
  void (*download)(void* to, const void* from, int64_t bytes) = nullptr;
  /// A download that is waited for later: `to` is nullptr where nobody wants it any more. nullptr:
  /// there is none such.
  void* (*begin_download)(const void* from, int64_t bytes) = nullptr;
  void (*end_download)(void* begun, void* to, int64_t bytes) = nullptr;
  /// Any strides and dtypes; copy_all of f32, contiguous.
  void (*copy)(const Tensor& from, const Tensor& to) = nullptr;
  void (*copy_all)(std::span<const Tensor> from, std::span<const Tensor> to) = nullptr;
  void (*add_up)(std::span<const Tensor> parts, const Tensor& sum) = nullptr;
  void (*synchronize)() = nullptr;
  /// Bytes that allocate() can still give; -1: not known.
  int64_t (*available)(int index) = nullptr;
  /// Lanes and recordings; nullptr where there are none.
  void (*enter_lane)(int number) = nullptr;
  void (*leave_lane)() = nullptr;
  void* (*record)(const std::function<void()>& f) = nullptr;
  void (*play)(void* recording) = nullptr;
  bool (*follow)(void* recording, const std::function<void()>& f) = nullptr;
  bool (*is_recording)() = nullptr;
  void (*forget)(void* recording) = nullptr;
};
void register_memory(Device::Kind kind, const DeviceMemory& memory);

/// Bytes of tensors that the device has still room for; -1 where that is not known.
int64_t free_memory(Device device);

/// A tensor that there was no memory for.
struct OutOfMemory : Error {
  explicit OutOfMemory(const std::string& what) : Error(Exit::kDevice, what) {}
};

/// Waits until the device has done all that was asked of it.
void synchronize(Device device);

/// While one is alive, what its thread asks of a GPU runs beside what other threads ask: after all
/// that was asked before the lane began, before what is asked after it ended. A thread has one at a
/// time, and lanes alive at one time have different numbers. The CPU has none.
class Lane {
 public:
  Lane(Device device, int number);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

 private:
  Device device_;
};

/// What cannot be recorded: it waits for the GPU, keeps memory that it asked for, or needs more
/// memory than there is.
struct CannotRecord : Error {
  explicit CannotRecord(const std::string& why)
      : Error(Exit::kDevice, cat("no recording: ", why)) {}
};

/// What f asks of a GPU, to be asked again in one go: a CUDA graph. All recordings, or a lane's,
/// share memory of their own, as much as the largest needs; one that it has outgrown follows no
/// more.
class Recording {
 public:
  /// Runs f twice and asks for nothing; it keeps no memory that it asks for. Throws CannotRecord.
  Recording(Device device, const std::function<void()>& f);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  /// Asks for what the function that was recorded, or followed last, asked for.
  void play() const;
  /// Runs f, which was recorded, on other values: where it asks for the same kernels, copies and
  /// memory in the same order, that is asked for in one go. Else false: f asked for nothing.
  bool follow(const std::function<void()>& f) const;
  /// Whether the device can record.
  static bool possible(Device device);
  /// Whether the calling thread's requests are recorded or followed.
  static bool ongoing(Device device);

 private:
  Device device_;
  void* recording_;
};

/// What devices that are not the CPU were asked for, since the program began.
struct DeviceWork {
  int64_t launches = 0;  ///< kernels, fills, and copies within the device
  int64_t uploads = 0, upload_bytes = 0, downloads = 0, download_bytes = 0;
  int64_t waits = 0;  ///< of the host for the device: every download and synchronize()
};
DeviceWork device_work();
DeviceWork operator-(const DeviceWork& after, const DeviceWork& before);
/// For a device's module: after each launch, and where a copy had to wait for the device.
void count_launch();
void count_wait();
/// For a device's module: memcpy on the host, by all threads where it is long.
void copy_bytes(void* to, const void* from, int64_t bytes);

/// to[i].copy_from(from[i]), in one go where a device can.
void copy_all(std::span<const Tensor> from, std::span<const Tensor> to);

/// sum = its parts, added in their order in f32 or wider. Of one shape and device; the first part
/// may be `sum` itself.
void add_up(std::span<const Tensor> parts, const Tensor& sum);

class Tensor {
 public:
  Tensor() = default;

  /// Uninitialised, row-major. Throws Exit::kDevice when there is no memory for it.
  static Tensor empty(const Dims& shape, Dtype dtype = Dtype::f32, Device device = {});
  static Tensor zeros(const Dims& shape, Dtype dtype = Dtype::f32, Device device = {});
  /// A copy of `values` in `shape`, on the CPU.
  template <class T>
  static Tensor of(const Dims& shape, const T* values) {
    Tensor t = empty(shape, dtype_of<T>());
    if (t.numel()) __builtin_memcpy(t.data<T>(), values, t.numel() * sizeof(T));
    return t;
  }
  static Tensor scalar(float value) { return of<float>({}, &value); }

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }
  int rank() const { return shape_.size(); }
  const Dims& shape() const { return shape_; }
  const Dims& strides() const { return strides_; }  ///< in elements
  /// Size of an axis; negative counts from the end.
  int64_t size(int axis) const { return shape_[wrap(axis)]; }
  int64_t stride(int axis) const { return strides_[wrap(axis)]; }
  int64_t numel() const { return shape_.product(); }
  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool is_contiguous() const;

  /// First element. The type must be the tensor's.
  template <class T>
  T* data() const {
    check(dtype_of<std::remove_const_t<T>>() == dtype_, "tensor holds ", name_of(dtype_),
          ", read as ", name_of(dtype_of<std::remove_const_t<T>>()));
    return static_cast<T*>(raw());
  }
  void* raw() const;
  /// The value of a tensor of one element, as double. Waits for the device.
  double item() const;

  // Views on the same storage.
  Tensor narrow(int axis, int64_t start, int64_t length) const;
  Tensor select(int axis, int64_t index) const;  ///< drops the axis
  Tensor transpose(int a, int b) const;
  Tensor unsqueeze(int axis) const;
  /// An axis of size one seen `n` times (stride 0): for reading only.
  Tensor expand(int axis, int64_t n) const;
  /// Another shape over the same elements; one size may be -1. Axes may be split, and merged where
  /// their strides allow it; throws otherwise.
  Tensor view(const Dims& shape) const;

  /// Itself when already row-major, else a row-major copy.
  Tensor contiguous() const;
  Tensor clone() const;
  /// Copy in another dtype, or on another device; itself when the same. A copy to the CPU waits for
  /// the device.
  Tensor to(Dtype dtype) const;
  Tensor to(Device device) const;
  /// Copies the values of `source` (same shape, any strides, dtype and device) into this view.
  void copy_from(const Tensor& source) const;

 private:
  struct Storage;
  int wrap(int axis) const {
    const int a = axis < 0 ? axis + rank() : axis;
    check(a >= 0 && a < rank(), "axis ", axis, " of a tensor of shape ", shape_);
    return a;
  }
  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;
  Dims shape_, strides_;
  Dtype dtype_ = Dtype::f32;
  Device device_;
};

/// A copy to the CPU of what a contiguous tensor holds now, that is waited for later: a GPU's host
/// goes on meanwhile. For small ones: page-locked memory stays with the process.
class Download {
 public:
  explicit Download(const Tensor& from);
  ~Download();
  Download(Download&& other) noexcept
      : host_(std::move(other.host_)),
        device_(other.device_),
        begun_(std::exchange(other.begun_, nullptr)) {}
  Download& operator=(Download&&) = delete;
  /// Waits until it has come.
  const Tensor& wait();

 private:
  Tensor host_;
  Device device_;
  void* begun_ = nullptr;
};

}  // namespace ff
