// Random choices of slices as arrays, checked when they are read.
#include "io/choices.h"

#include <algorithm>

#include "core/geometry/residue_constants.h"
#include "io/transforms.h"

namespace ff {
namespace {

constexpr const char *kShuffle0 = "random/shuffle0", *kShuffle1 = "random/shuffle1",
                     *kBertMask = "step1/bert_mask", *kMsa = "step1/msa",
                     *kCropSeed = "nonensembled/random_crop_to_size_seed";

/// Reads the arrays of a file of choices.
struct Reader {
  const Arrays& arrays;
  const std::string& path;

  /// The array, or an undefined tensor.
  Tensor find(const std::string& key) const {
    for (const std::string& name : {"choices/" + key, key})
      if (const auto it = arrays.find(name); it != arrays.end()) return it->second;
    return {};
  }

  /// [slices, shape...], whole numbers from `least` to `most`.
  Tensor take(const std::string& key, const Dims& shape, int32_t least, int32_t most) const {
    Tensor t = find(key);
    check_input(t.defined(), path, ": no array '", key, "'; expected the choices of a slice");
    if (t.rank() == shape.size()) t = t.unsqueeze(0);
    Dims wanted{t.rank() ? t.size(0) : 0};
    for (const int64_t n : shape) wanted.push_back(n);
    check_input(t.shape() == wanted && t.dtype() != Dtype::bf16, path, ": '", key, "' is ",
                name_of(t.dtype()), " ", t.shape(), ", expected ", shape,
                " with or without an axis of slices before; are these the choices for another "
                "alignment or preset?");
    const Tensor values = t.to(Dtype::f64).contiguous();
    for (int64_t i = 0; i < values.numel(); ++i) {
      const double value = values.data<double>()[i];
      check_input(value >= least && value <= most && value == double(int32_t(value)), path, ": '",
                  key, "' has the value ", value, ", expected ", least, " to ", most);
    }
    return values.to(Dtype::i32);
  }

  /// `order` must not name a row twice.
  void check_order(const std::string& key, std::span<const int32_t> order, int64_t rows) const {
    std::vector<bool> seen(rows);
    for (const int32_t row : order) {
      check_input(!seen[row], path, ": '", key, "' names row ", row,
                  " twice, expected an order of the rows");
      seen[row] = true;
    }
  }
};

template <class To>
std::vector<To> values_of(const Tensor& t) {
  const Tensor whole = t.contiguous();
  return {whole.data<int32_t>(), whole.data<int32_t>() + whole.numel()};
}

template <class From>
Tensor ints(const Dims& shape, const std::vector<From>& values) {
  Tensor t = Tensor::empty(shape, Dtype::i32);
  std::copy(values.begin(), values.end(), t.data<int32_t>());
  return t;
}

}  // namespace

Tensor stacked(std::span<const Tensor> parts) {
  Dims shape{std::ssize(parts)};
  for (const int64_t n : parts[0].shape()) shape.push_back(n);
  const Tensor all = Tensor::empty(shape, parts[0].dtype());
  for (int64_t i = 0; i < std::ssize(parts); ++i) all.select(0, i).copy_from(parts[i]);
  return all;
}

Arrays to_arrays(std::span<const Choices> slices, int64_t n_res) {
  std::vector<Tensor> shuffle0, shuffle1, bert_mask, msa;
  for (const Choices& c : slices) {
    const int64_t rows = std::ssize(c.msa) / n_res;
    shuffle0.push_back(ints({std::ssize(c.shuffle0)}, c.shuffle0));
    shuffle1.push_back(ints({std::ssize(c.shuffle1)}, c.shuffle1));
    bert_mask.push_back(ints({rows, n_res}, c.bert_mask).to(Dtype::f32));
    msa.push_back(ints({rows, n_res}, c.msa));
  }
  return {{kShuffle0, stacked(shuffle0)},
          {kShuffle1, stacked(shuffle1)},
          {kBertMask, stacked(bert_mask)},
          {kMsa, stacked(msa)},
          {kCropSeed, Tensor::of({2}, slices[0].random_crop_to_size_seed)}};
}

std::vector<Choices> choices_from_arrays(const Arrays& arrays, const std::string& path,
                                         const RawFeatures& raw, const DataConfig& config) {
  const Reader reader{arrays, path};
  const int64_t n_res = raw.n_res(), n_clusters = std::min(cluster_count(config), raw.n_seq),
                n_extra = raw.n_seq - n_clusters;
  const auto last = int32_t(std::max<int64_t>(n_extra - 1, 0));
  const Tensor shuffle0 = reader.take(kShuffle0, {raw.n_seq - 1}, 1, int32_t(raw.n_seq - 1)),
               shuffle1 = reader.take(kShuffle1, {n_extra}, 0, last),
               mask = reader.take(kBertMask, {n_clusters, n_res}, 0, 1),
               msa = reader.take(kMsa, {n_clusters, n_res}, 0, kMaskRestype);
  const Tensor seed = reader.find(kCropSeed);
  check_input(!seed.defined() || (seed.dtype() == Dtype::i32 && seed.shape() == Dims{2}), path,
              ": '", kCropSeed, "' is no [2] of integers");
  const int64_t n_slices = shuffle0.size(0);
  for (const Tensor& other : {shuffle1, mask, msa})
    check_input(other.size(0) == n_slices && n_slices > 0, path, ": '", kShuffle0, "' is of ",
                n_slices, " slices, another array of ", other.size(0));
  std::vector<Choices> slices(n_slices);
  for (int64_t i = 0; i < n_slices; ++i) {
    Choices& c = slices[i];
    c.shuffle0 = values_of<int32_t>(shuffle0.select(0, i));
    c.shuffle1 = values_of<int32_t>(shuffle1.select(0, i));
    c.bert_mask = values_of<int8_t>(mask.select(0, i));
    c.msa = values_of<int8_t>(msa.select(0, i));
    reader.check_order(kShuffle0, c.shuffle0, raw.n_seq);
    reader.check_order(kShuffle1, c.shuffle1, n_extra);
    if (seed.defined()) std::copy_n(seed.data<int32_t>(), 2, c.random_crop_to_size_seed);
  }
  return slices;
}

}  // namespace ff
