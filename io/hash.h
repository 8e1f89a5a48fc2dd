// SHA-256, to say in records which file or settings a result came from.
#pragma once

#include <string>
#include <string_view>

namespace ff {

/// 64 hexadecimal digits.
std::string sha256(std::string_view bytes);

/// Of a file's bytes. Throws Exit::kInput where it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace ff
