// The collectives of a group.
#include "comm/group.h"

#include <algorithm>
#include <cstdlib>

#include "comm/world.h"
#include "core/base/log.h"

namespace ff {

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

int Group::rank_on_this_host() const {
  if (!world_) return 0;
  const auto& hosts = world_->hosts();
  return int(
      std::count(hosts.begin(), hosts.begin() + world_->rank(), hosts[size_t(world_->rank())]));
}

void Group::use_device(DeviceComm& device, const std::string& gpu) const {
  if (!world_) return;
  check(size() == int(world_->hosts().size()), "a device for a part of the run's ranks");
  world_->device = &device;
  if (size() == 1) return;
  const char* asked = std::getenv("FASTFOLD_COMM");
  const std::string choice = asked ? asked : "";
  together(*this, [&] {
    if (!choice.empty() && choice != "nccl" && choice != "host")
      fail(Exit::kUsage, "environment variable FASTFOLD_COMM is '", choice,
           "', expected nccl or host");
  });
  std::string nccl;
  if (choice != "host" && device.find_nccl(nccl)) nccl = "found " + nccl;
  const std::vector<std::string> gpus = gather_text(gpu, "GPUs"), found = gather_text(nccl, "NCCL");
  std::string against;  // NCCL
  for (int r = 0; r < size() && against.empty(); ++r) {
    const auto twin = std::find(gpus.begin(), gpus.begin() + r, gpus[size_t(r)]);
    if (twin != gpus.begin() + r)
      against = cat("ranks ", twin - gpus.begin(), " and ", r, " share a GPU of ", host(r),
                    "; start as many ranks a host as it has GPUs");
    else if (!found[size_t(r)].starts_with("found "))
      against = cat("on rank ", r, " (", host(r), ") ", found[size_t(r)]);
  }
  if (choice == "nccl" && !against.empty())
    throw SharedError(Exit::kDevice, cat("FASTFOLD_COMM=nccl: ", against), rank_ == 0);
  world_->nccl = choice != "host" && against.empty();
  if (rank_ != 0) return;
  if (world_->nccl)
    log_notice(size(), " GPUs, joined by ", found[0].substr(6));
  else if (choice == "host")
    log_notice("FASTFOLD_COMM=host: the GPUs exchange through their hosts' memory");
  else
    log_warning("the GPUs exchange through their hosts' memory, not by NCCL: ", against);
}

void Group::settle() const {
  if (world_) world_->settle();
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
  static const bool at_once = std::getenv("FASTFOLD_AWAIT_AT_ONCE") != nullptr;
  if (at_once) pending.wait();  // to measure what the overlap hides
  return pending;
}

namespace {

int64_t bytes_of(const Tensor& t) { return t.defined() ? t.numel() * size_of(t.dtype()) : 0; }

Piece piece(const Tensor& t) { return bytes_of(t) ? Piece{t.raw(), bytes_of(t)} : Piece{}; }

/// The CPU's memory, by a link.
class LinkTransport : public Transport {
 public:
  LinkTransport(Link& link, const std::vector<int>& members, const std::string& what)
      : link_(link), members_(members), what_(what) {}
  void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) override {
    link_.exchange(members_, send, recv, what_);
  }
  void add_up(std::span<const Tensor> parts, const Tensor& sum) override { ff::add_up(parts, sum); }

 protected:
  Link& link_;
  const std::vector<int>& members_;
  const std::string& what_;
};

/// A device's memory, by page-locked memory and a link. Runs on the communication thread, which
/// waits for the device; the others do not.
class StagedTransport : public LinkTransport {
 public:
  StagedTransport(DeviceComm& device, Link& link, const std::vector<int>& members,
                  const std::string& what)
      : LinkTransport(link, members, what), device_(device) {}
  void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) override {
    const std::vector<Piece> out = staged(send), in = staged(recv);
    for (size_t r = 0; r < send.size(); ++r)
      if (out[r].bytes) device_.copy(out[r].data, send[r].data, out[r].bytes);
    wait();
    link_.exchange(members_, out, in, what_);
    for (size_t r = 0; r < recv.size(); ++r)
      if (in[r].bytes) device_.copy(recv[r].data, in[r].data, in[r].bytes);
  }
  void add_up(std::span<const Tensor> parts, const Tensor& sum) override {
    device_.add_up(parts, sum);
  }
  /// For the copies: then the page-locked memory may go.
  void wait() { device_.wait_for(device_.mark(Stream::kCommunication)); }

 private:
  std::vector<Piece> staged(const std::vector<Piece>& pieces) {
    constexpr int64_t kAligned = 256;
    int64_t all = 0;
    for (const Piece& p : pieces) all += (p.bytes + kAligned - 1) / kAligned * kAligned;
    if (all) rooms_.push_back(device_.host_memory(all));
    std::vector<Piece> out;
    int64_t at = 0;
    for (const Piece& p : pieces) {
      out.push_back(p.bytes ? Piece{rooms_.back().get() + at, p.bytes} : Piece{});
      at += (p.bytes + kAligned - 1) / kAligned * kAligned;
    }
    return out;
  }

  DeviceComm& device_;
  std::vector<std::shared_ptr<char>> rooms_;
};

/// A device's memory, by NCCL.
class NcclTransport : public Transport {
 public:
  NcclTransport(DeviceComm& device, NcclGroup& group) : device_(device), group_(group) {}
  void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) override {
    group_.exchange(send, recv);
  }
  void add_up(std::span<const Tensor> parts, const Tensor& sum) override {
    device_.add_up(parts, sum);
  }

 private:
  DeviceComm& device_;
  NcclGroup& group_;
};

}  // namespace

Pending Group::begin(Device where, const std::string& what, Steps steps) const {
  if (where.kind == Device::cpu)
    return begin(what, [steps = std::move(steps), members = members_, what](Link& link) {
      steps.pack();
      LinkTransport transport(link, members, what);
      steps.carry(transport);
      steps.unpack();
    });
  World* const world = world_.get();
  check(world->device != nullptr, "an exchange of tensors of a device that the ranks do not use");
  DeviceComm& device = *world->device;
  NcclGroup* group = nullptr;
  if (world->nccl)
    group = &world->nccl_group(members_, [&] {
      return gather_text(rank_ == 0 ? device.nccl_id() : "", "joining GPUs")[0];
    });
  steps.pack();
  Pending pending;
  pending.state_ = std::make_shared<Pending::State>();
  Pending::State& state = *pending.state_;
  state.what = what;
  state.world = world;
  state.unpack = std::move(steps.unpack);
  const DeviceComm::Mark ready = device.mark(Stream::kCompute);
  if (group) {
    device.follow(Stream::kCommunication, ready);
    state.sent = world->watch_nccl(what, members_, group, [&] {
      NcclTransport transport(device, *group);
      steps.carry(transport);
    });
    state.done = true;
    return pending;
  }
  // The job must not keep the state, which keeps the job.
  state.job = [&device, ready, carry = std::move(steps.carry), members = members_, what,
               sent = &state.sent](Link& link) {
    device.follow(Stream::kCommunication, ready);
    StagedTransport transport(device, link, members, what);
    carry(transport);
    transport.wait();
    *sent = device.mark(Stream::kCommunication);
  };
  world->push(pending.state_);
  return pending;
}

Pending Group::exchange(Route route, const std::string& what) const {
  const int n = size(), me = rank_;
  check(int(route.send.size()) == n && int(route.recv.size()) == n, "a route for ",
        route.send.size(), " ranks in a group of ", n);
  const Tensor &own = route.send[size_t(me)], &own_to = route.recv[size_t(me)];
  if (n == 1) {
    if (own_to.defined()) own_to.copy_from(own);
    return {};
  }
  Device where;
  for (const auto* tensors : {&route.send, &route.recv})
    for (const Tensor& t : *tensors)
      if (t.defined()) where = t.device();
  struct Job {
    Route route;
    std::vector<Tensor> packed, arrived;
    std::vector<Piece> send, recv;
  };
  const auto job = std::make_shared<Job>();
  job->route = std::move(route);
  const auto pack = [job, n, me, world = world_.get()] {
    const Route& route = job->route;
    for (int r = 0; r < n; ++r) {
      const Tensor &from = route.send[size_t(r)], &to = route.recv[size_t(r)];
      const bool sends = r != me && bytes_of(from), receives = r != me && bytes_of(to);
      job->packed.push_back(sends ? from.contiguous() : Tensor());
      job->arrived.push_back(!receives ? Tensor()
                             : to.is_contiguous()
                                 ? to
                                 : Tensor::empty(to.shape(), to.dtype(), to.device()));
      job->send.push_back(piece(job->packed.back()));
      job->recv.push_back(piece(job->arrived.back()));
      world->received += job->recv.back().bytes;
    }
    if (bytes_of(route.recv[size_t(me)])) route.recv[size_t(me)].copy_from(route.send[size_t(me)]);
  };
  const auto unpack = [job] {
    for (size_t r = 0; r < job->arrived.size(); ++r) {
      const Tensor& to = job->route.recv[r];
      if (job->arrived[r].defined() && job->arrived[r].raw() != to.raw())
        to.copy_from(job->arrived[r]);
    }
  };
  return begin(where, what,
               {pack, [job](Transport& t) { t.exchange(job->send, job->recv); }, unpack});
}

Pending Group::all_reduce(const Tensor& x, const std::string& what) const {
  if (size() == 1) return {};
  check(x.is_contiguous() && (x.dtype() == Dtype::f32 || x.dtype() == Dtype::f64), "all-reduce of ",
        name_of(x.dtype()), " ", x.shape());
  // Each rank sums one part for all: in their order, so that the bits do not depend on the way.
  struct Job {
    Tensor mine;
    std::vector<Tensor> parts;
    std::vector<Piece> send, parts_to, sum, all_to;
  };
  const auto job = std::make_shared<Job>();
  const auto pack = [job, x, n = size_t(size()), me = size_t(rank_), world = world_.get()] {
    const Tensor flat = x.view({-1});
    const auto part = [&](size_t r) {
      const int64_t first = flat.numel() * int64_t(r) / int64_t(n),
                    end = flat.numel() * int64_t(r + 1) / int64_t(n);
      return flat.narrow(0, first, end - first);
    };
    job->mine = part(me);
    for (size_t r = 0; r < n; ++r) {
      job->parts.push_back(r == me ? job->mine.clone()
                                   : Tensor::empty(job->mine.shape(), x.dtype(), x.device()));
      const auto other = [&](const Tensor& t) { return r == me ? Piece{} : piece(t); };
      job->send.push_back(other(part(r)));
      job->parts_to.push_back(other(job->parts.back()));
      job->sum.push_back(other(job->mine));
      job->all_to.push_back(other(part(r)));
      world->received += job->parts_to.back().bytes + job->all_to.back().bytes;
    }
  };
  const auto carry = [job](Transport& t) {
    t.exchange(job->send, job->parts_to);
    t.add_up(job->parts, job->mine);
    t.exchange(job->sum, job->all_to);
  };
  return begin(x.device(), what, {pack, carry, [job] {}});
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
