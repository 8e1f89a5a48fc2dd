// What a group's collectives run on: this process among those of a run, the thread that talks to
// the others, and a device's stream of communication. For comm/ alone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "comm/device.h"
#include "comm/group.h"
#include "core/base/timeline.h"

namespace ff {

struct Pending::State {
  ~State();

  std::string what;
  std::function<void(Link&)> job;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
  // Of a device's tensors:
  World* world = nullptr;
  DeviceComm::Mark sent;         ///< behind the job in the stream of communication
  std::function<void()> unpack;  ///< when awaited; holds what the job reads and writes
};

/// How bytes of one kind of memory get to the ranks of a group.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) = 0;
  virtual void add_up(std::span<const Tensor> parts, const Tensor& sum) = 0;
};

class World {
 public:
  explicit World(const std::function<std::unique_ptr<Link>()>& make);
  ~World();

  void push(std::shared_ptr<Pending::State> job);
  int rank() const { return rank_; }
  const std::vector<std::string>& hosts() const { return hosts_; }
  std::atomic<int64_t> received{0};

  DeviceComm* device = nullptr;
  bool nccl = false;  ///< whether it joins this run's GPUs

  /// What is under way in a device's streams. Of NCCL's doing it is found late or failed, too,
  /// which ends the run.
  struct Watch {
    Row row = Row::kCommunication;
    std::string what;
    DeviceComm::Mark begin, end;  ///< `begin` of a timeline alone; `end` once all is given
    std::vector<int> members;     ///< ranks of the run that NCCL waits for
    NcclGroup* group = nullptr;
  };
  void watch(std::shared_ptr<Watch> one);
  /// f() gives NCCL's part to the stream of communication; returns the mark behind it.
  DeviceComm::Mark watch_nccl(const std::string& what, const std::vector<int>& members,
                              NcclGroup* group, const std::function<void()>& f);
  /// Waits until the device has done what it was given; then all of it is on the timeline.
  void settle();

  /// The group of these ranks, joined the first time; id() is the same on all.
  NcclGroup& nccl_group(const std::vector<int>& members, const std::function<std::string()>& id);

 private:
  void work(Link& link);
  void look(Link* link);
  [[noreturn]] void end_run(const std::string& why) const;

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending::State>> queue_;
  bool stop_ = false;
  int rank_ = 0;
  std::vector<std::string> hosts_;
  std::deque<std::shared_ptr<Watch>> watched_;
  int64_t since_ = 0;  ///< when the first of them became that
  std::map<std::vector<int>, std::unique_ptr<NcclGroup>> nccl_groups_;
};

}  // namespace ff
