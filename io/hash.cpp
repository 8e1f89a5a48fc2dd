// SHA-256 by OpenSSL's libcrypto.
#include "io/hash.h"

#include <openssl/evp.h>

#include <fstream>
#include <memory>
#include <vector>

#include "core/base/error.h"

namespace ff {
namespace {

class Sha256 {
 public:
  Sha256() { check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1, "SHA-256"); }
  void update(const char* data, size_t bytes) { EVP_DigestUpdate(context_.get(), data, bytes); }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &size);
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (unsigned i = 0; i < size; ++i) {
      text += kDigits[digest[i] >> 4];
      text += kDigits[digest[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_{EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free};
};

}  // namespace

std::string sha256(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

std::string sha256_of_file(const std::string& path) {
  constexpr size_t kChunk = size_t(1) << 20;
  std::ifstream in(path, std::ios::binary);
  check_input(in.good(), path, ": cannot be opened");
  std::vector<char> chunk(kChunk);
  Sha256 hash;
  while (in.read(chunk.data(), std::streamsize(kChunk)) || in.gcount() > 0)
    hash.update(chunk.data(), size_t(in.gcount()));
  check_input(in.eof(), path, ": cannot be read to its end");
  return hash.hex();
}

}  // namespace ff
