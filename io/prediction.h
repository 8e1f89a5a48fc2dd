// What one prediction is to those who write, rank and draw it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/tensor/tensor.h"

namespace ff {

/// The structure that one model predicted with one seed, and how sure it is of it.
struct Prediction {
  std::string model;  ///< "model_1_ptm"
  uint64_t seed = 0;
  Tensor aatype;              ///< [n_res] i32, 20 = unknown
  Tensor positions;           ///< [n_res, 37, 3] f32, angstrom
  Tensor mask;                ///< [n_res, 37] f32, an atom is there from 0.5 on
  Tensor plddt;               ///< [n_res] f32, 0 to 100
  Tensor pae;                 ///< [n_res, n_res] f32, angstrom; undefined without the head
  double max_pae = 0;         ///< angstrom: the largest that the head can say (31.75)
  std::optional<double> ptm;  ///< 0 to 1; with the head only
  double mean_plddt = 0;
  int64_t num_recycles = 0;  ///< that were run
  bool templates = false;    ///< the model was given some
};

}  // namespace ff
