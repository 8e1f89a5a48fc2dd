// Random choices of slices as arrays, so that a slice can be made again elsewhere.
#pragma once

#include "io/features.h"

namespace ff {

/// Choices of some slices of one alignment of `n_res` columns, under the names of AlphaFold's steps
/// with a leading axis of slices: random/shuffle0, random/shuffle1, step1/bert_mask (f32) and
/// step1/msa; nonensembled/random_crop_to_size_seed [2] once for all.
Arrays to_arrays(std::span<const Choices> slices, int64_t n_res);

/// The reverse, for this alignment. Names may begin with "choices/", other arrays are left alone;
/// without the leading axis there is one slice. Throws Exit::kInput naming `path` and the key on a
/// missing array, a wrong shape, or what is no order of the alignment's rows, no mask or no letter.
std::vector<Choices> choices_from_arrays(const Arrays& arrays, const std::string& path,
                                         const RawFeatures& raw, const DataConfig& config);

/// Tensors of one shape stacked on a new leading axis.
Tensor stacked(std::span<const Tensor> parts);

}  // namespace ff
