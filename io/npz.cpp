// .npz archives: their members' headers, and contents read straight into tensors.
#include "io/npz.h"

#include <immintrin.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "io/zip.h"

namespace ff {
namespace {

using zip::check_member;
using zip::kChunk;
using zip::Member;
using zip::MemberReader;
using zip::Source;

struct NpyHeader {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

/// Parses the header's Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4),
/// }.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  /// Nothing when the text is not such a dictionary. A structured dtype gives descr "[".
  std::optional<NpyHeader> parse() {
    NpyHeader h;
    bool descr = false, order = false, shape = false;
    if (!take("{")) return {};
    while (!take("}")) {
      std::string key;
      if (!string(key) || !take(":")) return {};
      if (key == "descr" && !descr) {
        descr = true;
        if (take("[")) {
          h.descr = "[";
          return h;
        }
        if (!string(h.descr)) return {};
      } else if (key == "fortran_order" && !order) {
        order = true;
        h.fortran_order = take("True");
        if (!h.fortran_order && !take("False")) return {};
      } else if (key == "shape" && !shape) {
        shape = true;
        if (!tuple(h.shape)) return {};
      } else {
        return {};
      }
      if (!take(",") && !at("}")) return {};
    }
    skip();
    if (!text_.empty() || !descr || !order || !shape) return {};
    return h;
  }

 private:
  void skip() { text_.remove_prefix(std::min(text_.find_first_not_of(" \t\n"), text_.size())); }
  bool at(std::string_view token) {
    skip();
    return text_.starts_with(token);
  }
  bool take(std::string_view token) {
    if (!at(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  bool string(std::string& value) {
    const char quote = at("'") ? '\'' : '"';
    if (!take({&quote, 1})) return false;
    const size_t end = text_.find(quote);
    if (end == std::string_view::npos) return false;
    value = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return true;
  }
  bool tuple(std::vector<int64_t>& values) {
    if (!take("(")) return false;
    while (!take(")")) {
      skip();
      int64_t value = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
      if (error != std::errc() || value < 0) return false;
      text_.remove_prefix(size_t(end - text_.data()));
      take("L");  // Python 2 wrote its long integers so
      values.push_back(value);
      if (!take(",") && !at(")")) return false;
    }
    return true;
  }

  std::string_view text_;
};

NpyHeader read_header(const Source& source, const Member& member, MemberReader& reader) {
  char start[12];
  reader.read(start, 8);
  check_member(std::memcmp(start, "\x93NUMPY", 6) == 0, source, member,
               "does not begin as a .npy array does; write it with numpy.savez");
  const int version = static_cast<unsigned char>(start[6]);
  check_member(version >= 1 && version <= 3, source, member, ".npy version ", version,
               ", expected 1 to 3; write it with numpy.savez");
  uint32_t length = 0;
  reader.read(&length, version == 1 ? 2 : 4);
  constexpr uint32_t kLongest = 1 << 20;
  check_member(length <= kLongest, source, member, "a .npy header of ", length, " bytes, at most ",
               kLongest, " expected; it is damaged: write it again");
  std::string text(length, '\0');
  reader.read(text.data(), length);
  const std::optional<NpyHeader> header = HeaderParser(text).parse();
  check_member(header.has_value(), source, member,
               "its .npy header cannot be understood: ", show_text(text),
               "; write it with numpy.savez");
  return *header;
}

enum class Element { b1, i1, u1, i2, u2, i4, u4, i8, u8, f2, f4, f8 };

Element parse_descr(const Source& source, const Member& member, const std::string& descr) {
  const std::string kind = descr.size() > 1 ? descr.substr(1, 1) : "";
  const char* hint = kind == "O" ? " (pickled Python objects, which are never read)"
                     : kind == "U" || kind == "S"  ? " (text)"
                     : kind == "c"                 ? " (complex numbers)"
                     : descr == "[" || kind == "V" ? " (structured)"
                                                   : "";
  constexpr const char* kNames[] = {"b1", "i1", "u1", "i2", "u2", "i4",
                                    "u4", "i8", "u8", "f2", "f4", "f8"};
  for (int i = 0; i < int(std::size(kNames)); ++i)
    if (descr.size() == 3 && descr.substr(1) == kNames[i]) {
      check_member(descr[0] != '>' || descr[2] == '1', source, member, "its dtype ",
                   show_text(descr),
                   " is big-endian, expected little-endian; convert it with "
                   "array.astype(array.dtype.newbyteorder('<'))");
      if (std::string_view("<|=>").find(descr[0]) != std::string_view::npos) return Element(i);
    }
  fail(Exit::kInput, source.name, ": member ", show_text(member.name), ": its dtype ",
       show_text(descr), hint,
       " cannot be read, expected floats (f2, f4, f8), integers (i1 to i8, u1 to u8) or booleans; "
       "leave it out or convert it");
}

/// Reads `count` elements of file type From in chunks; `convert(value, index)` makes the tensor's.
template <class From, class To, class Convert>
void read_converted(MemberReader& reader, To* to, int64_t count, Convert convert) {
  std::vector<From> chunk(size_t(std::min<int64_t>(count, kChunk / int64_t(sizeof(From)))));
  for (int64_t done = 0; done < count;) {
    const int64_t n = std::min(count - done, int64_t(chunk.size()));
    reader.read(chunk.data(), n * int64_t(sizeof(From)));
    for (int64_t i = 0; i < n; ++i) to[done + i] = convert(chunk[size_t(i)], done + i);
    done += n;
  }
}

template <class From>
void read_integers(const Source& source, const Member& member, MemberReader& reader,
                   const Tensor& t) {
  read_converted<From>(reader, t.data<int32_t>(), t.numel(), [&](From value, int64_t index) {
    check_member(std::in_range<int32_t>(value), source, member, "element ", index, " is ", value,
                 ", which does not fit the 32-bit integers used here");
    return int32_t(value);
  });
}

Tensor read_member(const Source& source, const Member& member, bool keep_f64) {
  constexpr int64_t kSizes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8};
  MemberReader reader(source, member);
  const NpyHeader header = read_header(source, member, reader);
  const Element element = parse_descr(source, member, header.descr);
  check_member(header.shape.size() <= size_t(Dims::kMax), source, member, "has ",
               header.shape.size(), " axes, at most ", Dims::kMax, " expected");
  Dims shape{std::span<const int64_t>(header.shape)};
  int64_t bytes = kSizes[int(element)], extent = bytes;
  for (int64_t size : shape) {
    constexpr int64_t kMost = int64_t(1) << 50;  // beyond any file; also where another size is 0
    check_member(size <= kMost / extent, source, member, "its shape ", shape.str(),
                 " is impossible");
    extent *= std::max<int64_t>(size, 1);
    bytes *= size;
  }
  check_member(bytes == reader.left(), source, member, "shape ", shape.str(), " of ",
               show_text(header.descr), " needs ", bytes, " bytes, found ", reader.left(),
               "; it is damaged: write it again");

  if (header.fortran_order)
    for (int i = 0; i < shape.size() / 2; ++i) std::swap(shape[i], shape[shape.size() - 1 - i]);
  const bool is_float = element >= Element::f2;
  const bool is_f64 = element == Element::f8 && keep_f64;
  Tensor t = Tensor::empty(shape, is_f64 ? Dtype::f64 : is_float ? Dtype::f32 : Dtype::i32);
  const int64_t n = t.numel();
  switch (element) {
    case Element::b1:
      read_converted<uint8_t>(reader, t.data<int32_t>(), n,
                              [](uint8_t value, int64_t) { return int32_t(value != 0); });
      break;
    case Element::i1:
      read_integers<int8_t>(source, member, reader, t);
      break;
    case Element::u1:
      read_integers<uint8_t>(source, member, reader, t);
      break;
    case Element::i2:
      read_integers<int16_t>(source, member, reader, t);
      break;
    case Element::u2:
      read_integers<uint16_t>(source, member, reader, t);
      break;
    case Element::u4:
      read_integers<uint32_t>(source, member, reader, t);
      break;
    case Element::i8:
      read_integers<int64_t>(source, member, reader, t);
      break;
    case Element::u8:
      read_integers<uint64_t>(source, member, reader, t);
      break;
    case Element::f2:
      read_converted<uint16_t>(reader, t.data<float>(), n,
                               [](uint16_t value, int64_t) { return _cvtsh_ss(value); });
      break;
    case Element::i4:
    case Element::f4:
      reader.read(t.raw(), n * 4);
      break;
    case Element::f8:
      if (keep_f64)
        reader.read(t.raw(), n * 8);
      else
        read_converted<double>(reader, t.data<float>(), n,
                               [](double value, int64_t) { return float(value); });
      break;
  }
  reader.finish();
  if (!header.fortran_order) return t;
  for (int i = 0; i < t.rank() / 2; ++i) t = t.transpose(i, t.rank() - 1 - i);
  return t.contiguous();
}

Arrays read_archive(const Source& source, bool keep_f64) {
  Arrays arrays;
  for (const Member& member : zip::read_directory(source)) {
    Tensor t = read_member(source, member, keep_f64);
    const bool is_new = arrays.emplace(member.name.substr(0, member.name.size() - 4), t).second;
    check_member(is_new, source, member, "occurs twice; write the file again");
  }
  return arrays;
}

std::string npy_header(const Tensor& t) {
  std::string text = "{'descr': '";
  text += t.dtype() == Dtype::i32 ? "<i4" : t.dtype() == Dtype::f64 ? "<f8" : "<f4";
  text += "', 'fortran_order': False, 'shape': (";
  for (int64_t size : t.shape()) text += std::to_string(size) + ", ";
  if (t.rank()) text.pop_back();
  if (t.rank() > 1) text.pop_back();
  text += "), }";
  // As NumPy pads: magic, version, length and text together end at a multiple of 64.
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  const auto length = uint16_t(text.size());
  header.append(reinterpret_cast<const char*>(&length), sizeof length);
  return header + text;
}

}  // namespace

Arrays read_npz(const std::string& path, bool keep_f64) {
  return read_archive(Source(path), keep_f64);
}

Arrays parse_npz(std::string_view bytes, const std::string& name, bool keep_f64) {
  return read_archive(Source(bytes, name), keep_f64);
}

void write_npz(const std::string& path, const Arrays& arrays, bool compress) {
  zip::Writer writer(path, compress);
  for (const auto& [name, array] : arrays) {
    check(array.device().kind == Device::cpu, "array '", name, "' is not in the CPU's memory");
    const Tensor t = array.dtype() == Dtype::bf16 ? array.to(Dtype::f32) : array.contiguous();
    writer.add(name + ".npy", npy_header(t),
               {static_cast<const char*>(t.raw()), size_t(t.numel() * size_of(t.dtype()))});
  }
  writer.commit();
}

}  // namespace ff
