// The optimizer's passes on the GPU against the CPU's, over more arrays than one launch takes, of
// sizes that are no multiple of anything.
#include "tests/cuda/twins.h"

using namespace ff;
using namespace ff::test;

namespace {

/// One tensor a shape, on both devices.
struct Lists {
  std::vector<Tensor> cpu, gpu;
};

const std::vector<int64_t>& sizes() {
  static const std::vector<int64_t> all = [] {
    std::vector<int64_t> n = {1, 0, 8192, 8191, 8193, 100001, 3};
    for (int64_t k = 0; k < 640; ++k) n.push_back(k % 37 + 1);
    return n;
  }();
  return all;
}

Lists draw(Twins& twins, double spread, bool positive = false) {
  Lists out;
  for (const int64_t n : sizes()) {
    // Every other array does not start on 16 bytes.
    const int64_t skip = int64_t(out.cpu.size()) % 2;
    Tensor t = twins.normal({n + skip}, Dtype::f32, spread).cpu;
    for (int64_t i = 0; i < t.numel() && positive; ++i)
      t.data<float>()[i] = std::abs(t.data<float>()[i]);
    out.cpu.push_back(t.narrow(0, skip, n));
    out.gpu.push_back(t.to(kGpu).narrow(0, skip, n));
  }
  return out;
}

void agree(const char* name, const Lists& lists) {
  for (size_t k = 0; k < lists.cpu.size(); ++k)
    compare(cat(name, " of array ", k), lists.gpu[k].to(Device{}), lists.cpu[k],
            Tolerance::of(Dtype::f32));
}

}  // namespace

TEST_CASE("GPU: gradients are clipped by their norm and added") {
  if (!have_gpu()) return;
  Twins twins;
  const Lists gradient = draw(twins, 1), sum = draw(twins, 1);
  const Tensor norm = Tensor::zeros({1}, Dtype::f64), gpu_norm = norm.to(kGpu);
  kernels(Device{}).global_norm(gradient.cpu, norm);
  kernels(kGpu).global_norm(gradient.gpu, gpu_norm);
  CHECK(gpu_norm.item() == Approx(norm.item()).epsilon(1e-12));
  const Tensor skipped = Tensor::zeros({1}), gpu_skipped = skipped.to(kGpu),
               loss = Tensor::scalar(2), gpu_loss = loss.to(kGpu);
  for (const double limit : {0.0, 100.0, 1e9}) {
    kernels(Device{}).add_clipped(gradient.cpu, norm, loss, limit, sum.cpu, skipped);
    kernels(kGpu).add_clipped(gradient.gpu, gpu_norm, gpu_loss, limit, sum.gpu, gpu_skipped);
    agree("sum", sum);
  }
  CHECK(gpu_skipped.item() == 0);
  // What is not finite is not added, and counted once.
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    kernels(kGpu).add_clipped(gradient.gpu, gpu_norm, Tensor::scalar(bad).to(kGpu), 1, sum.gpu,
                              gpu_skipped);
    agree("sum", sum);
  }
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    gradient.gpu[5].narrow(0, 77777, 1).copy_from(Tensor::of<float>({1}, &bad));
    kernels(kGpu).global_norm(gradient.gpu, gpu_norm);
    CHECK_FALSE(std::isfinite(gpu_norm.item()));
    kernels(kGpu).add_clipped(gradient.gpu, gpu_norm, gpu_loss, 1, sum.gpu, gpu_skipped);
    agree("sum", sum);
  }
  CHECK(gpu_skipped.item() == 4);
  // Squares that f32 cannot hold.
  const float large[] = {3e30f, 4e30f};
  const std::vector<Tensor> two{Tensor::of<float>({2}, large).to(kGpu)};
  kernels(kGpu).global_norm(two, gpu_norm);
  CHECK(gpu_norm.item() == Approx(5e30));
}

TEST_CASE("GPU: Adam and its average") {
  if (!have_gpu()) return;
  Twins twins;
  const Lists gradient = draw(twins, 1), params = draw(twins, 1), m = draw(twins, 0.1),
              v = draw(twins, 0.1, true), ema = draw(twins, 1);
  const AdamNumbers numbers{0.9f, 0.999f, 0.1f, 0.001f, 1e-2f, 3.2f, 1e-6f, 0.25f, 0.1f};
  const Tensor go = Tensor::zeros({1}), gpu_go = go.to(kGpu), skip = Tensor::scalar(1).view({1});
  for (const bool average : {true, false}) {
    const TensorList none;
    kernels(Device{}).adam_step(
        numbers, {gradient.cpu, params.cpu, m.cpu, v.cpu, average ? TensorList(ema.cpu) : none},
        go);
    const AdamLists lists{gradient.gpu, params.gpu, m.gpu, v.gpu,
                          average ? TensorList(ema.gpu) : none};
    kernels(kGpu).adam_step(numbers, lists, gpu_go);
    kernels(kGpu).adam_step(numbers, lists, skip.to(kGpu));
    agree("params", params);
    agree("m", m);
    agree("v", v);
    agree("ema", ema);
  }
}
