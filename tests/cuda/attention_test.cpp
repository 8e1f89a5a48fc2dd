// Attention on the GPU against the CPU's f32 on the same values, forward and backward: sizes that
// are no multiple of any tile, views, masks, rows that are masked whole, gradients that are added.
#include <cstring>

#include "tests/cuda/gpu.h"
#include "tests/cudnn.h"

using namespace ff;
using namespace ff::test;

namespace {

struct Case {
  int64_t batch, n_query, n_key, n_head, c, c_v;
  bool bias, mask, gate, strided;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.batch << " x " << c.n_query << " queries x " << c.n_key << " keys, " << c.n_head
               << " heads of " << c.c << " and " << c.c_v << (c.bias ? ", bias" : "")
               << (c.mask ? ", mask" : "") << (c.gate ? ", gate" : "")
               << (c.strided ? ", strided" : "");
  }
};

/// By which path a case goes depends on sizes and alignment: all are here, and their borders.
const Case kCases[] = {
    {3, 50, 50, 2, 32, 32, true, true, true, false},
    {2, 150, 150, 1, 32, 32, true, false, true, true},
    {5, 129, 257, 3, 32, 32, true, true, true, true},
    {9, 200, 140, 2, 32, 32, true, true, false, false},
    {7, 70, 300, 4, 32, 32, false, true, true, true},
    {2, 33, 96, 2, 32, 32, false, false, false, false},
    {3, 40, 64, 2, 8, 8, true, true, true, true},
    {6, 131, 131, 8, 8, 8, true, true, true, false},
    {4, 37, 71, 3, 16, 16, true, true, true, false},
    {5, 130, 66, 4, 16, 16, true, true, true, true},
    {3, 70, 45, 2, 64, 64, true, true, true, false},
    {2, 140, 131, 1, 24, 40, false, true, true, true},
    {2, 9, 17, 2, 6, 5, true, true, true, true},
    {70, 1, 4, 4, 16, 16, false, true, false, false},
    {65, 1, 8, 3, 5, 11, false, true, true, true},
    {1, 5, 3, 1, 32, 32, true, false, true, false},
    {130, 1, 4, 4, 16, 16, true, true, true, false},
    {1, 129, 65, 2, 32, 32, true, true, true, false},
    {1, 64, 64, 3, 16, 16, true, false, false, true},
    {3, 192, 193, 2, 32, 24, true, false, true, false},
    {5, 65, 129, 2, 8, 8, false, true, false, false},
    {2, 128, 448, 1, 24, 32, false, true, true, true},
};

/// The same values on both sides, as f32 on the CPU; the GPU's is a view where `strided`.
struct Pair {
  Tensor cpu, gpu;
  Pair() = default;
  Pair(const Tensor& values, Dtype dtype, bool strided) {
    gpu = values.to(dtype).to(kGpu);
    cpu = values.to(dtype).to(Dtype::f32).clone();
    if (!strided) return;
    Dims shape = values.shape();
    std::swap(shape[0], shape[1]);
    const Tensor view = poisoned(shape, dtype).transpose(0, 1);
    view.copy_from(gpu);
    gpu = view;
  }
};

/// Weights, their gradients and d_out are rounded to bf16 before they are multiplied, so is what is
/// added to, and delta comes from the rounded output (most with few keys: 7e-3 with three); f32
/// differs in the order of sums.
double limit(Dtype dtype) { return dtype == Dtype::bf16 ? 8e-3 : 5e-6; }

/// A mask whose first row is masked whole.
Tensor mask_of(int64_t batch, int64_t n, uint64_t stream) {
  const Tensor mask = random_mask({batch, n}, stream);
  std::memset(mask.raw(), 0, size_t(n) * sizeof(float));
  return mask;
}

}  // namespace

TEST_CASE("GPU: attention, forward and backward", "[cuda]") {
  if (!have_gpu()) return;
  uint64_t stream = 100;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const Case& c : kCases) {
      INFO(name_of(dtype) << ": " << c);
      const auto pair = [&](int64_t n, int64_t channels, float spread = 1) {
        return Pair(random({c.batch, n, c.n_head, channels}, ++stream, spread), dtype, c.strided);
      };
      const Pair q = pair(c.n_query, c.c, 3), k = pair(c.n_key, c.c), v = pair(c.n_key, c.c_v),
                 gate = c.gate ? pair(c.n_query, c.c_v, 3) : Pair(), dy = pair(c.n_query, c.c_v);
      const Pair bias =
          c.bias ? Pair(random({c.n_head, c.n_query, c.n_key}, ++stream, 4), Dtype::f32, false)
                 : Pair();
      const Pair mask =
          c.mask ? Pair(mask_of(c.batch, c.n_key, ++stream), Dtype::f32, c.strided) : Pair();
      const Dims shape = {c.batch, c.n_query, c.n_head, c.c_v};
      const Tensor o = poisoned(shape, dtype),
                   lse = poisoned({c.batch, c.n_head, c.n_query}, Dtype::f32),
                   want = Tensor::empty(shape);
      kernels(kGpu).attention(q.gpu, k.gpu, v.gpu, gate.gpu, bias.gpu, mask.gpu, o, lse);
      kernels(Device{}).attention(q.cpu, k.cpu, v.cpu, gate.cpu, bias.cpu, mask.cpu, want, {});
      CHECK(norm_error(o, want) < limit(dtype));
      if (c.c == c.c_v) {  // in the queries' place, beside what there is of keys, values and gate
        const Tensor place = poisoned({c.batch, c.n_query, 4, c.n_head, c.c}, dtype).select(2, 0);
        place.copy_from(q.gpu);
        kernels(kGpu).attention(place, k.gpu, v.gpu, gate.gpu, bias.gpu, mask.gpu, place, {});
        CHECK(norm_error(place, o) == 0);
      }

      // What is added to a single key's gradient, zero, is roundings.
      const float there = c.n_key == 1 ? 1 : 0.1f;
      const Pair dq = pair(c.n_query, c.c, there), dk = pair(c.n_key, c.c, there),
                 dv = pair(c.n_key, c.c_v, 0.1f),
                 dgate = c.gate ? pair(c.n_query, c.c_v, 0.1f) : Pair();
      const Pair dbias =
          c.bias ? Pair(random({c.n_head, c.n_query, c.n_key}, ++stream), Dtype::f32, false)
                 : Pair();
      kernels(kGpu).attention_backward(q.gpu, k.gpu, v.gpu, gate.gpu, bias.gpu, mask.gpu, o, lse,
                                       dy.gpu, dq.gpu, dk.gpu, dv.gpu, dgate.gpu, dbias.gpu, {});
      kernels(Device{}).attention_backward(q.cpu, k.cpu, v.cpu, gate.cpu, bias.cpu, mask.cpu, {},
                                           {}, dy.cpu, dq.cpu, dk.cpu, dv.cpu, dgate.cpu, dbias.cpu,
                                           {});
      CHECK(norm_error(dq.gpu, dq.cpu) < limit(dtype));
      CHECK(norm_error(dk.gpu, dk.cpu) < limit(dtype));
      CHECK(norm_error(dv.gpu, dv.cpu) < limit(dtype));
      if (c.gate) CHECK(norm_error(dgate.gpu, dgate.cpu) < limit(dtype));
      if (c.bias) CHECK(norm_error(dbias.gpu, dbias.cpu) < limit(dtype));
    }
}

TEST_CASE("GPU: attention of which some queries' later keys have ever larger logits", "[cuda]") {
  if (!have_gpu()) return;
  const int64_t batch = 3, n = 330, n_head = 2, c = 16;
  const Tensor steps = Tensor::empty({n_head, n, n}), keys = mask_of(batch, n, 1);
  // Steps that bf16 and f16 hold, of the second head at one key; and a row whose first keys are
  // masked.
  for (int64_t i = 0; i < steps.numel(); ++i) {
    const int64_t key = i % n;
    const float step = i < n * n ? float(40 * (key / 70)) : key == 257 ? 300.0f : 0.0f;
    steps.data<float>()[i] = i / n % 5 == 0 ? step : 0.0f;
  }
  for (int64_t j = 0; j < n; ++j) keys.data<float>()[2 * n + j] = j >= 150;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    INFO(name_of(dtype));
    const auto pair = [&](uint64_t stream, float spread = 1) {
      return Pair(random({batch, n, n_head, c}, stream, spread), dtype, false);
    };
    const Pair q = pair(2, 3), k = pair(3), v = pair(4), bias(steps, Dtype::f32, false),
               mask(keys, Dtype::f32, false);
    const Tensor o = poisoned(q.cpu.shape(), dtype), want = Tensor::empty(q.cpu.shape()),
                 lse = poisoned({batch, n_head, n}, Dtype::f32);
    kernels(kGpu).attention(q.gpu, k.gpu, v.gpu, {}, bias.gpu, mask.gpu, o, lse);
    kernels(Device{}).attention(q.cpu, k.cpu, v.cpu, {}, bias.cpu, mask.cpu, want, {});
    CHECK(norm_error(o, want) < limit(dtype));
    const Pair dy = pair(5), dv(Tensor::zeros(v.cpu.shape()), dtype, false);
    kernels(kGpu).attention_backward(q.gpu, k.gpu, v.gpu, {}, bias.gpu, mask.gpu, o, lse, dy.gpu,
                                     {}, {}, dv.gpu, {}, {}, {});
    kernels(Device{}).attention_backward(q.cpu, k.cpu, v.cpu, {}, bias.cpu, mask.cpu, {}, {},
                                         dy.cpu, {}, {}, dv.cpu, {}, {}, {});
    CHECK(norm_error(dv.gpu, dv.cpu) < limit(dtype));
  }
}

TEST_CASE("GPU: attention's gradients each alone, and the same bits again", "[cuda]") {
  if (!have_gpu()) return;
  for (const auto& [dtype, c] :
       {std::pair(Dtype::f32, int64_t(32)), std::pair(Dtype::bf16, int64_t(32)),
        std::pair(Dtype::bf16, int64_t(24)), std::pair(Dtype::bf16, int64_t(8))}) {
    INFO(name_of(dtype) << ", " << c << " channels");
    const int64_t batch = 37, n = 100, n_head = 4;
    const auto operand = [&, dtype = dtype, c = c](uint64_t stream) {
      return random({batch, n, n_head, c}, stream).to(dtype).to(kGpu);
    };
    const Tensor q = operand(1), k = operand(2), v = operand(3), gate = operand(4), dy = operand(5),
                 bias = random({n_head, n, n}, 6, 4).to(kGpu), mask = mask_of(batch, n, 7).to(kGpu),
                 o = poisoned(q.shape(), dtype), lse = poisoned({batch, n_head, n}, Dtype::f32);
    kernels(kGpu).attention(q, k, v, gate, bias, mask, o, lse);
    const auto gradients = [&, dtype = dtype](int wanted) {
      std::vector<Tensor> d(5);
      for (int i = 0; i < 5; ++i)
        if (wanted >> i & 1)
          d[size_t(i)] = i == 4 ? Tensor::zeros(bias.shape(), Dtype::f32, kGpu)
                                : Tensor::zeros(q.shape(), dtype, kGpu);
      kernels(kGpu).attention_backward(q, k, v, gate, bias, mask, o, lse, dy.clone(), d[0], d[1],
                                       d[2], d[3], d[4], {});
      for (Tensor& t : d)
        if (t.defined()) t = t.to(Device{});
      return d;
    };
    const std::vector<Tensor> all = gradients(31);
    for (int wanted : {31, 1, 2, 4, 8, 16}) {
      const std::vector<Tensor> some = gradients(wanted);
      for (size_t i = 0; i < 5; ++i)
        if (some[i].defined()) {
          INFO("gradient " << i << " of " << wanted);
          CHECK(std::memcmp(some[i].raw(), all[i].raw(),
                            size_t(all[i].numel() * size_of(all[i].dtype()))) == 0);
        }
    }
    // Written instead of added to zeros, where all lie in one tensor, each for itself or not.
    for (const int axis : {0, 2}) {
      const Tensor fresh = poisoned(
                       axis == 0 ? Dims{4, batch, n, n_head, c} : Dims{batch, n, 4, n_head, c},
                       dtype),
                   dbias = Tensor::zeros(bias.shape(), Dtype::f32, kGpu);
      const auto part = [&](int i) { return fresh.select(axis, i); };
      kernels(kGpu).attention_backward(q, k, v, gate, bias, mask, o, lse, dy.clone(), part(0),
                                       part(1), part(2), part(3), dbias, fresh);
      for (int i = 0; i < 4; ++i) CHECK(norm_error(part(i), all[size_t(i)]) == 0);
      CHECK(norm_error(dbias, all[4]) == 0);
    }
  }
}

TEST_CASE("GPU: attention and its gradients are cuDNN's", "[cuda]") {
  if (!have_gpu()) return;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) compare_attention_with_cudnn(kGpu, dtype);
}

TEST_CASE("GPU: global attention and the masked mean, forward and backward", "[cuda]") {
  if (!have_gpu()) return;
  struct Sizes {
    int64_t batch, n, n_head, c, c_v;
  };
  uint64_t stream = 500;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const Sizes s : {Sizes{3, 70, 8, 8, 8}, Sizes{2, 1025, 8, 8, 8}, Sizes{5, 33, 3, 5, 7},
                          Sizes{2, 17, 3, 16, 20}, Sizes{2, 600, 2, 64, 33}}) {
      INFO(name_of(dtype) << ": " << s.batch << " x " << s.n << ", " << s.n_head << " heads of "
                          << s.c << " and " << s.c_v);
      const auto pair = [&](const Dims& shape, bool strided) {
        return Pair(random(shape, ++stream), dtype, strided);
      };
      const int64_t channels = s.n_head * s.c_v;
      const Dims shape = {s.batch, s.n, channels};
      const Pair q = pair({s.batch, s.n_head, s.c}, false), k = pair({s.batch, s.n, s.c}, true),
                 v = pair({s.batch, s.n, s.c_v}, false), gate = pair(shape, true),
                 dy = pair(shape, false), mask(mask_of(s.batch, s.n, ++stream), Dtype::f32, true);
      const Tensor o = poisoned(shape, dtype), want = Tensor::empty(shape);
      kernels(kGpu).global_attention(q.gpu, k.gpu, v.gpu, gate.gpu, mask.gpu, o);
      kernels(Device{}).global_attention(q.cpu, k.cpu, v.cpu, gate.cpu, mask.cpu, want);
      CHECK(norm_error(o, want) < limit(dtype));
      const Pair dq = pair(q.cpu.shape(), false), dk = pair(k.cpu.shape(), true),
                 dv = pair(v.cpu.shape(), false), dgate = pair(shape, true);
      kernels(kGpu).global_attention_backward(q.gpu, k.gpu, v.gpu, gate.gpu, mask.gpu, dy.gpu,
                                              dq.gpu, dk.gpu, dv.gpu, dgate.gpu);
      kernels(Device{}).global_attention_backward(q.cpu, k.cpu, v.cpu, gate.cpu, mask.cpu, dy.cpu,
                                                  dq.cpu, dk.cpu, dv.cpu, dgate.cpu);
      CHECK(norm_error(dq.gpu, dq.cpu) < limit(dtype));
      CHECK(norm_error(dk.gpu, dk.cpu) < limit(dtype));
      CHECK(norm_error(dv.gpu, dv.cpu) < limit(dtype));
      CHECK(norm_error(dgate.gpu, dgate.cpu) < limit(dtype));

      const Tensor y = poisoned({s.batch, channels}, dtype), mean = Tensor::empty(y.shape());
      kernels(kGpu).masked_mean(gate.gpu, mask.gpu, y);
      kernels(Device{}).masked_mean(gate.cpu, mask.cpu, mean);
      CHECK(norm_error(y, mean) < limit(dtype));
      const Pair d_mean = pair(y.shape(), false), dx = pair(shape, true);
      kernels(kGpu).masked_mean_backward(mask.gpu, d_mean.gpu, dx.gpu);
      kernels(Device{}).masked_mean_backward(mask.cpu, d_mean.cpu, dx.cpu);
      CHECK(norm_error(dx.gpu, dx.cpu) < limit(dtype));
    }
}
