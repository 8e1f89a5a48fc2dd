// The structure module's kernels on the GPU, in f32, against the CPU's in f64 on the same numbers:
// forward and backward, at odd sizes.
#include "tests/cuda/twins.h"

using namespace ff;
using namespace ff::test;

namespace {

constexpr double kTolerance = Tolerance::of(Dtype::f32);

/// The CPU's side in f64.
Twin exact(const Twin& t) {
  if (!t.cpu.defined() || t.cpu.dtype() != Dtype::f32) return t;
  const Tensor wide = t.cpu.to(Dtype::f64);
  return {wide, t.gpu, wide, t.gpu};
}

/// Random operands whose CPU side is f64.
struct Operands {
  Twin operator()(const Dims& shape, double spread = 1) {
    return exact(twins.normal(shape, Dtype::f32, spread));
  }
  Twin poison(const Dims& shape) { return exact(twins.poison(shape)); }
  Twin wanted(bool yes, const Dims& shape) { return yes ? (*this)(shape) : Twin(); }
  Twins twins;
};

const int64_t kSizes[] = {1, 7, 129, 300, 0};

struct Case {
  int64_t n, h, qk, v, point_qk, point_v, c_z;
  int64_t n_query() const { return n - n / 4; }  // a rank's own rows
};
const Case kCases[] = {{37, 12, 16, 16, 4, 8, 128}, {5, 3, 5, 6, 3, 4, 19},
                       {1, 1, 1, 1, 1, 1, 1},       {64, 7, 4, 8, 2, 3, 33},
                       {19, 13, 40, 70, 2, 5, 260}, {200, 12, 16, 16, 4, 8, 128}};

struct Ipa {
  Twin q, kv, q_point, kv_point, affine, bias, z, query_mask, mask, weights;

  Ipa(const Case& s, Operands& random)
      : q(random({s.n_query(), s.h * s.qk})),
        kv(random({s.n, s.h * (s.qk + s.v)})),
        q_point(random({s.n_query(), 3 * s.h * s.point_qk})),
        kv_point(random({s.n, 3 * s.h * (s.point_qk + s.point_v)})),
        affine(exact(random.twins.affines(s.n_query()))),
        bias(random({s.n_query(), s.n, s.h})),
        // Rows and columns apart from each other, as in a larger pair representation.
        z(random({s.n_query(), s.n + 1, s.c_z + 4}).view([&](const Tensor& t) {
          return t.narrow(1, 1, s.n).narrow(2, 0, s.c_z);
        })),
        weights(random({s.h})) {
    const Tensor keep = Tensor::empty({s.n});
    for (int64_t i = 0; i < s.n; ++i) keep.data<float>()[i] = i % 4 != 3;
    mask = exact(random.twins.of(keep));
    query_mask = exact(random.twins.of(keep.narrow(0, 0, s.n_query()).clone()));
  }

  template <class At>
  IpaTensors on(At at) const {
    return {at(q),    at(kv), at(q_point),    at(kv_point), at(affine),
            at(bias), at(z),  at(query_mask), at(mask),     at(weights)};
  }
};

}  // namespace

TEST_CASE("GPU: invariant point attention") {
  if (!have_gpu()) return;
  Operands random;
  for (const Case& s : kCases) {
    INFO("n " << s.n << ", heads " << s.h << ", c_z " << s.c_z);
    const Ipa in(s, random);
    const Dims shape{s.n_query(), s.h * (s.v + 4 * s.point_v + s.c_z)};
    const Twin out = random.poison(shape), dout = random(shape);
    random.twins.run(
        [&](const Kernels& k, auto at) { k.invariant_point_attention(in.on(at), at(out)); });
    // A masked query's logits are near -1e5, where f32 has steps of 0.008: its row is left out, and
    // nobody asks for its gradient.
    for (int64_t i = 0; i < s.n_query(); ++i) {
      if (i % 4 != 3)
        compare(cat("row ", i), out.gpu.select(0, i).to(Device{}), out.cpu.select(0, i),
                kTolerance);
      else
        for (const Tensor& t : {dout.cpu, dout.gpu})
          t.narrow(0, i, 1).copy_from(Tensor::zeros({1, shape[1]}));
    }
    for (int absent = -1; absent < 8; ++absent) {
      INFO("without gradient " << absent);
      const Twin dq = random.wanted(absent != 0, in.q.cpu.shape()),
                 dkv = random.wanted(absent != 1, in.kv.cpu.shape()),
                 dq_point = random.wanted(absent != 2, in.q_point.cpu.shape()),
                 dkv_point = random.wanted(absent != 3, in.kv_point.cpu.shape()),
                 daffine = random.wanted(absent != 4, {s.n_query(), 7}),
                 dbias = random.wanted(absent != 5, in.bias.cpu.shape()),
                 dz = random.wanted(absent != 6, {s.n_query(), s.n, s.c_z}),
                 dweights = random.wanted(absent != 7, {s.h});
      random.twins.run([&](const Kernels& k, auto at) {
        k.invariant_point_attention_backward(in.on(at), at(out), at(dout),
                                             {at(dq),
                                              at(dkv),
                                              at(dq_point),
                                              at(dkv_point),
                                              at(daffine),
                                              at(dbias),
                                              at(dz),
                                              {},
                                              {},
                                              at(dweights)});
      });
      agree("dq", dq, kTolerance);
      agree("dkv", dkv, kTolerance);
      agree("dq_point", dq_point, kTolerance);
      agree("dkv_point", dkv_point, kTolerance);
      agree("daffine", daffine, kTolerance);
      agree("dbias", dbias, kTolerance);
      agree("dz", dz, kTolerance);
      agree("dweights", dweights, kTolerance);
    }
  }
}

TEST_CASE("GPU: frames and points") {
  if (!have_gpu()) return;
  Operands random;
  for (int64_t n : kSizes)
    for (int64_t points : {1, 48, 144}) {
      INFO(n << " residues, " << points << " points");
      const Twin affine = exact(random.twins.affines(n)), p = random({n, 3 * points}),
                 update = random({n, 6}), d = random({n, 3 * points}), d7 = random({n, 7}),
                 d12 = random({n, 12});
      const Twin applied = random.poison({n, 3 * points}), updated = random.poison({n, 7}),
                 scaled = random.poison({n, 7}), frames = random.poison({n, 12});
      random.twins.run([&](const Kernels& k, auto at) {
        k.apply_rigids(at(affine), at(p), at(applied));
        k.update_backbone(at(affine), at(update), at(updated));
        k.scale_affine(at(affine), 0.5, 10, at(scaled));
        k.affine_frames(at(affine), at(frames));
      });
      agree("apply_rigids", applied, kTolerance);
      agree("update_backbone", updated, kTolerance);
      agree("scale_affine", scaled, kTolerance);
      agree("affine_frames", frames, kTolerance);
      for (int wanted : {3, 1, 2}) {
        INFO("gradients " << wanted);
        const Twin da = random.wanted(wanted & 1, {n, 7}),
                   dp = random.wanted(wanted & 2, {n, 3 * points}),
                   du = random.wanted(wanted & 2, {n, 6}), db = random.wanted(wanted & 1, {n, 7}),
                   df = random.wanted(wanted & 1, {n, 7});
        random.twins.run([&](const Kernels& k, auto at) {
          k.apply_rigids_backward(at(affine), at(p), at(d), at(da), at(dp));
          k.update_backbone_backward(at(affine), at(update), at(d7), at(db), at(du));
          if (wanted & 1) k.affine_frames_backward(at(affine), at(d12), at(df));
        });
        agree("apply_rigids: daffine", da, kTolerance);
        agree("apply_rigids: dpoints", dp, kTolerance);
        agree("update_backbone: daffine", db, kTolerance);
        agree("update_backbone: dupdate", du, kTolerance);
        agree("affine_frames: daffine", df, kTolerance);
      }
    }
}

TEST_CASE("GPU: torsions and atoms") {
  if (!have_gpu()) return;
  Operands random;
  // The tables stay f32 on both sides.
  const Twin table = random.twins.normal({21, 8, 4, 4}, Dtype::f32, 0.4),
             group = random.twins.integers({21, 14}, 8),
             positions = random.twins.normal({21, 14, 3}), mask14 = random.twins.mask({21, 14});
  for (int64_t n : kSizes) {
    INFO(n << " residues");
    const Twin affine = exact(random.twins.affines(n)), x = random({n, 14}),
               aatype = random.twins.integers({n}, 21), index = random.twins.integers({n, 37}, 14),
               mask37 = random.twins.mask({n, 37}), all_frames = random({n, 8, 12}),
               atoms14 = random({n, 14, 3});
    // A pair that is too short to be divided by its length.
    if (n)
      for (const Tensor& t : {x.cpu, x.gpu})
        t.narrow(0, n / 2, 1).narrow(1, 4, 2).copy_from(Tensor::zeros({1, 2}));
    const Twin unit = random.poison({n, 7, 2}), frames = random.poison({n, 8, 12}),
               atoms = random.poison({n, 14, 3}), atoms37 = random.poison({n, 37, 3});
    const Twin angles = random({n, 7, 2});
    random.twins.run([&](const Kernels& k, auto at) {
      k.normalize_pairs(at(x), at(unit));
      k.torsions_to_frames(at(affine), at(angles), at(aatype), at(table), at(frames));
      k.frames_to_atom14(at(all_frames), at(aatype), at(group), at(positions), at(mask14),
                         at(atoms));
      k.atom14_to_atom37(at(atoms14), at(index), at(mask37), at(atoms37));
    });
    agree("normalize_pairs", unit, kTolerance);
    agree("torsions_to_frames", frames, kTolerance);
    agree("frames_to_atom14", atoms, kTolerance);
    agree("atom14_to_atom37", atoms37, kTolerance);
    const Twin dpairs = random({n, 7, 2}), d8 = random({n, 8, 12}), d14 = random({n, 14, 3}),
               d37 = random({n, 37, 3}), dx = random({n, 14}), dframes = random({n, 8, 12}),
               datoms = random({n, 14, 3});
    random.twins.run([&](const Kernels& k, auto at) {
      k.normalize_pairs_backward(at(x), at(unit), at(dpairs), at(dx));
      k.frames_to_atom14_backward(at(aatype), at(group), at(positions), at(mask14), at(d14),
                                  at(dframes));
      k.atom14_to_atom37_backward(at(index), at(mask37), at(d37), at(datoms));
    });
    // The short pair's gradient is divided by 1e-6.
    agree("normalize_pairs: dx", dx, kTolerance);
    agree("frames_to_atom14: dframes", dframes, kTolerance);
    agree("atom14_to_atom37: datoms", datoms, kTolerance);
    for (int wanted : {3, 1, 2}) {
      INFO("gradients " << wanted);
      const Twin da = random.wanted(wanted & 1, {n, 7}),
                 dangles = random.wanted(wanted & 2, {n, 7, 2});
      random.twins.run([&](const Kernels& k, auto at) {
        k.torsions_to_frames_backward(at(affine), at(angles), at(aatype), at(table), at(d8), at(da),
                                      at(dangles));
      });
      agree("torsions_to_frames: daffine", da, kTolerance);
      agree("torsions_to_frames: dangles", dangles, kTolerance);
    }
  }
}

TEST_CASE("GPU: relu and symmetrize") {
  if (!have_gpu()) return;
  Operands random;
  for (const Dims& shape : {Dims{1, 1, 1}, {7, 7, 37}, {65, 65, 64}, {0, 0, 64}}) {
    INFO(shape);
    const Twin x = random(shape), positive = random.poison(shape), sum = random.poison(shape);
    random.twins.run([&](const Kernels& k, auto at) {
      k.relu(at(x), at(positive));
      k.symmetrize(at(x), at(sum));
    });
    agree("relu", positive, kTolerance);
    agree("symmetrize", sum, kTolerance);
  }
}
