// Groups of ranks and what they do together: jobs on a communication thread of its own, begun by
// the computing thread in the same order on every rank, and awaited where the result is needed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/link.h"
#include "core/tensor/tensor.h"

namespace ff {

class DeviceComm;
class Transport;
class World;

/// A job under way. A default one is done.
class Pending {
 public:
  /// Returns when it is done, or when what a device is given next comes behind it; throws what it
  /// threw. Spent waiting is shown on the timeline.
  void wait();

  struct State;

 private:
  friend class Group;
  std::shared_ptr<State> state_;
};

/// What each rank of a group gets from and sends to this one: views, indexed by the group's ranks,
/// send[r] here of the shape of recv[this rank] there. Undefined for nothing.
struct Route {
  std::vector<Tensor> send, recv;
};

/// Some of a run's ranks, in order. A default one has this rank alone, and costs nothing.
class Group {
 public:
  Group() = default;

  int rank() const { return rank_; }
  int size() const { return int(members_.empty() ? 1 : members_.size()); }
  /// The ranks first, first + stride, ... of this group, of which this rank must be one.
  Group part(int first, int count, int stride) const;
  /// Host of a rank of this group; "" for a group of one without a launcher.
  std::string host(int rank) const;
  /// How many of the run's ranks are on this one's host, and how many of them before it.
  int ranks_on_this_host() const;
  int rank_on_this_host() const;

  /// Tensors of a device may be exchanged from now on; `gpu` is the one that this rank computes on,
  /// by a name that tells all GPUs apart. All ranks of the run call it: they are joined by NCCL
  /// where each has a GPU of its own and finds the library, and by their hosts' memory otherwise;
  /// FASTFOLD_COMM=nccl or host in the environment chooses. Says on rank 0 which. Throws
  /// Exit::kDevice, alike on all ranks, where NCCL was chosen and cannot be had.
  void use_device(DeviceComm& device, const std::string& gpu) const;
  /// Waits for the device, so that the timeline is complete.
  void settle() const;

  /// Begins an exchange: packs what is not contiguous, sends, receives, unpacks. The tensors are
  /// all of one device, must not be written before it is awaited, and are kept alive until then. A
  /// device's work up to here comes before it, and what it is given once this is awaited behind it;
  /// with NCCL no thread waits for that.
  Pending exchange(Route route, const std::string& what) const;
  /// Begins x = rank 0's x. Contiguous.
  Pending broadcast(const Tensor& x, const std::string& what) const;
  /// Begins x = the sum over the ranks, added in their order, the same bits everywhere. x: f32 or
  /// f64, contiguous.
  Pending all_reduce(const Tensor& x, const std::string& what) const;

  /// The sum of one number of every rank, in their order.
  double sum(double x, const std::string& what) const;
  /// Every rank's text, in their order.
  std::vector<std::string> gather_text(const std::string& text, const std::string& what) const;
  /// The next number of a counter that all ranks of the run share, from 0.
  int64_t claim() const;

  /// Bytes that came from other ranks so far, counted for the whole run.
  int64_t received_bytes() const;

 private:
  friend Group start_world(const std::function<std::unique_ptr<Link>()>& make);
  /// What an exchange of tensors does: `carry` on its own, `pack` before and `unpack` after it.
  struct Steps {
    std::function<void()> pack;
    std::function<void(Transport&)> carry;
    std::function<void()> unpack;
  };
  Pending begin(const std::string& what, std::function<void(Link&)> job) const;
  Pending begin(Device device, const std::string& what, Steps steps) const;

  std::shared_ptr<World> world_;
  std::vector<int> members_;  // ranks of the run
  int rank_ = 0;
};

/// All ranks of the run that `make` joins; it is called on the communication thread. nullptr from
/// it is a group of one. The link ends when the last copy of the group goes.
Group start_world(const std::function<std::unique_ptr<Link>()>& make);

/// The ranks that mpirun or srun started; a group of one without. `timeout`, in seconds, is how
/// long one collective may last.
Group launch_ranks(double timeout);

/// An error that every rank of a run has thrown alike: one of them tells it.
class SharedError : public Error {
 public:
  SharedError(Exit code, const std::string& what, bool mine) : Error(code, what), tell(mine) {}
  bool tell;  ///< true on rank 0
};

/// f() on every rank; where it throws ff::Error on one, all throw that of the lowest such rank as
/// SharedError, naming the rank and its host unless all said the same.
void together(const Group& group, const std::function<void()>& f);

}  // namespace ff
