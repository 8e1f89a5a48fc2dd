// The losses' kernels on the GPU, in f32, against the CPU's in f64 on the same numbers; classes,
// choices and masks against the CPU's own.
#include "tests/cuda/twins.h"

using namespace ff;
using namespace ff::test;

namespace {

constexpr double kTolerance = Tolerance::of(Dtype::f32);

/// The CPU's side in f64.
Twin exact(const Twin& t) { return {t.cpu.to(Dtype::f64), t.gpu, {}, {}}; }
/// Both sides in f64.
Twin wide(const Twin& t) { return t.cast(Dtype::f64); }

void same(const char* name, const Twin& t, double tolerance = kTolerance) {
  compare(name, t.gpu.to(Device{}), t.cpu, tolerance);
}

}  // namespace

TEST_CASE("GPU: cross-entropy of rows of logits") {
  if (!have_gpu()) return;
  Twins twins;
  for (const Dims& shape : {Dims{1, 1}, {0, 64}, {77, 23}, {5003, 64}, {300, 50}, {9, 129}}) {
    INFO(shape);
    const int64_t rows = shape[0], n = shape[1];
    const Twin logits = twins.normal(shape, Dtype::f32, 5),
               classes = twins.integers({rows}, int32_t(n)),
               weights = twins.mask({rows}).cast(Dtype::f64), gradient = twins.poison(shape);
    // Rows without weight are left as they are.
    for (const Tensor& t : {gradient.cpu, gradient.gpu})
      for (int64_t r = 0; r < rows; ++r)
        if (weights.cpu.data<double>()[r] == 0) t.narrow(0, r, 1).copy_from(Tensor::zeros({1, n}));
    const Tensor loss = Tensor::zeros({1}, Dtype::f64), gpu_loss = loss.to(kGpu),
                 want = gradient.cpu.to(Dtype::f64);
    const double norm = 1 / (1e-6 + 0.75 * double(rows));
    kernels(Device{}).cross_entropy(logits.cpu.to(Dtype::f64), classes.cpu, weights.cpu, norm, loss,
                                    want);
    kernels(kGpu).cross_entropy(logits.gpu, classes.gpu, weights.gpu, norm, gpu_loss, gradient.gpu);
    compare("loss", gpu_loss.to(Device{}), loss, Tolerance::of(Dtype::f32));
    // Gradients are a row's share of the mean: compared at the size of one row's.
    const Tensor got = gradient.gpu.to(Device{}).to(Dtype::f64);
    for (const Tensor& t : {got, want})
      for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] /= norm;
    compare("gradient", got, want, Tolerance::of(Dtype::f32));
    kernels(kGpu).cross_entropy(logits.gpu, classes.gpu, weights.gpu, norm, gpu_loss, {});
    compare("loss alone", gpu_loss.to(Device{}), loss, Tolerance::of(Dtype::f32));
  }
}

TEST_CASE("GPU: frame aligned point error and its gradients, the same bits twice") {
  if (!have_gpu()) return;
  Twins twins;
  struct Case {
    int64_t frames, points;
    double clamp, unclamped;
  };
  // Of many pairs one may lie on either side of a bound between: there it is far, or crossed by
  // all.
  for (const Case& c : {Case{1, 1, 3, 0.3},
                        {7, 5, 3, 0},
                        {37, 300, 1e9, 0.3},
                        {300, 37, 0, 0.3},
                        {1000, 1793, 0, 1}}) {
    INFO(c.frames << " frames, " << c.points << " points, clamp " << c.clamp);
    const Dims frames{c.frames, 12}, points{c.points, 3};
    const Twin f = exact(twins.normal(frames)), tf = exact(twins.normal(frames)),
               fm = exact(twins.mask({c.frames})), x = exact(twins.normal(points)),
               tx = exact(twins.normal(points)), xm = exact(twins.mask({c.points})),
               df = exact(twins.normal(frames)), dx = exact(twins.normal(points)),
               loss = wide(twins.poison({1}));
    const Tensor df_again = df.gpu.clone(), dx_again = dx.gpu.clone();
    const double scale = 1.0 / double(c.frames * c.points);  // a sum instead of a mean
    twins.run([&](const Kernels& k, auto at) {
      k.fape({at(f), at(x), at(tf), at(fm), at(tx), at(xm)}, c.clamp, c.unclamped, scale, at(loss),
             at(df), at(dx));
    });
    same("loss", loss);
    same("frames", df);
    same("points", dx);
    const Twin alone = wide(twins.poison({1}));
    kernels(kGpu).fape({f.gpu, x.gpu, tf.gpu, fm.gpu, tx.gpu, xm.gpu}, c.clamp, c.unclamped, scale,
                       alone.gpu, df_again, dx_again);
    CHECK(norm_error(df_again, df.gpu) == 0);
    CHECK(norm_error(dx_again, dx.gpu) == 0);
    kernels(kGpu).fape({f.gpu, x.gpu, tf.gpu, fm.gpu, tx.gpu, xm.gpu}, c.clamp, c.unclamped, scale,
                       alone.gpu, {}, {});
    CHECK(norm_error(alone.gpu, loss.gpu) == 0);
  }
}

TEST_CASE("GPU: losses of torsions and of single logits") {
  if (!have_gpu()) return;
  Twins twins;
  for (const int64_t n : {1, 7, 300}) {
    INFO(n << " residues");
    const Twin angles = exact(twins.normal({n, 7, 2})), d = exact(twins.normal({n, 7, 2})),
               chi = wide(twins.normal({n, 4})), mask = wide(twins.mask({n, 4})),
               periodic = wide(twins.mask({n, 4})), loss = wide(twins.normal({1}));
    twins.run([&](const Kernels& k, auto at) {
      k.chi_loss(at(angles), at(chi), at(mask), at(periodic), 3, at(loss), at(d));
      k.chi_loss(at(angles), at(chi), at(mask), at(periodic), 3, at(loss), {});
    });
    same("chi loss", loss);
    same("chi gradient", d);

    const Twin x = exact(twins.normal({n, 14})), dx = exact(twins.normal({n, 14})),
               keep = wide(twins.mask({n}));
    twins.run([&](const Kernels& k, auto at) {
      k.angle_norm_loss(at(x), at(keep), 2, at(loss), at(dx));
      k.angle_norm_loss(at(x), at(keep), 2, at(loss), {});
    });
    same("angle norm loss", loss);
    same("angle norm gradient", dx);

    const Twin logits = exact(twins.normal({n, 37}, Dtype::f32, 5)),
               dl = exact(twins.normal({n, 37})), labels = wide(twins.mask({n, 37})),
               weights = wide(twins.mask({n, 37}));
    twins.run([&](const Kernels& k, auto at) {
      k.binary_cross_entropy(at(logits), at(labels), at(weights), 0.01, at(loss), at(dl));
    });
    same("binary cross-entropy", loss);
    same("binary cross-entropy's gradient", dl);

    const std::vector<double> factors{0.5, -2, 3};
    const Twin a = exact(twins.normal({})), b = exact(twins.normal({})),
               c = exact(twins.normal({}));
    twins.run([&](const Kernels& k, auto at) {
      const std::vector<Tensor> terms{at(a), at(b), at(c)};
      k.weighted_sum(terms, factors, at(loss));
    });
    same("weighted sum", loss, 0);
  }
}

TEST_CASE("GPU: classes of distances and errors, lDDT and names are the CPU's") {
  if (!have_gpu()) return;
  Twins twins;
  for (const int64_t n : {1, 7, 150}) {
    INFO(n << " residues");
    const int64_t rows = n - n / 3, first = n - rows;
    Twin breaks = wide(twins.normal({63}));
    for (int64_t k = 0; k < 63; ++k) breaks.cpu.data<double>()[k] = 2.0 * double(k * k) + 4;
    breaks = twins.of(breaks.cpu);
    const Twin x = wide(twins.normal({n, 3}, Dtype::f32, 12)), mask = wide(twins.mask({n})),
               classes = twins.of(Tensor::zeros({rows, n}, Dtype::i32)),
               weights = wide(twins.poison({rows, n}));
    twins.run([&](const Kernels& k, auto at) {
      k.distance_classes(at(x), at(mask), at(breaks), first, at(classes), at(weights));
    });
    same("distance classes", classes, 0);
    same("distance weights", weights, 0);

    const Twin frames = twins.normal({n, 12}, Dtype::f32, 4),
               truth = wide(twins.normal({n, 12}, Dtype::f32, 4));
    twins.run([&](const Kernels& k, auto at) {
      k.aligned_error_classes(at(frames), at(truth), at(mask), at(breaks), first, at(classes),
                              at(weights));
    });
    same("error classes", classes, 0);

    const Twin points = twins.of(x.cpu.to(Dtype::f32)), score = wide(twins.poison({n}));
    for (int64_t i = 0; i < 3 * n; ++i) points.cpu.data<float>()[i] += float(i % 7) * 0.3f;
    points.gpu.copy_from(points.cpu);
    const Twin bins = twins.of(Tensor::zeros({n}, Dtype::i32));
    twins.run([&](const Kernels& k, auto at) {
      k.lddt(at(points), at(x), at(mask), at(score));
      k.score_classes(at(score), 50, at(bins));
    });
    same("lDDT", score, 0);
    same("lDDT's classes", bins, 0);

    const Twin atoms = twins.normal({n, 14, 3}, Dtype::f32, 3),
               real = wide(twins.normal({n, 14, 3}, Dtype::f32, 3)),
               swapped = wide(twins.normal({n, 14, 3}, Dtype::f32, 3)),
               exists = wide(twins.mask({n, 14})), ambiguous = wide(twins.mask({n, 14})),
               better = twins.poison({n}), chosen = twins.poison({n, 14, 3}),
               a = twins.normal({n, 14, 3}), b = twins.normal({n, 14, 3});
    twins.run([&](const Kernels& k, auto at) {
      k.alternative_is_better(at(atoms), at(real), at(swapped), at(exists), at(ambiguous),
                              at(better));
      k.choose_rows(at(better), at(a), at(b), at(chosen));
    });
    same("names", better, 0);
    same("renamed", chosen, 0);
  }
}

TEST_CASE("GPU: dropout's masks and the extra MSA's features are the CPU's bits") {
  if (!have_gpu()) return;
  Twins twins;
  for (const Dims& shape : {Dims{1, 1}, {7, 13}, {300, 129}})
    for (const double rate : {0.1, 0.15, 0.25}) {
      const Twin factors = twins.poison(shape);
      twins.run([&](const Kernels& k, auto at) {
        k.draw_dropout(Rng(7, {1, 2, uint64_t(shape[0]), 4}), rate, at(factors));
      });
      same("factors", factors, 0);
    }
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Twin letters = twins.integers({5, 37}, 23), has = twins.mask({5, 37}),
               value = twins.normal({5, 37}), out = twins.poison({5, 37, 25}, dtype);
    twins.run([&](const Kernels& k, auto at) {
      k.extra_msa_features(at(letters), at(has), at(value), at(out));
    });
    same("features", out, 0);
  }
}

TEST_CASE("GPU: a template's features and expectations of logits") {
  if (!have_gpu()) return;
  Twins twins;
  for (const int64_t n : {1, 37, 129}) {
    INFO(n << " residues");
    const int64_t rows = n - n / 3, first = n - rows, bins = 39;
    const Tensor squares = Tensor::empty({bins + 1});
    for (int64_t k = 0; k <= bins; ++k) squares.data<float>()[k] = float(k < bins ? k * k : 1e8);
    const Twin types = twins.integers({n}, 22), beta = twins.normal({n, 3}, Dtype::f32, 12),
               beta_mask = twins.mask({n}), backbone = twins.mask({n}),
               frames = wide(twins.normal({n, 12}, Dtype::f32, 5)), edges = twins.of(squares),
               out = twins.poison({rows, n, bins + 49});
    for (const bool unit_vector : {false, true}) {
      twins.run([&](const Kernels& k, auto at) {
        k.template_pair_features(
            {at(types), at(beta), at(beta_mask), at(backbone), at(frames), at(edges), unit_vector},
            first, at(out));
      });
      same("template features", out, unit_vector ? kTolerance : 0);
    }
  }
  for (const Dims& shape : {Dims{1, 2}, {77, 50}, {5003, 64}}) {
    const Twin logits = twins.normal(shape, Dtype::f32, 5), values = wide(twins.normal({shape[1]})),
               out = wide(twins.poison({shape[0]}));
    twins.run([&](const Kernels& k, auto at) { k.expectations(at(logits), at(values), at(out)); });
    same("expectations", out, Tolerance::of(Dtype::f64));
  }
}

TEST_CASE("GPU: violations of bonds, angles and distances, with their gradient") {
  if (!have_gpu()) return;
  Twins twins;
  for (const int64_t n : {1, 2, 7, 60}) {
    INFO(n << " residues");
    const Dims flags{n, 14}, table{21, 14, 14};
    const Tensor number = Tensor::zeros({n}, Dtype::f64), low = Tensor::zeros(table),
                 high = Tensor::zeros(table), radius = Tensor::zeros(flags, Dtype::f64);
    for (int64_t i = 0; i < n; ++i) number.data<double>()[i] = double(i + (i > n / 2 ? 3 : 0));
    for (int64_t i = 0; i < low.numel(); ++i) {
      low.data<float>()[i] = float(i % 5) * 0.5f;
      high.data<float>()[i] = low.data<float>()[i] + 1;
    }
    for (int64_t i = 0; i < radius.numel(); ++i) radius.data<double>()[i] = 1.5 + double(i % 3) / 8;
    const Twin atoms = exact(twins.normal({n, 14, 3}, Dtype::f32, 4)),
               exists = wide(twins.mask(flags)), radii = twins.of(radius), index = twins.of(number),
               types = twins.integers({n}, 21), lower = twins.of(low), upper = twins.of(high),
               loss = wide(twins.poison({1})), connections = wide(twins.poison({2, 3, n})),
               clashes = wide(twins.poison({2, n, 14})), within = wide(twins.poison({2, n, 14})),
               means = wide(twins.poison({4})), d = exact(twins.of(Tensor::zeros({n, 14, 3})));
    twins.run([&](const Kernels& k, auto at) {
      k.violations(
          {at(atoms), at(exists), at(radii), at(index), at(types), at(lower), at(upper), 14}, 12,
          1.5, at(loss), {at(connections), at(clashes), at(within), at(means)}, at(d));
    });
    constexpr double kExact = Tolerance::of(Dtype::f64);
    same("loss", loss, kExact);
    same("connections", connections, kExact);
    same("clashes", clashes, kExact);
    same("within", within, kExact);
    same("means", means, kExact);
    CHECK(norm_error(d.gpu, d.cpu) < 1e-6);
  }
}
