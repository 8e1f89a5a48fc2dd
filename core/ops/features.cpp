// Features, dropout's masks and expectations on the CPU.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/plain_kernels.h"
#include "core/ops/real_type.h"

namespace ff::cpu {

void draw_dropout(const Rng& rng, double rate, const Tensor& factors) {
  const int64_t n = factors.numel();
  by_real_type(factors, [&](auto zero) {
    using T = decltype(zero);
    const T keep = T(1 / (1 - rate));
    for (int64_t i = 0; i < n; i += 4) {
      const auto words = rng.block(uint64_t(i / 4));
      for (int64_t k = 0; k < 4 && i + k < n; ++k)
        factors.data<T>()[i + k] = double(unit_float(words[size_t(k)])) < rate ? T(0) : keep;
    }
  });
}

void extra_msa_features(const Tensor& letters, const Tensor& has_deletion,
                        const Tensor& deletion_value, const Tensor& out) {
  constexpr int64_t kLetters = 23, kChannels = 25;
  const int32_t* letter = letters.data<int32_t>();
  const float *has = has_deletion.data<float>(), *value = deletion_value.data<float>();
  const auto fill = [&](auto* to) {
    using T = std::decay_t<decltype(*to)>;
#pragma omp parallel for
    for (int64_t i = 0; i < letters.numel(); ++i) {
      T* row = to + i * kChannels;
      std::fill_n(row, kLetters, T(0.0f));
      row[letter[i]] = T(1.0f);
      row[kLetters] = T(has[i]);
      row[kLetters + 1] = T(value[i]);
    }
  };
  switch (out.dtype()) {
    case Dtype::bf16:
      return fill(out.data<bf16>());
    case Dtype::f64:
      return fill(out.data<double>());
    default:
      return fill(out.data<float>());
  }
}

void template_pair_features(const TemplateTensors& in, int64_t first_row, const Tensor& out) {
  constexpr int kLetters = 22;  // amino acids, X and the gap
  const int64_t rows = out.size(0), n = out.size(1), channels = out.size(2),
                bins = in.edges.numel() - 1;
  const int32_t* type = in.types.data<int32_t>();
  const float *b = in.beta.data<float>(), *there = in.beta_mask.data<float>(),
              *backbone = in.backbone.data<float>(), *edges = in.edges.data<float>();
  const double* frames = in.frames.data<double>();
  std::fill_n(out.data<float>(), out.numel(), 0.0f);
#pragma omp parallel for
  for (int64_t i = first_row; i < first_row + rows; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const float keep = backbone[i] * backbone[j];
      if (keep == 0) continue;
      float* to = out.data<float>() + ((i - first_row) * n + j) * channels;
      float dist2 = 0;
      for (int x = 0; x < 3; ++x)
        dist2 += (b[3 * i + x] - b[3 * j + x]) * (b[3 * i + x] - b[3 * j + x]);
      for (int64_t k = 0; k < bins; ++k)
        if (dist2 > edges[k] && dist2 < edges[k + 1]) to[k] = keep;
      to += bins;
      *to++ = there[i] * there[j] * keep;
      to[type[j]] = keep;
      to[kLetters + type[i]] = keep;
      to += 2 * kLetters;
      if (in.unit_vector) {
        const double *r = frames + 12 * i, *other = frames + 12 * j + 9;
        const double d[] = {other[0] - r[9], other[1] - r[10], other[2] - r[11]};
        double v[3];
        for (int x = 0; x < 3; ++x) v[x] = r[x] * d[0] + r[3 + x] * d[1] + r[6 + x] * d[2];
        const double scale = keep / std::sqrt(1e-6 + v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        for (int x = 0; x < 3; ++x) to[x] = float(v[x] * scale);
      }
      to[3] = keep;
    }
}

void expectations(const Tensor& logits, const Tensor& values, const Tensor& out) {
  const int64_t bins = logits.size(-1), rows = out.numel();
  const double* value = values.data<double>();
  by_real_type(logits, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = logits.data<T>() + r * bins;
      const double high = double(*std::max_element(row, row + bins));
      double total = 0, sum = 0;
      for (int64_t b = 0; b < bins; ++b) {
        const double e = std::exp(double(row[b]) - high);
        total += e;
        sum += e * value[b];
      }
      out.data<double>()[r] = sum / total;
    }
  });
}

}  // namespace ff::cpu
