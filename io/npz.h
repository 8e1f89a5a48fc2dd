// Reads and writes NumPy .npz archives (zip, stored or deflated, zip64, members in any order).
#pragma once

#include <string>
#include <string_view>

#include "core/tensor/arrays.h"

namespace ff {

/// All arrays of a file, the members' names without ".npy": floats (f2, f4, f8) as f32, integers
/// and booleans as i32, in C order. f8 stays f64 where `keep_f64`. Checksums are verified. Throws
/// Exit::kInput with the member's name on anything else, on damage, on integers beyond i32, and on
/// sizes that the file cannot hold.
Arrays read_npz(const std::string& path, bool keep_f64 = false);

/// The same for an archive in memory; `name` stands for the file in errors.
Arrays parse_npz(std::string_view bytes, const std::string& name, bool keep_f64 = false);

/// Writes to a temporary name beside `path`, then renames (AtomicFile). Deterministic bytes (no
/// time stamps). f32, f64, i32 as they are; bf16 as f32.
void write_npz(const std::string& path, const Arrays& arrays, bool compress = true);

}  // namespace ff
