// Matrix products on the GPU against f64 sums on the CPU: sizes that fit no tile, every layout, and
// what is added to them.
#include "core/ops/gemm.h"
#include "core/ops/views.h"
#include "tests/cuda/gpu.h"

using namespace ff;
using namespace ff::test;

namespace {

/// x [b, m, n] as the values of `dtype`, laid out with `layout`: 0 row-major, 1 its last two axes
/// swapped in memory, 2 rows further apart, 3 batches between the rows.
Tensor laid_out(const Tensor& x, int layout, Dtype dtype) {
  const int64_t b = x.size(0), m = x.size(1), n = x.size(2);
  const Tensor t = layout == 0   ? poisoned({b, m, n}, dtype)
                   : layout == 1 ? poisoned({b, n, m}, dtype).transpose(1, 2)
                   : layout == 2 ? poisoned({b, m, n + 3}, dtype).narrow(2, 1, n)
                                 : poisoned({m, b, n}, dtype).transpose(0, 1);
  t.copy_from(x.to(dtype));
  return t;
}

/// The values of x in `dtype`, as f64.
Tensor exact(const Tensor& x, Dtype dtype) { return x.to(dtype).to(Dtype::f32).to(Dtype::f64); }

struct Case {
  int64_t b, m, k, n;
};

}  // namespace

TEST_CASE("GPU: linear layers of every size, layout and epilogue") {
  if (!have_gpu()) return;
  const Kernels& gpu = kernels(kGpu);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const Case c : {Case{1, 37, 41, 29}, Case{3, 5, 64, 128}, Case{1, 1, 130, 1},
                         Case{4, 33, 7, 8}, Case{1, 1000, 256, 4}, Case{2, 16, 1, 23}})
      for (const int layout : {0, 1, 2, 3})
        for (const Activation act : {Activation::kNone, Activation::kRelu, Activation::kSigmoid})
          for (const bool with_bias : {false, true})
            for (const bool accumulate : {false, true}) {
              if (accumulate && act != Activation::kNone) continue;
              const int64_t shared = c.b > 1 && layout == 2 ? c.b : 1;  // a batch of weights or one
              const Tensor x = random({c.b, c.m, c.k}, 1), w = random({shared, c.k, c.n}, 2),
                           bias = with_bias ? random({c.n}, 3) : Tensor(),
                           old = random({c.b, c.m, c.n}, 4);
              const Tensor want =
                  accumulate ? exact(old, dtype).clone() : Tensor::zeros(old.shape(), Dtype::f64);
              // cuBLASLt takes a bias of its result's type.
              cpu::gemm(exact(x, dtype), exact(w, dtype), with_bias ? exact(bias, dtype) : Tensor(),
                        want, act, accumulate);
              for (const int out : {layout, (layout + 1 + int(act)) % 4}) {
                const Tensor y = laid_out(old, out, dtype);
                if (!accumulate) y.copy_from(poisoned(old.shape(), dtype));
                gpu.linear(laid_out(x, layout, dtype), laid_out(w, layout % 3, dtype),
                           with_bias ? bias.to(kGpu) : Tensor(), act, accumulate ? y : Tensor(), y);
                INFO(name_of(dtype)
                     << " " << c.b << " x [" << c.m << ", " << c.k << "] x " << c.n << ", layouts "
                     << layout << " and " << out << ", activation " << int(act) << ", bias "
                     << with_bias << ", accumulate " << accumulate);
                CHECK(norm_error(y, want) < tolerance(dtype));
                if (!accumulate) continue;
                // Onto another tensor, which stays as it was; the bias in the result's type.
                const Tensor base = laid_out(old, out == layout ? layout : 0, dtype),
                             onto = laid_out(poisoned(old.shape(), dtype), out, dtype);
                gpu.linear(laid_out(x, layout, dtype), laid_out(w, layout % 3, dtype),
                           with_bias ? bias.to(dtype).to(kGpu) : Tensor(), act, base, onto);
                CHECK(norm_error(onto, want) < tolerance(dtype));
                CHECK(norm_error(base, exact(old, dtype)) == 0);
              }
            }
}

TEST_CASE("GPU: linear layers whose result counts where another tensor is positive") {
  if (!have_gpu()) return;
  for (const Dtype dtype : {Dtype::bf16, Dtype::f32})
    for (const Case c : {Case{1, 37, 41, 29}, Case{1, 4133, 16, 16}, Case{1, 60001, 64, 24},
                         Case{31, 133, 64, 264}, Case{1, 4200, 256, 512}, Case{1, 4097, 128, 520},
                         Case{65, 64, 136, 72}, Case{1, 4099, 520, 128}, Case{3, 1400, 96, 656}})
      for (const bool strided : {false, true}) {
        if (c.m > 10000 && strided) continue;  // rows enough for second turns
        const Tensor x = random({c.b, c.m, c.k}, 1), w = random({1, c.k, c.n}, 2),
                     kept = random({c.b, c.m, c.n}, 4),
                     want = Tensor::zeros(kept.shape(), Dtype::f64);
        cpu::gemm(exact(x, dtype), exact(w, dtype), {}, want);
        kernels(Device{}).activation_backward(exact(kept, dtype), Activation::kRelu, want);
        // Packs of 16 bytes of wider rows, the batches between them.
        const Tensor wide = Tensor::zeros({c.m, c.b, c.n + 16}, dtype, kGpu);
        const auto lay = [&](const Tensor& t, Tensor to) {
          if (!strided) return laid_out(t, 0, dtype);
          if (!to) to = poisoned({c.m, c.b, t.size(2) + 16}, dtype);
          const Tensor inner = to.narrow(2, 8, t.size(2)).transpose(0, 1);
          inner.copy_from(t.to(dtype));
          return inner;
        };
        const Tensor there = lay(kept, {}), y = lay(poisoned(kept.shape(), dtype), wide);
        kernels(kGpu).linear_where_positive(lay(x, {}), laid_out(w, 1, dtype), there, y);
        INFO(name_of(dtype) << " " << c.b << " x [" << c.m << ", " << c.k << "] x " << c.n
                            << ", strided " << strided);
        CHECK(norm_error(y, want) < tolerance(dtype));
        CHECK(norm_error(there, exact(kept, dtype)) == 0);
        for (const Tensor& beside : {wide.narrow(2, 0, 8), wide.narrow(2, c.n + 8, 8)})
          CHECK(norm_error(beside, Tensor::zeros(beside.shape())) == 0);
      }
}

// In f32, where rows are few and of 72 channels there is no such kernel.
TEST_CASE("GPU: linear layers of a layer norm, and their gradients") {
  if (!have_gpu()) return;
  struct Case {
    int64_t b, m, c, n, parts;  ///< 0: a transition
    bool strided;
  };
  for (const Case& at : {Case{1, 4123, 64, 64, 0, false}, Case{65, 67, 128, 48, 2, true},
                         Case{37, 112, 256, 56, 1, true}, Case{1, 4107, 128, 512, 0, false},
                         Case{3, 5, 64, 16, 2, false}, Case{1, 4300, 72, 24, 1, false},
                         Case{1, 26003, 256, 16, 1, false}}) {
    INFO(at.b << " x " << at.m << ", " << at.c << " to " << at.n << ", " << at.parts << " parts");
    // Numbers that bf16 has, on a CPU in f32 and on the GPU in bf16.
    const auto rounded = [](const Dims& shape, uint64_t stream) {
      return random(shape, stream).to(Dtype::bf16).to(Dtype::f32);
    };
    const int64_t parts = std::max<int64_t>(at.parts, 1), width = at.n / parts;
    const Tensor whole = rounded({at.m, at.b, at.c}, 1), w = rounded({at.c, parts, width}, 2),
                 b = rounded({parts, width}, 3), scale = random({at.c}, 4),
                 offset = random({at.c}, 5), w2 = rounded({at.n, at.c}, 6), b2 = random({at.c}, 7),
                 seed = rounded({at.b, at.m, at.parts ? at.n : at.c}, 8);
    const auto run = [&](Device device, bool apart) {
      // Products' weights are bf16, their gradients f32.
      const Dtype dtype = device.kind == Device::cpu ? Dtype::f32 : Dtype::bf16;
      Vars leaves{whole.to(dtype), scale, offset, b.select(0, parts - 1).clone(), w2, b2};
      for (int64_t i = 0; i < parts; ++i) leaves.emplace_back(w.select(1, i).contiguous());
      for (Var& leaf : leaves) {
        leaf = leaf.value().to(device);
        leaf.want_grad();
      }
      const Tensor joined = w.to(dtype).to(device);
      Vars layers;
      for (int64_t i = 0; i < parts; ++i)
        layers.emplace_back(joined.select(1, i), leaves[size_t(6 + i)].slot());
      Tape tape;
      const Var rows =
          at.strided ? transpose(leaves[0], 0, 1) : view(leaves[0], {at.b, at.m, at.c});
      Normed in(rows, leaves[1], leaves[2]);
      if (apart) in = layer_norm(in.x, in.scale, in.offset);
      const Var y =
          at.parts
              ? view(linear_joined(in, joined, b.to(device), layers, {leaves[3]}), seed.shape())
              : transition(rows, in, layers[0], leaves[3],
                           Var(w2.to(dtype).to(device), leaves[4].slot()), leaves[5]);
      tape.backward({y}, {seed.to(dtype).to(device)});
      std::vector<Tensor> out{y.value()};
      for (const Var& leaf : leaves)
        if (leaf.grad()) out.push_back(leaf.grad());
      return out;
    };
    const auto cpu = run(Device{}, false), gpu = run(kGpu, false), again = run(kGpu, false),
               apart = run(kGpu, true);
    REQUIRE(gpu.size() == cpu.size());
    for (size_t i = 0; i < cpu.size(); ++i) {
      INFO(i);
      // Rounding moves some numbers to the other side of the relu.
      if (i == 0 || at.parts) CHECK(norm_error(gpu[i], cpu[i]) < 6e-3);
      CHECK(norm_error(again[i], gpu[i]) == 0);
      CHECK(norm_error(gpu[i], apart[i]) < 2e-3);
    }
  }
}

TEST_CASE("GPU: products of bf16 into f32, as gradients of parameters are summed") {
  if (!have_gpu()) return;
  for (const int layout : {0, 1, 2, 3}) {
    const Tensor x = random({3, 37, 130}, 1), w = random({3, 130, 29}, 2),
                 old = random({3, 37, 29}, 3), want = old.to(Dtype::f64);
    cpu::gemm(exact(x, Dtype::bf16), exact(w, Dtype::bf16), {}, want, Activation::kNone, true);
    const Tensor y = laid_out(old, layout, Dtype::f32);
    kernels(kGpu).linear(laid_out(x, layout, Dtype::bf16), laid_out(w, layout, Dtype::bf16), {},
                         Activation::kNone, y, y);
    INFO("layout " << layout);
    CHECK(norm_error(y, want) < tolerance(Dtype::f32));
  }
}

TEST_CASE("GPU: products of f32 lose digits where tf32 is asked for, and nowhere else") {
  if (!have_gpu()) return;
  const Tensor x = random({1, 200, 512}, 1), w = random({1, 512, 256}, 2),
               want = Tensor::zeros({1, 200, 256}, Dtype::f64);
  cpu::gemm(exact(x, Dtype::f32), exact(w, Dtype::f32), {}, want);
  const auto error = [&] {
    const Tensor y = poisoned({1, 200, 256}, Dtype::f32);
    kernels(kGpu).linear(x.to(kGpu), w.to(kGpu), {}, Activation::kNone, {}, y);
    return norm_error(y, want);
  };
  const double before = error();
  CHECK(before < tolerance(Dtype::f32));
  tf32_products() = true;
  const double rounded = error();
  tf32_products() = false;
  CHECK(rounded > 1e-5);
  CHECK(rounded < 1e-3);
  CHECK(error() == before);
}

TEST_CASE("GPU: products over an axis of size zero, and of nothing") {
  if (!have_gpu()) return;
  const Kernels& gpu = kernels(kGpu);
  const auto empty = [](const Dims& d) { return Tensor::empty(d, Dtype::f32, kGpu); };
  const Tensor bias = random({5}, 1), y = poisoned({1, 3, 5}, Dtype::f32);
  gpu.linear(empty({1, 3, 0}), empty({1, 0, 5}), bias.to(kGpu), Activation::kRelu, {}, y);
  const Tensor want = Tensor::empty({1, 3, 5});
  for (int64_t i = 0; i < 15; ++i)
    want.data<float>()[i] = std::max(0.0f, bias.data<float>()[i % 5]);
  CHECK(norm_error(y, want) == 0);
  const Tensor kept = want.to(kGpu);
  gpu.linear(empty({1, 3, 0}), empty({1, 0, 5}), {}, Activation::kNone, kept, kept);
  CHECK(norm_error(kept, want) == 0);
  gpu.matmul(empty({1, 0, 4}), empty({1, 4, 5}), empty({1, 0, 5}));
  synchronize(kGpu);
}

TEST_CASE("GPU: the same product gives the same bits") {
  if (!have_gpu()) return;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    // Few results of long sums: where an algorithm would split them.
    const Tensor a = random({1, 32, 20000}, 1).to(dtype).to(kGpu),
                 b = random({1, 20000, 48}, 2).to(dtype).to(kGpu);
    Tensor first;
    for (int i = 0; i < 5; ++i) {
      const Tensor c = poisoned({1, 32, 48}, dtype);
      kernels(kGpu).matmul(a, b, c);
      if (!first.defined()) first = c;
      CHECK(norm_error(c, first) == 0);
    }
  }
}
