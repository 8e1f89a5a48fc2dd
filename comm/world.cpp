// The communication thread, and the watch over a device's stream of communication.
#include "comm/world.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "core/base/log.h"

namespace ff {

World::World(const std::function<std::unique_ptr<Link>()>& make) {
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

World::~World() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
  nccl_groups_.clear();  // nobody watches them any more
}

void World::push(std::shared_ptr<Pending::State> job) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(job));
  changed_.notify_all();
}

void World::work(Link& link) {
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
      look(&link);
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

void World::watch(std::shared_ptr<Watch> one) {
  const std::lock_guard lock(mutex_);
  if (watched_.empty()) since_ = now_ns();
  watched_.push_back(std::move(one));
}

DeviceComm::Mark World::watch_nccl(const std::string& what, const std::vector<int>& members,
                                   NcclGroup* group, const std::function<void()>& f) {
  const auto one = std::make_shared<Watch>();
  one->what = what;
  one->members = members;
  one->group = group;
  if (timeline_active()) one->begin = device->mark(Stream::kCommunication);
  watch(one);
  const auto end = [&] {
    const DeviceComm::Mark mark = device->mark(Stream::kCommunication);
    const std::lock_guard lock(mutex_);
    return one->end = mark;
  };
  try {
    f();
  } catch (...) {
    end();
    throw;
  }
  return end();
}

void World::settle() {
  if (!device) return;
  for (const Stream stream : {Stream::kCommunication, Stream::kCompute})
    device->wait_for(device->mark(stream));
  look(nullptr);
}

/// Puts what has passed on the timeline. With a link: is the first of the others late?
void World::look(Link* link) {
  std::shared_ptr<Watch> first;
  int64_t since = 0;
  {
    const std::lock_guard lock(mutex_);
    if (watched_.empty()) return;
    try {
      bool reached[] = {true, true};  // streams' marks pass in their order
      for (auto w = watched_.begin(); w != watched_.end();) {
        const Watch& one = **w;
        bool& more = reached[one.row == Row::kDevice];
        more = more && one.end && device->passed(one.end);
        if (!more) {
          ++w;
          continue;
        }
        if (one.begin)
          record_span(one.row, one.what, device->time_of(one.begin), device->time_of(one.end));
        w = watched_.erase(w);
        since_ = now_ns();
      }
    } catch (const Error&) {
      return;  // the thread that computes meets it too, and says where
    }
    for (const auto& w : watched_)
      if (!w->members.empty() && !first) first = w;
    since = since_;
  }
  if (!link || !first) return;
  if (const std::string fault = first->group ? first->group->fault() : ""; !fault.empty())
    end_run(cat("NCCL failed in '", first->what, "': ", fault));
  if (1e-9 * double(now_ns() - since) < link->timeout() + 0.2 * rank_) return;
  const std::vector<int> late = link->absent(first->members);
  if (late.empty())
    end_run(cat("'", first->what, "' has taken ", link->timeout(),
                " s and every rank has begun it: the GPUs do not reach each other, or "
                "--comm-timeout is too short; NCCL_DEBUG=WARN says more"));
  end_run(cat("rank ", late[0], " (", hosts_[size_t(late[0])], ") is late: rank ", rank_,
              " has waited ", link->timeout(), " s for it in '", first->what,
              "'; it has died or hangs, or --comm-timeout is too short"));
}

/// The thread that computes may wait in a call that nothing else ends, or go on with what never
/// came: it does not get so far.
void World::end_run(const std::string& why) const {
  log_line(cat("fastfold: rank ", rank_, " (", hosts_[size_t(rank_)], "): ", why));
  abort_all_ranks(int(Exit::kDevice));
  std::_Exit(int(Exit::kDevice));
}

NcclGroup& World::nccl_group(const std::vector<int>& members,
                             const std::function<std::string()>& id) {
  std::unique_ptr<NcclGroup>& group = nccl_groups_[members];
  if (!group) {
    const std::string name = id();
    const auto me = std::find(members.begin(), members.end(), rank_);
    watch_nccl("joining GPUs", members, nullptr,
               [&] { group = device->join(name, int(me - members.begin()), int(members.size())); });
  }
  return *group;
}

Pending::State::~State() {
  if (!sent) return;
  try {
    world->device->follow(Stream::kCompute, sent);  // before what it holds is free
  } catch (const Error&) {
  }
}

void Pending::wait() {
  if (!state_) return;
  const std::shared_ptr<State> state = std::move(state_);
  state_ = nullptr;
  DeviceComm* const device = state->world ? state->world->device : nullptr;
  std::shared_ptr<World::Watch> waiting;
  if (device && timeline_active()) {
    waiting = std::make_shared<World::Watch>();
    waiting->row = Row::kDevice;
    waiting->what = "wait: " + state->what;
    waiting->begin = device->mark(Stream::kCompute);
  }
  const int64_t begin = now_ns();
  {
    std::unique_lock lock(state->mutex);
    state->changed.wait(lock, [&] { return state->done; });
  }
  if (!device) record_span(Row::kCompute, "wait: " + state->what, begin, now_ns());
  if (state->error) std::rethrow_exception(state->error);
  if (!device) return;
  device->follow(Stream::kCompute, state->sent);
  state->sent = nullptr;
  if (waiting) {
    waiting->end = device->mark(Stream::kCompute);
    state->world->watch(waiting);
  }
  state->unpack();
}

}  // namespace ff
