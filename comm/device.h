// What communication needs of a device that computes in a stream. The GPU module has one.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/link.h"
#include "core/tensor/tensor.h"

namespace ff {

/// A device's two streams. Each does its work in order; marks order one behind the other.
enum class Stream : uint8_t { kCompute, kCommunication };

/// GPUs that NCCL has joined, one a rank.
class NcclGroup {
 public:
  virtual ~NcclGroup() = default;
  /// Sends send[r] to rank r of the group and receives recv[r] from it, memory of the GPUs, in the
  /// stream of communication. Returns before it is done.
  virtual void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) = 0;
  /// What has gone wrong since, "" for nothing. Of any thread.
  virtual std::string fault() = 0;
};

/// Throws Exit::kDevice where a call fails. Of any thread.
class DeviceComm {
 public:
  /// A place in a stream.
  using Mark = std::shared_ptr<void>;
  /// Behind all that the stream was given so far.
  virtual Mark mark(Stream stream) = 0;
  /// What the stream is given from now on comes behind the mark.
  virtual void follow(Stream stream, const Mark& mark) = 0;
  /// Whether the device has come to it.
  virtual bool passed(const Mark& mark) = 0;
  virtual void wait_for(const Mark& mark) = 0;
  /// When it did, by now_ns()'s clock: of one made while a timeline is recorded, and passed.
  virtual int64_t time_of(const Mark& mark) = 0;

  /// Page-locked memory of the host, kept for those who ask later. Its owner waits for copies.
  virtual std::shared_ptr<char> host_memory(int64_t bytes) = 0;
  /// Between the device and page-locked memory, in the stream of communication.
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;
  /// ff::add_up in the stream of communication; all contiguous and of one dtype.
  virtual void add_up(std::span<const Tensor> parts, const Tensor& sum) = 0;

  /// "NCCL 2.28.9, /usr/lib/libnccl.so.2", or false and why there is none.
  virtual bool find_nccl(std::string& text) = 0;
  /// What the first rank of a group gives to the others.
  virtual std::string nccl_id() = 0;
  /// Joins the ranks that got this id; all of them call it, and it returns when all have.
  virtual std::unique_ptr<NcclGroup> join(const std::string& id, int rank, int size) = 0;

 protected:
  ~DeviceComm() = default;
};

}  // namespace ff
