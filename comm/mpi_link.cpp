// Ranks joined by MPI. Every call of MPI comes from the communication thread, which also starts it,
// so that any thread support will do; waiting gives the processor away, since ranks may share it.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "comm/launch.h"
#include "comm/link.h"
#include "core/base/error.h"
#include "core/base/timeline.h"

namespace ff {
namespace {

constexpr int kExchange = 1, kClaim = 2, kClaimed = 3, kPresent = 4;  // tags
constexpr int64_t kMostBytes = int64_t(1) << 30;                      // a count is an int
constexpr size_t kHostName = 64;

std::atomic<bool> g_running{false};

/// In a bundle (scripts/bundle) Open MPI lies beside the program, and srun does not say so.
void find_bundled_plugins() {
  std::error_code ignored;
  const auto root =
      std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path().parent_path();
  if (std::filesystem::exists(root / "libexec" / "orterun", ignored))
    setenv("OPAL_PREFIX", root.c_str(), 0);
}

class MpiLink : public Link {
 public:
  explicit MpiLink(double timeout) : timeout_(timeout) {
    find_bundled_plugins();
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    g_running = true;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    std::string mine(kHostName, '\0'), all(kHostName * size_t(size_), '\0');
    gethostname(mine.data(), kHostName - 1);
    MPI_Allgather(mine.data(), kHostName, MPI_BYTE, all.data(), kHostName, MPI_BYTE,
                  MPI_COMM_WORLD);
    for (int r = 0; r < size_; ++r) hosts_.emplace_back(all.c_str() + kHostName * size_t(r));
    // For tests of overlap: what a link of so many megabytes a second would take.
    if (const char* rate = std::getenv("FASTFOLD_LINK_MB_PER_S")) bytes_per_ns_ = atof(rate) * 1e-3;
  }

  ~MpiLink() override {
    // Rank 0 serves claims until everybody is done.
    MPI_Request barrier;
    MPI_Ibarrier(MPI_COMM_WORLD, &barrier);
    try {
      wait({barrier}, {}, "end of the run");
    } catch (const Error&) {
      MPI_Abort(MPI_COMM_WORLD, int(Exit::kDevice));  // whoever is late has said why
    }
    g_running = false;
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::vector<std::string>& hosts() const override { return hosts_; }

  void exchange(const std::vector<int>& members, const std::vector<Piece>& send,
                const std::vector<Piece>& recv, const std::string& what) override {
    std::vector<MPI_Request> requests;
    std::vector<int> from;
    const int64_t begin = now_ns();
    int64_t received = 0;
    const auto post = [&](const std::vector<Piece>& pieces, bool sending) {
      for (size_t i = 0; i < members.size(); ++i) {
        if (members[i] == rank_) continue;
        char* data = static_cast<char*>(pieces[i].data);
        for (int64_t left = pieces[i].bytes; left > 0; left -= kMostBytes, data += kMostBytes) {
          const int bytes = int(std::min(left, kMostBytes));
          requests.emplace_back();
          from.push_back(sending ? -1 : members[i]);
          if (!sending) received += bytes;
          if (sending)
            MPI_Isend(data, bytes, MPI_BYTE, members[i], kExchange, MPI_COMM_WORLD,
                      &requests.back());
          else
            MPI_Irecv(data, bytes, MPI_BYTE, members[i], kExchange, MPI_COMM_WORLD,
                      &requests.back());
        }
      }
    };
    post(recv, false);
    post(send, true);
    wait(std::move(requests), from, what);
    if (bytes_per_ns_ > 0) {
      const int64_t left = begin + int64_t(double(received) / bytes_per_ns_) - now_ns();
      if (left > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(left));
    }
  }

  int64_t claim() override {
    if (rank_ == 0) return next_++;
    int64_t number = 0;
    std::vector<MPI_Request> requests(2);
    MPI_Irecv(&number, 1, MPI_INT64_T, 0, kClaimed, MPI_COMM_WORLD, &requests[0]);
    MPI_Isend(nullptr, 0, MPI_BYTE, 0, kClaim, MPI_COMM_WORLD, &requests[1]);
    wait(std::move(requests), {0, -1}, "the next target's number");
    return number;
  }

  void idle() override {
    if (rank_ != 0) return;
    for (;;) {
      int there = 0;
      MPI_Status status;
      MPI_Iprobe(MPI_ANY_SOURCE, kClaim, MPI_COMM_WORLD, &there, &status);
      if (!there) return;
      MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kClaim, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      const int64_t number = next_++;
      MPI_Send(&number, 1, MPI_INT64_T, status.MPI_SOURCE, kClaimed, MPI_COMM_WORLD);
    }
  }

  double timeout() const override { return timeout_; }

  std::vector<int> absent(const std::vector<int>& members) override {
    constexpr double kSeconds = 3;
    std::vector<MPI_Request> answers(members.size(), MPI_REQUEST_NULL);
    for (size_t i = 0; i < members.size(); ++i) {
      if (members[i] == rank_) continue;
      MPI_Request sent;  // the run ends before anybody asks for it
      MPI_Isend(nullptr, 0, MPI_BYTE, members[i], kPresent, MPI_COMM_WORLD, &sent);
      MPI_Irecv(nullptr, 0, MPI_BYTE, members[i], kPresent, MPI_COMM_WORLD, &answers[i]);
    }
    const int64_t begin = now_ns();
    std::vector<int> missing;
    do {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      missing.clear();
      for (size_t i = 0; i < members.size(); ++i) {
        int there = 0;
        MPI_Test(&answers[i], &there, MPI_STATUS_IGNORE);
        if (!there) missing.push_back(members[i]);
      }
    } while (!missing.empty() && 1e-9 * double(now_ns() - begin) < kSeconds);
    return missing;
  }

 private:
  /// from[i]: the rank that requests[i] waits for, -1 for a send.
  void wait(std::vector<MPI_Request> requests, const std::vector<int>& from,
            const std::string& what) {
    const int64_t begin = now_ns();
    for (int turn = 0;; ++turn) {
      int done = 0;
      MPI_Testall(int(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
      if (done) return;
      idle();
      if (turn < 200) {
        sched_yield();
        continue;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(turn < 2000 ? 20 : 200));
      // Ranks wait in chains: the one that waits for the late one itself tends to be first.
      if (1e-9 * double(now_ns() - begin) < timeout_ + 0.2 * rank_) continue;
      for (size_t i = 0; i < from.size(); ++i)
        if (from[i] >= 0 && requests[i] != MPI_REQUEST_NULL)
          fail(Exit::kDevice, "rank ", from[i], " (", hosts_[size_t(from[i])], ") is late: rank ",
               rank_, " has waited ", timeout_, " s for it in '", what,
               "'; it has died or hangs, or --comm-timeout is too short");
      fail(
          Exit::kDevice, "rank ", rank_, " has waited ", timeout_, " s in '", what,
          "' for ranks that do not receive; one has died or hangs, or --comm-timeout is too short");
    }
  }

  double timeout_, bytes_per_ns_ = 0;
  int rank_ = 0, size_ = 1;
  int64_t next_ = 0;
  std::vector<std::string> hosts_;
};

}  // namespace

std::unique_ptr<Link> mpi_link(double timeout) {
  if (!launched().by_launcher) return nullptr;
  auto link = std::make_unique<MpiLink>(timeout);
  if (link->size() != launched().size)
    fail(Exit::kUsage, "the launcher started ", launched().size, " ranks and MPI found ",
         link->size(),
         "; the launcher is not of the MPI that this program was built with, Open MPI");
  return link;
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string all(text, size_t(length));
  return all.substr(0, all.find_first_of(",\n"));
}

void abort_all_ranks(int code) {
  if (g_running.exchange(false)) MPI_Abort(MPI_COMM_WORLD, code);
}

}  // namespace ff
