// Collectives of tensors on a device that works behind the host's back, without a GPU: its two
// streams are threads that take their time, and what is freed in one is overwritten there. Ranks
// are threads with a device each.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "comm/dap.h"
#include "comm/device.h"
#include "core/base/timeline.h"
#include "tests/unit/thread_ranks.h"

namespace ff::test {
namespace {

/// Does its tasks in order, each after a pause.
class Worker {
 public:
  ~Worker() {
    push([this] { stop_ = true; });
    thread_.join();
  }
  void push(std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_one();
  }

 private:
  void work() {
    for (uint32_t chance = 7; !stop_; chance = chance * 1664525u + 1013904223u) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !tasks_.empty(); });
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(chance >> 24));
      task();
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  std::thread thread_{[this] { work(); }};
};

struct Gate {
  void open() {
    const std::lock_guard lock(mutex);
    time = now_ns();
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return time != 0; });
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::atomic<int64_t> time{0};
};

/// f32 of any strides; raw addresses, as a device's kernels have them.
void copy_strided(const Tensor& from, const Tensor& to, Worker& stream) {
  check(from.dtype() == Dtype::f32 && to.dtype() == Dtype::f32, "of f32 alone");
  stream.push([f = static_cast<const float*>(from.raw()), t = static_cast<float*>(to.raw()),
               shape = to.shape(), fs = from.strides(), ts = to.strides()] {
    for (int64_t i = 0; i < shape.product(); ++i) {
      int64_t rest = i, at = 0, to_at = 0;
      for (int a = shape.size() - 1; a >= 0; rest /= shape[a--]) {
        at += rest % shape[a] * fs[a];
        to_at += rest % shape[a] * ts[a];
      }
      t[to_at] = f[at];
    }
  });
}

void add_contiguous(std::span<const Tensor> parts, const Tensor& sum, Worker& stream) {
  std::vector<const float*> from;
  for (const Tensor& part : parts) {
    check(part.is_contiguous() && sum.is_contiguous(), "of contiguous arrays alone");
    from.push_back(part.data<float>());
  }
  stream.push([from, to = sum.data<float>(), n = sum.numel()] {
    for (int64_t i = 0; i < n; ++i) {
      float total = from[0][i];
      for (size_t k = 1; k < from.size(); ++k) total += from[k][i];
      to[i] = total;
    }
  });
}

class SlowDevice : public DeviceComm {
 public:
  /// Joined by `wires` in place of NCCL; without, there is none.
  SlowDevice(Hub* wires, int rank) : wires_(wires), rank_(rank) {}

  Worker& stream(Stream s) { return s == Stream::kCompute ? compute_ : communication_; }
  Mark mark(Stream s) override {
    const auto gate = std::make_shared<Gate>();
    stream(s).push([gate] { gate->open(); });
    return gate;
  }
  void follow(Stream s, const Mark& mark) override {
    stream(s).push([mark] { static_cast<Gate*>(mark.get())->wait(); });
  }
  bool passed(const Mark& mark) override { return time_of(mark) != 0; }
  void wait_for(const Mark& mark) override { static_cast<Gate*>(mark.get())->wait(); }
  int64_t time_of(const Mark& mark) override { return static_cast<Gate*>(mark.get())->time; }
  std::shared_ptr<char> host_memory(int64_t bytes) override {
    return {new char[size_t(bytes)], [bytes](char* p) {
              std::memset(p, 0xff, size_t(bytes));
              delete[] p;
            }};
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    communication_.push([=] { std::memcpy(to, from, size_t(bytes)); });
  }
  void add_up(std::span<const Tensor> parts, const Tensor& sum) override {
    add_contiguous(parts, sum, communication_);
  }
  bool find_nccl(std::string& text) override {
    text = wires_ ? "wires" : "there is none";
    return wires_ != nullptr;
  }
  std::string nccl_id() override { return "id"; }
  std::unique_ptr<NcclGroup> join(const std::string& id, int, int size) override {
    check(id == "id", "another id");
    return std::make_unique<Wired>(*this, size);
  }

 private:
  struct Wired : NcclGroup {
    Wired(SlowDevice& device_, int size) : device(device_) {
      for (int r = 0; r < size; ++r) members.push_back(r);
    }
    void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) override {
      device.communication_.push([this, send, recv] {
        ThreadLink(*device.wires_, device.rank_).exchange(members, send, recv, "wires");
      });
    }
    std::string fault() override { return ""; }
    SlowDevice& device;
    std::vector<int> members;
  };

  Hub* wires_;
  int rank_;
  Worker compute_, communication_;
};

std::vector<std::unique_ptr<SlowDevice>> g_devices;
thread_local SlowDevice* t_device = nullptr;

Worker& compute() { return t_device->stream(Stream::kCompute); }
void synchronize_own() { t_device->wait_for(t_device->mark(Stream::kCompute)); }

void use_slow_devices(int ranks, Hub* wires) {
  g_devices.clear();
  for (int r = 0; r < ranks; ++r) g_devices.push_back(std::make_unique<SlowDevice>(wires, r));
  register_memory(
      Device::cuda,
      {.allocate = [](int64_t bytes, int) { return std::malloc(size_t(bytes)); },
       .release =
           [](void* p, int64_t bytes, int index) {
             g_devices[size_t(index)]->stream(Stream::kCompute).push([p, bytes] {
               std::memset(p, 0xff, size_t(bytes));
               std::free(p);
             });
           },
       .zero = [](void* p,
                  int64_t bytes) { compute().push([=] { std::memset(p, 0, size_t(bytes)); }); },
       .upload =
           [](void* to, const void* from, int64_t bytes) {
             const auto* f = static_cast<const char*>(from);
             compute().push([to, data = std::vector<char>(f, f + bytes)] {
               std::memcpy(to, data.data(), data.size());
             });
           },
       .download =
           [](void* to, const void* from, int64_t bytes) {
             compute().push([=] { std::memcpy(to, from, size_t(bytes)); });
             synchronize_own();
           },
       .copy = [](const Tensor& from, const Tensor& to) { copy_strided(from, to, compute()); },
       .copy_all =
           [](std::span<const Tensor> from, std::span<const Tensor> to) {
             for (size_t i = 0; i < from.size(); ++i) copy_strided(from[i], to[i], compute());
           },
       .add_up = [](std::span<const Tensor> parts,
                    const Tensor& sum) { add_contiguous(parts, sum, compute()); },
       .synchronize = synchronize_own,
       .available = [](int) { return int64_t(-1); }});
}

Tensor numbers(const Dims& shape, double seed) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = float(std::sin(seed + 1.7 * double(i)));
  return t;
}

/// Values and gradients of every collective; on the CPU.
std::vector<Tensor> collectives(const Group& group, Device device) {
  const Dap dap(group, 1);
  const Dims shape{7, 5, 6};
  const Range rows = dap.mine(7);
  std::vector<Tensor> out;
  for (int axis : {0, 1}) {
    const Range own = dap.mine(shape[axis]);
    Var x(numbers(shape, 1).narrow(axis, own.start, own.count).contiguous().to(device));
    x.want_grad();
    Tape tape;
    const Gathering gathering(dap, x, axis, shape[axis]);
    // Something else in the memory that was free meanwhile.
    const Tensor other = Tensor::zeros(shape, Dtype::f32, device);
    const Var y = gathering.await();
    tape.backward({y}, {numbers(shape, 10 + group.rank()).to(device)});
    for (const Tensor& t : {y.value(), x.grad(), other}) out.push_back(t);
  }
  Var z(numbers(shape, 2).narrow(0, rows.start, rows.count).contiguous().to(device));
  z.want_grad();
  Tape tape;
  Relayout change(dap, shape, 0, 2, parts_of_rows(dap, 7, 2));
  for (const auto& part : parts_of_rows(dap, 7, 2)) {
    const Range own = part[size_t(dap.rank())];
    change.begin(view_of(
        z, [=](const Tensor& t) { return t.narrow(0, own.start - rows.start, own.count); }));
  }
  const Var y = reduce(dap, change.await());
  tape.backward({y}, {numbers(y.shape(), 5).to(device)});
  const Tensor sum = numbers({1001}, group.rank()).to(device);
  const Tensor first =
      group.rank() == 0 ? numbers({9}, 3).to(device) : Tensor::zeros({9}, Dtype::f32, device);
  Pending summed = group.all_reduce(sum, "sum"), sent = group.broadcast(first, "broadcast"),
          dropped = group.all_reduce(numbers({50}, 1).to(device), "nobody waits for this");
  sent.wait();
  summed.wait();
  group.sum(0, "behind all of them");
  for (const Tensor& t : {y.value(), z.grad(), sum, first}) out.push_back(t);
  for (Tensor& t : out) t = t.to(Device{}).contiguous();
  return out;
}

}  // namespace

TEST_CASE("what a device's streams exchange has the CPU's bits, by the host's memory and by NCCL") {
  for (const int ranks : {2, 3})
    for (const bool nccl : {false, true}) {
      Hub wires(ranks);
      use_slow_devices(ranks, nccl ? &wires : nullptr);
      std::vector<std::vector<Tensor>> want(static_cast<size_t>(ranks)), got = want;
      std::vector<int64_t> received(static_cast<size_t>(ranks)), there = received;
      on_ranks(ranks, [&](const Group& group) {
        const auto r = size_t(group.rank());
        t_device = g_devices[r].get();
        want[r] = collectives(group, Device{});
        received[r] = group.received_bytes();
        group.use_device(*g_devices[r], nccl ? cat("GPU ", r) : "the only GPU");
        const int64_t before = group.received_bytes();
        got[r] = collectives(group, {Device::cuda, int(r)});
        there[r] = group.received_bytes() - before;
        group.settle();
      });
      for (size_t r = 0; r < got.size(); ++r) {
        CHECK(there[r] == received[r]);
        REQUIRE(got[r].size() == want[r].size());
        for (size_t i = 0; i < got[r].size(); ++i) {
          INFO(ranks << " ranks, " << (nccl ? "NCCL" : "host") << ", rank " << r << ", result "
                     << i);
          CHECK(std::memcmp(got[r][i].raw(), want[r][i].raw(), size_t(4 * want[r][i].numel())) ==
                0);
        }
      }
      g_devices.clear();
    }
}

TEST_CASE("a rank that never comes to a collective of NCCL's ends the run, which names both") {
  int said[2];
  REQUIRE(pipe(said) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(said[1], 2);
    struct Impatient : ThreadLink {
      using ThreadLink::ThreadLink;
      double timeout() const override { return 0.2; }
      std::vector<int> absent(const std::vector<int>&) override { return {1}; }
    };
    Hub hub(2), wires(2);
    use_slow_devices(2, &wires);
    std::vector<std::thread> threads;
    for (int r = 0; r < 2; ++r)
      threads.emplace_back([&, r] {
        t_device = g_devices[size_t(r)].get();
        const Group group = start_world([&] { return std::make_unique<Impatient>(hub, r); });
        group.use_device(*t_device, cat("GPU ", r));
        const Tensor x = numbers({4}, r).to({Device::cuda, r});
        group.all_reduce(x, "the one that both come to").wait();
        if (r == 0) group.all_reduce(x, "the other").wait();
        synchronize_own();
        std::this_thread::sleep_for(std::chrono::seconds(10));
      });
    for (std::thread& t : threads) t.join();
    std::_Exit(0);
  }
  close(said[1]);
  std::string text(4096, '\0');
  size_t length = 0;
  for (ssize_t n; (n = read(said[0], text.data() + length, text.size() - length)) > 0;)
    length += size_t(n);
  text.resize(length);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  INFO(text);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == int(Exit::kDevice));
  CHECK(text.find("fastfold: rank 0 (thread): rank 1 (thread) is late: rank 0 has waited 0.2 s for "
                  "it in 'the other'") != std::string::npos);
}

}  // namespace ff::test
