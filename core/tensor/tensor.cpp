// Tensor: storage, views, and the strided copy that everything outside the kernels uses.
#include "core/tensor/tensor.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/base/machine.h"

namespace ff {

int64_t size_of(Dtype dtype) {
  constexpr int64_t kSizes[] = {4, 2, 4, 8};
  return kSizes[int(dtype)];
}

const char* name_of(Dtype dtype) {
  constexpr const char* kNames[] = {"f32", "bf16", "i32", "f64"};
  return kNames[int(dtype)];
}

std::ostream& operator<<(std::ostream& out, const Dims& d) {
  out << "[";
  for (int i = 0; i < d.n_; ++i) out << (i ? ", " : "") << d.v_[i];
  return out << "]";
}

namespace {

constexpr int kKinds = 2;

struct Counter {
  std::atomic<int64_t> current{0}, peak{0};
  void add(int64_t bytes) {
    const int64_t now = current.fetch_add(bytes) + bytes;
    int64_t high = peak.load();
    while (now > high && !peak.compare_exchange_weak(high, now)) {
    }
  }
};
Counter g_counters[kKinds];

void* cpu_allocate(int64_t bytes, int) {
  // Temporaries of a chunk come and go thousands of times: keep their pages instead of returning
  // them to the kernel and faulting them in again.
  static const bool tuned =
      mallopt(M_MMAP_THRESHOLD, 32 << 20) && mallopt(M_TRIM_THRESHOLD, 128 << 20);
  (void)tuned;
  return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
}
void cpu_release(void* p, int64_t, int) { std::free(p); }

void cpu_zero(void* p, int64_t bytes) { std::memset(p, 0, size_t(bytes)); }

/// Of these upload and what follows are never asked of the CPU.
DeviceMemory g_memory[kKinds] = {{.allocate = cpu_allocate,
                                  .release = cpu_release,
                                  .zero = cpu_zero,
                                  .synchronize = [] {},
                                  .available = [](int) { return available_memory(); }},
                                 {}};

struct {
  std::atomic<int64_t> launches{0}, uploads{0}, upload_bytes{0}, downloads{0}, download_bytes{0},
      waits{0};
} g_work;

const DeviceMemory& memory_of(Device device) {
  const DeviceMemory& memory = g_memory[device.kind];
  check(memory.allocate != nullptr, "no memory is registered for this kind of device");
  return memory;
}

}  // namespace

MemoryCount memory_count(Device::Kind kind) {
  return {g_counters[kind].current.load(), g_counters[kind].peak.load()};
}
void reset_memory_peak(Device::Kind kind) {
  g_counters[kind].peak.store(g_counters[kind].current.load());
}
void register_memory(Device::Kind kind, const DeviceMemory& memory) { g_memory[kind] = memory; }
int64_t free_memory(Device device) { return memory_of(device).available(device.index); }
void synchronize(Device device) {
  if (device.kind != Device::cpu) ++g_work.waits;
  memory_of(device).synchronize();
}

Lane::Lane(Device device, int number) : device_(device) {
  if (const auto enter = memory_of(device).enter_lane) enter(number);
}
Lane::~Lane() {
  if (const auto leave = memory_of(device_).leave_lane) leave();
}

Recording::Recording(Device device, const std::function<void()>& f)
    : device_(device), recording_(memory_of(device).record(f)) {}
Recording::~Recording() { memory_of(device_).forget(recording_); }
void Recording::play() const { memory_of(device_).play(recording_); }
bool Recording::follow(const std::function<void()>& f) const {
  return memory_of(device_).follow(recording_, f);
}
bool Recording::possible(Device device) { return memory_of(device).record; }
bool Recording::ongoing(Device device) {
  return possible(device) && memory_of(device).is_recording();
}

DeviceWork device_work() {
  return {g_work.launches,  g_work.uploads,        g_work.upload_bytes,
          g_work.downloads, g_work.download_bytes, g_work.waits};
}
DeviceWork operator-(const DeviceWork& a, const DeviceWork& b) {
  return {a.launches - b.launches,
          a.uploads - b.uploads,
          a.upload_bytes - b.upload_bytes,
          a.downloads - b.downloads,
          a.download_bytes - b.download_bytes,
          a.waits - b.waits};
}
void copy_bytes(void* to, const void* from, int64_t bytes) {
  constexpr int64_t kPart = int64_t(256) << 10;
  const int64_t parts = (bytes + kPart - 1) / kPart;
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int64_t p = 0; p < parts; ++p)
    std::memcpy(static_cast<char*>(to) + p * kPart, static_cast<const char*>(from) + p * kPart,
                size_t(std::min(kPart, bytes - p * kPart)));
}
void count_wait() { ++g_work.waits; }
void count_launch() { g_work.launches.fetch_add(1, std::memory_order_relaxed); }

struct Tensor::Storage {
  Storage(int64_t bytes_, Device device_) : bytes(bytes_), device(device_) {
    p = memory_of(device).allocate(std::max<int64_t>(bytes, 1), device.index);
    if (!p) {
      const MemoryCount m = memory_count(device.kind);
      throw OutOfMemory(cat("out of memory: ", bytes, " bytes asked for with ", m.current,
                            " bytes of tensors alive; use fewer residues or MSA rows, or a ",
                            device.kind == Device::cpu ? "machine" : "GPU", " with more memory"));
    }
    g_counters[device.kind].add(bytes);
  }
  ~Storage() {
    g_counters[device.kind].add(-bytes);
    g_memory[device.kind].release(p, bytes, device.index);
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void* p;
  int64_t bytes;
  Device device;
};

Tensor Tensor::empty(const Dims& shape, Dtype dtype, Device device) {
  int64_t n = 1;
  for (int64_t d : shape) {
    check(d >= 0, "negative size in shape ", shape);
    // 2^56 bytes is beyond any address space: refuse before the product can wrap.
    if (d && n > (int64_t(1) << 56) / size_of(dtype) / d)
      fail(Exit::kDevice, "a tensor of shape ", shape, " is too large for any machine");
    n *= d;
  }
  Tensor t;
  t.storage_ = std::make_shared<Storage>(n * size_of(dtype), device);
  t.shape_ = t.strides_ = shape;
  int64_t stride = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    t.strides_[i] = stride;
    stride *= shape[i];
  }
  t.dtype_ = dtype;
  t.device_ = device;
  return t;
}

Tensor Tensor::zeros(const Dims& shape, Dtype dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  if (t.numel()) memory_of(device).zero(t.raw(), t.numel() * size_of(dtype));
  return t;
}

void* Tensor::raw() const {
  check(defined(), "an undefined tensor has no data");
  return static_cast<char*>(storage_->p) + offset_ * size_of(dtype_);
}

bool Tensor::is_contiguous() const {
  int64_t stride = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != stride) return false;
    stride *= shape_[i];
  }
  return true;
}

double Tensor::item() const {
  check(numel() == 1, "item() of a tensor of shape ", shape_);
  if (device_.kind != Device::cpu) return to(Device{}).item();
  switch (dtype_) {
    case Dtype::f32:
      return *data<float>();
    case Dtype::bf16:
      return float(*data<bf16>());
    case Dtype::i32:
      return *data<int32_t>();
    case Dtype::f64:
      return *data<double>();
  }
  return 0;
}

Tensor Tensor::narrow(int axis, int64_t start, int64_t length) const {
  const int a = wrap(axis);
  check(start >= 0 && length >= 0 && start + length <= shape_[a], "narrow(", axis, ", ", start,
        ", ", length, ") of a tensor of shape ", shape_);
  Tensor t = *this;
  t.offset_ += start * strides_[a];
  t.shape_[a] = length;
  return t;
}

Tensor Tensor::select(int axis, int64_t index) const {
  const int a = wrap(axis);
  Tensor t = narrow(a, index, 1);
  Dims shape, strides;
  for (int i = 0; i < rank(); ++i)
    if (i != a) {
      shape.push_back(shape_[i]);
      strides.push_back(strides_[i]);
    }
  t.shape_ = shape;
  t.strides_ = strides;
  return t;
}

Tensor Tensor::transpose(int a, int b) const {
  Tensor t = *this;
  std::swap(t.shape_[wrap(a)], t.shape_[wrap(b)]);
  std::swap(t.strides_[wrap(a)], t.strides_[wrap(b)]);
  return t;
}

Tensor Tensor::unsqueeze(int axis) const {
  const int a = axis < 0 ? axis + rank() + 1 : axis;
  check(a >= 0 && a <= rank(), "unsqueeze(", axis, ") of shape ", shape_);
  Tensor t = *this;
  t.shape_ = t.strides_ = Dims();
  for (int i = 0; i <= rank(); ++i) {
    if (i == a) {
      t.shape_.push_back(1);
      t.strides_.push_back(1);
    }
    if (i < rank()) {
      t.shape_.push_back(shape_[i]);
      t.strides_.push_back(strides_[i]);
    }
  }
  return t;
}

Tensor Tensor::expand(int axis, int64_t n) const {
  const int a = wrap(axis);
  check(shape_[a] == 1, "expand(", axis, ") of shape ", shape_);
  Tensor t = *this;
  t.shape_[a] = n;
  t.strides_[a] = 0;
  return t;
}

Tensor Tensor::view(const Dims& wanted) const {
  Dims shape = wanted;
  int64_t known = 1;
  int free_axis = -1;
  for (int i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0) {
      check(free_axis < 0, "view() with two free sizes: ", wanted);
      free_axis = i;
    } else {
      known *= shape[i];
    }
  }
  if (free_axis >= 0) shape[free_axis] = known ? numel() / known : 0;
  check(shape.product() == numel(), "view of ", shape_, " as ", wanted);
  // Pair runs of old axes with runs of new axes of the same product; inside a run the old strides
  // must chain (the rule of numpy's reshape without a copy).
  Dims strides = shape, old_shape, old_strides;
  for (int i = 0; i < rank(); ++i)
    if (shape_[i] != 1) {
      old_shape.push_back(shape_[i]);
      old_strides.push_back(strides_[i]);
    }
  for (int i = 0; i < shape.size(); ++i) strides[i] = 1;
  int old_axis = 0, axis = 0;
  while (numel() && old_axis < old_shape.size()) {
    const int old_first = old_axis, first = axis;
    int64_t old_run = old_shape[old_axis++], run = shape[axis++];
    while (run != old_run) {
      if (run < old_run)
        run *= shape[axis++];
      else
        old_run *= old_shape[old_axis++];
    }
    for (int i = old_first; i + 1 < old_axis; ++i)
      check(old_strides[i] == old_shape[i + 1] * old_strides[i + 1], "view of ", shape_,
            " with strides ", strides_, " as ", wanted, " would need a copy");
    strides[axis - 1] = old_strides[old_axis - 1];
    for (int i = axis - 1; i > first; --i) strides[i - 1] = strides[i] * shape[i];
  }
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = strides;
  return t;
}

namespace {

template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, bf16>)
    return bf16(float(x));
  else if constexpr (std::is_same_v<From, bf16>)
    return To(float(x));
  else
    return To(x);
}

template <class To, class From>
void copy_axis(To* to, const From* from, const Dims& shape, const Dims& ts, const Dims& fs,
               int axis) {
  const int64_t n = axis < shape.size() ? shape[axis] : 1;
  if (axis >= shape.size() - 1) {
    const int64_t st = shape.size() ? ts[axis] : 1, sf = shape.size() ? fs[axis] : 1;
    if (st == 1 && sf == 1)
      for (int64_t i = 0; i < n; ++i) to[i] = convert<To>(from[i]);
    else
      for (int64_t i = 0; i < n; ++i) to[i * st] = convert<To>(from[i * sf]);
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    copy_axis(to + i * ts[axis], from + i * fs[axis], shape, ts, fs, axis + 1);
}

template <class F>
void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float());
    case Dtype::bf16:
      return f(bf16());
    case Dtype::i32:
      return f(int32_t());
    case Dtype::f64:
      return f(double());
  }
}

template <class T>
void add_in_order(std::span<const Tensor> parts, const Tensor& total) {
  T* to = total.data<T>();
  for (size_t k = 0; k < parts.size(); ++k) {
    const Tensor part = parts[k].to(total.dtype()).contiguous();
    const T* x = part.data<T>();
    for (int64_t i = 0; i < total.numel(); ++i) to[i] = k ? to[i] + x[i] : x[i];
  }
}

}  // namespace

void copy_all(std::span<const Tensor> from, std::span<const Tensor> to) {
  check(from.size() == to.size(), from.size(), " arrays to copy into ", to.size());
  if (from.empty()) return;
  const Device device = to[0].device();
  bool at_once = device.kind != Device::cpu;
  for (size_t i = 0; i < from.size() && at_once; ++i)
    for (const Tensor& t : {from[i], to[i]})
      at_once = at_once && t.device() == device && t.dtype() == Dtype::f32 && t.is_contiguous() &&
                t.numel() == to[i].numel();
  if (at_once) return memory_of(device).copy_all(from, to);
  for (size_t i = 0; i < from.size(); ++i) to[i].copy_from(from[i]);
}

void add_up(std::span<const Tensor> parts, const Tensor& sum) {
  check(!parts.empty(), "a sum of nothing");
  Dtype wide = sum.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  for (const Tensor& part : parts) {
    check(part.shape() == sum.shape() && part.device() == sum.device(), "a sum of ", part.shape(),
          " into ", sum.shape(), ", or of another device");
    if (part.dtype() == Dtype::f64) wide = Dtype::f64;
  }
  if (!sum.numel()) return;
  if (sum.device().kind != Device::cpu) return memory_of(sum.device()).add_up(parts, sum);
  const bool in_place = sum.dtype() == wide && sum.is_contiguous();
  const Tensor total = in_place ? sum : Tensor::empty(sum.shape(), wide);
  wide == Dtype::f64 ? add_in_order<double>(parts, total) : add_in_order<float>(parts, total);
  if (!in_place) sum.copy_from(total);
}

Download::Download(const Tensor& from) : device_(from.device()) {
  host_ = Tensor::empty(from.shape(), from.dtype());
  const auto begin = memory_of(device_).begin_download;
  if (!begin) {
    host_.copy_from(from);
    return;
  }
  check(from.is_contiguous(), "a download of a tensor of strides ", from.strides());
  const int64_t bytes = from.numel() * size_of(from.dtype());
  ++g_work.downloads;
  g_work.download_bytes += bytes;
  begun_ = begin(from.raw(), bytes);
}

Download::~Download() {
  if (begun_) memory_of(device_).end_download(begun_, nullptr, 0);
}

const Tensor& Download::wait() {
  if (begun_)
    memory_of(device_).end_download(std::exchange(begun_, nullptr), host_.raw(),
                                    host_.numel() * size_of(host_.dtype()));
  return host_;
}

void Tensor::copy_from(const Tensor& source) const {
  check(shape_ == source.shape_, "copy of ", source.shape_, " into ", shape_);
  if (!numel()) return;
  const int64_t bytes = numel() * size_of(dtype_);
  const bool alike = dtype_ == source.dtype_ && is_contiguous() && source.is_contiguous();
  const bool from_cpu = source.device_.kind == Device::cpu, to_cpu = device_.kind == Device::cpu;
  if (!from_cpu && !to_cpu) {
    check(device_ == source.device_, "copy from one GPU to another");
    memory_of(device_).copy(source, *this);
  } else if (alike && !to_cpu) {
    ++g_work.uploads;
    g_work.upload_bytes += bytes;
    memory_of(device_).upload(raw(), source.raw(), bytes);
  } else if (alike && !from_cpu) {
    ++g_work.downloads;
    ++g_work.waits;
    g_work.download_bytes += bytes;
    memory_of(source.device_).download(raw(), source.raw(), bytes);
  } else if (alike) {
    std::memcpy(raw(), source.raw(), size_t(bytes));
  } else if (!to_cpu) {
    // What crosses is contiguous; it is made so where the values are.
    const Tensor ready = source.to(dtype_).contiguous();
    copy_from(is_contiguous() ? ready : ready.to(device_));
  } else if (!from_cpu) {
    copy_from(source.contiguous().to(device_));
  } else {
    with_type(dtype_, [&](auto to) {
      with_type(source.dtype_, [&](auto from) {
        copy_axis(data<decltype(to)>(), source.data<decltype(from)>(), shape_, strides_,
                  source.strides_, 0);
      });
    });
  }
}

Tensor Tensor::clone() const {
  Tensor t = empty(shape_, dtype_, device_);
  t.copy_from(*this);
  return t;
}
Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }
Tensor Tensor::to(Dtype dtype) const {
  if (dtype == dtype_) return *this;
  Tensor t = empty(shape_, dtype, device_);
  t.copy_from(*this);
  return t;
}
Tensor Tensor::to(Device device) const {
  if (device == device_) return *this;
  Tensor t = empty(shape_, dtype_, device);
  t.copy_from(*this);
  return t;
}

}  // namespace ff
