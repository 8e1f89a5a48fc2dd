// Sampling: AlphaFold's rules counted over many draws, and samples that depend on nothing but
// (seed, step, index).
#include "io/sampling.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <random>

#include "core/geometry/residue_constants.h"
#include "io/dataset_writer.h"
#include "io/file.h"
#include "io/loader.h"
#include "tests/unit/io/scratch.h"

using namespace ff;

namespace {

constexpr const char* kLetters = "ARNDCQEGHILKMFPSTWYV";

std::string random_sequence(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::string s;
  for (int64_t i = 0; i < n; ++i) s += kLetters[random() % 20];
  return s;
}

ChainInfo named(const std::string& id, double resolution = 2) {
  ChainInfo info;
  info.id = id;
  info.resolution = resolution;
  return info;
}

/// A chain whose every atom was seen, somewhere; `rows` rows of alignment, each its own.
PackedChain chain_of(ChainInfo info, const std::string& sequence, int rows, int64_t templates = 0) {
  std::mt19937 random(unsigned(sequence.size()) + unsigned(rows));
  Msa msa{.rows = {sequence}, .descriptions = {"query"}, .columns = sequence.size()};
  for (int s = 1; s < rows; ++s) {
    std::string row;
    for (const char c : sequence) {
      if (random() % 30 == 0) row += "aa";
      row += random() % 5 == 0 ? '-' : random() % 3 == 0 ? kLetters[random() % 20] : c;
    }
    msa.rows.push_back(row);
    msa.descriptions.push_back(cat("row", s));
  }
  const auto n = std::ssize(sequence);
  TemplateFeatures t;
  if (templates)
    t = {.aatype = Tensor::zeros({templates, n, kMsaLetters}),
         .all_atom_positions = Tensor::zeros({templates, n, kAtom37, 3}),
         .all_atom_masks = Tensor::zeros({templates, n, kAtom37}),
         .sum_probs = Tensor::zeros({templates, 1})};
  for (int64_t k = 0; k < templates; ++k) t.sum_probs.data<float>()[k] = 100 - float(k);
  ChainStructure structure{.name = "A",
                           .sequence = sequence,
                           .positions = Tensor::zeros({n, kAtom37, 3}),
                           .mask = Tensor::zeros({n, kAtom37})};
  for (int64_t a = 0; a < n * kAtom37; ++a) {
    const int type = restype_index(sequence[size_t(a / kAtom37)]);
    if (residue_constants().atom37_mask[type][a % kAtom37] == 0) continue;
    structure.mask.data<float>()[a] = 1;
    for (int k = 0; k < 3; ++k)
      structure.positions.data<float>()[3 * a + k] = float(random() % 1000) / 50;
  }
  structure.b_factors.resize(size_t(n));
  return pack_chain(std::move(info), make_raw_features(sequence, msa, std::move(t)), structure);
}

std::string write_shard(const Scratch& scratch, const std::vector<PackedChain>& chains) {
  const std::string path = scratch / "chains.h5";
  ShardWriter writer(path, {1, 1, std::string(64, 'a'), 0});
  for (const PackedChain& chain : chains) writer.add(chain);
  writer.commit({});
  return path;
}

SamplerConfig small() {
  SamplerConfig c;
  c.crop_size = 24;
  c.accept_by_length_and_cluster = false;
  c.block_delete_num_blocks = 0;
  c.data.max_msa_clusters = 6;
  c.data.max_extra_msa = 9;
  return c;
}

bool same(const Arrays& a, const Arrays& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, x] : a) {
    const Tensor& y = b.at(name);
    if (!(x.shape() == y.shape()) || std::memcmp(x.contiguous().raw(), y.contiguous().raw(),
                                                 size_t(x.numel() * size_of(x.dtype()))) != 0)
      return false;
  }
  return true;
}

bool same(const TrainingSample& a, const TrainingSample& b) {
  bool equal = a.chain == b.chain && a.step == b.step && a.index == b.index && a.start == b.start &&
               a.skipped == b.skipped && a.slices.size() == b.slices.size() &&
               same(a.labels, b.labels);
  for (size_t i = 0; equal && i < a.slices.size(); ++i) equal = same(a.slices[i], b.slices[i]);
  return equal;
}

/// Whether `count` of `n` draws of probability p is within five deviations.
bool likely(int64_t count, int64_t n, double p) {
  return std::abs(double(count) - double(n) * p) <= 5 * std::sqrt(double(n) * p * (1 - p)) + 1e-9;
}

}  // namespace

TEST_CASE("crops start anywhere, clamped ones nearer to the beginning") {
  // n = 2: unclamped 0, 1, 2 alike; clamped (1/3 + 1/2 + 1) / 3, (1/3 + 1/2) / 3, 1/9.
  constexpr int kGrid = 600;
  int64_t counts[2][3] = {};
  for (int u0 = 0; u0 < kGrid; ++u0)
    for (int u1 = 0; u1 < kGrid; ++u1)
      for (const bool clamped : {false, true})
        ++counts[clamped][crop_start(12, 10, clamped, (u0 + 0.5) / kGrid, (u1 + 0.5) / kGrid)];
  const double all = double(kGrid) * kGrid;
  for (int start = 0; start < 3; ++start) {
    CHECK(double(counts[false][start]) / all == Approx(1.0 / 3).margin(1e-3));
    const double want[] = {11.0 / 18, 5.0 / 18, 1.0 / 9};
    CHECK(double(counts[true][start]) / all == Approx(want[start]).margin(1e-3));
  }
  CHECK(crop_start(10, 10, false, 0.999, 0.999) == 0);
}

TEST_CASE("blocks of the alignment are deleted, the query never") {
  bool first_of_all = false, differ = false;
  std::vector<int32_t> before;
  for (uint64_t sample = 0; sample < 200; ++sample) {
    const std::vector<int32_t> kept = delete_blocks(100, 0.3, 5, 1, sample);
    REQUIRE(kept.at(0) == 0);
    CHECK(std::is_sorted(kept.begin(), kept.end()));
    // Between five blocks in one place, at the end where least of it is left, and all rows.
    CHECK(kept.size() < 100);
    first_of_all |= kept.size() == 1 || kept[1] != 1;
    differ |= kept != before;
    before = kept;
  }
  CHECK(first_of_all);
  CHECK(differ);
  CHECK(delete_blocks(1, 0.3, 5, 1, 0) == std::vector<int32_t>{0});
  CHECK(delete_blocks(3, 0.3, 5, 1, 0).size() == 3);  // a block of floor(0.9) rows
  CHECK(delete_blocks(100, 0.3, 0, 1, 0).size() == 100);
  // One block that begins at 1 to 99: 30 rows, fewer where it passes the end.
  int64_t gone[100] = {};
  for (uint64_t sample = 0; sample < 9900; ++sample) {
    const std::vector<int32_t> kept = delete_blocks(100, 0.3, 1, 2, sample);
    std::vector<bool> there(100);
    for (const int32_t k : kept) there[size_t(k)] = true;
    for (size_t k = 0; k < 100; ++k) gone[k] += !there[k];
  }
  CHECK(likely(gone[1], 9900, 1.0 / 99));
  CHECK(likely(gone[99], 9900, 30.0 / 99));
}

TEST_CASE("chains are filtered, and accepted by length and cluster") {
  const Scratch scratch;
  const std::string long_one = random_sequence(600, 1), shorter = random_sequence(300, 2);
  std::vector<PackedChain> chains;
  const auto add = [&](ChainInfo info, const std::string& sequence) {
    chains.push_back(chain_of(std::move(info), sequence, 2));
  };
  add(named("long"), long_one);
  ChainInfo info = named("shorter");
  info.cluster_size = 2;
  add(info, shorter);
  info = named("short");
  info.cluster_size = 3;
  add(info, random_sequence(40, 3));
  info = named("made");
  info.distillation = true;
  add(info, random_sequence(50, 4));
  add(named("coarse", 9.5), shorter);
  add(named("dull"), std::string(81, 'A') + random_sequence(19, 5));
  info = named("late", 9);
  info.date = "2021-09-30";
  add(info, shorter);
  const Dataset data({write_shard(scratch, chains)});
  SamplerConfig config;
  config.date_max = "2021-09-29";
  CHECK(Sampler(data, config, 1).chains() == std::vector<int32_t>{0, 1, 2, 3});
  config.distillation_prob = 0.75;
  const Sampler sampler(data, config, 1);
  int64_t counts[4] = {};
  constexpr int64_t kDraws = 20'000;
  for (int64_t i = 0; i < kDraws; ++i) {
    int64_t attempt = 0;
    ++counts[sampler.draw_chain(i / 4, i % 4, attempt)];
  }
  // An attempt is accepted with 0.75 * 1/2 of the made one; of the others a third each with 1,
  // 300/512/2 and 1/2/3.
  const double made = 0.75 / 2, one = 0.25 / 3, two = one * 300 / 512 / 2, three = one / 6;
  const double all = made + one + two + three;
  CHECK(likely(counts[0], kDraws, one / all));
  CHECK(likely(counts[1], kDraws, two / all));
  CHECK(likely(counts[2], kDraws, three / all));
  CHECK(likely(counts[3], kDraws, made / all));

  config.max_resolution = 1;
  CHECK_THROWS_WITH(Sampler(data, config, 1),
                    Catch::Contains("none of 7 chains") && Catch::Contains("above 1 A 7"));

  int64_t recycles[4] = {};
  for (int64_t step = 0; step < 4000; ++step) ++recycles[sampler.num_recycle(step)];
  for (const int64_t count : recycles) CHECK(likely(count, 4000, 0.25));
}

TEST_CASE("a crop holds the columns of the whole, its clusters found before") {
  const Scratch scratch;
  const std::string sequence = random_sequence(70, 6);
  const Dataset data({write_shard(scratch, {chain_of(named("x"), sequence, 40)})});
  SamplerConfig config = small();
  const Sampler cropped(data, config, 3);
  config.crop_size = 1000;
  const Sampler whole(data, config, 3);
  for (int64_t index = 0; index < 8; ++index) {
    const TrainingSample a = cropped.sample(2, index), b = whole.sample(2, index);
    REQUIRE(a.n_res() == 24);
    REQUIRE(b.n_res() == 70);
    REQUIRE(a.slices.size() == b.slices.size());
    const auto columns_of = [&](const Arrays& part, const Arrays& full) {
      REQUIRE(part.size() == full.size());
      for (const auto& [name, x] : part) {
        INFO(name);
        const Tensor& y = full.at(name);
        int axis = 0;
        while (axis < y.rank() && y.size(axis) != 70) ++axis;
        if (axis == y.rank()) {
          if (name != "seq_length") CHECK(same({{"", x}}, {{"", y}}));
          continue;
        }
        CHECK(same({{"", x}}, {{"", y.narrow(axis, a.start, 24)}}));
      }
    };
    for (size_t slice = 0; slice < a.slices.size(); ++slice)
      columns_of(a.slices[slice], b.slices[slice]);
    Arrays labels = b.labels;
    columns_of(a.labels, labels);
    CHECK(a.slices[0].at("residue_index").data<int32_t>()[0] == a.start);
    CHECK(a.slices[0].at("true_msa").size(0) == 6);
    CHECK(a.slices[0].at("extra_msa").size(0) == 9);
  }
}

TEST_CASE("alignments of distilled chains are cut, those of validation are not") {
  const Scratch scratch;
  const std::string sequence = random_sequence(30, 7);
  ChainInfo info = named("x");
  info.distillation = true;
  const Dataset data({write_shard(scratch, {chain_of(info, sequence, 40)})});
  SamplerConfig config = small();
  config.distillation_rows = 8;
  const Sampler sampler(data, config, 3);
  const Arrays slice = sampler.sample(0, 0).slices[0];
  CHECK(slice.at("true_msa").size(0) == 6);
  CHECK(slice.at("extra_msa").size(0) == 2);
  // One cluster, of the query: its profile is that of all rows, though one extra row is kept.
  config.data.max_msa_clusters = config.data.max_extra_msa = 1;
  config.data.masked_msa_replace_fraction = 0;
  const Sampler one(data, config, 3);
  const TrainingSample all = one.whole(0, 1);
  REQUIRE(all.slices.size() == 2);
  CHECK(all.slices[0].at("extra_msa").size(0) == 1);
  const float* feat = all.slices[0].at("msa_feat").data<float>();
  const std::vector<float> profile = data.profile(0);
  for (int64_t i = 0; i < 30; ++i)
    for (int64_t c = 0; c < kMsaLetters; ++c)
      CHECK(feat[i * 49 + 25 + c] == Approx(profile[size_t(i * kMsaLetters + c)]).margin(1e-6));
  CHECK(same(all, one.whole(0, 1)));
}

TEST_CASE("templates: uniformly many, four at most") {
  const Scratch scratch;
  const Dataset data({write_shard(scratch, {chain_of(named("x"), random_sequence(12, 8), 1, 6)})});
  SamplerConfig config = small();
  config.data.use_templates = true;
  config.uniform_recycling = false;
  config.max_recycles = 0;
  const Sampler sampler(data, config, 3);
  int64_t counts[5] = {}, best = 0;
  constexpr int64_t kDraws = 3000;
  for (int64_t i = 0; i < kDraws; ++i) {
    const Arrays slice = sampler.sample(i, 0).slices[0];
    const Tensor mask = slice.at("template_mask"), scores = slice.at("template_sum_probs");
    int64_t count = 0;
    for (int64_t t = 0; t < mask.numel(); ++t) count += mask.data<float>()[t] != 0;
    ++counts[count];
    best += count > 0 && scores.data<float>()[0] == 100;
  }
  for (int64_t k = 0; k < 4; ++k) CHECK(likely(counts[k], kDraws, 1.0 / 7));  // min(U[0, 6], 4)
  CHECK(likely(counts[4], kDraws, 3.0 / 7));
  CHECK(likely(best, kDraws, 6.0 / 7 / 6));  // any of them comes first
}

TEST_CASE("any number of threads and any restart give the same samples, around a damaged chain") {
  const Scratch scratch;
  std::vector<PackedChain> chains;
  for (int k = 0; k < 6; ++k)
    chains.push_back(
        chain_of(named(cat("chain_", k)), random_sequence(20 + 9 * k, unsigned(k)), 30 + k));
  const std::string path = write_shard(scratch, chains);
  std::string bytes = read_text_file(path, 1 << 26);
  const size_t at = bytes.find(chains[2].chunks[0]);
  REQUIRE(at != std::string::npos);
  bytes[at + chains[2].chunks[0].size() / 2] ^= 4;
  scratch.write("chains.h5", bytes);
  const Dataset data({path});
  SamplerConfig config = small();
  config.block_delete_num_blocks = 2;
  const Sampler sampler(data, config, 11);
  constexpr int64_t kBatch = 3, kSteps = 6;
  std::vector<TrainingSample> want;
  int64_t skipped = 0;
  for (int64_t i = 0; i < kBatch * kSteps; ++i) {
    want.push_back(Sampler(data, config, 11).sample(i / kBatch, i % kBatch));
    CHECK(want.back().chain != "chain_2");
    CHECK(want.back().num_recycle() == sampler.num_recycle(i / kBatch));
    skipped += want.back().skipped;
  }
  CHECK(skipped > 0);
  CHECK_FALSE(same(Sampler(data, config, 12).sample(0, 0), want[0]));
  for (const int threads : {1, 2, 4})
    for (const int64_t first : {int64_t(0), int64_t(4)}) {
      INFO(threads << " threads from step " << first);
      Loader loader(sampler, 0, kBatch, first, threads, 4);
      for (int64_t i = kBatch * first; i < kBatch * kSteps; ++i)
        REQUIRE(same(loader.next(), want[size_t(i)]));
      if (first == 0) CHECK(loader.skipped() == skipped);
      // Another rank's share of each step.
      Loader share(sampler, 1, 2, first, threads, 4);
      for (int64_t step = first; step < kSteps; ++step)
        for (int64_t i = 1; i < kBatch; ++i)
          REQUIRE(same(share.next(), want[size_t(kBatch * step + i)]));
    }
}
