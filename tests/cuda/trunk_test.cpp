// The trunk's kernels on the GPU against the CPU's: every operation, forward and backward, at sizes
// that are no multiple of any tile and at the model's own, in f32 and bf16, on strided views.
#include "core/ops/linear.h"
#include "tests/cuda/twins.h"

using namespace ff;
using namespace ff::test;

namespace {

const Dtype kTypes[] = {Dtype::f32, Dtype::bf16};

/// f(twins, dtype) for each dtype; nothing where there is no GPU.
template <class F>
void each_type(F f) {
  if (!have_gpu()) return;
  Twins twins;
  for (Dtype type : kTypes) {
    INFO(name_of(type));
    f(twins, type);
  }
}

const Dims kShapes[] = {{7, 5, 3},    {3, 11, 23},  {5, 7, 32},  {9, 4, 64},   {13, 21, 128},
                        {6, 17, 131}, {5, 33, 256}, {2, 3, 300}, {4, 19, 384}, {3, 2, 1000},
                        {0, 4, 128},  {4, 0, 23},   {1, 1, 8}};

}  // namespace

TEST_CASE("GPU: layer norm") {
  each_type([](Twins& twins, Dtype type) {
    for (const Dims& shape : kShapes)
      for (bool strided : {false, true}) {
        INFO(shape << (strided ? " strided" : ""));
        const int64_t c = shape[2];
        const auto any = [&] {
          return strided ? twins.strided(shape, type) : twins.normal(shape, type);
        };
        const Twin x = any(), dy = any(), scale = twins.normal({c}), offset = twins.normal({c}),
                   y = twins.poison(shape, type);
        twins.run(
            [&](const Kernels& k, auto at) { k.layer_norm(at(x), at(scale), at(offset), at(y)); });
        agree("y", y, Tolerance::of(type));
        // All gradients, then each alone.
        for (int wanted : {7, 1, 2, 4}) {
          INFO("gradients " << wanted);
          const Twin to = wanted & 1 ? any() : Twin(),
                     dscale = wanted & 2 ? twins.normal({c}) : Twin(),
                     doffset = wanted & 4 ? twins.normal({c}) : Twin();
          twins.run([&](const Kernels& k, auto at) {
            k.layer_norm_backward(at(x), at(scale), at(dy), at(to), at(dscale), at(doffset));
          });
          agree("dx", to, Tolerance::of(type));
          agree("dscale", dscale, Tolerance::of(Dtype::f32));
          agree("doffset", doffset, Tolerance::of(Dtype::f32));
        }
        const Twin dscale = twins.normal({c});
        twins.run([&](const Kernels& k, auto at) {
          k.layer_norm_backward(at(x), at(scale), at(dy), at(dy), at(dscale), {});
        });
        agree("dx over dy", dy, Tolerance::of(type));
        agree("dscale beside it", dscale, Tolerance::of(Dtype::f32));
      }
  });
}

TEST_CASE("GPU: layer norm of many rows") {
  each_type([](Twins& twins, Dtype type) {
    const Dims shape{20011, 128};
    const Twin x = twins.normal(shape, type), dy = twins.normal(shape, type),
               dx = twins.normal(shape, type), scale = twins.normal({128}),
               dscale = twins.normal({128}), doffset = twins.normal({128});
    twins.run([&](const Kernels& k, auto at) {
      k.layer_norm_backward(at(x), at(scale), at(dy), at(dx), at(dscale), at(doffset));
    });
    agree("dx", dx, Tolerance::of(type));
    agree("dscale", dscale, Tolerance::of(Dtype::f32));
    agree("doffset", doffset, Tolerance::of(Dtype::f32));
    twins.run([&](const Kernels& k, auto at) {
      k.layer_norm_backward(at(x), at(scale), at(dy), at(dy), {}, {});
    });
    agree("dx over dy", dy, Tolerance::of(type));
  });
}

TEST_CASE("GPU: layer norm channels first") {
  each_type([](Twins& twins, Dtype type) {
    for (const Dims& shape : {Dims{1, 3, 5},
                              {23, 7, 65},
                              {32, 5, 64},
                              {64, 9, 72},
                              {128, 3, 200},
                              {131, 2, 127},
                              {384, 2, 40},
                              {700, 2, 9},
                              {128, 0, 8}})
      for (int64_t rows_before : {0, 1}) {
        INFO(shape << " from row " << rows_before);
        const int64_t c = shape[0], n = shape[1], m = shape[2];
        const Twin x = twins.normal({c, n + rows_before, m}, type).view([&](const Tensor& t) {
          return t.narrow(1, rows_before, n);
        });
        const Twin scale = twins.normal({c}), offset = twins.normal({c}),
                   y = twins.poison({n, m, c}, type);
        twins.run([&](const Kernels& k, auto at) {
          k.layer_norm_channels_first(at(x), at(scale), at(offset), at(y));
        });
        agree("y", y, Tolerance::of(type));
        for (int wanted : {7, 1, 2, 4}) {
          INFO("gradients " << wanted);
          const Twin dy = twins.normal({n, m, c}, type),
                     dx = wanted & 1 ? twins.normal({c, n + rows_before, m}, type)
                                           .view([&](const Tensor&t) {
                                             return t.narrow(1, rows_before, n);
                                           })
                                     : Twin(),
                     dscale = wanted & 2 ? twins.normal({c}) : Twin(),
                     doffset = wanted & 4 ? twins.normal({c}) : Twin();
          twins.run([&](const Kernels& k, auto at) {
            k.layer_norm_channels_first_backward(at(x), at(scale), at(dy), at(dx), at(dscale),
                                                 at(doffset));
          });
          agree("dx", dx, Tolerance::of(type));
          agree("dscale", dscale, Tolerance::of(Dtype::f32));
          agree("doffset", doffset, Tolerance::of(Dtype::f32));
        }
      }
  });
}

TEST_CASE("GPU: element-wise operations") {
  each_type([](Twins& twins, Dtype type) {
    for (const Dims& shape : {Dims{7, 5, 1},
                              {3, 11, 23},
                              {13, 21, 128},
                              {2, 3, 300},
                              {0, 4, 8},
                              {4, 130, 40},
                              {1, 1, 20000}})
      for (bool strided : {false, true}) {
        INFO(shape << (strided ? " strided" : ""));
        const auto any = [&] {
          return strided ? twins.strided(shape, type) : twins.normal(shape, type);
        };
        const Twin x = any(), gate = any(), dy = any();
        {
          const Twin y = any();
          twins.run([&](const Kernels& k, auto at) { k.add(at(x), at(y)); });
          agree("add", y, Tolerance::of(type));
        }
        {
          const Twin y = any();
          twins.run([&](const Kernels& k, auto at) { k.add_gated(at(x), at(gate), at(y)); });
          agree("add_gated", y, Tolerance::of(type));
        }
        for (int wanted : {3, 1, 2}) {
          INFO("gradients " << wanted);
          const Twin dx = wanted & 1 ? any() : Twin(), dgate = wanted & 2 ? any() : Twin();
          twins.run([&](const Kernels& k, auto at) {
            k.add_gated_backward(at(x), at(gate), at(dy), at(dx), at(dgate));
          });
          agree("dx", dx, Tolerance::of(type));
          agree("dgate", dgate, Tolerance::of(type));
        }
        for (Activation act : {Activation::kRelu, Activation::kSigmoid}) {
          const Twin d = any();
          twins.run([&](const Kernels& k, auto at) { k.activation_backward(at(x), act, at(d)); });
          agree("activation_backward", d, Tolerance::of(type));
        }
        {
          const Twin factors = twins.normal({shape[1], shape[2]});
          for (const Twin& base : {Twin(), any()})
            for (const Twin& y : {any(), base}) {
              if (!y.cpu) continue;
              twins.run([&](const Kernels& k, auto at) {
                k.add_dropped(at(x), at(factors), at(base), at(y));
              });
              agree("add_dropped", y, Tolerance::of(type));
            }
        }
        {
          const Twin y = any(), mask = twins.mask({shape[1], shape[0]}).view([](const Tensor&t) {
            return t.transpose(0, 1);
          });
          twins.run([&](const Kernels& k, auto at) { k.scale_rows(at(mask), at(y)); });
          agree("scale_rows", y, Tolerance::of(type));
        }
        {
          const Twin sums = twins.normal({shape[2]});
          twins.run([&](const Kernels& k, auto at) { k.add_column_sums(at(x), at(sums)); });
          agree("add_column_sums", sums, Tolerance::of(Dtype::f32));
        }
      }
  });
}

TEST_CASE("GPU: column sums of many rows") {
  each_type([](Twins& twins, Dtype type) {
    for (int64_t c : {1, 23, 128, 1024}) {
      // Of mean one: a single column of mean zero may sum to next to nothing, of which every
      // rounding is much.
      const Twin x = twins.normal({30011, c}, type, 1, 1), sums = twins.normal({c});
      twins.run([&](const Kernels& k, auto at) { k.add_column_sums(at(x), at(sums)); });
      agree("add_column_sums", sums, Tolerance::of(Dtype::f32));
    }
  });
}

TEST_CASE("GPU: columns are added to the parts that they belong to") {
  if (!have_gpu()) return;
  Twins twins;
  for (int64_t width : {5, 64})
    for (int64_t many : {1, 4}) {
      INFO(many << " parts of " << width);
      const Twin x = twins.normal({111, many * width});
      std::vector<Twin> parts;
      for (int64_t i = 0; i < many; ++i)
        parts.push_back(i == 1 ? Twin() : twins.normal({111, width}));
      twins.run([&](const Kernels& k, auto at) {
        std::vector<Tensor> to;
        for (const Twin& part : parts) to.push_back(at(part));
        k.add_columns(at(x), to);
      });
      for (const Twin& part : parts) agree("part", part, Tolerance::of(Dtype::f32));
    }
}

TEST_CASE("GPU: gradients of weights and biases, of layers alone and joined") {
  each_type([](Twins& twins, Dtype type) {
    struct Case {
      Dims rows;
      int64_t c, n, parts;
    };
    for (const Case& t :
         {Case{{1}, 8, 8, 1}, Case{{70, 3}, 128, 128, 1}, Case{{1029}, 128, 512, 4},
          Case{{64, 21}, 512, 128, 1}, Case{{130}, 264, 64, 2}, Case{{3, 5, 41}, 72, 1032, 3},
          Case{{517}, 256, 256, 1}, Case{{33}, 23, 42, 2}, Case{{4111}, 16, 40, 1}})
      for (int wanted : {0, 1, 2}) {
        INFO(t.rows << " of " << t.c << " by " << t.n << ", " << t.parts << " parts, " << wanted);
        Dims of_x = t.rows, of_y = t.rows;
        of_x.push_back(t.c);
        of_y.push_back(t.n);
        const int64_t width = t.n / t.parts;
        const Twin x = wanted == 1 && of_x.size() == 3 ? twins.strided(of_x, type)
                                                       : twins.normal(of_x, type),
                   dy = twins.normal(of_y, type, 1, 1),
                   sums = wanted == 1 ? Twin() : twins.normal({wanted ? width : t.n});
        std::vector<Twin> parts;
        for (int64_t i = 0; i < t.parts; ++i)
          parts.push_back(i == 1 || (wanted == 2 && t.parts == 1) ? Twin()
                                                                  : twins.normal({t.c, width}));
        twins.run([&](const Kernels& k, auto at) {
          std::vector<Tensor> to;
          for (const Twin& part : parts) to.push_back(at(part));
          k.weight_gradient(at(x), at(dy), to, at(sums));
        });
        for (const Twin& part : parts) agree("part", part, Tolerance::of(Dtype::f32));
        agree("sums", sums, Tolerance::of(Dtype::f32));
      }
  });
}

TEST_CASE("GPU: the masked mean") {
  each_type([](Twins& twins, Dtype type) {
    for (const Dims& shape : {Dims{7, 5, 1}, {3, 111, 23}, {5, 1029, 64}, {4, 33, 256}, {3, 0, 8}})
      for (bool strided : {false, true}) {
        INFO(shape << (strided ? " strided" : ""));
        const auto any = [&] {
          return strided ? twins.strided(shape, type) : twins.normal(shape, type);
        };
        Twin mask = twins.mask({shape[1], shape[0]}).view([](const Tensor& t) {
          return t.transpose(0, 1);
        });
        // A column without anything to keep.
        for (const Tensor& t : {mask.cpu, mask.gpu})
          t.narrow(0, 1, 1).copy_from(Tensor::zeros({1, shape[1]}));
        const Twin x = any(), y = twins.poison({shape[0], shape[2]}, type),
                   dy = twins.normal({shape[0], shape[2]}, type), dx = any();
        twins.run([&](const Kernels& k, auto at) {
          k.masked_mean(at(x), at(mask), at(y));
          k.masked_mean_backward(at(mask), at(dy), at(dx));
        });
        agree("y", y, Tolerance::of(type));
        agree("dx", dx, Tolerance::of(type));
      }
  });
}

TEST_CASE("GPU: the triangle's gate") {
  each_type([](Twins& twins, Dtype type) {
    for (const Dims& shape : {Dims{3, 7}, {23, 111}, {32, 1024}, {128, 20000}, {5, 9003}, {8, 0}}) {
      INFO(shape);
      const int64_t c = shape[0], n = shape[1];
      const Twin proj = twins.normal(shape, type), gate = twins.normal(shape, type),
                 da = twins.normal(shape, type), proj_bias = twins.normal({c}),
                 gate_bias = twins.normal({c}), mask = twins.mask({n});
      // The result's rows may lie apart.
      const Twin a =
          twins.poison({c, n + 8}, type).view([&](const Tensor& t) { return t.narrow(1, 0, n); });
      twins.run([&](const Kernels& k, auto at) {
        k.triangle_gate(at(proj), at(proj_bias), at(gate), at(gate_bias), at(mask), at(a));
      });
      agree("a", a, Tolerance::of(type));
      for (int wanted : {15, 1, 2, 4, 8}) {
        INFO("gradients " << wanted);
        const Twin dproj = wanted & 1 ? twins.normal(shape, type) : Twin(),
                   dproj_bias = wanted & 2 ? twins.normal({c}) : Twin(),
                   dgate = wanted & 4 ? twins.normal(shape, type) : Twin(),
                   dgate_bias = wanted & 8 ? twins.normal({c}) : Twin();
        twins.run([&](const Kernels& k, auto at) {
          k.triangle_gate_backward(at(proj), at(proj_bias), at(gate), at(gate_bias), at(mask),
                                   at(da), at(dproj), at(dproj_bias), at(dgate), at(dgate_bias));
        });
        agree("dproj", dproj, Tolerance::of(type));
        agree("dproj_bias", dproj_bias, Tolerance::of(Dtype::f32));
        agree("dgate", dgate, Tolerance::of(type));
        agree("dgate_bias", dgate_bias, Tolerance::of(Dtype::f32));
      }
    }
  });
}

TEST_CASE("GPU: the outer product mean") {
  each_type([](Twins& twins, Dtype type) {
    struct Size {
      int64_t n_seq, n_i, n_j, c, d, c_z;
    };
    for (const Size& s : {Size{5, 7, 9, 3, 4, 11}, Size{33, 21, 19, 32, 32, 128},
                          Size{130, 67, 131, 32, 32, 128}, Size{17, 5, 40, 8, 8, 40},
                          Size{2, 250, 1100, 32, 32, 8}})  // the last in two ranges of columns
      DYNAMIC_SECTION(s.n_seq << " sequences, " << s.n_i << " x " << s.n_j << ", "
                              << name_of(type)) {
        // A part of the rows, as a rank has them, and of the channels, as one product makes them.
        const auto part = [](const Twin& whole, int64_t first, int64_t channels) {
          return whole.view([&](const Tensor& t) {
            return t.narrow(1, 1, t.size(1) - 2).narrow(2, first, channels);
          });
        };
        const Dims lefts{s.n_seq, s.n_i + 2, s.c + s.d}, rights{s.n_seq, s.n_j + 2, s.c + s.d};
        const Twin left = part(twins.normal(lefts, type), 0, s.c),
                   right = part(twins.normal(rights, type), s.c, s.d),
                   w = twins.normal({s.c, s.d, s.c_z}, type, 0.02), b = twins.normal({s.c_z}),
                   old = twins.normal({s.n_i, s.n_j, s.c_z}, type),
                   z = twins.poison({s.n_i, s.n_j, s.c_z}, type);
        Twin norm = twins.normal({s.n_i, s.n_j});
        for (int64_t i = 0; i < norm.cpu.numel(); ++i)
          norm.cpu.data<float>()[i] = float(s.n_seq) + std::abs(norm.cpu.data<float>()[i]);
        norm = twins.of(norm.cpu);
        Tensor kept;  // the GPU's
        twins.run([&](const Kernels& k, auto at) {
          kept = k.outer_product_mean(at(left), at(right), at(w), at(b), at(norm), at(old), at(z),
                                      true);
          CHECK_FALSE(k.outer_product_mean(at(left), at(right), at(w), at(b), at(norm), at(old),
                                           at(old), false)
                          .defined());
        });
        CHECK(kept.defined() == (s.n_j != 1100));
        agree("z", z, Tolerance::of(type));
        agree("z in the residual's place", old, Tolerance::of(type));
        // The CPU rounds its sums once a row in bf16: its gradients are taken in f32.
        const auto wide = [](const Twin& t) {
          const Tensor f32 = t.cpu.defined() ? t.cpu.to(Dtype::f32).clone() : Tensor();
          return Twin{f32, t.gpu, f32, t.gpu};
        };
        for (int wanted : {15, 1, 2, 4, 8}) {
          INFO("gradients " << wanted);
          const auto some = [&](int bit, const Twin& like, Dtype dtype) {
            return wanted & bit ? wide(twins.normal(like.cpu.shape(), dtype)) : Twin();
          };
          const Twin dleft = wanted & 1 ? part(twins.poison(lefts, type), 0, s.c) : Twin(),
                     dright = wanted & 2 ? part(twins.poison(rights, type), s.c, s.d) : Twin(),
                     dl = wide(dleft), dr = wide(dright), l = wide(left), r = wide(right),
                     dz = wide(twins.normal({s.n_i, s.n_j, s.c_z}, type)), weights = wide(w),
                     dw = some(4, w, Dtype::f32), db = some(8, b, Dtype::f32);
          twins.run([&](const Kernels& k, auto at) {
            const bool use = wanted == 15 && &k == &kernels(kGpu);
            k.outer_product_mean_backward(at(l), at(r), at(weights), at(norm),
                                          use ? kept : Tensor(), at(dz), at(dl), at(dr), at(dw),
                                          at(db));
          });
          if (wanted & 1) dleft.cpu.copy_from(dl.cpu);
          if (wanted & 2) dright.cpu.copy_from(dr.cpu);
          for (const auto& [name, t] : {std::pair{"dleft", dleft}, std::pair{"dright", dright},
                                        std::pair{"dw", dw}, std::pair{"db", db}})
            agree(name, t, tolerance(type));
        }
      }
  });
}

TEST_CASE("GPU: the pair embedding") {
  each_type([](Twins& twins, Dtype type) {
    for (const Dims& size : {Dims{5, 3}, {67, 23}, {130, 128}, {70, 300}, {150, 200}})
      for (bool recycled : {false, true}) {
        const int64_t n = size[0], c = size[1], far = 32, bins = 15;
        INFO(size << (recycled ? " recycled" : ""));
        const Twin left = twins.normal({n, c}, type), right = twins.normal({n, c}, type),
                   relpos = twins.normal({2 * far + 1, c}, type),
                   dgram = twins.normal({bins, c}, type), index = twins.integers({n}, 100),
                   beta = recycled ? twins.normal({n, 3}, Dtype::f32, 8) : Twin();
        Tensor edges = Tensor::empty({bins});
        for (int64_t k = 0; k < bins; ++k)
          edges.data<float>()[k] = float((3.25 + 1.25 * double(k)) * (3.25 + 1.25 * double(k)));
        const Twin breaks = twins.of(edges);
        const int64_t rows = n / 2, first = n - rows;
        const Twin z = twins.poison({rows, n, c}, type), dz = twins.normal({rows, n, c}, type),
                   own = left.view([&](const Tensor&t) { return t.narrow(0, first, rows); });
        twins.run([&](const Kernels& k, auto at) {
          k.pair_embed(at(own), at(right), at(index), at(relpos), at(beta), at(dgram), at(breaks),
                       first, at(z));
        });
        agree("z", z, Tolerance::of(type));
        for (int wanted : {15, 1, 2, 4, 8}) {
          INFO("gradients " << wanted);
          const auto some = [&](int bit, int64_t table_rows) {
            return wanted & bit ? twins.normal({table_rows, c}) : Twin();
          };
          const Twin to[] = {some(1, rows), some(2, n), some(4, 2 * far + 1), some(8, bins)};
          twins.run([&](const Kernels& k, auto at) {
            k.pair_embed_backward(at(index), at(beta), at(breaks), first, at(dz), at(to[0]),
                                  at(to[1]), at(to[2]), at(to[3]));
          });
          // f32 sums of thousands of terms in another order.
          for (const Twin& t : to)
            if (t.cpu.defined()) CHECK(norm_error(t.gpu, t.cpu) < 5e-6);
        }
      }
  });
}
