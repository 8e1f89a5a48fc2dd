// What stands for cuBLASLt and NCCL. Matrix products are summed in f64: errors that tests find are
// the kernels'.
#include "cuda/blas.h"

#include <bit>
#include <cstdint>
#include <vector>

#include "cuda/module_parts.h"
#include "cuda/nccl.h"
#include "cuda/runtime.h"

namespace ff::cuda {
namespace {

bool rows_lie(const Tensor& t) {
  return (t.size(2) == 1 || t.stride(2) == 1) && (t.size(1) == 1 || t.stride(1) >= t.size(2));
}

float rounded_to_tf32(float x) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000) & ~uint32_t(0x1fff));
}

/// A tensor [b, m, n], whose memory is another's: a product may be done later, from a graph.
struct Operand {
  explicit Operand(const Tensor& t) {
    if (!t) return;
    data = t.raw();
    dtype = t.dtype();
    for (int i = 0; i < t.rank(); ++i) size[i] = t.size(i), stride[i] = t.stride(i);
  }
  explicit operator bool() const { return data; }
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t size[3] = {}, stride[3] = {};
};

/// Calls f with a reader of an operand's elements [b, i, j]; a batch of one is shared.
template <class F>
void read(const Operand& t, F f) {
  const int64_t batch = t.size[0] == 1 ? 0 : t.stride[0], row = t.stride[1], column = t.stride[2];
  const auto reader = [=](const auto* data) {
    return [=](int64_t b, int64_t i, int64_t j) {
      return float(data[b * batch + i * row + j * column]);
    };
  };
  if (t.dtype == Dtype::bf16) return f(reader(static_cast<const bf16*>(t.data)));
  const auto exact = reader(static_cast<const float*>(t.data));
  tf32_products() ? f([=](auto... at) { return rounded_to_tf32(exact(at...)); }) : f(exact);
}

void multiply(const Operand& a, const Operand& w, const Operand& bias, Activation act, bool adds,
              const Operand& c) {
  const int64_t m = c.size[1], n = c.size[2], depth = a.size[2];
  std::vector<double> right(static_cast<size_t>(depth * n)), sums(static_cast<size_t>(n));
  const auto added = [&](int64_t j) {  // cuBLASLt takes a bias of its result's type
    const float x = bias.dtype == Dtype::bf16
                        ? float(static_cast<const bf16*>(bias.data)[j * bias.stride[0]])
                        : static_cast<const float*>(bias.data)[j * bias.stride[0]];
    return c.dtype == Dtype::bf16 ? float(bf16(x)) : x;
  };
  for (int64_t b = 0; b < c.size[0]; ++b) {
    if (b == 0 || w.size[0] > 1)
      read(w, [&](auto at) {
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t j = 0; j < n; ++j) right[size_t(k * n + j)] = at(b, k, j);
      });
    for (int64_t i = 0; i < m; ++i) {
      std::fill(sums.begin(), sums.end(), 0.0);
      read(a, [&](auto at) {
        for (int64_t k = 0; k < depth; ++k) {
          const double x = at(b, i, k), *y = right.data() + k * n;
          for (int64_t j = 0; j < n; ++j) sums[size_t(j)] += x * y[j];
        }
      });
      const auto store = [&](auto* to) {
        for (int64_t j = 0; j < n; ++j) {
          auto& x = to[b * c.stride[0] + i * c.stride[1] + j * c.stride[2]];
          auto sum = float(sums[size_t(j)]);
          if (bias) sum += added(j);
          if (adds) sum += float(x);
          if (act == Activation::kRelu && !(sum > 0)) sum = 0;
          x = std::decay_t<decltype(x)>(sum);
        }
      };
      c.dtype == Dtype::bf16 ? store(static_cast<bf16*>(c.data))
                             : store(static_cast<float*>(c.data));
    }
  }
}

}  // namespace

void open_blas() {}

bool find_blas(std::string& text) {
  text = "plain loops";
  return true;
}

bool product(const Tensor& a, const Tensor& w, const Tensor& bias, Activation act,
             const Tensor& base, const Tensor& c) {
  if (!rows_lie(c) && bias) return false;
  if (base && base.raw() != c.raw()) c.copy_from(base);
  if (Recorder* const recorder = Recorder::current()) {
    if (!recorder->fixed({a.raw(), w.raw(), bias ? bias.raw() : nullptr, c.raw()})) return true;
  } else {
    count_launch();
  }
  const auto multiplied = [=, a = Operand(a), w = Operand(w), bias = Operand(bias),
                           adds = bool(base),
                           c = Operand(c)] { multiply(a, w, bias, act, adds, c); };
  emulated::captures() ? emulated::capture(multiplied) : multiplied();
  return true;
}

bool find_nccl(std::string& text) {
  text = "the GPU is emulated, and NCCL knows none";
  return false;
}

std::string nccl_id() { fail(Exit::kDevice, "an emulated GPU has no NCCL"); }

std::unique_ptr<NcclGroup> join_nccl(const std::string&, int, int) {
  fail(Exit::kDevice, "an emulated GPU has no NCCL");
}

}  // namespace ff::cuda
