// Ranks on GPUs. Two that share one, as threads of this process, exchange by page-locked memory and
// compute what one does; NCCL joins one rank with itself. Several GPUs: tests/cli/gpu_ranks.sh.
#include <cstdlib>
#include <cstring>

#include "comm/dap.h"
#include "comm/device.h"
#include "core/train/objective.h"
#include "tests/cuda/gpu.h"
#include "tests/unit/model/fixture.h"
#include "tests/unit/thread_ranks.h"

using namespace ff;
using namespace ff::test;

namespace {

/// A variable of the environment while one is alive.
class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

/// f(group, results) on `size` ranks that share the GPU, each with results of its own.
std::vector<Arrays> on_gpu_ranks(int size, const std::function<void(const Group&, Arrays&)>& f) {
  const Setting way("FASTFOLD_COMM", "host");
  std::vector<Arrays> results(static_cast<size_t>(size));
  on_ranks(size, [&](const Group& group) {
    group.use_device(gpu_communication(), "the only one");
    Arrays& mine = results[size_t(group.rank())];
    f(group, mine);
    for (auto& [name, t] : mine) t = t.to(Device{});
  });
  return results;
}

bool same_bits(const Arrays& a, const Arrays& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, t] : a) {
    const Tensor other = b.at(name);
    if (!(t.shape() == other.shape()) || t.dtype() != other.dtype() ||
        std::memcmp(t.contiguous().raw(), other.contiguous().raw(),
                    size_t(t.numel() * size_of(t.dtype()))) != 0)
      return false;
  }
  return true;
}

/// What every collective gives of tensors on `device`.
void collectives(const Group& group, Device device, Arrays& out) {
  const int me = group.rank(), n = group.size();
  Route route;
  for (int r = 0; r < n; ++r) {
    const auto stream = [&](int from, int to) { return uint64_t(100 + 10 * from + to); };
    // Strided, both where it leaves and where it arrives.
    route.send.push_back(
        random({33, 7, 5}, stream(me, r)).to(device).transpose(0, 1).narrow(2, 1, 3));
    route.recv.push_back(Tensor::zeros({7, 33, 9}, Dtype::f32, device).narrow(2, 2, 3));
  }
  Tensor shared = random({1001}, uint64_t(me)).to(device), own = random({4097}, 7).to(device);
  const Tensor sum = random({1003}, uint64_t(20 + me)).to(device);
  Pending exchanged = group.exchange(route, "exchange"),
          sent = group.broadcast(shared, "broadcast"), summed = group.all_reduce(sum, "sum");
  const Tensor meanwhile = own.clone();  // what is freed and made anew must not get in the way
  own = Tensor::zeros({4097}, Dtype::f32, device);
  summed.wait();
  sent.wait();
  exchanged.wait();
  for (int r = 0; r < n; ++r) out[cat("from ", r)] = route.recv[size_t(r)];
  out["broadcast"] = shared;
  out["sum"] = sum;
  out["meanwhile"] = meanwhile;
}

/// Every gradient of one pass, in f32; of parameters each of which is one rounding off where
/// `rounded` is not 0, up or down by its bits.
Arrays gradients(const Fixture& f, const Dap& dap, Device device = kGpu, uint64_t rounded = 0) {
  const Params given = f.params();
  uint64_t stream = 0;
  for (const auto& [name, var] : given.all()) {
    const Tensor noise = random(var.shape(), 1000 * rounded + ++stream);
    for (int64_t i = 0; rounded && i < noise.numel(); ++i)
      var.value().data<float>()[i] *= 1 + (noise.data<float>()[i] > 0 ? 1 : -1) * 0x1p-23f;
  }
  Params params = given.on(device);
  params.want_grads();
  const AlphaFold model(f.config, params, Dtype::f32, dap);
  Tape tape;
  const Outputs outputs = model.forward([&](int64_t i) { return f.slice(i); }, 1);
  Arrays labels = read_npz(data_path(f.name + "/labels.npz"));
  for (auto& [name, value] : labels) value = value.select(0, 1);
  LossConfig config = head_weights(f.config.heads);
  config.structural_violation_loss_weight = 1;
  const Losses losses = objective(config, f.config.heads, outputs, f.slice(1), labels);
  const float share = 1.0f / float(dap.size());
  tape.backward({losses.total}, {Tensor::of<float>({}, &share)});
  Arrays all = params.take_grads();
  for (const auto& [name, g] : all) dap.group().all_reduce(g, name).wait();
  return all;
}

}  // namespace

TEST_CASE(
    "GPU: ranks that share it exchange the bits that the CPU's do, whatever the streams' pace") {
  if (!have_gpu()) return;
  for (const int ranks : {2, 3}) {
    std::vector<Arrays> want(static_cast<size_t>(ranks));
    on_ranks(ranks,
             [&](const Group& group) { collectives(group, Device{}, want[size_t(group.rank())]); });
    for (const char* spin : {"0", "500"}) {
      const Setting setting("FASTFOLD_SPIN_US", spin);
      const auto got = on_gpu_ranks(
          ranks, [](const Group& group, Arrays& out) { collectives(group, kGpu, out); });
      for (size_t r = 0; r < got.size(); ++r) CHECK(same_bits(got[r], want[r]));
    }
  }
}

TEST_CASE("GPU: gradients of two ranks that share it are one rank's, and no pace changes them") {
  if (!have_gpu()) return;
  for (const char* name : {"tiny", "tiny_padded"}) {
    const Fixture f(name);
    const auto both = [&](const char* spin) {
      const Setting setting("FASTFOLD_SPIN_US", spin);
      std::vector<Arrays> all = on_gpu_ranks(2, [&](const Group& group, Arrays& out) {
        out = gradients(f, Dap(group, 1));  // in as many parts as can be
      });
      CHECK(same_bits(all[0], all[1]));
      return all[0];
    };
    const Arrays two = both("0"), one = gradients(f, {});
    CHECK(same_bits(both("200"), two));
    // A hidden unit whose sum is nearly 0 may be on for some roundings and off for others, and its
    // gradient there or not. So the limit is the fixtures' (model_test.cpp), and as much as
    // gradients differ on the CPU by one rounding of the parameters.
    std::vector<Arrays> roundings;
    for (uint64_t i = 0; i <= 6; ++i) roundings.push_back(gradients(f, {}, Device{}, i));
    REQUIRE(two.size() == one.size());
    for (const auto& [key, value] : one) {
      INFO(name << ' ' << key);
      double rounding = 0;
      for (const Arrays& all : roundings)
        rounding = std::max(rounding, largest_gap(all.at(key), roundings[0].at(key)));
      CHECK(largest_gap(two.at(key), value) <= 1e-3 * rms(value) + 1e-6 + rounding);
    }
  }
}

TEST_CASE("GPU: NCCL brings one rank what it sent itself, behind the stream that made it") {
  if (!have_gpu()) return;
  DeviceComm& device = gpu_communication();
  std::string text;
  if (!device.find_nccl(text)) {
    std::printf("SKIPPED: %s\n", text.c_str());
    return;
  }
  const Setting setting("FASTFOLD_SPIN_US", "500");
  const auto group = device.join(device.nccl_id(), 0, 1);
  const Tensor host = random({1 << 20}, 3);
  for (int i = 0; i < 20; ++i) {
    const Tensor from = host.to(kGpu).clone(), to = poisoned(host.shape(), Dtype::f32);
    device.follow(Stream::kCommunication, device.mark(Stream::kCompute));
    group->exchange({{from.raw(), from.numel() * 4}}, {{to.raw(), to.numel() * 4}});
    const Tensor parts[] = {to, from}, sum = Tensor::empty(host.shape(), Dtype::f32, kGpu);
    device.add_up(parts, sum);
    device.follow(Stream::kCompute, device.mark(Stream::kCommunication));
    const Tensor got = to.to(Device{}), twice = sum.to(Device{});
    CHECK(std::memcmp(got.raw(), host.raw(), size_t(host.numel() * 4)) == 0);
    bool doubled = true;
    for (int64_t k = 0; k < host.numel(); ++k)
      doubled = doubled && twice.data<float>()[k] == 2 * host.data<float>()[k];
    CHECK(doubled);
  }
  CHECK(group->fault().empty());
}

TEST_CASE("GPU: sums of parts, in their order, of any strides and dtypes") {
  if (!have_gpu()) return;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64})
    for (const int count : {1, 2, 5, 70})
      for (const int64_t n : {1, 37, 4096}) {
        std::vector<Tensor> host, there;
        for (int k = 0; k < count; ++k) {
          host.push_back(random({3, n}, uint64_t(k)).to(dtype));
          there.push_back(host.back().to(kGpu));
        }
        const Tensor want = Tensor::empty({3, n}, dtype), got = want.to(kGpu);
        add_up(host, want);
        add_up(there, got);
        CHECK(same_bits({{"sum", got.to(Device{})}}, {{"sum", want}}));
        if (dtype == Dtype::f64) continue;  // no copies of it but whole ones
        // Into itself, a column of something wider.
        const Tensor wide = Tensor::zeros({3, n + 3}, dtype, kGpu), column = wide.narrow(1, 2, n);
        column.copy_from(there[0]);
        there[0] = column;
        add_up(there, column);
        CHECK(same_bits({{"sum", column.contiguous().to(Device{})}}, {{"sum", want}}));
        CHECK(norm_error(wide.narrow(1, 0, 2), Tensor::zeros({3, 2})) == 0);
      }
}
