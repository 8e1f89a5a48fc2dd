// Times attention's core on a GPU, forward and backward, at the shapes of the network; beside each
// time its floor by this GPU's own ceilings. Usage: bench_attention [repetitions]
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "app/gpu.h"
#include "app/stopwatch.h"
#include "core/ops/kernels.h"

namespace ff {
namespace {

struct Shape {
  const char* name;
  int64_t batch, n, n_head, c;
  bool bias, columns;
};

void bench(const Shape& s, Device device, int repetitions, double flop_rate, double byte_rate) {
  const Dims dims = {s.batch, s.n, s.n_head, s.c};
  const auto operand = [&](uint64_t stream, float spread) {
    return s.columns ? noise({s.n, s.batch, s.n_head, s.c}, stream, Dtype::bf16, device, spread)
                           .transpose(0, 1)
                     : noise(dims, stream, Dtype::bf16, device, spread);
  };
  const Kernels& kernel = kernels(device);
  const Tensor q = operand(1, 3), k = operand(2, 1), v = operand(3, 1), gate = operand(4, 2);
  const Tensor bias = s.bias ? noise({s.n_head, s.n, s.n}, 5, Dtype::f32, device, 3) : Tensor();
  const Tensor mask = noise({s.batch, s.n}, 6, Dtype::f32, device, 1),
               o = Tensor::empty(dims, Dtype::bf16, device),
               lse = Tensor::empty({s.batch, s.n_head, s.n}, Dtype::f32, device);
  // 16 exponentials a clock and multiprocessor: 3.6e12 a second on an H100 at 1.7 GHz.
  const double logits = double(s.batch) * double(s.n * s.n * s.n_head),
               exponentials = logits / 3.6e12, bytes = 2.0 * double(dims.product());
  const auto floor = [&](double flops, double passes) {
    return std::max({flops / flop_rate, exponentials,
                     (passes * bytes + 4 * double(s.bias ? bias.numel() : 0)) / byte_rate});
  };
  const double forward_floor = floor(4 * logits * double(s.c), 5),
               backward_floor = floor(10 * logits * double(s.c), 11);
  const double forward = median_seconds(
      device, repetitions, [&] { kernel.attention(q, k, v, gate, bias, mask, o, lse); });
  double backward = 0;
  if (bytes < 2e9) {  // room for the gradients
    const Tensor dy = noise(dims, 7, Dtype::bf16, device, 1);
    // Written, not added to: as where one tensor is for all four.
    const Tensor all = Tensor::empty(s.columns ? Dims{4, s.n, s.batch, s.n_head, s.c}
                                               : Dims{4, s.batch, s.n, s.n_head, s.c},
                                     Dtype::bf16, device),
                 dbias = s.bias ? Tensor::zeros(bias.shape(), Dtype::f32, device) : Tensor();
    const auto part = [&](int i) {
      const Tensor t = all.select(0, i);
      return s.columns ? t.transpose(0, 1) : t;
    };
    backward = median_seconds(device, repetitions, [&] {  // of a dy that is less each time
      kernel.attention_backward(q, k, v, gate, bias, mask, o, lse, dy, part(0), part(1), part(2),
                                part(3), dbias, all);
    });
  }
  std::printf("%-22s %5ld x %4ld, %ld x %-2ld %9.3f %9.3f %5.0f %% %9.3f %9.3f %5.0f %%\n", s.name,
              long(s.batch), long(s.n), long(s.n_head), long(s.c), forward * 1e3,
              forward_floor * 1e3, 100 * forward_floor / forward, backward * 1e3,
              backward_floor * 1e3, backward > 0 ? 100 * backward_floor / backward : 0.0);
  std::fflush(stdout);
}

int run(int repetitions) {
  const Device device = use_gpu();
  const int64_t n = 8192;
  double flop_rate = 0, byte_rate = 0;
  {
    const Tensor a = noise({1, n, n}, 1, Dtype::bf16, device, 1),
                 c = Tensor::empty({1, n, n}, Dtype::bf16, device);
    flop_rate = 2.0 * double(n * n * n) /
                median_seconds(device, repetitions, [&] { kernels(device).matmul(a, a, c); });
    const Tensor from = Tensor::zeros({int64_t(1) << 28}, Dtype::f32, device),
                 to = Tensor::empty(from.shape(), Dtype::f32, device);
    byte_rate = 8.0 * double(from.numel()) /
                median_seconds(device, repetitions, [&] { to.copy_from(from); });
  }
  std::printf("matrix product %.0f TFLOP/s, copy %.2f TB/s; bf16, gated, masked; ms\n",
              flop_rate * 1e-12, byte_rate * 1e-12);
  std::printf("%-22s %-19s %9s %9s %7s %9s %9s %7s\n", "", "", "forward", "floor", "", "backward",
              "floor", "");
  for (const Shape& s : {Shape{"triangle", 256, 256, 4, 32, true, false},
                         Shape{"triangle", 384, 384, 4, 32, true, false},
                         Shape{"triangle", 512, 512, 4, 32, true, false},
                         Shape{"triangle", 1024, 1024, 4, 32, true, false},
                         Shape{"triangle", 2048, 2048, 4, 32, true, false},
                         Shape{"MSA row", 128, 256, 8, 32, true, false},
                         Shape{"MSA row", 512, 384, 8, 32, true, false},
                         Shape{"MSA row", 128, 1024, 8, 32, true, false},
                         Shape{"MSA row", 128, 2048, 8, 32, true, false},
                         Shape{"MSA column", 256, 128, 8, 32, false, true},
                         Shape{"MSA column", 384, 512, 8, 32, false, true},
                         Shape{"extra MSA row", 1024, 256, 8, 8, true, false},
                         Shape{"template triangle", 256, 256, 4, 16, true, false}})
    bench(s, device, repetitions, flop_rate, byte_rate);
  return 0;
}

}  // namespace
}  // namespace ff

int main(int argc, char** argv) {
  try {
    return ff::run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 7);
  } catch (const ff::Error& e) {
    std::fprintf(stderr, "bench_attention: %s\n", e.what());
    return int(e.code());
  }
}
