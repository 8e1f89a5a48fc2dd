// Checkpoints: named arrays and texts in one HDF5 file, checked as a whole before it is used.
//
// A file is a user block of 512 bytes ("fastfold checkpoint", size and CRC-32 of the rest), which
// HDF5 tools skip, then ordinary HDF5: root attributes `kind` and `format_version`, one dataset per
// array under /arrays, one string dataset per attribute under /attributes. Values are little-endian
// f32, f64, i32; bf16 is stored as its 16 bits (u16).
//
// Names keep their "/" as groups. HDF5 has no empty, "." or doubled parts and no dataset with the
// name of a group, so within a part "%" becomes "%25", the part "." becomes "%2E", an empty part
// "%", and a dataset beside a group of its name gets a "%" at its end: "a/b//weights" is
// /arrays/a/b/%/weights.
#pragma once

#include <map>
#include <string>

#include "core/tensor/arrays.h"

namespace ff {

/// Texts that travel with a checkpoint: configuration, step, random state. No zero bytes.
using Attributes = std::map<std::string, std::string>;

/// Writes beside `path` and renames (AtomicFile). Deterministic bytes. Throws Exit::kDevice when
/// the disk is full.
void write_checkpoint(const std::string& path, const Arrays& arrays,
                      const Attributes& attributes = {});

/// All arrays, bit for bit and in their dtypes; the texts into `attributes` where given. Throws
/// Exit::kInput on other files, damage and newer formats. The checksum keeps damage away from
/// HDF5 1.10, which can crash on it; a file forged on purpose, checksum and all, still can do that.
Arrays read_checkpoint(const std::string& path, Attributes* attributes = nullptr);

}  // namespace ff
