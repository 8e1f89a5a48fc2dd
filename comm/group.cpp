// The communication thread and the collectives that run on it.
#include "comm/group.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "core/base/timeline.h"

namespace ff {

struct Pending::State {
  std::string what;
  std::function<void(Link&)> job;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
};

/// This process among those of a run: its link, and the thread that alone uses it.
class World {
 public:
  explicit World(const std::function<std::unique_ptr<Link>()>& make) {
    std::exception_ptr error;
    bool ready = false;
    thread_ = std::thread([this, &make, &error, &ready] {
      std::unique_ptr<Link> link;
      try {
        link = make();
      } catch (...) {
        error = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        ready = true;
        if (link) hosts_ = link->hosts();
        if (link) rank_ = link->rank();
        changed_.notify_all();
      }
      if (link) work(*link);
    });
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready; });
    if (!error) return;
    lock.unlock();
    thread_.join();
    std::rethrow_exception(error);
  }

  ~World() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  void push(std::shared_ptr<Pending::State> job) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
    changed_.notify_all();
  }

  int rank() const { return rank_; }
  const std::vector<std::string>& hosts() const { return hosts_; }
  std::atomic<int64_t> received{0};

 private:
  void work(Link& link) {
    for (;;) {
      std::shared_ptr<Pending::State> job;
      {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::milliseconds(2),
                          [&] { return stop_ || !queue_.empty(); });
        if (queue_.empty() && stop_) return;
        if (!queue_.empty()) {
          job = queue_.front();
          queue_.pop_front();
        }
      }
      if (!job) {
        link.idle();
        continue;
      }
      const int64_t begin = now_ns();
      std::exception_ptr error;
      try {
        job->job(link);
      } catch (...) {
        error = std::current_exception();
      }
      record_span(Row::kCommunication, job->what, begin, now_ns());
      job->job = nullptr;  // what it holds is free before anybody goes on
      const std::lock_guard lock(job->mutex);
      job->error = error;
      job->done = true;
      job->changed.notify_all();
    }
  }

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending::State>> queue_;
  bool stop_ = false;
  int rank_ = 0;
  std::vector<std::string> hosts_;
};

void Pending::wait() {
  if (!state_) return;
  const std::shared_ptr<State> state = std::move(state_);
  state_ = nullptr;
  const int64_t begin = now_ns();
  std::unique_lock lock(state->mutex);
  state->changed.wait(lock, [&] { return state->done; });
  record_span(Row::kCompute, "wait: " + state->what, begin, now_ns());
  if (state->error) std::rethrow_exception(state->error);
}

Group start_world(const std::function<std::unique_ptr<Link>()>& make) {
  auto world = std::make_shared<World>(make);
  Group group;
  if (world->hosts().empty()) return group;
  group.rank_ = world->rank();
  for (int r = 0; r < int(world->hosts().size()); ++r) group.members_.push_back(r);
  group.world_ = std::move(world);
  return group;
}

Group launch_ranks(double timeout) {
  return start_world([timeout] { return mpi_link(timeout); });
}

Group Group::part(int first, int count, int stride) const {
  Group out;
  if (members_.empty()) return out;
  out.world_ = world_;
  out.rank_ = -1;
  for (int i = 0; i < count; ++i) {
    out.members_.push_back(members_[size_t(first + i * stride)]);
    if (first + i * stride == rank_) out.rank_ = i;
  }
  check(out.rank_ >= 0, "rank ", rank_, " is not in its own group");
  return out;
}

std::string Group::host(int rank) const {
  return world_ ? world_->hosts()[size_t(members_[size_t(rank)])] : "";
}

int Group::ranks_on_this_host() const {
  if (!world_) return 1;
  const auto& hosts = world_->hosts();
  return int(std::count(hosts.begin(), hosts.end(), hosts[size_t(world_->rank())]));
}

Pending Group::broadcast(const Tensor& x, const std::string& what) const {
  Route route;
  route.send.resize(size_t(size()));
  route.recv.resize(size_t(size()));
  for (int r = 1; r < size(); ++r)
    if (rank_ == 0) route.send[size_t(r)] = x;
  if (rank_ != 0) route.recv[0] = x;
  return exchange(std::move(route), what);
}

int64_t Group::received_bytes() const { return world_ ? world_->received.load() : 0; }

Pending Group::begin(const std::string& what, std::function<void(Link&)> job) const {
  Pending pending;
  pending.state_ = std::make_shared<Pending::State>();
  pending.state_->what = what;
  pending.state_->job = std::move(job);
  world_->push(pending.state_);
  return pending;
}

namespace {

int64_t bytes_of(const Tensor& t) { return t.defined() ? t.numel() * size_of(t.dtype()) : 0; }

Piece piece(const Tensor& t) { return bytes_of(t) ? Piece{t.raw(), bytes_of(t)} : Piece{}; }

template <class T>
void add_parts(const std::vector<Tensor>& parts, const Tensor& sum) {
  T* to = sum.data<T>();
  const int64_t n = sum.numel();
  for (size_t r = 0; r < parts.size(); ++r) {
    const T* x = parts[r].data<T>();
    for (int64_t i = 0; i < n; ++i) to[i] = r ? to[i] + x[i] : x[i];
  }
}

}  // namespace

Pending Group::exchange(Route route, const std::string& what) const {
  const int n = size(), me = rank_;
  check(int(route.send.size()) == n && int(route.recv.size()) == n, "a route for ",
        route.send.size(), " ranks in a group of ", n);
  const Tensor &own = route.send[size_t(me)], &own_to = route.recv[size_t(me)];
  if (n == 1) {
    if (own_to.defined()) own_to.copy_from(own);
    return {};
  }
  return begin(what, [route = std::move(route), members = members_, me, what,
                      world = world_.get()](Link& link) {
    std::vector<Piece> send, recv;
    std::vector<Tensor> packed;
    for (size_t r = 0; r < members.size(); ++r) {
      const bool own = int(r) == me;
      packed.push_back(own || !bytes_of(route.send[r]) ? Tensor() : route.send[r].contiguous());
      send.push_back(piece(packed.back()));
    }
    std::vector<Tensor> buffers;
    for (size_t r = 0; r < members.size(); ++r) {
      const Tensor& to = route.recv[r];
      if (int(r) == me || !bytes_of(to))
        buffers.emplace_back();
      else
        buffers.push_back(to.is_contiguous() ? to : Tensor::empty(to.shape(), to.dtype()));
      recv.push_back(piece(buffers.back()));
      world->received += recv.back().bytes;
    }
    link.exchange(members, send, recv, what);
    for (size_t r = 0; r < members.size(); ++r) {
      if (buffers[r].defined() && buffers[r].raw() != route.recv[r].raw())
        route.recv[r].copy_from(buffers[r]);
    }
    if (bytes_of(route.recv[size_t(me)])) route.recv[size_t(me)].copy_from(route.send[size_t(me)]);
  });
}

Pending Group::all_reduce(const Tensor& x, const std::string& what) const {
  if (size() == 1) return {};
  check(x.is_contiguous() && (x.dtype() == Dtype::f32 || x.dtype() == Dtype::f64), "all-reduce of ",
        name_of(x.dtype()), " ", x.shape());
  return begin(
      what, [x, members = members_, me = size_t(rank_), what, world = world_.get()](Link& link) {
        const size_t n = members.size();
        const Tensor flat = x.view({-1});
        // Each rank sums one part for all.
        const auto part = [&](size_t r) {
          const int64_t first = flat.numel() * int64_t(r) / int64_t(n),
                        end = flat.numel() * int64_t(r + 1) / int64_t(n);
          return flat.narrow(0, first, end - first);
        };
        std::vector<Piece> send, recv;
        std::vector<Tensor> parts;
        const Tensor mine = part(me);
        for (size_t r = 0; r < n; ++r) {
          parts.push_back(r == me ? mine.clone() : Tensor::empty(mine.shape(), mine.dtype()));
          send.push_back(piece(part(r)));
          recv.push_back(piece(parts.back()));
        }
        link.exchange(members, send, recv, what);
        x.dtype() == Dtype::f64 ? add_parts<double>(parts, mine) : add_parts<float>(parts, mine);
        for (size_t r = 0; r < n; ++r) {
          send[r] = piece(mine);
          recv[r] = piece(part(r));
          if (r != me) world->received += recv[r].bytes + bytes_of(mine);
        }
        link.exchange(members, send, recv, what);
      });
}

double Group::sum(double x, const std::string& what) const {
  const Tensor t = Tensor::of<double>({1}, &x);
  all_reduce(t, what).wait();
  return *t.data<double>();
}

int64_t Group::claim() const {
  if (!world_) fail(Exit::kBug, "a claim without other ranks");
  int64_t number = 0;
  begin("claim", [&number](Link& link) { number = link.claim(); }).wait();
  return number;
}

std::vector<std::string> Group::gather_text(const std::string& text,
                                            const std::string& what) const {
  if (size() == 1) return {text};
  std::vector<std::string> out(static_cast<size_t>(size()));
  begin(what, [&, me = size_t(rank_)](Link& link) {
    std::vector<int64_t> sizes(out.size());
    std::string mine = text;
    int64_t length = int64_t(mine.size());
    std::vector<Piece> send(out.size(), Piece{&length, 8}), recv;
    for (int64_t& size : sizes) recv.push_back({&size, 8});
    link.exchange(members_, send, recv, what);
    for (size_t r = 0; r < out.size(); ++r) {
      out[r].resize(r == me ? 0 : size_t(sizes[r]));
      send[r] = {mine.data(), length};
      recv[r] = {out[r].data(), int64_t(out[r].size())};
    }
    link.exchange(members_, send, recv, what);
    out[me] = mine;
  }).wait();
  return out;
}

void together(const Group& group, const std::function<void()>& f) {
  if (group.size() == 1) return f();
  std::string said;
  try {
    f();
  } catch (const Error& e) {
    said = cat(int(e.code()), " ", e.what());
  }
  const std::vector<std::string> all = group.gather_text(said, "agreement");
  for (int r = 0; r < group.size(); ++r) {
    const std::string& text = all[size_t(r)];
    if (text.empty()) continue;
    const size_t blank = text.find(' ');
    const Exit code = Exit(std::stoi(text.substr(0, blank)));
    const bool alike =
        std::all_of(all.begin(), all.end(), [&](const auto& t) { return t == text; });
    const std::string where = alike ? "" : cat(" (on rank ", r, ", ", group.host(r), ")");
    throw SharedError(code, text.substr(blank + 1) + where, group.rank() == 0);
  }
}

}  // namespace ff
