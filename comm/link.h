// A link carries bytes between the ranks of a run. Only a rank's communication thread calls it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ff {

/// Contiguous bytes for, or from, one rank.
struct Piece {
  void* data = nullptr;
  int64_t bytes = 0;
};

class Link {
 public:
  virtual ~Link() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Names of the hosts, by rank.
  virtual const std::vector<std::string>& hosts() const = 0;

  /// Sends send[i] to rank members[i] and receives recv[i] from it, all at once; this rank's own
  /// entry is left out. Both sides must agree on every size, and all members must call in the same
  /// order. Throws Exit::kDevice naming the late rank and `what` after the link's timeout.
  virtual void exchange(const std::vector<int>& members, const std::vector<Piece>& send,
                        const std::vector<Piece>& recv, const std::string& what) = 0;

  /// The next number of a counter that all ranks share, from 0.
  virtual int64_t claim() = 0;
  /// While there is nothing to exchange: serves other ranks' claims.
  virtual void idle() {}

  /// Seconds that one exchange may last.
  virtual double timeout() const { return 600; }
  /// Of these ranks those that do not ask the same within a few seconds.
  virtual std::vector<int> absent(const std::vector<int>& /*members*/) { return {}; }
};

/// The ranks that a launcher started, joined by MPI; nullptr without a launcher. Throws
/// Exit::kUsage where this build has no MPI. `timeout` in seconds.
std::unique_ptr<Link> mpi_link(double timeout);

/// Of the MPI library, "Open MPI v4.1.4"; "" in a build without.
std::string mpi_version();

/// Ends every rank of an MPI run at once with this code; returns where there is no such run.
void abort_all_ranks(int code);

}  // namespace ff
