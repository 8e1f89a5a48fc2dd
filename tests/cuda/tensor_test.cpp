// Tensors on the GPU: filling, copying with any strides and dtypes, memory that is counted.
#include "tests/cuda/gpu.h"

using namespace ff;
using namespace ff::test;

namespace {

bool equal(const Tensor& a, const Tensor& b) { return norm_error(a, b) == 0; }

}  // namespace

TEST_CASE("GPU: tensors come back as they went, whatever their strides") {
  if (!have_gpu()) return;
  const Tensor host = random({5, 67, 3, 41}, 1), there = host.to(kGpu);
  CHECK(equal(there, host));
  const auto views = [](const Tensor& t) {
    return std::vector<Tensor>{t.transpose(1, 3),
                               t.transpose(0, 1),
                               t.transpose(2, 3),
                               t.transpose(0, 3).transpose(1, 2),
                               t.narrow(3, 7, 20),
                               t.narrow(1, 3, 40).transpose(1, 3),
                               t.select(2, 1),
                               t.select(3, 5).transpose(0, 1),
                               t.narrow(0, 2, 1).select(0, 0).unsqueeze(0).expand(0, 4)};
  };
  const std::vector<Tensor> want = views(host), got = views(there);
  for (size_t i = 0; i < want.size(); ++i) {
    INFO("view " << i);
    CHECK(equal(got[i].clone(), want[i]));
    CHECK(equal(got[i], want[i]));
    const Tensor bf16 = got[i].to(Dtype::bf16);
    CHECK(equal(bf16, want[i].to(Dtype::bf16)));
    CHECK(equal(bf16.to(Dtype::f32), want[i].to(Dtype::bf16)));
    CHECK(equal(bf16.transpose(0, 1).contiguous(), want[i].to(Dtype::bf16).transpose(0, 1)));
    const Tensor to = poisoned(want[i].shape(), Dtype::bf16);
    to.copy_from(want[i]);  // from the host, strided, another dtype
    CHECK(equal(to, want[i].to(Dtype::bf16)));
  }
  // Into a part of a larger tensor, the rest untouched.
  const Tensor wide = Tensor::zeros({5, 67, 3, 50}, Dtype::f32, kGpu);
  wide.narrow(3, 4, 41).copy_from(there);
  CHECK(equal(wide.narrow(3, 4, 41), host));
  CHECK(equal(wide.narrow(3, 45, 5), Tensor::zeros({5, 67, 3, 5})));
  CHECK(equal(Tensor::zeros({3, 5}, Dtype::i32, kGpu), Tensor::zeros({3, 5})));
  CHECK(Tensor::empty({0, 4}, Dtype::f32, kGpu).to(Device{}).numel() == 0);
  CHECK(there.select(0, 4).select(0, 66).select(0, 2).select(0, 40).item() ==
        host.select(0, 4).select(0, 66).select(0, 2).select(0, 40).item());
}

TEST_CASE("GPU: every conversion of large values and of integers") {
  if (!have_gpu()) return;
  const float values[] = {0.0f, -0.0f, 1e30f, -3.3895e38f, 1.00390625f, 1.01171875f, 1e-40f};
  const Tensor host = Tensor::of<float>({7}, values);
  CHECK(equal(host.to(kGpu).to(Dtype::bf16), host.to(Dtype::bf16)));
  const int32_t letters[] = {0, -1, 22, 1 << 24};
  const Tensor integers = Tensor::of<int32_t>({2, 2}, letters);
  CHECK(equal(integers.to(kGpu).transpose(0, 1).to(Dtype::f32), integers.transpose(0, 1)));
  CHECK(equal(integers.to(kGpu).transpose(0, 1).contiguous(), integers.transpose(0, 1)));
}

TEST_CASE(
    "GPU: memory is counted, and asking for too much is an error that says how much there is") {
  if (!have_gpu()) return;
  reset_memory_peak(Device::cuda);
  const int64_t before = memory_count(Device::cuda).current;
  {
    const Tensor t = Tensor::empty({1 << 20}, Dtype::f32, kGpu);
    CHECK(memory_count(Device::cuda).current == before + (4 << 20));
  }
  CHECK(memory_count(Device::cuda).current == before);
  CHECK(memory_count(Device::cuda).peak == before + (4 << 20));
  try {
    const Tensor t = Tensor::empty({int64_t(1) << 44}, Dtype::f32, kGpu);
    FAIL("64 TiB were given");
  } catch (const Error& e) {
    INFO(e.what());
    CHECK(e.code() == Exit::kDevice);
    CHECK(std::string(e.what()).find("70368744177664 bytes") != std::string::npos);
  }
  CHECK(equal(Tensor::zeros({8}, Dtype::f32, kGpu), Tensor::zeros({8})));  // it goes on
}

TEST_CASE("GPU: a recording does again what it was made of") {
  if (!have_gpu()) return;
  const Tensor x = random({1000}, 1).to(kGpu), y = Tensor::zeros({1000}, Dtype::f32, kGpu);
  const Recording recording(kGpu, [&] { y.copy_from(x.clone()); });
  CHECK(norm_error(y.to(Device{}), Tensor::zeros({1000})) == 0);  // recorded, not done
  for (const uint64_t stream : {2, 3}) {
    const Tensor next = random({1000}, stream);
    x.copy_from(next);
    recording.play();
    CHECK(norm_error(y.to(Device{}), next) == 0);
  }
}

TEST_CASE("GPU: a recording follows what asks for the same with other values, and nothing else") {
  if (!have_gpu()) return;
  const Kernels& gpu = kernels(kGpu);
  const Tensor w = random({1, 64, 64}, 1).to(kGpu), other = random({1, 64, 64}, 2).to(kGpu),
               product = poisoned({1, 64, 64}, Dtype::f32);
  const int64_t n = 2 << 20;  // of which the copy is the driver's
  // An upload, memory that comes and goes, a kernel with a number, a product, a long copy.
  const auto asks = [&](const Tensor& host, const Tensor& by, uint64_t seed, const Tensor& to) {
    const Tensor x = host.to(kGpu), factors = Tensor::empty({n}, Dtype::f32, kGpu);
    gpu.draw_dropout(Rng(seed, {3}), 0.5, factors);
    gpu.linear(x, by, {}, Activation::kNone, {}, product);
    factors.narrow(0, 64, 4096).copy_from(product.view({4096}));
    to.copy_from(factors.clone());
  };
  const auto ends = [&] { return poisoned({n}, Dtype::f32); };
  const auto plain = [&](const Tensor& host, uint64_t seed) {
    const Tensor to = ends();
    asks(host, w, seed, to);
    return to.to(Device{});
  };
  const Tensor first = random({1, 64, 64}, 10), to = ends();
  const Recording recording(kGpu, [&] { asks(first, w, 1, to); });
  const auto launches = [] { return device_work().launches; };
  recording.play();
  CHECK(equal(to, plain(first, 1)));
  for (const uint64_t seed : {2, 3, 4, 5}) {
    const Tensor host = random({1, 64, 64}, 10 + seed), elsewhere = ends();
    const int64_t before = launches();
    CHECK(recording.follow([&] { asks(host, w, seed, elsewhere); }));
    CHECK(launches() == before + 1);
    CHECK(equal(elsewhere, plain(host, seed)));
    CHECK(equal(to, plain(first, 1)));  // left alone
  }
  // Anything else is not asked for.
  const Tensor untouched = ends();
  const auto refuses = [&](const std::function<void()>& f) {
    const int64_t before = launches();
    CHECK_FALSE(recording.follow(f));
    CHECK(launches() == before);
    CHECK(std::isnan(untouched.select(0, 7).item()));
  };
  refuses([&] { asks(first, other, 1, untouched); });  // a product of other memory
  refuses([&] { asks(first, w, 1, untouched), untouched.clone(); });
  refuses([&] { asks(random({1, 32, 64}, 3), w, 1, untouched); });
  refuses([&] { asks(first, w, 1, untouched), synchronize(kGpu); });
  refuses([] {});
  Tensor kept;
  CHECK_THROWS_AS(Recording(kGpu, [&] { kept = w.clone(); }), CannotRecord);
  kept = {};
  CHECK_THROWS_AS(Recording(kGpu, [&] { product.select(0, 0).select(0, 0).select(0, 0).item(); }),
                  CannotRecord);
  // What needs more memory takes the others'; they follow no more.
  const Recording larger(kGpu,
                         [&] { asks(first, w, 1, to), Tensor::zeros({4 * n}, Dtype::f32, kGpu); });
  refuses([&] { asks(first, w, 1, untouched); });
  larger.play();
  CHECK(equal(to, plain(first, 1)));
}

TEST_CASE("GPU: a download brings what was there when it was asked for, however late it is read") {
  if (!have_gpu()) return;
  const Tensor t = Tensor::empty({30'000}, Dtype::f32, kGpu);
  std::vector<Tensor> want;
  std::vector<Download> downloads;
  for (const uint64_t stream : {1, 2, 3}) {
    want.push_back(random({30'000}, stream));
    t.copy_from(want.back());
    downloads.emplace_back(t);
    const Download unread(t);
  }
  for (size_t i : {2, 0, 1}) {
    CHECK(norm_error(downloads[i].wait(), want[i]) == 0);
    CHECK(norm_error(downloads[i].wait(), want[i]) == 0);
  }
  CHECK(norm_error(Download(want[0]).wait(), want[0]) == 0);  // from the CPU
}
