// The network on a device that is not the CPU, without one: its memory is locked against the host
// except while a kernel, the CPU's own, works on it. Host code that reads or writes a device's
// tensor, and operands on two devices, end the test by a segmentation fault.
#include <sys/mman.h>

#include <catch2/catch.hpp>
#include <map>
#include <mutex>

#include "core/ops/kernels.h"
#include "core/predict/predictor.h"
#include "core/train/objective.h"
#include "tests/unit/compare.h"
#include "tests/unit/model/fixture.h"
#include "tests/unit/train/one_chain.h"

using namespace ff;
using Catch::Contains;
using test::Fixture;

namespace {

constexpr Device kDevice{Device::cuda, 0};

/// Address space that is handed out first fit.
class Arena {
 public:
  void* allocate(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const int64_t size = (bytes + 63) / 64 * 64;
    int64_t start = 0;
    for (const auto& [used, end] : taken_) {
      if (used - start >= size) break;
      start = end;
    }
    if (start + size > kBytes) return nullptr;
    taken_[start] = start + size;
    return base_ + start;
  }
  void release(void* p) {
    const std::lock_guard lock(mutex_);
    taken_.erase(static_cast<char*>(p) - base_);
  }
  bool holds(const void* p) const { return p >= base_ && p < base_ + kBytes; }
  void unlock() {
    if (depth_++ == 0) mprotect(base_, kBytes, PROT_READ | PROT_WRITE);
  }
  void lock() {
    if (--depth_ == 0) mprotect(base_, kBytes, PROT_NONE);
  }

 private:
  static constexpr int64_t kBytes = int64_t(1) << 30;
  char* base_ = static_cast<char*>(
      mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  std::map<int64_t, int64_t> taken_;
  std::mutex mutex_;
  int depth_ = 0;
};

Arena& arena() {
  static Arena& a = *new Arena;  // outlives every tensor
  return a;
}

struct Unlocked {
  Unlocked() { arena().unlock(); }
  ~Unlocked() { arena().lock(); }
};

double get(const Tensor& t, int64_t offset) {
  switch (t.dtype()) {
    case Dtype::f32:
      return t.data<float>()[offset];
    case Dtype::bf16:
      return t.data<bf16>()[offset];
    case Dtype::i32:
      return t.data<int32_t>()[offset];
    case Dtype::f64:
      return t.data<double>()[offset];
  }
  return 0;
}

void put(const Tensor& t, int64_t offset, double x) {
  switch (t.dtype()) {
    case Dtype::f32:
      t.data<float>()[offset] = float(x);
      return;
    case Dtype::bf16:
      t.data<bf16>()[offset] = bf16(float(x));
      return;
    case Dtype::i32:
      t.data<int32_t>()[offset] = int32_t(x);
      return;
    case Dtype::f64:
      t.data<double>()[offset] = x;
  }
}

void copy(const Tensor& from, const Tensor& to) {
  const Unlocked unlocked;
  for (int64_t i = 0; i < to.numel(); ++i) {
    int64_t rest = i, f = 0, t = 0;
    for (int a = to.rank() - 1; a >= 0; --a) {
      f += rest % to.size(a) * from.stride(a);
      t += rest % to.size(a) * to.stride(a);
      rest /= to.size(a);
    }
    put(to, t, get(from, f));
  }
}

void check_there(const Tensor& t) {
  check(!t.defined() || t.device() == kDevice, "a kernel of the device got a tensor of the CPU");
}
void check_there(const IpaTensors& t) {
  for (const Tensor& x : {t.q_scalar, t.kv_scalar, t.q_point, t.kv_point, t.affine, t.bias, t.z,
                          t.query_mask, t.mask, t.point_weights})
    check_there(x);
}
void check_there(const FapeTensors& t) {
  for (const Tensor& x :
       {t.frames, t.points, t.target_frames, t.frame_mask, t.target_points, t.point_mask})
    check_there(x);
}
void check_there(const TemplateTensors& t) {
  for (const Tensor& x : {t.types, t.beta, t.beta_mask, t.backbone, t.frames, t.edges})
    check_there(x);
}
void check_there(const ViolationTensors& t) {
  for (const Tensor& x : {t.atoms, t.exists, t.radius, t.index, t.types, t.lower, t.upper})
    check_there(x);
}
void check_there(const ViolationResults& t) {
  for (const Tensor& x : {t.connections, t.clashes, t.within, t.means}) check_there(x);
}
void check_there(TensorList list) {
  for (const Tensor& x : list) check_there(x);
}
void check_there(const AdamLists& lists) {
  for (const TensorList& list : {lists.gradient, lists.params, lists.m, lists.v, lists.ema})
    check_there(list);
}
template <class Other>
requires(!std::is_convertible_v<Other, TensorList>) void check_there(const Other&) {}

template <class Pointer>
struct Call;
template <class R, class... A>
struct Call<R (*)(A...)> {
  template <auto Member>
  static R run(A... a) {
    (check_there(a), ...);
    const Unlocked unlocked;
    return (kernels(Device{}).*Member)(a...);
  }
};

template <auto... Members>
Kernels table() {
  Kernels k{};
  k.name = "the CPU's on locked memory";
  // Fused kernels that the CPU lacks, the device lacks too.
  ((k.*Members = kernels(Device{}).*Members
                     ? &Call<std::decay_t<decltype(k.*Members)>>::template run<Members>
                     : nullptr),
   ...);
  static_assert(sizeof(Kernels) == (sizeof...(Members) + 1) * sizeof(void*), "name every kernel");
  return k;
}

/// Bytes that the device says it has; -1: not known.
int64_t g_free = -1;

void use_locked_device() {
  using K = Kernels;
  static const Kernels kernels =
      table<&K::layer_norm, &K::layer_norm_backward, &K::layer_norm_channels_first,
            &K::layer_norm_channels_first_backward, &K::pair_bias, &K::pair_bias_backward,
            &K::linear, &K::normed_linear, &K::linear_where_positive, &K::activation_backward,
            &K::add_column_sums, &K::weight_gradient, &K::add_columns, &K::matmul, &K::attention,
            &K::global_attention, &K::attention_backward, &K::global_attention_backward,
            &K::masked_mean_backward, &K::masked_mean, &K::triangle_gate,
            &K::triangle_gate_backward, &K::triangle_sides, &K::triangle_end,
            &K::triangle_sides_backward, &K::triangle_end_backward, &K::add, &K::add_gated,
            &K::add_gated_backward, &K::add_dropped, &K::scale_rows, &K::outer_product_mean,
            &K::outer_product_mean_backward, &K::pair_embed, &K::pair_embed_backward,
            &K::invariant_point_attention, &K::apply_rigids, &K::update_backbone, &K::scale_affine,
            &K::affine_frames, &K::normalize_pairs, &K::torsions_to_frames, &K::frames_to_atom14,
            &K::atom14_to_atom37, &K::invariant_point_attention_backward, &K::apply_rigids_backward,
            &K::update_backbone_backward, &K::affine_frames_backward, &K::normalize_pairs_backward,
            &K::torsions_to_frames_backward, &K::frames_to_atom14_backward,
            &K::atom14_to_atom37_backward, &K::relu, &K::symmetrize, &K::cross_entropy, &K::fape,
            &K::chi_loss, &K::angle_norm_loss, &K::binary_cross_entropy, &K::weighted_sum,
            &K::distance_classes, &K::aligned_error_classes, &K::lddt, &K::score_classes,
            &K::alternative_is_better, &K::choose_rows, &K::violations, &K::draw_dropout,
            &K::extra_msa_features, &K::template_pair_features, &K::expectations, &K::global_norm,
            &K::add_clipped, &K::adam_step>();
  register_kernels(Device::cuda, &kernels);
  const auto copy_bytes = [](void* to, const void* from, int64_t bytes) {
    check(arena().holds(to) != arena().holds(from), "an upload or download within one memory");
    const Unlocked unlocked;
    std::memcpy(to, from, size_t(bytes));
  };
  register_memory(Device::cuda,
                  {
                      .allocate = [](int64_t bytes, int) { return arena().allocate(bytes); },
                      .release = [](void* p, int64_t, int) { arena().release(p); },
                      .zero =
                          [](void* p, int64_t bytes) {
                            const Unlocked unlocked;
                            std::memset(p, 0, size_t(bytes));
                          },
                      .upload = copy_bytes,
                      .download = copy_bytes,
                      .copy = copy,
                      .copy_all =
                          [](std::span<const Tensor> from, std::span<const Tensor> to) {
                            for (size_t i = 0; i < from.size(); ++i) copy(from[i], to[i]);
                          },
                      .add_up =
                          [](std::span<const Tensor> parts, const Tensor& sum) {
                            std::vector<Tensor> here;
                            for (const Tensor& part : parts) here.push_back(part.to(Device{}));
                            const Tensor total = Tensor::empty(sum.shape(), sum.dtype());
                            add_up(here, total);
                            sum.copy_from(total);
                          },
                      .synchronize = [] {},
                      .available = [](int) { return g_free; },
                  });
}

Arrays outputs(const Fixture& f, const Params& params, int64_t recycles, Dtype dtype) {
  const AlphaFold model(f.config, params, dtype);
  RunOptions options;
  options.num_recycle = recycles;
  options.num_ensemble = f.num_ensemble();
  options.recycle_early_stop_tolerance = 0;
  options.trace = [](const std::string&, const Tensor& value) {
    check(value.device() == Device{}, "a traced tensor on the device");
  };
  return predict(
      model, [&](int64_t i) { return f.slice(i); }, options);
}

}  // namespace

TEST_CASE("tensors on a device are filled, copied, converted and read") {
  use_locked_device();
  const float values[] = {1, 2, 3, 4, 5, 6};
  const Tensor host = Tensor::of<float>({2, 3}, values), t = host.to(kDevice);
  REQUIRE(t.device() == kDevice);
  CHECK(t.select(0, 1).select(0, 2).item() == 6);
  CHECK(Tensor::zeros({3}, Dtype::i32, kDevice).select(0, 1).item() == 0);
  test::compare("transposed", t.transpose(0, 1).contiguous().to(Device{}),
                host.transpose(0, 1).contiguous(), 0);
  test::compare("bf16 and back", t.to(Dtype::bf16).to(Dtype::f32).to(Device{}), host, 0);
  const Tensor column = Tensor::zeros({2, 3}, Dtype::bf16, kDevice);
  column.narrow(1, 1, 1).copy_from(host.narrow(1, 2, 1));  // from the host, strided, another dtype
  CHECK(column.select(0, 1).select(0, 1).item() == 6);
  CHECK(column.select(0, 1).select(0, 0).item() == 0);
  const Tensor back = Tensor::zeros({3, 2});
  back.transpose(0, 1).copy_from(column);  // to the host, strided, another dtype
  CHECK(back.select(0, 1).select(0, 0).item() == 3);
}

TEST_CASE("the network on a device touches its memory through kernels and copies alone") {
  use_locked_device();
  const Fixture f("tiny");
  const Params params = f.params(), there = params.on(kDevice);
  const Arrays want = outputs(f, params, 1, Dtype::f32), got = outputs(f, there, 1, Dtype::f32);
  REQUIRE(got.size() == want.size());
  for (const auto& [name, value] : want) {
    INFO(name);
    REQUIRE(got.at(name).device() == Device{});
    test::compare(name, got.at(name), value, 1e-4);
  }
  outputs(f, there, 0, Dtype::bf16);
}

TEST_CASE("a device's gradients are the CPU's") {
  use_locked_device();
  const Fixture f("tiny");
  const Arrays labels = read_npz(test::data_path("tiny/labels.npz"));
  const auto gradients = [&](Params params) {
    params.want_grads();
    const AlphaFold model(f.config, params);
    Tape tape;
    const Outputs outputs = model.forward([&](int64_t i) { return f.slice(i); }, 1,
                                          {.active = true, .seed = 1, .step = 2, .sample = 3});
    Arrays truth;
    for (const auto& [name, value] : labels) truth[name] = value.select(0, 1);
    const Losses losses = objective(alphafold_losses(test::data_path("tiny/config.json")),
                                    f.config.heads, outputs, f.slice(1), truth);
    tape.backward({losses.total});
    return params.take_grads();
  };
  const Arrays want = gradients(f.params()), got = gradients(f.params().on(kDevice));
  for (const auto& [name, value] : want) {
    INFO(name);
    REQUIRE(got.at(name).device() == kDevice);
    test::compare(name, got.at(name).to(Device{}), value, 1e-4);
  }
}

TEST_CASE("a training pass waits for a device nowhere between its features and its gradients") {
  use_locked_device();
  const Fixture f("tiny");
  Arrays truth;
  for (const auto& [name, value] : read_npz(test::data_path("tiny/labels.npz")))
    truth[name] = value.select(0, 1);
  Params params = f.params().on(kDevice);
  params.want_grads();
  const AlphaFold model(f.config, params, Dtype::bf16);
  LossConfig config = head_weights(f.config.heads);
  config.structural_violation_loss_weight = 1;
  const DeviceWork before = device_work();
  Tape tape;
  const Outputs outputs = model.forward([&](int64_t i) { return f.slice(i); }, 1,
                                        {.active = true, .seed = 1, .step = 2, .sample = 3});
  const Losses losses = objective(config, f.config.heads, outputs, f.slice(1), truth, false);
  tape.backward({losses.total});
  const DeviceWork work = device_work() - before;
  CHECK(work.uploads > 0);
  CHECK(work.downloads == 0);
  CHECK(work.waits == 0);
}

TEST_CASE("a device with too little memory is told before anything is there, with what would fit") {
  use_locked_device();
  struct Restored {
    ~Restored() { g_free = -1; }
  } restored;
  const std::string crop = "data.train.crop_size=";
  // The plan's peak, or why there is none.
  const auto plan = [&](const std::vector<std::string>& more, std::string& error) -> int64_t {
    std::vector<std::string> sets = {crop + "96", "data.train.max_extra_msa=512",
                                     "run.precision=bf16"};
    sets.insert(sets.end(), more.begin(), more.end());
    const TrainConfig config = test::small(sets);
    const TrainState state = test::fresh(config);
    const int64_t before = memory_count(Device::cuda).current;
    reset_memory_peak(Device::cuda);
    try {
      const Trainer trainer(config, state, 1, {}, kDevice);
      CHECK(trainer.plan().fits());
      return trainer.plan().peak - before;
    } catch (const Error& e) {
      CHECK(e.code() == Exit::kDevice);
      CHECK(memory_count(Device::cuda).peak == before);
      error = e.what();
      return 0;
    }
  };
  std::string error;
  const auto number_behind = [&](const std::string& key) {
    const size_t at = error.find(key);
    REQUIRE(at != std::string::npos);
    return std::stoll(error.substr(at + key.size()));
  };
  g_free = int64_t(1) << 40;
  const int64_t peak = plan({"run.recompute=3"}, error), small = plan({crop + "32"}, error);
  REQUIRE(small > 0);
  g_free = (3 * peak + small) / 4;
  CHECK(plan({}, error) == 0);
  CHECK_THAT(error, Contains("96 x 4 x 512 (residues, clusters, extra rows) needs at least") &&
                        Contains("can be had"));
  const int64_t fits = number_behind(crop), rows = number_behind("data.train.max_extra_msa=");
  CHECK(fits % 8 == 0);
  CHECK(rows < 512);
  // A plan leaves a tenth of the room to what is not counted; what is told to fit need not.
  g_free += g_free / 9 + 10;
  CHECK(plan({cat(crop, fits)}, error) > 0);
  CHECK(plan({cat("data.train.max_extra_msa=", rows)}, error) > 0);
  g_free -= g_free / 10;
  CHECK(plan({cat(crop, fits + 8)}, error) == 0);
  CHECK(plan({cat("data.train.max_extra_msa=", 2 * rows)}, error) == 0);
  CHECK_THAT(error, Contains("run.dap=2 on as many GPUs"));
  g_free = 1 << 20;
  CHECK(plan({}, error) == 0);
  CHECK_THAT(error, Contains("1.00 MiB can be had; use a GPU with more free memory"));
}
