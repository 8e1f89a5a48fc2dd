// GPUs joined by NCCL: sends and receives alone, so that sums stay ours and in the ranks' order.
#include "cuda/nccl.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cuda/libraries.h"
#include "cuda/runtime.h"

namespace ff::cuda {
namespace {

// Of nccl.h, which standard toolkits are without; the same in all of NCCL 2.
using Comm = struct ncclComm*;
struct UniqueId {
  char bytes[128];
};
constexpr int kSuccess = 0, kInProgress = 7, kInt8 = 0;

struct Nccl {
  int (*version)(int*);
  int (*unique_id)(UniqueId*);
  int (*init)(Comm*, int, UniqueId, int);
  int (*destroy)(Comm);
  int (*async_error)(Comm, int*);
  const char* (*error_string)(int);
  const char* (*last_error)(Comm);
  int (*group_start)();
  int (*group_end)();
  int (*send)(const void*, size_t, int, int, Comm, cudaStream_t);
  int (*recv)(void*, size_t, int, int, Comm, cudaStream_t);
  bool there = false;
  std::string text;
};

Nccl open_nccl() {
  Nccl nccl;
  // NVLink multicast (NVLS) serves collectives that are not called here, takes memory, and where a
  // host shares its switch between machines it may not work.
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  const LibraryFile file = find_library("libnccl.so.2");
  if (!file.handle) {
    nccl.text = cat("there is no libnccl.so.2: it is ", file.text,
                    "; install NCCL (`pip install nvidia-nccl-cu13`) or add its folder to "
                    "LD_LIBRARY_PATH");
    return nccl;
  }
  const auto load = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(file.handle, name));
    if (!function && nccl.text.empty()) nccl.text = cat(file.text, " has no function ", name);
  };
  load(nccl.version, "ncclGetVersion");
  load(nccl.unique_id, "ncclGetUniqueId");
  load(nccl.init, "ncclCommInitRank");
  load(nccl.destroy, "ncclCommDestroy");
  load(nccl.async_error, "ncclCommGetAsyncError");
  load(nccl.error_string, "ncclGetErrorString");
  load(nccl.last_error, "ncclGetLastError");
  load(nccl.group_start, "ncclGroupStart");
  load(nccl.group_end, "ncclGroupEnd");
  load(nccl.send, "ncclSend");
  load(nccl.recv, "ncclRecv");
  if (!nccl.text.empty()) return nccl;
  int v = 0;
  nccl.version(&v);
  nccl.text = cat("NCCL ", v / 10000, ".", v / 100 % 100, ".", v % 100, ", ", file.text);
  nccl.there = true;
  return nccl;
}

const Nccl& nccl() {
  static const Nccl opened = open_nccl();
  return opened;
}

std::string described(int status, Comm comm) {
  const std::string more = nccl().last_error(comm);
  return cat(nccl().error_string(status), more.empty() ? "" : "; ", more);
}

void check_nccl(int status, const char* call, Comm comm = nullptr) {
  if (status == kSuccess || status == kInProgress) return;
  fail(Exit::kDevice, "GPU ", device_info().index, ": ", call, " failed: ", described(status, comm),
       "; NCCL_DEBUG=WARN says more");
}

class Group : public NcclGroup {
 public:
  Group(const std::string& id, int rank, int size) {
    UniqueId unique;
    check(id.size() == sizeof unique.bytes, "an NCCL id of ", id.size(), " bytes");
    std::memcpy(unique.bytes, id.data(), sizeof unique.bytes);
    stream();  // makes the GPU current
    check_nccl(nccl().init(&comm_, size, unique, rank), "ncclCommInitRank");
  }
  ~Group() override {
    stream();
    nccl().destroy(comm_);
  }

  void exchange(const std::vector<Piece>& send, const std::vector<Piece>& recv) override {
    const cudaStream_t s = communication_stream();
    const std::lock_guard lock(mutex_);
    check_nccl(nccl().group_start(), "ncclGroupStart");
    for (size_t r = 0; r < send.size(); ++r) {
      if (send[r].bytes)
        check_nccl(nccl().send(send[r].data, size_t(send[r].bytes), kInt8, int(r), comm_, s),
                   "ncclSend", comm_);
      if (recv[r].bytes)
        check_nccl(nccl().recv(recv[r].data, size_t(recv[r].bytes), kInt8, int(r), comm_, s),
                   "ncclRecv", comm_);
    }
    check_nccl(nccl().group_end(), "ncclGroupEnd", comm_);
  }

  std::string fault() override {
    int status = kSuccess;
    if (const int failed = nccl().async_error(comm_, &status)) status = failed;
    return status == kSuccess || status == kInProgress ? "" : described(status, comm_);
  }

 private:
  Comm comm_ = nullptr;
  std::mutex mutex_;
};

}  // namespace

bool find_nccl(std::string& text) {
  text = nccl().text;
  return nccl().there;
}

std::string nccl_id() {
  UniqueId id;
  stream();
  check_nccl(nccl().unique_id(&id), "ncclGetUniqueId");
  return {id.bytes, sizeof id.bytes};
}

std::unique_ptr<NcclGroup> join_nccl(const std::string& id, int rank, int size) {
  return std::make_unique<Group>(id, rank, size);
}

}  // namespace ff::cuda
