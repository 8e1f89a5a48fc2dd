// The trunk's modules on the GPU, forward and backward, against f64 on the CPU: the real channels
// at sizes that fit no tile, with masks that leave whole rows and columns out.
#include "core/model/evoformer.h"
#include "core/ops/ops.h"
#include "tests/cuda/gpu.h"

using namespace ff;
using namespace ff::test;

namespace {

ModelConfig config_of_one_block(int64_t pair_channel) {
  ModelConfig c = preset_config("model_1");
  c.evoformer_num_block = c.extra_msa_stack_num_block = 1;
  c.pair_channel = c.evoformer.triangle_multiplication_outgoing_channel =
      c.evoformer.triangle_multiplication_incoming_channel = pair_channel;
  return c;
}

/// Values that keep every module's output near its input's size.
Arrays parameters(const ModelConfig& config) {
  Arrays values = initial_params(config, 7);
  uint64_t stream = 1000;
  for (auto& [name, value] : values) {
    const Tensor noise = random(value.shape(), ++stream, value.rank() > 2 ? 0.08f : 0.3f);
    for (int64_t i = 0; i < value.numel(); ++i)
      value.data<float>()[i] = value.data<float>()[i] * 0.5f + noise.data<float>()[i];
  }
  return values;
}

struct Inputs {
  Tensor m, z, msa_mask, pair_mask;
};

/// Everything that a module gives: the updated tensor, and with `backward` the gradients.
Arrays results(const ModelConfig& config, const Arrays& values, const Inputs& in, bool extra,
               const std::string& module, Dtype dtype, Device device, bool backward) {
  const auto there = [&](const Tensor& t) { return t.to(device); };
  const Params given(config, values, "test");
  Params masters = (dtype == Dtype::f64 ? given.in_precision(dtype) : given).on(device);
  if (backward) masters.want_grads();
  const Params params = masters.in_precision(dtype);
  const Scope s = Scope(params, std::string("alphafold/alphafold_iteration/evoformer/") +
                                    (extra ? "extra_msa_stack" : "evoformer_iteration"))
                      .block(0);
  Var m(there(in.m.to(dtype)).clone()), z(there(in.z.to(dtype)).clone());
  const Tensor msa_mask = there(in.msa_mask), pair_mask = there(in.pair_mask);
  if (backward) {
    m.want_grad();
    z.want_grad();
  }
  const DropoutStream stream{.active = true, .seed = 3, .step = 1};
  const auto run = [&]() -> Var {
    if (module == "row")
      return msa_row_attention(s / "msa_row_attention_with_pair_bias", m, z, msa_mask,
                               {stream, 0.15, 0});
    if (module == "column")
      return extra ? msa_column_global_attention(s / "msa_column_global_attention", m, msa_mask)
                   : msa_column_attention(s / "msa_column_attention", m, msa_mask);
    if (module == "transition") return transition(s / "msa_transition", m);
    if (module == "outer")
      return outer_product_mean(s / "outer_product_mean", m, z, {msa_mask, dtype});
    if (module == "outgoing")
      return triangle_multiplication(s / "triangle_multiplication_outgoing", z, pair_mask, true);
    if (module == "incoming")
      return triangle_multiplication(s / "triangle_multiplication_incoming", z, pair_mask, false,
                                     {stream, 0.25, 2});
    if (module == "starting")
      return triangle_attention(s / "triangle_attention_starting_node", z, pair_mask, true);
    REQUIRE(module == "ending");
    return triangle_attention(s / "triangle_attention_ending_node", z, pair_mask, false,
                              {stream, 0.25, 4});
  };
  Arrays out;
  if (!backward) {
    const NoGrad no_grad;
    out["output"] = run().value();
  } else {
    Tape tape;
    const Var y = run();
    out["output"] = y.value();
    const Tensor seed = random(y.shape(), 99).to(dtype);
    tape.backward({y}, {there(seed)});
    if (m.grad().defined()) out["m"] = m.grad();
    if (z.grad().defined()) out["z"] = z.grad();
    for (const auto& [name, var] : masters.all())
      if (var.grad().defined()) out[name] = var.grad();
  }
  for (auto& [name, t] : out) t = t.to(Device{});
  return out;
}

void compare_modules(Dtype dtype, int64_t n_seq, int64_t n_res, double limit,
                     int64_t pair_channel = 128) {
  const ModelConfig config = config_of_one_block(pair_channel);
  const Arrays values = parameters(config);
  for (const bool extra : {false, true}) {
    const int64_t c_m = extra ? config.extra_msa_channel : config.msa_channel;
    Inputs in{random({n_seq, n_res, c_m}, 1), random({n_res, n_res, config.pair_channel}, 2),
              random_mask({n_seq, n_res}, 3), random_mask({n_res, n_res}, 4)};
    // A row and a column without anything.
    in.msa_mask.select(0, 1).copy_from(Tensor::zeros({n_res}));
    in.msa_mask.select(1, 2).copy_from(Tensor::zeros({n_seq}));
    in.pair_mask.select(0, 2).copy_from(Tensor::zeros({n_res}));
    in.pair_mask.select(1, 2).copy_from(Tensor::zeros({n_res}));
    for (const char* module :
         {"row", "column", "transition", "outer", "outgoing", "incoming", "starting", "ending"}) {
      if (extra && module != std::string("row") && module != std::string("column") &&
          module != std::string("outer"))
        continue;
      DYNAMIC_SECTION(module << (extra ? " of the extra MSA " : " ") << n_seq << " x " << n_res
                             << ", " << name_of(dtype)) {
        // What the f64 reference sees is rounded as the GPU's operands are.
        const auto rounded = [&](const Tensor& t) { return t.to(dtype).to(Dtype::f32); };
        Arrays exact;
        const Params same_bits = Params(config, values, "test").in_precision(dtype);
        for (const auto& [name, value] : same_bits.all())
          exact[name] = value.value().to(Dtype::f32);
        const Inputs same{rounded(in.m), rounded(in.z), in.msa_mask, in.pair_mask};
        for (const bool backward : {false, true}) {
          const auto run = [&](Device device) {
            return results(config, values, in, extra, module, dtype, device, backward);
          };
          const Arrays want = results(config, exact, same, extra, module, Dtype::f64, {}, backward),
                       got = run(kGpu), again = run(kGpu);
          REQUIRE(got.size() == want.size());
          // Of a bias that shifts every logit of a softmax the gradient is zero but for rounding.
          const auto size = [](const Tensor& t) { return norm_error(t, Tensor::zeros(t.shape())); };
          double largest = 0;
          for (const auto& [name, value] : want) largest = std::max(largest, size(value));
          for (const auto& [name, value] : want) {
            INFO(name << (backward ? " backward" : ""));
            if (size(value) < 1e-9 * largest) {
              CHECK(size(got.at(name)) < limit * largest);
            } else {
              const double error = norm_error(got.at(name), value);
              // A relu near zero may switch in bf16, on the CPU as here.
              if (error >= limit && dtype == Dtype::bf16)
                CHECK(error < 1.5 * norm_error(run(Device{}).at(name), value));
              else
                CHECK(error < limit);
            }
            CHECK(norm_error(again.at(name), got.at(name)) == 0);
          }
        }
      }
    }
  }
}

/// Four layers of triangle multiplication on the GPU, of c channels, which have one norm.
std::vector<NormedLinear> layers_of(int64_t c, uint64_t stream, const NormedLinear& norm) {
  std::vector<NormedLinear> layers;
  for (uint64_t i = 0; i < 4; ++i)
    layers.push_back({norm.scale, norm.offset,
                      random({c, c}, stream + i, 0.1f).to(Dtype::bf16).to(kGpu),
                      random({c}, stream + 10 + i).to(kGpu)});
  return layers;
}

}  // namespace

// Relative to f64. f32: softmax, norms and sums of thousands of terms, 2e-7 each.
TEST_CASE("GPU: every module of the trunk in f32, and its gradients") {
  if (!have_gpu()) return;
  compare_modules(Dtype::f32, 7, 37, 2e-5);
}

// bf16: a dozen roundings of 2^-9 between a module's input and its gradients.
TEST_CASE("GPU: every module of the trunk in bf16, and its gradients") {
  if (!have_gpu()) return;
  compare_modules(Dtype::bf16, 7, 37, 3e-2);
}

TEST_CASE("GPU: modules of other channels, and where pairs come in packs of eight") {
  if (!have_gpu()) return;
  compare_modules(Dtype::bf16, 5, 44, 3e-2);
  compare_modules(Dtype::bf16, 3, 20, 3e-2, 64);
  compare_modules(Dtype::bf16, 3, 13, 3e-2, 96);
}

TEST_CASE("GPU: modules longer than one tile of keys") {
  if (!have_gpu()) return;
  compare_modules(Dtype::bf16, 65, 131, 3e-2);
}

// Several ranks make one side after the other, while the first is on its way.
TEST_CASE("GPU: both sides of a triangle at once are each of them") {
  if (!have_gpu()) return;
  const Kernels& k = kernels(kGpu);
  for (const int64_t c : {64, 128})
    for (const bool add : {false, true}) {
      INFO(c << " channels" << (add ? ", added" : ""));
      const int64_t n = 50, m = 61;
      const auto bf16 = [](const Tensor& t) { return t.to(Dtype::bf16).to(kGpu); };
      const Tensor z = bf16(random({n, m, c}, 1)), da = bf16(random({2 * c, n, m}, 2)),
                   mask = random_mask({n, m}, 3).to(kGpu), old = bf16(random({n, m, c}, 4));
      const NormedLinear norm{random({c}, 5).to(kGpu), random({c}, 6).to(kGpu), {}, {}};
      const std::vector<NormedLinear> layers = layers_of(c, 20, norm);
      struct Result {
        Tensor a, dz;
        std::vector<NormedLinear> grads;
      };
      const auto run = [&](size_t at_once) {
        Result r{Tensor::empty(da.shape(), Dtype::bf16, kGpu), old.clone(),
                 layers_of(c, 40, {random({c}, 7).to(kGpu), random({c}, 8).to(kGpu), {}, {}})};
        for (NormedLinear& g : r.grads) g.w = g.w.to(Dtype::f32);
        for (size_t i = 0; i < 4; i += at_once) {
          const auto some = [&](const std::vector<NormedLinear>& of) {
            return std::vector(of.begin() + int64_t(i), of.begin() + int64_t(i + at_once));
          };
          const auto side = [&](const Tensor& t) {
            return t.narrow(0, int64_t(i) / 2 * c, int64_t(at_once) / 2 * c);
          };
          k.triangle_sides(z, mask, some(layers), side(r.a));
          k.triangle_sides_backward(z, mask, some(layers), side(da), r.dz, add || i > 0,
                                    some(r.grads));
        }
        return r;
      };
      const Result both = run(4), each = run(2);
      CHECK(norm_error(both.a, each.a) == 0);
      CHECK(norm_error(both.dz, each.dz) < 5e-3);  // one rounding of two
      for (size_t i = 0; i < 4; ++i) {             // f32 sums in another order
        CHECK(norm_error(both.grads[i].w, each.grads[i].w) < 1e-5);
        CHECK(norm_error(both.grads[i].b, each.grads[i].b) < 1e-5);
      }
      CHECK(norm_error(both.grads[0].scale, each.grads[0].scale) < 1e-5);
      CHECK(norm_error(both.grads[0].offset, each.grads[0].offset) < 1e-5);
    }
}

// In f32 there is no kernel of its own: a layer norm, a product and a copy.
TEST_CASE("GPU: the pair bias and its gradients") {
  if (!have_gpu()) return;
  struct Case {
    int64_t n, m, c, h;
    bool transposed, strided;
    float mean = 0;
  };
  for (const Case& at :
       {Case{5, 7, 128, 4, false, false}, Case{67, 61, 128, 8, true, false},
        Case{33, 65, 128, 4, false, false, 200}, Case{9, 31, 64, 8, true, true, -7},
        Case{33, 9, 64, 4, true, true}, Case{3, 50, 40, 3, false, true},
        Case{300, 129, 72, 5, false, false}, Case{1, 1, 8, 1, true, false}}) {
    INFO(at.n << " x " << at.m << ", " << at.c << " channels, " << at.h << " heads");
    // Numbers that bf16 has, on a CPU in f32 and on the GPU in bf16.
    const auto rounded = [](const Dims& shape, uint64_t stream, float mean = 0) {
      const Tensor t = random(shape, stream);
      for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] += mean;
      return t.to(Dtype::bf16).to(Dtype::f32);
    };
    const Tensor whole = rounded({at.m, at.n, at.c}, 1, at.mean), w = rounded({at.c, at.h}, 2),
                 scale = random({at.c}, 3), offset = random({at.c}, 4),
                 seed = random(at.transposed ? Dims{at.h, at.m, at.n} : Dims{at.h, at.n, at.m}, 5),
                 old = rounded(whole.shape(), 6);
    const auto run = [&](Device device, bool add) {
      const Dtype dtype = device.kind == Device::cpu ? Dtype::f32 : Dtype::bf16;
      Var z(whole.to(dtype).to(device)), weights(w.to(device)), s(scale.to(device)),
          o(offset.to(device));
      for (Var* leaf : {&z, &weights, &s, &o}) leaf->want_grad();
      if (add) z.add_grad(old.clone().to(dtype).to(device));
      // The product's weights are bf16, their gradient is f32.
      const Var narrow_w(weights.value().to(dtype), weights.slot());
      Tape tape;
      const Var rows = at.strided ? transpose(z, 0, 1) : view(z, {at.n, at.m, at.c});
      Var bias;
      if (device.kind == Device::cpu) {
        CHECK_FALSE(fuses_pair_bias(rows, narrow_w));
        bias = view(linear_channels_first(layer_norm(rows, s, o), narrow_w), {at.h, at.n, at.m});
        if (at.transposed) bias = transpose_cast(bias, 1, 2, Dtype::f32);
      } else {
        REQUIRE(fuses_pair_bias(rows, narrow_w));
        bias = pair_bias(rows, {s, o, narrow_w, {}}, at.transposed);
      }
      tape.backward({bias}, {seed.to(device)});
      return std::vector<Tensor>{bias.value(), z.grad(), weights.grad(), s.grad(), o.grad()};
    };
    for (const bool add : {false, true}) {
      const auto cpu = run(Device{}, add), gpu = run(kGpu, add), again = run(kGpu, add);
      for (size_t i = 0; i < cpu.size(); ++i) {
        INFO((add ? "added: " : "") << i);
        CHECK(norm_error(gpu[i], cpu[i]) < (i == 4 ? 2e-5 : 4e-3));  // offset: exact
        CHECK(norm_error(again[i], gpu[i]) == 0);
      }
    }
  }
}
