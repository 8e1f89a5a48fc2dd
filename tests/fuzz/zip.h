// Builds zip archives with one member, right or wrong on purpose, for tests of the reader.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <string>

namespace ff {

/// A member as the archive shall describe it; zero sizes and checksum stand for the true ones.
struct ZipMember {
  std::string name = "x.npy";
  std::string contents;
  bool deflated = false;
  uint32_t claimed_size = 0, claimed_packed = 0;
};

inline std::string deflate_raw(const std::string& bytes) {
  z_stream z{};
  deflateInit2(&z, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&z, bytes.size()), '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  z.avail_in = uInt(bytes.size());
  z.next_out = reinterpret_cast<Bytef*>(packed.data());
  z.avail_out = uInt(packed.size());
  deflate(&z, Z_FINISH);
  packed.resize(z.total_out);
  deflateEnd(&z);
  return packed;
}

inline void append_bytes(std::string& to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to += char(i < 8 ? value >> (8 * i) : 0);
}

/// `copies` directory entries point at the one member.
inline std::string make_zip(const ZipMember& m, int copies = 1) {
  const std::string data = m.deflated ? deflate_raw(m.contents) : m.contents;
  std::string fields;  // from "version needed" to "length of the extra field"
  append_bytes(fields, 20, 2);
  append_bytes(fields, 0, 2);
  append_bytes(fields, m.deflated ? 8 : 0, 2);
  append_bytes(fields, 0, 4);
  append_bytes(fields,
               crc32(0, reinterpret_cast<const Bytef*>(m.contents.data()), m.contents.size()), 4);
  append_bytes(fields, m.claimed_packed ? m.claimed_packed : data.size(), 4);
  append_bytes(fields, m.claimed_size ? m.claimed_size : m.contents.size(), 4);
  append_bytes(fields, m.name.size(), 2);
  append_bytes(fields, 0, 2);
  std::string directory;
  for (int i = 0; i < copies; ++i) {
    directory += std::string("PK\x01\x02\x14\x00", 6) + fields;
    directory.append(14, '\0');  // comment, disk, attributes, offset 0
    directory += m.name;
  }
  std::string zip = "PK\x03\x04" + fields + m.name + data;
  const uint64_t start = zip.size();
  zip += directory + std::string("PK\x05\x06\0\0\0\0", 8);
  append_bytes(zip, uint64_t(copies), 2);
  append_bytes(zip, uint64_t(copies), 2);
  append_bytes(zip, directory.size(), 4);
  append_bytes(zip, start, 4);
  append_bytes(zip, 0, 2);
  return zip;
}

/// A .npy file, version 1, of the header's dictionary and the data.
inline std::string make_npy(const std::string& dictionary, const std::string& data) {
  std::string npy("\x93NUMPY\x01\x00", 8);
  append_bytes(npy, dictionary.size() + 1, 2);
  return npy + dictionary + "\n" + data;
}

}  // namespace ff
