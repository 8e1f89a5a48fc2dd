// Ranks as threads of one process: what collectives do without MPI, for tests.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "comm/group.h"

namespace ff::test {

/// Where the threads leave bytes for each other.
struct Hub {
  explicit Hub(int size) : hosts(size_t(size), "thread") {}
  std::vector<std::string> hosts;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, std::deque<std::vector<char>>> mail;
  int64_t next = 0;
};

class ThreadLink : public Link {
 public:
  ThreadLink(Hub& hub, int rank) : hub_(hub), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return int(hub_.hosts.size()); }
  const std::vector<std::string>& hosts() const override { return hub_.hosts; }

  void exchange(const std::vector<int>& members, const std::vector<Piece>& send,
                const std::vector<Piece>& recv, const std::string& what) override {
    std::unique_lock lock(hub_.mutex);
    for (size_t i = 0; i < members.size(); ++i) {
      if (members[i] == rank_ || !send[i].bytes) continue;
      const char* data = static_cast<const char*>(send[i].data);
      hub_.mail[{rank_, members[i]}].emplace_back(data, data + send[i].bytes);
    }
    hub_.changed.notify_all();
    for (size_t i = 0; i < members.size(); ++i) {
      if (members[i] == rank_ || !recv[i].bytes) continue;
      auto& box = hub_.mail[{members[i], rank_}];
      if (!hub_.changed.wait_for(lock, std::chrono::seconds(20), [&] { return !box.empty(); }))
        fail(Exit::kDevice, "rank ", members[i], " is late in '", what, "'");
      check(int64_t(box.front().size()) == recv[i].bytes, "'", what, "' got ", box.front().size(),
            " bytes, expected ", recv[i].bytes);
      std::memcpy(recv[i].data, box.front().data(), box.front().size());
      box.pop_front();
    }
  }

  int64_t claim() override {
    const std::lock_guard lock(hub_.mutex);
    return hub_.next++;
  }

 private:
  Hub& hub_;
  int rank_;
};

/// f(group) on `size` threads, each a rank; throws what one of them threw.
inline void on_ranks(int size, const std::function<void(const Group&)>& f) {
  Hub hub(size);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      try {
        f(start_world([&] { return std::make_unique<ThreadLink>(hub, r); }));
      } catch (...) {
        errors[size_t(r)] = std::current_exception();
      }
    });
  for (std::thread& t : threads) t.join();
  for (const std::exception_ptr& e : errors)
    if (e) std::rethrow_exception(e);
}

}  // namespace ff::test
