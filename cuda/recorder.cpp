// Recordings: CUDA graphs, and the memory that they share.
#include "cuda/recorder.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cuda/module_parts.h"
#include "cuda/runtime.h"

namespace ff::cuda {
namespace {

/// Thrown through what is followed.
struct Different {};

std::mutex g_arenas_mutex;  ///< of where they are

/// The memory of a stream's recordings. They are launched one after another and keep nothing there,
/// so they share it; one that needs more leaves the others without.
struct Arena {
  char* base = nullptr;
  int64_t size = 0, number = 0, users = 0;

  void give_back() {
    if (base) release_memory(base);
    move(nullptr, 0);
  }
  /// So many bytes at least; false where there is no room.
  bool reach(int64_t bytes) {
    if (bytes <= size) return true;
    give_back();
    ++number;
    move(static_cast<char*>(allocate_memory(bytes)), bytes);
    return base;
  }

 private:
  void move(char* to, int64_t bytes) {
    const std::lock_guard lock(g_arenas_mutex);
    base = to;
    size = to ? bytes : 0;
  }
};

std::map<cudaStream_t, Arena>& arenas() {
  static auto& all = *new std::map<cudaStream_t, Arena>;  // the driver may be gone by the end
  return all;
}
Arena& arena_of(cudaStream_t home) {
  const std::lock_guard lock(g_arenas_mutex);
  return arenas()[home];
}

constexpr int64_t kPiece = 512;
/// Where the arena is while its size is measured: aligned as any memory of the GPU.
char* const kNowhere = reinterpret_cast<char*>(uintptr_t(1) << 46);
constexpr int64_t kNowhereBytes = int64_t(1) << 45;

bool same(const dim3& a, const dim3& b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

/// Bytes of the arena: the lowest place that is free.
class Places {
 public:
  int64_t take(int64_t bytes);
  void give(int64_t at);
  int64_t end = 0;  ///< that was ever in use

 private:
  std::map<int64_t, int64_t> free_, used_;  // where: how many bytes
};

/// Keeps what is asked for in its order, with addresses of the arena. A function that is followed
/// is given the same addresses, and asks for nothing: what it would ask for is compared, and where
/// numbers differ, or pointers to memory of others, the graph's node is given the new ones.
class Graph final : public Recorder {
 public:
  explicit Graph(const std::function<void()>& f);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void play();
  bool follow(const std::function<void()>& f);

  bool launch(const Launch& launch) override;
  bool fixed(std::initializer_list<const void*> addresses) override;
  bool copy(void* to, const void* from, int64_t bytes) override;
  void asked() override;
  void upload(void* to, const void* from, int64_t bytes) override;
  void* allocate(int64_t bytes) override;
  void release(void* p) override;
  [[noreturn]] void refuse_wait() override { throw CannotRecord("it waits for the GPU"); }

 private:
  enum class Mode { kMeasures, kRecords, kFollows };
  enum class Kind { kKernel, kFixed, kCopy, kUpload, kAllocation, kRelease };
  struct Request {
    explicit Request(Kind k) : kind(k) {}
    Kind kind;
    cudaGraphNode_t node = nullptr;
    const void* kernel = nullptr;
    int64_t size = 0;
    /// What each of the two graphs has.
    struct Values {
      std::vector<char> bytes;  ///< arguments, or addresses
      dim3 blocks, threads;
      size_t shared = 0;
      void* to = nullptr;
      const void* from = nullptr;
    } values[2];
  };

  explicit Graph(cudaStream_t home) : home_(home) {}
  /// Runs f as this thread's current(); true where it kept no memory.
  bool run(Mode mode, const std::function<void()>& f);
  void capture(const std::function<void()>& f);
  Request& add(Kind kind) { return requests_.emplace_back(kind); }
  /// The next request; throws where it is not of this kind.
  Request& next(Kind kind);
  void set_copy(int turn, const Request& r, cudaMemcpyKind kind);
  /// Frees what others had asked for and gave back meanwhile.
  void free_others();

  const cudaStream_t home_;  ///< where it was recorded
  Mode mode_ = Mode::kMeasures;
  std::vector<Request> requests_;
  size_t next_ = 0;
  bool differs_ = false;
  int64_t arena_ = 0;  ///< which one; 0: none yet
  char* base_ = nullptr;
  Places places_;
  std::unordered_set<void*> own_;  ///< in use now
  std::vector<void*> others_;
  cudaGraph_t graph_ = nullptr;
  // Twice, in turn: what one sends is written anew when its launch before has ended, while the
  // other runs.
  cudaGraphExec_t ready_[2] = {};
  cudaEvent_t launched_[2] = {};
  int turn_ = 0;
};

int64_t Places::take(int64_t bytes) {
  bytes = std::max<int64_t>(ceil_div(bytes, kPiece), 1) * kPiece;
  auto room = std::find_if(free_.begin(), free_.end(),
                           [&](const auto& piece) { return piece.second >= bytes; });
  if (room == free_.end()) {
    const auto last = free_.empty() ? free_.end() : std::prev(free_.end());
    const bool at_end = last != free_.end() && last->first + last->second == end;
    const int64_t at = at_end ? last->first : end;
    if (at_end) free_.erase(last);
    end = at + bytes;
    used_[at] = bytes;
    return at;
  }
  const auto [at, size] = *room;
  free_.erase(room);
  if (size > bytes) free_[at + bytes] = size - bytes;
  used_[at] = bytes;
  return at;
}

void Places::give(int64_t at) {
  const auto place = used_.find(at);
  auto piece = free_.emplace(at, place->second).first;
  used_.erase(place);
  const auto join = [&](auto first, auto second) {
    if (first->first + first->second != second->first) return first == piece ? piece : second;
    first->second += second->second;
    free_.erase(second);
    return first;
  };
  if (const auto after = std::next(piece); after != free_.end()) piece = join(piece, after);
  if (piece != free_.begin()) join(std::prev(piece), piece);
}

Graph::Graph(const std::function<void()>& f) : Graph(stream()) {
  Arena& shared = arena_of(home_);
  base_ = kNowhere;
  if (!run(Mode::kMeasures, f)) throw CannotRecord("it keeps memory that it asked for");
  free_others();
  if (!shared.reach(places_.end)) throw CannotRecord("there is no room for its memory");
  places_ = {};
  base_ = shared.base;
  // Where this throws, f's owner may still have the arena's memory: it stays.
  capture(f);
  arena_ = shared.number;
  ++shared.users;
}

void Graph::capture(const std::function<void()>& f) {
  // Relaxed: an upload asks for page-locked memory meanwhile.
  check_cuda(cudaStreamBeginCapture(home_, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  try {
    if (!run(Mode::kRecords, f)) throw CannotRecord("it keeps memory that it asked for");
  } catch (...) {
    cudaStreamEndCapture(home_, &graph_);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(home_, &graph_), "cudaStreamEndCapture");
  for (int turn : {0, 1}) {
    if (cudaGraphInstantiate(&ready_[turn], graph_) != cudaSuccess) {
      cudaGetLastError();
      throw CannotRecord("the driver makes no graph of it");
    }
    check_cuda(cudaEventCreateWithFlags(&launched_[turn], cudaEventDisableTiming),
               "cudaEventCreate");
  }
  for (Request& r : requests_) {
    r.values[1] = r.values[0];
    if (r.kind != Kind::kUpload) continue;
    r.values[1].from = locked_memory(r.size);
    set_copy(1, r, cudaMemcpyHostToDevice);
  }
}

// As release(): a failure is shown by the next call.
Graph::~Graph() {
  free_others();
  for (const cudaEvent_t e : launched_)
    if (e) cudaEventSynchronize(e), cudaEventDestroy(e);
  for (const cudaGraphExec_t ready : ready_)
    if (ready) cudaGraphExecDestroy(ready);
  if (graph_) cudaGraphDestroy(graph_);
  for (const Request& r : requests_)
    if (r.kind == Kind::kUpload)
      for (const Request::Values& v : r.values) cudaFreeHost(const_cast<void*>(v.from));
  if (Arena& shared = arena_of(home_); arena_ && !--shared.users) shared.give_back();
}

bool Graph::run(Mode mode, const std::function<void()>& f) {
  mode_ = mode;
  next_ = 0;
  differs_ = false;
  own_.clear();
  const struct Current {
    explicit Current(Graph* g) { t_current = g; }
    ~Current() { t_current = nullptr; }
  } current(this);
  f();
  return own_.empty();
}

void Graph::play() {
  count_launch();
  check_cuda(cudaGraphLaunch(ready_[turn_], stream()), "cudaGraphLaunch");
  check_cuda(cudaEventRecord(launched_[turn_], stream()), "cudaEventRecord");
  free_others();
}

bool Graph::follow(const std::function<void()>& f) {
  if (arena_ != arena_of(home_).number) return false;
  turn_ ^= 1;
  // What the launch before the last one sent has gone.
  check_cuda(cudaEventSynchronize(launched_[turn_]), "cudaEventSynchronize");
  try {
    if (run(Mode::kFollows, f) && !differs_ && next_ == requests_.size()) return play(), true;
  } catch (const Different&) {
  } catch (const CannotRecord&) {
  } catch (...) {
    free_others();
    throw;
  }
  free_others();
  return false;
}

void Graph::free_others() {
  for (void* p : others_) release_memory(p);
  others_.clear();
}

Graph::Request& Graph::next(Kind kind) {
  if (differs_ || next_ == requests_.size() || requests_[next_].kind != kind) throw Different();
  return requests_[next_++];
}

bool Graph::launch(const Launch& l) {
  if (mode_ == Mode::kMeasures) return false;
  Request::Values v{{}, l.blocks, l.threads, l.shared, nullptr, nullptr};
  for (size_t i = 0; i < l.count; ++i) {
    const auto* from = static_cast<const char*>(l.arguments[i]);
    v.bytes.insert(v.bytes.end(), from, from + l.sizes[i]);
  }
  if (mode_ == Mode::kRecords) {
    Request& r = add(Kind::kKernel);
    r.kernel = l.kernel;
    r.values[0] = std::move(v);
    return true;
  }
  Request& r = next(Kind::kKernel);
  Request::Values& old = r.values[turn_];
  if (r.kernel != l.kernel || old.bytes.size() != v.bytes.size()) throw Different();
  if (same(old.blocks, v.blocks) && same(old.threads, v.threads) && old.shared == v.shared &&
      old.bytes == v.bytes)
    return false;
  old = std::move(v);
  cudaKernelNodeParams node{};
  node.func = const_cast<void*>(l.kernel);
  node.gridDim = l.blocks;
  node.blockDim = l.threads;
  node.sharedMemBytes = unsigned(l.shared);
  node.kernelParams = const_cast<void**>(l.arguments);
  check_cuda(cudaGraphExecKernelNodeSetParams(ready_[turn_], r.node, &node),
             "cudaGraphExecKernelNodeSetParams");
  return false;
}

bool Graph::fixed(std::initializer_list<const void*> addresses) {
  if (mode_ == Mode::kMeasures) return false;
  std::vector<char> bytes(addresses.size() * sizeof(void*));
  std::memcpy(bytes.data(), addresses.begin(), bytes.size());
  if (mode_ == Mode::kFollows) {
    if (next(Kind::kFixed).values[turn_].bytes != bytes) throw Different();
    return false;
  }
  add(Kind::kFixed).values[0].bytes = std::move(bytes);
  return true;
}

bool Graph::copy(void* to, const void* from, int64_t bytes) {
  if (mode_ == Mode::kMeasures) return false;
  const bool records = mode_ == Mode::kRecords;
  Request& r = records ? add(Kind::kCopy) : next(Kind::kCopy);
  if (records) r.size = bytes;
  if (r.size != bytes) throw Different();
  Request::Values& v = r.values[turn_];
  if (std::exchange(v.from, from) != from) v.to = nullptr;
  if (std::exchange(v.to, to) != to && !records) set_copy(turn_, r, cudaMemcpyDeviceToDevice);
  return records;
}

void Graph::set_copy(int turn, const Request& r, cudaMemcpyKind kind) {
  const Request::Values& v = r.values[turn];
  check_cuda(
      cudaGraphExecMemcpyNodeSetParams1D(ready_[turn], r.node, v.to, v.from, size_t(r.size), kind),
      "cudaGraphExecMemcpyNodeSetParams1D", r.size, " bytes");
}

void Graph::asked() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaGraphNode_t* last = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
  check_cuda(cudaStreamGetCaptureInfo(stream(), &status, nullptr, nullptr, &last, &edges, &count),
             "cudaStreamGetCaptureInfo");
  if (count != 1) throw CannotRecord("a launch of it has no place of its own");
  requests_.back().node = last[0];
}

void Graph::upload(void* to, const void* from, int64_t bytes) {
  if (mode_ == Mode::kMeasures) return;
  const bool records = mode_ == Mode::kRecords;
  Request& r = records ? add(Kind::kUpload) : next(Kind::kUpload);
  Request::Values& v = r.values[turn_];
  if (records) {
    r.size = bytes;
    v.from = locked_memory(bytes);
  }
  if (r.size != bytes) throw Different();
  void* const sent = const_cast<void*>(v.from);
  std::memcpy(sent, from, size_t(bytes));
  const bool elsewhere = std::exchange(v.to, to) != to;
  if (records) {
    check_cuda(cudaMemcpyAsync(to, sent, size_t(bytes), cudaMemcpyHostToDevice, stream()),
               "cudaMemcpyAsync", bytes, " bytes to the GPU");
    return asked();
  }
  if (elsewhere) set_copy(turn_, r, cudaMemcpyHostToDevice);
}

void* Graph::allocate(int64_t bytes) {
  void* p = nullptr;
  if (mode_ == Mode::kFollows) {
    const Request& r = next(Kind::kAllocation);
    if (r.size != bytes) throw Different();
    p = r.values[0].to;
  } else {
    p = base_ + places_.take(bytes);
    if (mode_ == Mode::kRecords) {
      Request& r = add(Kind::kAllocation);
      r.values[0].to = p;
      r.size = bytes;
    }
  }
  own_.insert(p);
  return p;
}

void Graph::release(void* p) {
  if (!own_.erase(p)) return others_.push_back(p);
  if (mode_ != Mode::kFollows) places_.give(static_cast<char*>(p) - base_);
  if (mode_ == Mode::kRecords) add(Kind::kRelease).values[0].to = p;
  // In a destructor: the next request throws what is different.
  if (mode_ == Mode::kFollows && !differs_) {
    differs_ = next_ == requests_.size() || requests_[next_].kind != Kind::kRelease ||
               requests_[next_].values[0].to != p;
    ++next_;
  }
}

}  // namespace

void* record(const std::function<void()>& f) { return new Graph(f); }
void play(void* recording) { static_cast<Graph*>(recording)->play(); }
bool follow(void* recording, const std::function<void()>& f) {
  return static_cast<Graph*>(recording)->follow(f);
}
void forget(void* recording) { delete static_cast<Graph*>(recording); }

bool recorded_memory(const void* p) {
  const auto* at = static_cast<const char*>(p);
  if (at >= kNowhere && at < kNowhere + kNowhereBytes) return true;
  const std::lock_guard lock(g_arenas_mutex);
  for (const auto& [home, arena] : arenas())
    if (arena.base && at >= arena.base && at < arena.base + arena.size) return true;
  return false;
}

}  // namespace ff::cuda
