// Raw features of a chain, and the processed features of one slice.
#include "io/features.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <numbers>
#include <string_view>

#include "core/geometry/residue_constants.h"
#include "io/file.h"
#include "io/transforms.h"

namespace ff {
namespace {

constexpr int64_t kMostRows = INT32_MAX;
/// Of one place and of a whole alignment; nothing that was ever aligned comes near.
constexpr int64_t kMostDeleted = 1'000'000, kMostInserted = int64_t(1) << 31;

/// First words of the names of this room's random streams.
enum Stream : uint64_t { kShuffle0 = 0x66656174, kShuffle1, kMaskedMsa, kCropSeed };

/// The letters' indices, one array per direction of translation.
constexpr auto kFromHhblits = [] {
  std::array<int8_t, kMsaLetters> map{};
  for (int i = 0; i < kMsaLetters; ++i) map[i] = int8_t(hhblits_to_restype(i));
  return map;
}();
constexpr auto kToHhblits = [] {
  std::array<int8_t, kMsaLetters> map{};
  for (int i = 0; i < kMsaLetters; ++i) map[kFromHhblits[i]] = int8_t(i);
  return map;
}();

/// A character of an alignment to its index, -1 for what is no letter of it.
constexpr auto kFromLetter = [] {
  std::array<int8_t, 256> map{};
  for (int c = 0; c < 256; ++c) {
    const int id = c < 128 ? hhblits_id(char(c)) : -1;
    map[c] = id < 0 ? int8_t(-1) : kFromHhblits[id];
  }
  return map;
}();

std::string shown(char c) {
  const auto code = static_cast<unsigned char>(c);
  return code >= 0x20 && code < 0x7f ? cat('\'', c, '\'') : cat("byte ", int(code));
}

Tensor ints(std::initializer_list<int64_t> shape) { return Tensor::zeros(shape, Dtype::i32); }

void set_profile(RawFeatures& raw) {
  const int64_t n_res = raw.n_res();
  std::vector<int32_t> counts(n_res * kMsaLetters);
  for (int64_t s = 0; s < raw.n_seq; ++s)
    for (int64_t i = 0; i < n_res; ++i) ++counts[i * kMsaLetters + raw.row(s)[i]];
  raw.profile.resize(counts.size());
  for (size_t c = 0; c < counts.size(); ++c) raw.profile[c] = float(counts[c]) / float(raw.n_seq);
}

/// The first row's letters must be the query's; letters without an index of their own stand for X.
void check_query(const RawFeatures& raw, const std::string& sequence, const std::string& row) {
  for (int64_t i = 0; i < raw.n_res(); ++i) {
    const int expected = raw.aatype.data<int32_t>()[i], found = restype_index(row[i]);
    check_input(row[i] != '-' &&
                    (found == expected || found == kUnknownRestype || expected == kUnknownRestype),
                "the alignment's first row must be the query, but column ", i + 1, " is '", row[i],
                "' and the query's residue '", sequence[i],
                "'; is this another sequence's alignment?");
  }
}

/// Fills letters and deletion counts of a row in A3M form.
void fill_row(RawFeatures& raw, int64_t s, const Msa& msa) {
  int8_t* letters = raw.msa.data() + s * raw.n_res();
  int32_t* deletions = raw.deletion_matrix.data() + s * raw.n_res();
  int64_t i = 0;
  int32_t pending = 0;
  for (const char c : msa.rows[s]) {
    if (c >= 'a' && c <= 'z') {
      ++pending;
      continue;
    }
    const int8_t letter = kFromLetter[static_cast<unsigned char>(c)];
    if (letter < 0 || i == raw.n_res())
      fail(Exit::kInput, "row ", s + 1, " ", show_text(msa.descriptions[s]), ": column ", i + 1,
           letter < 0 ? cat(" is ", shown(c), ", expected a letter or '-'")
                      : " is beyond the last residue of the query");
    letters[i] = letter;
    deletions[i++] = pending;
    pending = 0;
  }
  if (i != raw.n_res())
    fail(Exit::kInput, "row ", s + 1, " ", show_text(msa.descriptions[s]), ": ", i,
         " columns, expected one for each of the query's ", raw.n_res(), " residues");
}

/// Checks one array of `from_arrays` and returns it contiguous.
Tensor take(const Arrays& arrays, const std::string& path, const std::string& key, Dtype dtype,
            const Dims& shape) {
  const auto it = arrays.find(key);
  check_input(it != arrays.end(), path, ": no array '", key,
              "'; expected AlphaFold's raw features");
  const Tensor& t = it->second;
  check_input(t.dtype() == dtype && t.shape() == shape, path, ": '", key, "' is ",
              name_of(t.dtype()), " ", t.shape().str(), ", expected ", name_of(dtype), " ",
              shape.str());
  return t.contiguous();
}

/// Copies `n` values and checks that each is in [0, limit).
template <class To>
void copy_checked(const Tensor& from, To* to, int64_t limit, const std::string& path,
                  const std::string& key) {
  const int32_t* values = from.data<int32_t>();
  for (int64_t i = 0; i < from.numel(); ++i) {
    check_input(values[i] >= 0 && values[i] < limit, path, ": '", key, "' has the value ",
                values[i], ", expected 0 to ", limit - 1);
    to[i] = To(values[i]);
  }
}

/// Index of the first of the largest values.
int argmax(const float* values, int n) {
  return int(std::max_element(values, values + n) - values);
}

float deletion_value(float deletions) {
  if (deletions == 0) return 0;  // most are
  return std::atan(deletions / 3) * float(2 / std::numbers::pi);
}

// Each of the following functions adds its part of the processed features. `n` is the chain's
// length, a tensor's residue axis may be longer.

void add_residue_features(const RawFeatures& raw, int64_t padded, Arrays& out) {
  const ResidueConstants& c = residue_constants();
  const int64_t n = raw.n_res();
  const int32_t* aatype = raw.aatype.data<int32_t>();
  Tensor seq_mask = Tensor::zeros({padded});
  Tensor target_feat = Tensor::zeros({padded, kRestypes + 2});
  Tensor exists14 = Tensor::zeros({padded, kAtom14}), exists37 = Tensor::zeros({padded, kAtom37});
  Tensor to37 = ints({padded, kAtom14}), to14 = ints({padded, kAtom37});
  for (int64_t i = 0; i < n; ++i) {
    const int32_t r = aatype[i];
    seq_mask.data<float>()[i] = 1;
    // Channel 0 marks a break between domains, which a chain has none of.
    target_feat.data<float>()[i * (kRestypes + 2) + 1 + r] = 1;
    std::copy_n(c.atom14_mask[r], kAtom14, exists14.data<float>() + i * kAtom14);
    std::copy_n(c.atom37_mask[r], kAtom37, exists37.data<float>() + i * kAtom37);
    std::copy_n(c.atom14_to_atom37[r], kAtom14, to37.data<int32_t>() + i * kAtom14);
    std::copy_n(c.atom37_to_atom14[r], kAtom37, to14.data<int32_t>() + i * kAtom37);
  }
  out["aatype"] = ints({padded});
  out["aatype"].narrow(0, 0, n).copy_from(raw.aatype);
  out["residue_index"] = ints({padded});
  out["residue_index"].narrow(0, 0, n).copy_from(raw.residue_index);
  out["seq_mask"] = seq_mask;
  out["target_feat"] = target_feat;
  out["atom14_atom_exists"] = exists14;
  out["atom37_atom_exists"] = exists37;
  out["residx_atom14_to_atom37"] = to37;
  out["residx_atom37_to_atom14"] = to14;
  const auto length = int32_t(n);
  out["seq_length"] = Tensor::of<int32_t>({}, &length);
}

void add_msa_features(const RawFeatures& raw, const RowSplit& rows, const Choices& choices,
                      int64_t n_rows, int64_t padded, Arrays& out) {
  constexpr int kFeatures = 2 * kMsaClasses + 3;
  const int64_t n = raw.n_res(), n_clusters = std::ssize(rows.centers);
  const ClusterSummary summary = summarize_clusters(
      raw, rows, choices.msa,
      choices.nearest.empty() ? nearest_clusters(raw, rows.extra, choices.msa) : choices.nearest);
  Tensor feat = Tensor::empty({n_rows, padded, kFeatures}), mask = Tensor::empty({n_rows, padded}),
         bert_mask = Tensor::empty({n_rows, padded}),
         true_msa = Tensor::empty({n_rows, padded}, Dtype::i32);
  auto *f = feat.data<float>(), *m = mask.data<float>(), *b = bert_mask.data<float>();
  auto* letters = true_msa.data<int32_t>();
#pragma omp parallel for
  for (int64_t k = 0; k < n_rows; ++k) {
    const int64_t n_here = k < n_clusters ? n : 0, row = k * padded;
    std::fill(f + (row + n_here) * kFeatures, f + (row + padded) * kFeatures, 0.0f);
    std::fill_n(m + row, n_here, 1.0f);
    for (float* values : {m, b}) std::fill(values + row + n_here, values + row + padded, 0.0f);
    std::fill(letters + row + n_here, letters + row + padded, 0);
    for (int64_t i = 0; i < n_here; ++i) {
      const int64_t from = k * n + i, to = row + i;
      const auto deletions = float(raw.deletions(rows.centers[k])[i]);
      b[to] = choices.bert_mask[from];
      letters[to] = raw.row(rows.centers[k])[i];
      float* x = f + to * kFeatures;
      std::fill_n(x, kMsaClasses, 0.0f);
      x[choices.msa[from]] = 1;
      x[kMsaClasses] = std::min(deletions, 1.0f);
      x[kMsaClasses + 1] = deletion_value(deletions);
      std::copy_n(summary.profile.data() + from * kMsaClasses, kMsaClasses, x + kMsaClasses + 2);
      x[kFeatures - 1] = deletion_value(summary.deletion_mean[from]);
    }
  }
  Tensor row_mask = Tensor::zeros({n_rows});
  std::fill_n(row_mask.data<float>(), n_clusters, 1.0f);
  out["msa_feat"] = feat;
  out["msa_mask"] = mask;
  out["msa_row_mask"] = row_mask;
  out["bert_mask"] = bert_mask;
  out["true_msa"] = true_msa;
}

void add_extra_msa_features(const RawFeatures& raw, std::span<const int32_t> rows, int64_t n_rows,
                            int64_t padded, Arrays& out) {
  const int64_t n = raw.n_res();
  const int64_t n_used = std::ssize(rows);
  Tensor msa = Tensor::empty({n_rows, padded}, Dtype::i32), mask = Tensor::empty({n_rows, padded}),
         has = Tensor::empty({n_rows, padded}), value = Tensor::empty({n_rows, padded});
  auto* letters = msa.data<int32_t>();
  auto *m = mask.data<float>(), *h = has.data<float>(), *v = value.data<float>();
#pragma omp parallel for
  for (int64_t s = 0; s < n_rows; ++s) {
    const int64_t n_here = s < n_used ? n : 0, row = s * padded;
    std::fill_n(m + row, n_here, 1.0f);
    for (float* values : {m, h, v}) std::fill(values + row + n_here, values + row + padded, 0.0f);
    std::fill(letters + row + n_here, letters + row + padded, 0);
    for (int64_t i = 0; i < n_here; ++i) {
      const auto deletions = float(raw.deletions(rows[s])[i]);
      letters[row + i] = raw.row(rows[s])[i];
      h[row + i] = std::min(deletions, 1.0f);
      v[row + i] = deletion_value(deletions);
    }
  }
  Tensor row_mask = Tensor::zeros({n_rows});
  std::fill_n(row_mask.data<float>(), n_used, 1.0f);
  out["extra_msa"] = msa;
  out["extra_msa_mask"] = mask;
  out["extra_msa_row_mask"] = row_mask;
  out["extra_has_deletion"] = has;
  out["extra_deletion_value"] = value;
}

void add_template_features(const TemplateFeatures& templates, int64_t n, int64_t n_used,
                           int64_t n_rows, int64_t padded, Arrays& out) {
  Tensor aatype = ints({n_rows, padded}), mask = Tensor::zeros({n_rows});
  Tensor positions = Tensor::zeros({n_rows, padded, kAtom37, 3});
  Tensor masks = Tensor::zeros({n_rows, padded, kAtom37});
  Tensor beta = Tensor::zeros({n_rows, padded, 3}), beta_mask = Tensor::zeros({n_rows, padded});
  Tensor sum_probs = Tensor::zeros({n_rows, 1});
  for (int64_t t = 0; t < n_used; ++t) {
    mask.data<float>()[t] = 1;
    sum_probs.data<float>()[t] = templates.sum_probs.data<float>()[t];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t from = t * n + i, to = t * padded + i;
      const float* x = templates.all_atom_positions.data<float>() + from * kAtom37 * 3;
      const float* m = templates.all_atom_masks.data<float>() + from * kAtom37;
      const int32_t r =
          kFromHhblits[argmax(templates.aatype.data<float>() + from * kMsaLetters, kMsaLetters)];
      const int atom = r == kGly ? kAtomCa : kAtomCb;
      aatype.data<int32_t>()[to] = r;
      std::copy_n(x, kAtom37 * 3, positions.data<float>() + to * kAtom37 * 3);
      std::copy_n(m, kAtom37, masks.data<float>() + to * kAtom37);
      std::copy_n(x + atom * 3, 3, beta.data<float>() + to * 3);
      beta_mask.data<float>()[to] = m[atom];
    }
  }
  out["template_aatype"] = aatype;
  out["template_mask"] = mask;
  out["template_all_atom_positions"] = positions;
  out["template_all_atom_masks"] = masks;
  out["template_pseudo_beta"] = beta;
  out["template_pseudo_beta_mask"] = beta_mask;
  out["template_sum_probs"] = sum_probs;
}

}  // namespace

RawFeatures make_raw_features(const std::string& sequence, const Msa& msa,
                              TemplateFeatures templates) {
  if (msa.rows.empty())
    return make_raw_features(sequence,
                             {.rows = {sequence}, .descriptions = {""}, .columns = sequence.size()},
                             std::move(templates));
  RawFeatures raw;
  const auto n_res = int64_t(sequence.size());
  check_input(n_res > 0, "the sequence is empty");
  raw.aatype = ints({n_res});
  raw.residue_index = ints({n_res});
  check(!templates.size() || templates.aatype.size(1) == n_res, "the templates have ",
        templates.size() ? templates.aatype.size(1) : 0, " residues, the query has ", n_res);
  raw.templates = std::move(templates);
  for (int64_t i = 0; i < n_res; ++i) {
    if (sequence[i] < 'A' || sequence[i] > 'Z')
      fail(Exit::kInput, "residue ", i + 1, " of the sequence is ", shown(sequence[i]),
           ", expected an upper-case amino acid letter");
    raw.aatype.data<int32_t>()[i] = restype_index(sequence[i]);
    raw.residue_index.data<int32_t>()[i] = int32_t(i);
  }
  raw.n_seq = std::ssize(msa.rows);
  check_input(raw.n_seq <= kMostRows, "the alignment has more than ", kMostRows, " rows");
  raw.msa.resize(raw.n_seq * n_res);
  raw.deletion_matrix.resize(raw.n_seq * n_res);
  std::atomic<int64_t> bad = raw.n_seq;
#pragma omp parallel for
  for (int64_t s = 0; s < raw.n_seq; ++s) {
    try {
      fill_row(raw, s, msa);
    } catch (const Error&) {
      for (int64_t first = bad; s < first && !bad.compare_exchange_weak(first, s);) continue;
    }
  }
  if (bad < raw.n_seq) fill_row(raw, bad, msa);  // throws again, outside of the threads
  check_query(raw, sequence, msa.aligned(0));
  set_profile(raw);
  return raw;
}

Msa to_msa(const RawFeatures& raw) {
  Msa msa;
  msa.columns = size_t(raw.n_res());
  for (int64_t s = 0; s < raw.n_seq; ++s) {
    std::string row;
    for (int64_t i = 0; i < raw.n_res(); ++i) {
      row.append(size_t(raw.deletions(s)[i]), 'x');
      row += kRestypeLetters[raw.row(s)[i]];
    }
    msa.rows.push_back(std::move(row));
    msa.descriptions.push_back(s ? cat("row_", s + 1) : "query");
  }
  return msa;
}

Arrays to_arrays(const RawFeatures& raw) {
  const int64_t n_res = raw.n_res();
  const auto repeated = [&](int64_t value) {
    Tensor t = ints({n_res});
    std::fill_n(t.data<int32_t>(), n_res, int32_t(value));
    return t;
  };
  Arrays out;
  Tensor one_hot = ints({n_res, kRestypes + 1});
  for (int64_t i = 0; i < n_res; ++i)
    one_hot.data<int32_t>()[i * (kRestypes + 1) + raw.aatype.data<int32_t>()[i]] = 1;
  Tensor msa = Tensor::empty({raw.n_seq, n_res}, Dtype::i32);
  for (int64_t i = 0; i < msa.numel(); ++i) msa.data<int32_t>()[i] = kToHhblits[raw.msa[i]];
  out["aatype"] = one_hot;
  out["between_segment_residues"] = repeated(0);
  out["residue_index"] = raw.residue_index;
  out["seq_length"] = repeated(n_res);
  out["num_alignments"] = repeated(raw.n_seq);
  out["msa"] = msa;
  out["deletion_matrix_int"] = Tensor::of({raw.n_seq, n_res}, raw.deletion_matrix.data());
  if (raw.templates.size()) {
    out["template_aatype"] = raw.templates.aatype;
    out["template_all_atom_positions"] = raw.templates.all_atom_positions;
    out["template_all_atom_masks"] = raw.templates.all_atom_masks;
    out["template_sum_probs"] = raw.templates.sum_probs;
  }
  return out;
}

RawFeatures from_arrays(const Arrays& arrays, const std::string& path) {
  const auto size = [&](const char* key, int axis) {
    const auto it = arrays.find(key);
    check_input(it != arrays.end() && it->second.rank() > axis && it->second.size(axis) > 0, path,
                ": no array '", key, "' with data; expected AlphaFold's raw features");
    return it->second.size(axis);
  };
  RawFeatures raw;
  const int64_t n_res = size("aatype", 0);
  raw.n_seq = size("msa", 0);
  check_input(raw.n_seq <= kMostRows, path, ": 'msa' has ", raw.n_seq, " rows, expected at most ",
              kMostRows);
  const Tensor one_hot = take(arrays, path, "aatype", Dtype::i32, {n_res, kRestypes + 1});
  raw.aatype = ints({n_res});
  for (int64_t i = 0; i < n_res; ++i) {
    const int32_t* row = one_hot.data<int32_t>() + i * (kRestypes + 1);
    raw.aatype.data<int32_t>()[i] = int32_t(std::max_element(row, row + kRestypes + 1) - row);
  }
  raw.residue_index = take(arrays, path, "residue_index", Dtype::i32, {n_res}).clone();
  raw.msa.resize(raw.n_seq * n_res);
  raw.deletion_matrix.resize(raw.n_seq * n_res);
  copy_checked(take(arrays, path, "msa", Dtype::i32, {raw.n_seq, n_res}), raw.msa.data(),
               kMsaLetters, path, "msa");
  for (int8_t& letter : raw.msa) letter = kFromHhblits[letter];
  copy_checked(take(arrays, path, "deletion_matrix_int", Dtype::i32, {raw.n_seq, n_res}),
               raw.deletion_matrix.data(), kMostDeleted, path, "deletion_matrix_int");
  int64_t inserted = 0;
  for (const int32_t count : raw.deletion_matrix) inserted += count;
  check_input(inserted <= kMostInserted, path, ": 'deletion_matrix_int' counts ", inserted,
              " inserted residues, expected at most ", kMostInserted);
  if (arrays.count("template_aatype")) {
    const int64_t n =
        arrays.at("template_aatype").rank() ? arrays.at("template_aatype").size(0) : 0;
    TemplateFeatures& t = raw.templates;
    t.aatype = take(arrays, path, "template_aatype", Dtype::f32, {n, n_res, kMsaLetters});
    t.all_atom_positions =
        take(arrays, path, "template_all_atom_positions", Dtype::f32, {n, n_res, kAtom37, 3});
    t.all_atom_masks =
        take(arrays, path, "template_all_atom_masks", Dtype::f32, {n, n_res, kAtom37});
    t.sum_probs = take(arrays, path, "template_sum_probs", Dtype::f32, {n, 1});
  }
  set_profile(raw);
  return raw;
}

Choices draw_choices(const RawFeatures& raw, const DataConfig& config, uint64_t seed,
                     int64_t slice) {
  const uint64_t draw =
      config.resample_msa_in_recycling ? slice : slice % std::max<int64_t>(1, config.num_ensemble);
  Choices choices;
  choices.shuffle0 = random_order(Rng(seed, {kShuffle0, draw}), 1, int32_t(raw.n_seq - 1));
  const RowSplit rows = split_rows(cluster_count(config), choices.shuffle0);
  choices.shuffle1 = random_order(Rng(seed, {kShuffle1, draw}), 0, int32_t(rows.extra.size()));
  draw_masked_msa(raw, config, rows.centers, Rng(seed, {kMaskedMsa, draw}), choices);
  const auto words = Rng(seed, {kCropSeed}).block(0);
  for (int i = 0; i < 2; ++i) choices.random_crop_to_size_seed[i] = int32_t(words[i]);
  return choices;
}

Arrays make_slice(const RawFeatures& raw, const DataConfig& config, const Choices& choices,
                  const Padding& padding) {
  const int64_t max_clusters = cluster_count(config), n_res = raw.n_res();
  const RowSplit rows = split_rows(max_clusters, choices.shuffle0);
  const int64_t n_clusters = std::ssize(rows.centers), n_extra = std::ssize(rows.extra);
  if (config.max_extra_msa <= 0)
    fail(Exit::kUsage, "max_extra_msa is ", config.max_extra_msa, ", expected 1 or more");
  check(std::ssize(choices.shuffle0) == raw.n_seq - 1 &&
            std::ssize(choices.msa) == n_clusters * n_res &&
            choices.bert_mask.size() == choices.msa.size() &&
            (choices.nearest.empty() || std::ssize(choices.nearest) == n_extra),
        "the choices are another alignment's");

  std::vector<int32_t> kept(std::min(config.max_extra_msa, n_extra));
  check(choices.shuffle1.size() >= kept.size(), "the choices are another alignment's");
  for (size_t s = 0; s < kept.size(); ++s) kept[s] = rows.extra[choices.shuffle1[s]];

  const int64_t padded = std::max(padding.n_res, n_res);
  const auto padded_rows = [&](int64_t n, int64_t full) {
    return padding.rows == Padding::kFull ? full : std::max<int64_t>(1, n);
  };
  Arrays out;
  add_residue_features(raw, padded, out);
  add_msa_features(raw, rows, choices, padded_rows(n_clusters, max_clusters), padded, out);
  add_extra_msa_features(raw, kept, padded_rows(kept.size(), config.max_extra_msa), padded, out);
  if (config.use_templates) {
    const int64_t used = std::min(raw.templates.size(), config.max_templates);
    add_template_features(raw.templates, n_res, used, padded_rows(used, config.max_templates),
                          padded, out);
  }
  out["random_crop_to_size_seed"] = Tensor::of({2}, choices.random_crop_to_size_seed);
  return out;
}

}  // namespace ff
