// The GPU's side of communication: its stream, events that order it with the computing one,
// page-locked memory.
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/base/timeline.h"
#include "cuda/module_parts.h"
#include "cuda/nccl.h"
#include "cuda/runtime.h"

namespace ff::cuda {
namespace {

struct Event {
  cudaEvent_t event;
  bool timed;
};

cudaStream_t of(Stream s) { return s == Stream::kCompute ? stream() : communication_stream(); }

class CudaComm : public DeviceComm {
 public:
  Mark mark(Stream s) override {
    const cudaStream_t at = of(s);
    delay(at);
    const bool timed = timeline_active();
    if (timed) std::call_once(clock_set_, [&] { set_clock(); });
    const cudaEvent_t event = take(timed);
    check_cuda(cudaEventRecord(event, at), "cudaEventRecord");
    return Mark(new Event{event, timed}, [this](void* p) {
      const auto* made = static_cast<Event*>(p);
      const std::lock_guard lock(mutex_);
      spare_[made->timed].push_back(made->event);
      delete made;
    });
  }

  void follow(Stream s, const Mark& mark) override {
    const cudaStream_t at = of(s);
    check_cuda(cudaStreamWaitEvent(at, event(mark), 0), "cudaStreamWaitEvent");
    delay(at);
  }

  bool passed(const Mark& mark) override {
    stream();
    const cudaError_t status = cudaEventQuery(event(mark));
    if (status == cudaErrorNotReady) return false;
    check_cuda(status, "cudaEventQuery");
    return true;
  }

  void wait_for(const Mark& mark) override {
    stream();
    check_cuda(cudaEventSynchronize(event(mark)), "cudaEventSynchronize");
  }

  int64_t time_of(const Mark& mark) override {
    float ms = 0;
    if (!static_cast<const Event*>(mark.get())->timed) return clock_ns_;
    check_cuda(cudaEventElapsedTime(&ms, clock_, event(mark)), "cudaEventElapsedTime");
    return clock_ns_ + int64_t(1e6 * double(ms));
  }

  std::shared_ptr<char> host_memory(int64_t bytes) override {
    int64_t room = 1 << 12;
    while (room < bytes) room *= 2;
    void* p = nullptr;
    {
      const std::lock_guard lock(mutex_);
      std::vector<void*>& spare = rooms_[room];
      if (!spare.empty()) {
        p = spare.back();
        spare.pop_back();
      }
    }
    stream();
    if (!p)
      check_cuda(cudaHostAlloc(&p, size_t(room), cudaHostAllocDefault), "cudaHostAlloc", room,
                 " bytes");
    return {static_cast<char*>(p), [this, room](char* done) {
              const std::lock_guard lock(mutex_);
              rooms_[room].push_back(done);
            }};
  }

  void copy(void* to, const void* from, int64_t bytes) override {
    const cudaStream_t at = communication_stream();
    delay(at);
    check_cuda(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, at), "cudaMemcpyAsync",
               bytes, " bytes between GPU and host");
  }

  void add_up(std::span<const Tensor> parts, const Tensor& sum) override {
    const OnStream here(communication_stream());
    delay(stream());
    cuda::add_up(parts, sum);
  }

  bool find_nccl(std::string& text) override { return cuda::find_nccl(text); }
  std::string nccl_id() override { return cuda::nccl_id(); }
  std::unique_ptr<NcclGroup> join(const std::string& id, int rank, int size) override {
    return join_nccl(id, rank, size);
  }

 private:
  static cudaEvent_t event(const Mark& mark) {
    return static_cast<const Event*>(mark.get())->event;
  }

  cudaEvent_t take(bool timed) {
    {
      const std::lock_guard lock(mutex_);
      if (!spare_[timed].empty()) {
        const cudaEvent_t event = spare_[timed].back();
        spare_[timed].pop_back();
        return event;
      }
    }
    cudaEvent_t event;
    check_cuda(cudaEventCreateWithFlags(
                   &event, cudaEventBlockingSync | (timed ? 0 : cudaEventDisableTiming)),
               "cudaEventCreateWithFlags");
    return event;
  }

  /// What both clocks say at one moment.
  void set_clock() {
    clock_ = take(true);
    check_cuda(cudaEventRecord(clock_, communication_stream()), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(clock_), "cudaEventSynchronize");
    clock_ns_ = now_ns();
  }

  /// For tests of the order of the streams: FASTFOLD_SPIN_US=N lets a stream stand still for up to
  /// N microseconds at every step of communication, as many as chance says.
  void delay(cudaStream_t at) {
    const char* const most = std::getenv("FASTFOLD_SPIN_US");
    if (!most) return;
    const std::lock_guard lock(mutex_);
    chance_ = chance_ * 6364136223846793005u + 1442695040888963407u;
    spin(double(chance_ >> 40) * 0x1p-24 * atof(most), at);
  }

  std::mutex mutex_;
  std::vector<cudaEvent_t> spare_[2];  // without and with a time
  std::map<int64_t, std::vector<void*>> rooms_;
  std::once_flag clock_set_;
  cudaEvent_t clock_ = nullptr;
  int64_t clock_ns_ = 0;
  uint64_t chance_ = uint64_t(now_ns());
};

}  // namespace

DeviceComm& communication() {
  static CudaComm& made = *new CudaComm;  // outlives every mark
  return made;
}

}  // namespace ff::cuda
