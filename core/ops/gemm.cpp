// Matrix products on the CPU: oneDNN's matmul with a cache of primitives by shape.
#include "core/ops/gemm.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

namespace ff::cpu {
namespace {

using dnnl::memory;

constexpr size_t kMostPrimitives = 192;  ///< kept by each thread, and by oneDNN for all

dnnl::engine& engine() {
  static dnnl::engine e = [] {
    dnnl::set_primitive_cache_capacity(int(kMostPrimitives));
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return e;
}
dnnl::stream& stream() {
  thread_local dnnl::stream s(engine());
  return s;
}

memory::data_type type_of(Dtype dtype) {
  return dtype == Dtype::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

using Key = std::array<int64_t, 16>;
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t h = 0xcbf29ce484222325u;
    for (int64_t x : key) h = (h ^ uint64_t(x)) * 0x100000001b3u;
    return h;
  }
};

struct Product {
  dnnl::matmul primitive;
  memory::desc a, b, c, bias;
};

memory::desc desc(const Tensor& t) {
  return {{t.size(0), t.size(1), t.size(2)},
          type_of(t.dtype()),
          {t.stride(0), t.stride(1), t.stride(2)}};
}

const Product& product(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c,
                       Activation act, bool accumulate) {
  // oneDNN wants a primitive executed by the thread that made it, and plans it for the threads it
  // may use.
  thread_local std::unordered_map<Key, Product, KeyHash> cache;
  const Key key = {a.size(0),
                   b.size(0),
                   a.size(1),
                   a.size(2),
                   c.size(2),
                   a.stride(0),
                   a.stride(1),
                   a.stride(2),
                   b.stride(0),
                   b.stride(1),
                   b.stride(2),
                   c.stride(0),
                   c.stride(1),
                   c.stride(2),
                   int64_t(act) * 4 + accumulate * 2 + bias.defined(),
                   int64_t(a.dtype()) * 8 + int64_t(c.dtype()) * 2 + omp_in_parallel()};
  if (auto it = cache.find(key); it != cache.end()) return it->second;
  // One protein meets under a hundred shapes a thread; a batch of many lengths would keep them all.
  if (cache.size() >= kMostPrimitives) cache.clear();
  Product p;
  p.a = desc(a);
  p.b = desc(b);
  p.c = desc(c);
  dnnl::primitive_attr attr;
  dnnl::post_ops post;
  if (accumulate) post.append_sum(1.0f);
  if (act == Activation::kRelu)
    post.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
  if (act == Activation::kSigmoid)
    post.append_eltwise(1.0f, dnnl::algorithm::eltwise_logistic, 0.0f, 0.0f);
  attr.set_post_ops(post);
  if (bias) {
    p.bias = memory::desc({1, 1, c.size(2)}, memory::data_type::f32, memory::format_tag::abc);
    p.primitive = dnnl::matmul({{p.a, p.b, p.bias, p.c}, attr, engine()});
  } else {
    p.primitive = dnnl::matmul({{p.a, p.b, p.c}, attr, engine()});
  }
  return cache.emplace(key, std::move(p)).first->second;
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c, Activation act,
              bool accumulate) {
  const Product& p = product(a, b, bias, c, act, accumulate);
  std::unordered_map<int, memory> args = {{DNNL_ARG_SRC, memory(p.a, engine(), a.raw())},
                                          {DNNL_ARG_WEIGHTS, memory(p.b, engine(), b.raw())},
                                          {DNNL_ARG_DST, memory(p.c, engine(), c.raw())}};
  if (bias) args.emplace(DNNL_ARG_BIAS, memory(p.bias, engine(), bias.raw()));
  p.primitive.execute(stream(), args);
  stream().wait();
}

void gemm_f64(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c, Activation act,
              bool accumulate) {
  const int64_t batch = c.size(0), m = c.size(1), n = c.size(2), k = a.size(2);
#pragma omp parallel for collapse(2)
  for (int64_t s = 0; s < batch; ++s)
    for (int64_t i = 0; i < m; ++i) {
      const double* pa =
          a.data<double>() + (a.size(0) == 1 ? 0 : s) * a.stride(0) + i * a.stride(1);
      const double* pb = b.data<double>() + (b.size(0) == 1 ? 0 : s) * b.stride(0);
      double* pc = c.data<double>() + s * c.stride(0) + i * c.stride(1);
      std::vector<double> sum(n, 0.0);
      if (bias) std::copy_n(bias.data<double>(), n, sum.begin());
      for (int64_t l = 0; l < k; ++l) {
        const double x = pa[l * a.stride(2)];
        const double* row = pb + l * b.stride(1);
        for (int64_t j = 0; j < n; ++j) sum[j] += x * row[j * b.stride(2)];
      }
      for (int64_t j = 0; j < n; ++j) {
        double v = sum[j];
        if (act == Activation::kRelu) v = std::max(v, 0.0);
        if (act == Activation::kSigmoid) v = 1 / (1 + std::exp(-v));
        double& out = pc[j * c.stride(2)];
        out = accumulate ? out + v : v;
      }
    }
}

}  // namespace

bool has_bf16_units() {
  static const bool yes = __builtin_cpu_supports("avx512bf16");
  return yes;
}

void gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c, Activation act,
          bool accumulate) {
  check(a.rank() == 3 && b.rank() == 3 && c.rank() == 3 && a.size(2) == b.size(1) &&
            a.size(1) == c.size(1) && b.size(2) == c.size(2) &&
            (a.size(0) == c.size(0) || a.size(0) == 1) &&
            (b.size(0) == c.size(0) || b.size(0) == 1),
        "matrix product of ", a.shape(), " and ", b.shape(), " into ", c.shape());
  check(a.dtype() == b.dtype() &&
            (a.dtype() == c.dtype() || (a.dtype() == Dtype::bf16 && c.dtype() == Dtype::f32)),
        "matrix product of ", name_of(a.dtype()), " and ", name_of(b.dtype()), " into ",
        name_of(c.dtype()));
  if (!c.numel()) return;
  if (a.dtype() == Dtype::f64) return gemm_f64(a, b, bias, c, act, accumulate);
  if (a.dtype() == Dtype::bf16 && !has_bf16_units()) {
    const bool narrow = c.dtype() == Dtype::bf16;
    const Tensor wide = !narrow ? c : accumulate ? c.to(Dtype::f32) : Tensor::empty(c.shape());
    gemm(a.to(Dtype::f32), b.to(Dtype::f32), bias, wide, act, accumulate);
    if (narrow) c.copy_from(wide);
    return;
  }
  if (!omp_in_parallel() && !__builtin_cpu_supports("avx512f")) {
    // oneDNN's products for AVX2 sum in another order with another number of threads: each of these
    // parts, whose sizes do not depend on it, is one thread's.
    const int64_t m = c.size(1), step = std::clamp<int64_t>((m / 16 + 15) / 16 * 16, 32, 512),
                  parts = (m + step - 1) / step;
    const auto rows = [&](const Tensor& t, int64_t s, int64_t first) {
      return t.narrow(0, t.size(0) == 1 ? 0 : s, 1)
          .narrow(1, first, std::min(step, t.size(1) - first));
    };
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t s = 0; s < c.size(0); ++s)
      for (int64_t part = 0; part < parts; ++part)
        multiply(rows(a, s, part * step), b.narrow(0, b.size(0) == 1 ? 0 : s, 1), bias,
                 rows(c, s, part * step), act, accumulate);
    return;
  }
  multiply(a, b, bias, c, act, accumulate);
}

}  // namespace ff::cpu
