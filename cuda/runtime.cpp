// The runtime: the process's GPU, its stream, its memory pool.
#include "cuda/runtime.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/base/timeline.h"
#include "cuda/module_parts.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define FASTFOLD_NVTX 1
#endif

namespace ff::cuda {
namespace {

struct State {
  DeviceInfo info;
  cudaStream_t stream = nullptr, communication = nullptr;
  cudaMemPool_t pool = nullptr;
};
State g_state;
thread_local cudaStream_t t_stream = nullptr;  // OnStream's
thread_local cudaStream_t t_lane = nullptr;    // the thread's lane, if it has one

/// The stream whose order memory follows.
cudaStream_t work_stream() { return t_lane ? t_lane : g_state.stream; }

/// Makes the process's GPU the calling thread's.
void make_current() {
  thread_local bool done = false;
  if (done) return;
  check_cuda(cudaSetDevice(g_state.info.index), "cudaSetDevice", "GPU ", g_state.info.index);
  done = true;
}

void* allocate(int64_t bytes, int) {
  Recorder* const recorder = Recorder::current();
  return recorder ? recorder->allocate(bytes) : allocate_memory(bytes);
}
void release(void* p, int64_t, int) {
  Recorder* const recorder = Recorder::current();
  if (recorder) return recorder->release(p);
  if (!recorded_memory(p)) release_memory(p);
}

/// Before the host waits for the GPU.
void waits() {
  if (Recorder* const recorder = Recorder::current()) recorder->refuse_wait();
}

void synchronize() {
  waits();
  check_cuda(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
}

/// What the driver has, and what the pool keeps without using it.
int64_t available(int) {
  make_current();
  size_t free_bytes = 0, total_bytes = 0;
  uint64_t reserved = 0, used = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  check_cuda(cudaMemPoolGetAttribute(g_state.pool, cudaMemPoolAttrReservedMemCurrent, &reserved),
             "cudaMemPoolGetAttribute");
  check_cuda(cudaMemPoolGetAttribute(g_state.pool, cudaMemPoolAttrUsedMemCurrent, &used),
             "cudaMemPoolGetAttribute");
  return int64_t(free_bytes) + int64_t(reserved - used);
}

/// What is asked of `later` from now on waits for what was asked of `sooner`.
cudaError_t follow(cudaStream_t later, cudaStream_t sooner) {
  cudaEvent_t event;
  if (const cudaError_t e = cudaEventCreateWithFlags(&event, cudaEventDisableTiming)) return e;
  cudaError_t e = cudaEventRecord(event, sooner);
  if (!e) e = cudaStreamWaitEvent(later, event);
  cudaEventDestroy(event);  // as soon as it has passed
  return e;
}

void enter_lane(int number) {
  static std::mutex mutex;
  static std::map<int, cudaStream_t> streams;
  make_current();
  const std::lock_guard lock(mutex);
  cudaStream_t& s = streams[number];
  if (!s)
    check_cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  check_cuda(follow(s, g_state.stream), "cudaStreamWaitEvent");
  t_lane = s;
}

// In a destructor, as release().
void leave_lane() {
  follow(g_state.stream, t_lane);
  t_lane = nullptr;
}

void move(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, cudaEvent_t done) {
  check_cuda(cudaMemcpyAsync(to, from, size_t(bytes), kind, stream()), "cudaMemcpyAsync", bytes,
             kind == cudaMemcpyHostToDevice ? " bytes to the GPU" : " bytes from the GPU");
  check_cuda(cudaEventRecord(done, stream()), "cudaEventRecord");
}

cudaEvent_t new_event() {
  cudaEvent_t e;
  check_cuda(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "cudaEventCreate");
  return e;
}

bool passed(cudaEvent_t e) {
  const cudaError_t status = cudaEventQuery(e);
  if (status != cudaErrorNotReady) check_cuda(status, "cudaEventQuery");
  return status == cudaSuccess;
}

/// Page-locked memory that copies pass through, so that the host need not wait for those to the GPU
/// and those from it run at the bus's speed.
class Staging {
 public:
  /// `from` has been read when this returns.
  void upload(char* to, const char* from, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!memory_) lock_memory();
    for (int64_t at = 0; at < bytes; at += kPiece) {
      const int64_t n = std::min(kPiece, bytes - at);
      char* room = take(n);
      copy_bytes(room, from + at, n);
      move(to + at, room, n, cudaMemcpyHostToDevice, held_.back().done);
    }
  }

  /// Has arrived when this returns: one piece is read while the next is on its way.
  void download(char* to, const char* from, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!memory_) lock_memory();
    const auto begin = [&](int64_t at) {
      if (at < bytes)
        move(back(at), from + at, std::min(kPiece, bytes - at), cudaMemcpyDeviceToHost,
             arrived_[at / kPiece % 2]);
    };
    begin(0);
    for (int64_t at = 0; at < bytes; at += kPiece) {
      begin(at + kPiece);
      check_cuda(cudaEventSynchronize(arrived_[at / kPiece % 2]), "cudaEventSynchronize");
      copy_bytes(to + at, back(at), std::min(kPiece, bytes - at));
    }
  }

 private:
  static constexpr int64_t kPiece = int64_t(4) << 20, kRing = 16 * kPiece;

  /// A stretch of the ring that the GPU may still read; positions only grow.
  struct Held {
    int64_t end;
    cudaEvent_t done;
  };

  char* back(int64_t at) const { return memory_ + kRing + at / kPiece % 2 * kPiece; }

  void lock_memory() {
    char* const p = static_cast<char*>(locked_memory(kRing + 2 * kPiece));
    for (cudaEvent_t& e : arrived_) e = new_event();
    memory_ = p;
  }

  /// n bytes in one piece, held until the event of held_.back() has passed.
  char* take(int64_t n) {
    if (head_ % kRing + n > kRing) head_ += kRing - head_ % kRing;
    const int64_t start = head_;
    head_ += (n + 255) / 256 * 256;
    while (!held_.empty() && (head_ - tail_ > kRing || passed(held_.front().done))) {
      if (!passed(held_.front().done)) {
        count_wait();
        check_cuda(cudaEventSynchronize(held_.front().done), "cudaEventSynchronize");
      }
      tail_ = held_.front().end;
      free_.push_back(held_.front().done);
      held_.pop_front();
    }
    if (free_.empty()) free_.push_back(new_event());
    held_.push_back({head_, free_.back()});
    free_.pop_back();
    return memory_ + start % kRing;
  }

  std::mutex mutex_;
  char* memory_ = nullptr;
  cudaEvent_t arrived_[2] = {};
  int64_t head_ = 0, tail_ = 0;
  std::deque<Held> held_;
  std::vector<cudaEvent_t> free_;
};
Staging& staging() {
  static Staging& s = *new Staging;  // never freed: the driver may be gone by then
  return s;
}

void upload(void* to, const void* from, int64_t bytes) {
  if (Recorder* const recorder = Recorder::current()) return recorder->upload(to, from, bytes);
  staging().upload(static_cast<char*>(to), static_cast<const char*>(from), bytes);
}

void download(void* to, const void* from, int64_t bytes) {
  waits();
  staging().download(static_cast<char*>(to), static_cast<const char*>(from), bytes);
}

/// Downloads that are waited for later, each with page-locked memory of its own, used again.
class Downloads {
 public:
  struct One {
    char* memory;
    int64_t size;
    cudaEvent_t done;
  };

  One* begin(const void* from, int64_t bytes) {
    waits();
    One* const one = take(bytes);
    move(one->memory, from, bytes, cudaMemcpyDeviceToHost, one->done);
    return one;
  }

  void end(One* one, void* to, int64_t bytes) {
    if (to) {
      if (!passed(one->done)) {
        count_wait();
        check_cuda(cudaEventSynchronize(one->done), "cudaEventSynchronize");
      }
      std::memcpy(to, one->memory, size_t(bytes));
    }
    const std::lock_guard lock(mutex_);
    free_.push_back(one);
  }

 private:
  /// One that no copy is on its way to.
  One* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    for (One*& one : free_)
      if (one->size >= bytes && passed(one->done)) {
        std::swap(one, free_.back());
        One* const found = free_.back();
        free_.pop_back();
        return found;
      }
    const int64_t size = std::max<int64_t>(bytes, 4096);
    return new One{static_cast<char*>(locked_memory(size)), size, new_event()};
  }

  std::mutex mutex_;
  std::vector<One*> free_;
};
Downloads& downloads() {
  static Downloads& d = *new Downloads;  // never freed: the driver may be gone by then
  return d;
}

void* begin_download(const void* from, int64_t bytes) { return downloads().begin(from, bytes); }
void end_download(void* begun, void* to, int64_t bytes) {
  downloads().end(static_cast<Downloads::One*>(begun), to, bytes);
}

}  // namespace

cudaStream_t stream() {
  make_current();
  return t_stream ? t_stream : work_stream();
}

cudaStream_t communication_stream() {
  make_current();
  return g_state.communication;
}

OnStream::OnStream(cudaStream_t s) : before_(std::exchange(t_stream, s)) {}
OnStream::~OnStream() { t_stream = before_; }

const DeviceInfo& device_info() { return g_state.info; }

void* allocate_memory(int64_t bytes) {
  make_current();
  const cudaStream_t s = work_stream();
  void* p = nullptr;
  cudaError_t status = cudaMallocAsync(&p, size_t(bytes), s);
  if (status == cudaErrorMemoryAllocation) {
    // What the pool keeps in pieces may be enough in one.
    cudaGetLastError();
    check_cuda(cudaStreamSynchronize(s), "cudaStreamSynchronize");
    check_cuda(cudaMemPoolTrimTo(g_state.pool, 0), "cudaMemPoolTrimTo");
    status = cudaMallocAsync(&p, size_t(bytes), s);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
  }
  check_cuda(status, "cudaMallocAsync", bytes, " bytes");
  return p;
}

// Runs in destructors, also while the program ends: a failure is shown by the next call.
void release_memory(void* p) { cudaFreeAsync(p, work_stream()); }

void* locked_memory(int64_t bytes) {
  make_current();
  void* p = nullptr;
  check_cuda(cudaHostAlloc(&p, size_t(bytes), cudaHostAllocDefault), "cudaHostAlloc", bytes,
             " bytes");
  return p;
}

void fail_cuda(cudaError_t status, const char* call, const std::string& what) {
  cudaGetLastError();  // so that the next check does not find it again
  size_t free_bytes = 0, total_bytes = 0;
  const bool known = cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess;
  fail(Exit::kDevice, "GPU ", g_state.info.index, ": ", call, what.empty() ? "" : " (", what,
       what.empty() ? "" : ")", " failed: ", cudaGetErrorString(status),
       known ? cat(" (", free_bytes >> 20, " of ", total_bytes >> 20, " MiB free)") : "");
}

Scratch::Scratch(int64_t bytes)
    : memory_(bytes > 0 ? Tensor::empty({ceil_div(bytes, 4)}, Dtype::i32,
                                        {Device::cuda, g_state.info.index})
                        : Tensor()) {}

void start(int index) {
  g_state.info.index = index;
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties", "GPU ", index);
  g_state.info = {index,
                  properties.major,
                  properties.minor,
                  properties.multiProcessorCount,
                  properties.l2CacheSize,
                  int64_t(properties.sharedMemPerBlockOptin)};
  make_current();
  check_cuda(cudaStreamCreateWithFlags(&g_state.stream, cudaStreamNonBlocking),
             "cudaStreamCreateWithFlags");
  int lowest = 0, highest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
             "cudaDeviceGetStreamPriorityRange");
  check_cuda(cudaStreamCreateWithPriority(&g_state.communication, cudaStreamNonBlocking, highest),
             "cudaStreamCreateWithPriority");
  check_cuda(cudaDeviceGetDefaultMemPool(&g_state.pool, index), "cudaDeviceGetDefaultMemPool");
  // Memory stays with the pool: returning it to the driver and asking again would wait for the GPU.
  uint64_t keep = UINT64_MAX;
  check_cuda(cudaMemPoolSetAttribute(g_state.pool, cudaMemPoolAttrReleaseThreshold, &keep),
             "cudaMemPoolSetAttribute");
  // A lane must not wait for what another one gives back.
  int wait = 0;
  check_cuda(
      cudaMemPoolSetAttribute(g_state.pool, cudaMemPoolReuseAllowInternalDependencies, &wait),
      "cudaMemPoolSetAttribute");
#ifdef FASTFOLD_NVTX
  // Modules are ranges in NVIDIA's profilers; without one a range costs a few nanoseconds.
  static constexpr SpanHook kRanges = {[](const char* name) { nvtxRangePushA(name); },
                                       [] { nvtxRangePop(); }};
  hook_spans(&kRanges);
#endif
  register_memory(Device::cuda,
                  {allocate, release, zero, upload, download, begin_download, end_download, copy,
                   copy_all, add_up, synchronize, available, enter_lane, leave_lane, record, play,
                   follow, [] { return Recorder::current() != nullptr; }, forget});
}

}  // namespace ff::cuda
