// The PTX instructions that kernels name in asm statements, as the PTX manual describes them.
#include <array>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "cuda_runtime_api.h"
#include "runtime.h"

namespace ff::emulated {

template <class T>
T Instruction::get(const Operand* o, size_t word, size_t i) const {
  const Word& w = words[word][i];
  if (w.operand >= 0) return o[w.operand].get<T>();
  return T(w.number);
}

namespace {

using Run = void (*)(const Instruction&, Operand*);

template <class T>
void set(const Instruction& how, Operand* o, size_t word, size_t i, T x) {
  std::memcpy(o[how.words[word][i].operand].variable, &x, sizeof x);
}

float of_bf16(uint32_t x) { return __uint_as_float(x << 16); }
uint32_t to_bf16(float x) {
  const uint32_t u = __float_as_uint(x);
  return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
float of_f16(uint32_t x) {
  const uint32_t exponent = x >> 10 & 31, fraction = x & 1023;
  const float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(float(fraction), -24)
                                     : std::ldexp(float(1024 + fraction), int(exponent) - 25);
  return x >> 15 & 1 ? -size : size;
}
uint32_t to_f16(float x) {
  const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000;
  const float size = std::fabs(x);
  if (x != x) return 0x7fff;
  if (size >= 65520) return sign | 0x7c00;
  // The step between numbers of this size, to whose multiple nearbyint rounds, ties to even.
  const int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
  const auto steps = uint32_t(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return sign | (uint32_t(exponent + 14) * 1024 + steps);
}

// Copies to shared memory. They happen where they are waited for, and until then NaN is there.

void copy_async(const Instruction& how, Operand* o) {
  const auto room = how.get<uint64_t>(o, 2);
  const size_t bytes = how.words.size() > 3 ? how.get<uint32_t>(o, 3) : room;
  void* const to = shared_pointer(how.get<uint32_t>(o, 0));
  const void* const from = how.get<const void*>(o, 1);
  if (reinterpret_cast<uintptr_t>(to) % room || reinterpret_cast<uintptr_t>(from) % room ||
      bytes > room)
    fail(how.name + ": addresses are not multiples of its bytes, or it copies more");
  std::memset(to, 0xff, room);
  copies().back().push_back({to, from, bytes, room});
}
void copy_commit(const Instruction&, Operand*) { copies().emplace_back(); }
void copy_wait(const Instruction& how, Operand* o) {
  Groups<Copy>& all = copies();
  if (how.has("wait_all")) all.emplace_back();
  const size_t pending = how.has("wait_all") ? 0 : how.get<uint32_t>(o, 0);
  while (all.size() > pending + 1) {
    for (const Copy& c : all.front()) {
      std::memcpy(c.to, c.from, c.bytes);
      std::memset(static_cast<char*>(c.to) + c.bytes, 0, c.room - c.bytes);
    }
    all.erase(all.begin());
  }
}

// ldmatrix and stmatrix: lane l names row l % 8 of matrix l / 8, and holds elements 2 l % 8 and the
// next of row l / 4 of each (of column l / 4, where it is .trans).

void* row_at(uint32_t address) {
  if (address % 16) fail("a matrix row's address is not a multiple of 16");
  return shared_pointer(address);
}
struct Rows {
  uint16_t row[8];  ///< this lane's
  uint32_t pairs[4];
};

/// f(lane that holds a pair, matrix, number e of the pair, lane that names its row, place there)
template <bool kTransposed, class F>
void each_element(F f) {
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m)
      for (int e = 0; e < 2; ++e) {
        const int i = l / 4, j = l % 4 * 2 + e;
        kTransposed ? f(l, m, e, 8 * m + j, i) : f(l, m, e, 8 * m + i, j);
      }
}
Rows& rows_of(void* lane) { return *static_cast<Rows*>(lane); }

template <bool kTransposed>
void load_matrices(const Instruction& how, Operand* o) {
  Rows mine{};
  const size_t count = how.words[0].size();
  if (lane() < 8 * int(count)) std::memcpy(mine.row, row_at(how.get<uint32_t>(o, 1)), 16);
  meet(~0u, "ldmatrix", &mine, [](void** lanes) {
    each_element<kTransposed>([&](int l, int m, int e, int from, int at) {
      rows_of(lanes[l]).pairs[m] |= uint32_t(rows_of(lanes[from]).row[at]) << 16 * e;
    });
  });
  for (size_t m = 0; m < count; ++m) set(how, o, 0, m, mine.pairs[m]);
}

template <bool kTransposed>
void store_matrices(const Instruction& how, Operand* o) {
  Rows mine{};
  const size_t count = how.words[1].size();
  for (size_t m = 0; m < count; ++m) mine.pairs[m] = how.get<uint32_t>(o, 1, m);
  meet(~0u, "stmatrix", &mine, [](void** lanes) {
    each_element<kTransposed>([&](int l, int m, int e, int to, int at) {
      rows_of(lanes[to]).row[at] = uint16_t(rows_of(lanes[l]).pairs[m] >> 16 * e);
    });
  });
  if (lane() < 8 * int(count)) std::memcpy(row_at(how.get<uint32_t>(o, 0)), mine.row, 16);
}

void move_matrix(const Instruction& how, Operand* o) {
  auto mine = how.get<uint32_t>(o, 1);
  meet(~0u, "movmatrix", &mine, [](void** lanes) {
    uint32_t from[32];
    for (int l = 0; l < 32; ++l) from[l] = *static_cast<uint32_t*>(lanes[l]);
    const auto element = [&](int i, int j) { return from[4 * i + j / 2] >> 16 * (j % 2) & 0xffff; };
    for (int l = 0; l < 32; ++l)
      *static_cast<uint32_t*>(lanes[l]) = element(l % 4 * 2, l / 4) | element(l % 4 * 2 + 1, l / 4)
                                                                          << 16;
  });
  set(how, o, 0, 0, mine);
}

// mma.sync.aligned.m16n8kK. Of lane (g, t) = (l / 4, l % 4): a is, by 8 columns, rows g and g + 8,
// columns 2 t and the next; b is, by 8 rows, rows 2 t and the next, column g.

struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};
template <bool kBf16>
float half_of(uint32_t pair, int e) {
  const uint32_t x = pair >> 16 * e & 0xffff;
  return kBf16 ? of_bf16(x) : of_f16(x);
}

template <bool kBf16, int kDepth>
void multiply(const Instruction& how, Operand* o) {
  Fragments mine{};
  for (size_t i = 0; i < kDepth / 4; ++i) mine.a[i] = how.get<uint32_t>(o, 1, i);
  for (size_t i = 0; i < kDepth / 8; ++i) mine.b[i] = how.get<uint32_t>(o, 2, i);
  for (size_t i = 0; i < 4; ++i) mine.d[i] = how.get<float>(o, 3, i);
  meet(~0u, "mma.sync", &mine, [](void** lanes) {
    const auto of = [&](int l) -> Fragments& { return *static_cast<Fragments*>(lanes[l]); };
    float a[16][kDepth], b[8][kDepth];
    for (int l = 0; l < 32; ++l)
      for (int k = 0; k < kDepth; k += 8)
        for (int e = 0; e < 2; ++e) {
          const int g = l / 4, at = k + l % 4 * 2 + e;
          a[g][at] = half_of<kBf16>(of(l).a[k / 4], e);
          a[g + 8][at] = half_of<kBf16>(of(l).a[k / 4 + 1], e);
          b[g][at] = half_of<kBf16>(of(l).b[k / 8], e);
        }
    for (int l = 0; l < 32; ++l)
      for (int e = 0; e < 4; ++e) {
        float sum = of(l).d[e];
        for (int k = 0; k < kDepth; ++k) sum += a[l / 4 + 8 * (e / 2)][k] * b[l % 4 * 2 + e % 2][k];
        of(l).d[e] = sum;
      }
  });
  for (size_t i = 0; i < 4; ++i) set(how, o, 0, i, mine.d[i]);
}

// wgmma.mma_async: the products happen where they are waited for.

/// Where element (row, k) of an operand is that a descriptor describes; k is the depth, and rows
/// lie one after another where it is not transposed.
const void* tile_element(uint64_t tile, int row, int k, bool transposed) {
  const uint32_t swizzle = uint32_t(tile >> 62);
  const uint32_t leading = uint32_t(tile >> 16 & 0x3fff) << 4,
                 stride = uint32_t(tile >> 32 & 0x3fff) << 4;
  if (tile >> 49 & 7) fail("wgmma: a descriptor with a base offset is not emulated");
  const auto r = uint32_t(row), d = uint32_t(k);
  uint32_t at = uint32_t(tile & 0x3fff) << 4;
  // Bytes of a row of the pattern that is repeated: 16, 128, 64, 32.
  const uint32_t width = swizzle == 0 ? 16 : 256u >> swizzle;
  if (!transposed) {
    // Rows are `width` apart, eight of them `stride`; without swizzle 8 of the depth `leading`.
    at += r % 8 * width + r / 8 * stride + (swizzle ? d * 2 : d / 8 * leading + d % 8 * 2);
  } else if (swizzle) {
    const uint32_t across = width / 2;
    at += d % 8 * width + d / 8 * stride + r / across * leading + r % across * 2;
  } else {
    at += d % 8 * 16 + d / 8 * leading + r / 8 * stride + r % 8 * 2;
  }
  if (swizzle) at ^= (at >> 7 & (width / 16 - 1)) << 4;
  return shared_pointer(at);
}

void product(const Instruction& how, Operand* o) {
  Product p{&how, {}, {}, 0, 0, false};
  const auto& w = how.words;
  if (!how.has(".f32.bf16.bf16") && !how.has(".f32.f16.f16")) fail("not emulated: " + how.name);
  if (w[0].size() * 2 != size_t(std::atoi(how.name.c_str() + how.name.find("m64n") + 4)))
    fail(how.name + " into " + std::to_string(w[0].size()) + " registers");
  for (size_t i = 0; i < w[0].size(); ++i)
    p.d[i] = static_cast<float*>(o[w[0][i].operand].variable);
  if (w[1].size() == 4)
    for (size_t i = 0; i < 4; ++i) p.a[i] = how.get<uint32_t>(o, 1, i);
  else
    p.a_tile = how.get<uint64_t>(o, 1);
  p.b_tile = how.get<uint64_t>(o, 2);
  p.adds = how.get<int>(o, 3) != 0;
  if (how.get<int>(o, 4) != 1 || how.get<int>(o, 5) != 1) fail(how.name + " with a minus");
  products().back().push_back(p);
}

void do_products(Groups<Product>** lanes, size_t group, size_t index) {
  const auto of = [&](int l) -> Product& { return (*lanes[l])[group][index]; };
  const Product& first = of(0);
  const Instruction& how = *first.how;
  const size_t words = how.words.size();
  const int columns = int(how.words[0].size()) * 2;
  const bool bf16 = how.has("bf16"), registers = how.words[1].size() == 4;
  const bool a_transposed = !registers && how.words[words - 2][0].number,
             b_transposed = how.words[words - 1][0].number;
  const int row0 = warp() % 4 * 16;
  const auto element = [&](uint64_t tile, int row, int k, bool transposed) {
    uint16_t x;
    std::memcpy(&x, tile_element(tile, row, k, transposed), 2);
    return bf16 ? of_bf16(x) : of_f16(x);
  };
  float a[16][16];
  float b[256][16];
  for (int l = 0; l < 32; ++l) {
    const Product& p = of(l);
    if (p.how != &how || p.a_tile != first.a_tile || p.b_tile != first.b_tile ||
        p.adds != first.adds)
      fail("wgmma: the lanes of a warp differ in what they multiply");
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < 2; ++e) {
        const int row = l / 4 + i % 2 * 8, k = l % 4 * 2 + i / 2 * 8 + e;
        a[row][k] = registers ? (bf16 ? half_of<true> : half_of<false>)(p.a[i], e)
                              : element(p.a_tile, row0 + row, k, a_transposed);
      }
  }
  for (int n = 0; n < columns; ++n)
    for (int k = 0; k < 16; ++k) b[n][k] = element(first.b_tile, n, k, b_transposed);
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < columns / 2; ++i) {
      const float *x = a[l / 4 + i / 2 % 2 * 8], *y = b[i / 4 * 8 + l % 4 * 2 + i % 2];
      float sum = of(l).adds ? *of(l).d[i] : 0.0f;
      for (int k = 0; k < 16; ++k) sum += x[k] * y[k];
      *of(l).d[i] = sum;
    }
}

void product_commit(const Instruction&, Operand*) { products().emplace_back(); }
void product_wait(const Instruction& how, Operand* o) {
  struct Lane {
    Groups<Product>& products;
    size_t pending;
  } mine{products(), how.get<uint32_t>(o, 0)};
  meet(~0u, "wgmma.wait_group", &mine, [](void** lanes) {
    Groups<Product>* all[32];
    for (int l = 0; l < 32; ++l) {
      if (!lanes[l]) fail("wgmma in a warp whose lanes have ended");
      all[l] = &static_cast<Lane*>(lanes[l])->products;
      bool same = all[l]->size() == all[0]->size();
      for (size_t g = 0; same && g < all[l]->size(); ++g)
        same = (*all[l])[g].size() == (*all[0])[g].size();
      if (!same) fail("wgmma: the lanes of a warp have begun different products");
    }
    const size_t begun = all[0]->size() - 1, pending = static_cast<Lane*>(lanes[0])->pending,
                 done = begun > pending ? begun - pending : 0;
    for (size_t g = 0; g < done; ++g)
      for (size_t i = 0; i < (*all[0])[g].size(); ++i) do_products(all, g, i);
    for (Groups<Product>* p : all) p->erase(p->begin(), p->begin() + int64_t(done));
  });
}

template <uint32_t (*kBits)(float)>
void convert_pair(const Instruction& how, Operand* o) {
  set(how, o, 0, 0, kBits(how.get<float>(o, 2)) | kBits(how.get<float>(o, 1)) << 16);
}

void power_of_two(const Instruction& how, Operand* o) {
  const float y = std::exp2(how.get<float>(o, 1));
  set(how, o, 0, 0, y < std::ldexp(1.0f, -126) ? 0.0f : y);
}

void store_vector(const Instruction& how, Operand* o) {
  auto* const to = static_cast<uint32_t*>(how.get<void*>(o, 0));
  const size_t count = how.words[1].size();
  if (reinterpret_cast<uintptr_t>(to) % (4 * count))
    fail(how.name + ": to what is no multiple of its bytes");
  for (size_t i = 0; i < count; ++i) to[i] = how.get<uint32_t>(o, 1, i);
}

void reciprocal(const Instruction& how, Operand* o) { set(how, o, 0, 0, 1 / how.get<float>(o, 1)); }

void global_timer(const Instruction& how, Operand* o) {
  set(how, o, 0, 0, uint64_t(std::chrono::steady_clock::now().time_since_epoch().count()));
}

void barrier_sync(const Instruction& how, Operand* o) {
  const int count = how.words.size() > 1 ? how.get<int>(o, 1) : 0;
  barrier(how.get<int>(o, 0), count, !how.has(".arrive"));
}

void nothing(const Instruction&, Operand*) {}
void earlier(const Instruction&, Operand*) { wait_for_earlier(); }

constexpr std::pair<const char*, Run> kInstructions[] = {
    {"cp.async.commit_group", copy_commit},
    {"cp.async.wait_", copy_wait},
    {"cp.async.ca.shared.global", copy_async},
    {"cp.async.cg.shared.global", copy_async},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", load_matrices<false>},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", load_matrices<true>},
    {"stmatrix.sync.aligned.m8n8.x4.shared.b16", store_matrices<false>},
    {"stmatrix.sync.aligned.m8n8.x4.trans.shared.b16", store_matrices<true>},
    {"movmatrix.sync.aligned.m8n8.trans.b16", move_matrix},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", multiply<true, 16>},
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", multiply<false, 16>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", multiply<true, 8>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", multiply<false, 8>},
    {"wgmma.fence", nothing},
    {"wgmma.commit_group", product_commit},
    {"wgmma.wait_group", product_wait},
    {"wgmma.mma_async.sync.aligned.", product},
    {"cvt.rn.bf16x2.f32", convert_pair<to_bf16>},
    {"cvt.rn.f16x2.f32", convert_pair<to_f16>},
    {"ex2.approx.ftz.f32", power_of_two},
    {"st.global.v", store_vector},
    {"rcp.approx.ftz.f32", reciprocal},
    {"bar.sync", barrier_sync},
    {"bar.arrive", barrier_sync},
    {"barrier.sync", barrier_sync},
    {"barrier.arrive", barrier_sync},
    {"mov.u64", global_timer},
    {"fence.", nothing},
    {"setmaxnreg.", nothing},
    {"griddepcontrol.wait", earlier},
    {"prefetch.", nothing},
};

Run find(const std::string& name) {
  for (const auto& [prefix, run] : kInstructions)
    if (name.rfind(prefix, 0) == 0) return run;
  fail("not emulated: " + name);
}

std::vector<Word> words_of(std::string text) {
  std::vector<Word> made;
  for (char& c : text)
    if (std::strchr("{}[], \t", c)) c = ' ';
  for (size_t i = 0; (i = text.find_first_not_of(' ', i)) != std::string::npos;) {
    const size_t end = std::min(text.find(' ', i), text.size());
    const std::string word = text.substr(i, end - i);
    if (word[0] == '%' && std::isdigit(word[1]))
      made.push_back({std::atoi(word.c_str() + 1), 0});
    else
      made.push_back({-1, std::atoll(word.c_str())});
    i = end;
  }
  return made;
}

}  // namespace

Ptx::Ptx(const char* text) {
  // { .reg .pred p; setp.ne.b32 p, %n, 0; ... p ...; } is how an operand becomes a predicate.
  std::string predicate, all = text;
  for (size_t start = 0, end; start < all.size(); start = end + 1) {
    end = std::min(all.find(';', start), all.size());
    std::string line = all.substr(start, end - start);
    line.erase(0, line.find_first_not_of("{} \n\t"));
    if (line.empty() || line.rfind(".reg", 0) == 0) continue;
    const size_t name_end = std::min(line.find_first_of(" \n\t"), line.size());
    Instruction i{line.substr(0, name_end), {}, nullptr};
    std::string rest = line.substr(name_end);
    if (i.name == "setp.ne.b32") {
      const size_t comma = rest.find(',');
      predicate = rest.substr(comma + 1, rest.find(',', comma + 1) - comma - 1);
      continue;
    }
    int depth = 0;
    std::string word;
    for (const char c : rest + ",") {
      depth += (c == '{') - (c == '}');
      if (c != ',' || depth) {
        word += c;
        continue;
      }
      if (word.find_first_not_of(" \n\t") != std::string::npos) {
        const size_t p = word.find_first_not_of(" \n\t");
        i.words.push_back(words_of(word.compare(p, word.size(), "p") == 0 ? predicate : word));
      }
      word.clear();
    }
    i.run = find(i.name);
    instructions_.push_back(std::move(i));
  }
}

}  // namespace ff::emulated
