// The losses together: AlphaFold's own outputs in, its own losses out; every input's gradient by
// differences; the same bits from any number of threads.
#include <omp.h>

#include <fstream>
#include <numeric>

#include "core/geometry/atoms.h"
#include "core/geometry/residue_constants.h"
#include "core/loss/losses.h"
#include "io/npz.h"
#include "tests/unit/gradcheck.h"

namespace ff::test {
namespace {

std::string data_path(const std::string& name) { return std::string(TEST_DATA) + "/" + name; }

Arrays slice(const std::string& file, int64_t i) {
  Arrays out;
  for (const auto& [name, value] : read_npz(data_path(file))) out[name] = value.select(0, i);
  return out;
}

std::vector<Var> layers(const Tensor& all) {
  std::vector<Var> out;
  for (int64_t i = 0; i < all.size(0); ++i) out.emplace_back(all.select(0, i));
  return out;
}

LossInputs from_outputs(const Arrays& outputs) {
  const std::string sides = "structure_module/sidechains/";
  const auto last = [&](const std::string& name) {
    const Tensor& t = outputs.at(name);
    return Var(t.select(0, t.size(0) - 1));
  };
  LossInputs in;
  in.affines = layers(outputs.at("structure_module/traj"));
  in.angles = layers(outputs.at(sides + "angles_sin_cos"));
  in.unnormalized_angles = layers(outputs.at(sides + "unnormalized_angles_sin_cos"));
  in.frames = last(sides + "frames");
  in.atoms = last(sides + "atom_pos");
  in.distogram = outputs.at("distogram/logits");
  in.masked_msa = outputs.at("masked_msa/logits");
  in.lddt = outputs.at("predicted_lddt/logits");
  in.aligned_error = outputs.at("predicted_aligned_error/logits");
  in.resolved = outputs.at("experimentally_resolved/logits");
  in.distogram_edges = outputs.at("distogram/bin_edges");
  in.aligned_error_breaks = outputs.at("predicted_aligned_error/breaks");
  return in;
}

void compare_forward(const std::string& folder, int64_t recycles) {
  const std::string number = std::to_string(recycles);
  const Arrays want = read_npz(data_path(folder + "/losses_r" + number + ".npz"));
  const Losses got =
      all_losses(alphafold_losses(data_path(folder + "/config.json")),
                 from_outputs(read_npz(data_path(folder + "/outputs_r" + number + ".npz"))),
                 slice(folder + "/batch.npz", recycles), slice(folder + "/labels.npz", recycles));
  for (const auto& [key, value] : want) {
    if (key.starts_with("confidence/")) continue;
    INFO(folder << " " << key);
    REQUIRE(got.terms.count(key) == 1);
    const Tensor ours = got.terms.at(key).to(Dtype::f64).contiguous(),
                 theirs = value.to(Dtype::f64).contiguous();
    REQUIRE(ours.shape() == theirs.shape());
    const bool sums = key.ends_with("_sum") || key.ends_with("clashes_mean_loss");
    for (int64_t i = 0; i < theirs.numel(); ++i) {
      const double a = ours.data<double>()[i], b = theirs.data<double>()[i];
      INFO("element " << i << ": " << a << ", AlphaFold's " << b);
      REQUIRE(std::abs(a - b) <= (sums ? 1e-3 : 1e-5) * std::max(1e-5, std::abs(b)) + 1e-9);
    }
  }
}

TEST_CASE("from AlphaFold's outputs to AlphaFold's losses") {
  compare_forward("tiny", 0);
  compare_forward("tiny_padded", 1);
}

/// A protein with every kind of mask, random outputs and both namings the better one somewhere.
struct Example {
  explicit Example(int64_t n) : n(n), aatype(Tensor::empty({n}, Dtype::i32)) {
    const std::vector<int> types{3, 13, 6, 1, 18, 20, 7};
    std::vector<int32_t> index(static_cast<size_t>(n));
    std::iota(index.begin(), index.end(), 5);
    const ResidueConstants& c = residue_constants();
    const Tensor exists14 = Tensor::empty({n, kAtom14}), exists37 = Tensor::empty({n, kAtom37}),
                 names = Tensor::empty({n, kAtom14}, Dtype::i32),
                 ambiguous = Tensor::zeros({n, kAtom14}, Dtype::f64);
    const Tensor truth = random_f64({n, kAtom14, 3}, 11, 3), seen = some({n, kAtom14}, 6);
    const Tensor other = truth.clone(), other_seen = seen.clone();
    atoms = random_f64({n, kAtom14, 3}, 12, 1);
    for (int64_t i = 0; i < n; ++i) {
      const int type = types[size_t(i) % types.size()];
      aatype.data<int32_t>()[i] = type;
      std::copy_n(c.atom14_mask[type], kAtom14, exists14.data<float>() + kAtom14 * i);
      std::copy_n(c.atom37_mask[type], kAtom37, exists37.data<float>() + kAtom37 * i);
      std::copy_n(c.atom14_to_atom37[type], kAtom14, names.data<int32_t>() + kAtom14 * i);
      for (int a = 0; a < kAtom14; ++a) {
        const int64_t at = i * kAtom14 + a,
                      from = i * kAtom14 + (type == 20 ? a : alternative_atom14(type, a));
        other_seen.data<double>()[at] = seen.data<double>()[from];
        if (from != at) ambiguous.data<double>()[at] = 1;
        for (int k = 0; k < 3; ++k)
          other.data<double>()[3 * at + k] = truth.data<double>()[3 * from + k];
      }
      // Every second residue is predicted under its other name.
      for (int64_t k = i * kAtom14 * 3; k < (i + 1) * kAtom14 * 3; ++k)
        atoms.data<double>()[k] += (i % 2 ? other : truth).data<double>()[k];
    }
    batch = {{"aatype", aatype},
             {"residue_index", Tensor::of<int32_t>({n}, index.data())},
             {"seq_mask", some({n}, 4)},
             {"atom14_atom_exists", exists14},
             {"atom37_atom_exists", exists37},
             {"residx_atom14_to_atom37", names},
             {"true_msa", Tensor::zeros({3, n}, Dtype::i32)},
             {"bert_mask", some({3, n}, 3)}};
    labels = {{"atom14_gt_positions", truth},
              {"atom14_alt_gt_positions", other},
              {"atom14_gt_exists", seen},
              {"atom14_alt_gt_exists", other_seen},
              {"atom14_atom_is_ambiguous", ambiguous},
              {"rigidgroups_gt_frames", random_f64({n, 8, 12}, 13)},
              {"rigidgroups_alt_gt_frames", random_f64({n, 8, 12}, 14)},
              {"rigidgroups_gt_exists", some({n, 8}, 5)},
              {"backbone_affine_tensor", random_f64({n, 7}, 15)},
              {"backbone_affine_mask", some({n}, 3)},
              {"chi_angles", random_f64({n, 4}, 16)},
              {"chi_mask", some({n, 4}, 5)},
              {"pseudo_beta", random_f64({n, 3}, 17, 5)},
              {"pseudo_beta_mask", some({n}, 4)},
              {"all_atom_positions", random_f64({n, kAtom37, 3}, 18, 4)},
              {"all_atom_mask", some({n, kAtom37}, 7)},
              {"resolution", Tensor::scalar(2)},
              {"use_clamped_fape", Tensor::scalar(0.25F)}};
  }

  static Tensor some(const Dims& shape, int64_t every) {
    const Tensor t = Tensor::empty(shape, Dtype::f64);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = i % every == every - 1 ? 0 : 1;
    return t;
  }

  /// Two layers; every tensor that the losses have a gradient for.
  std::vector<Tensor> inputs() const {
    return {random_f64({n, 7}, 21),      random_f64({n, 7}, 22),
            random_f64({n, 7, 2}, 23),   random_f64({n, 7, 2}, 24),
            random_f64({n, 14}, 25),     random_f64({n, 14}, 26),
            random_f64({n, 8, 12}, 27),  atoms,
            random_f64({n, n, 6}, 28),   random_f64({3, n, 23}, 29),
            random_f64({n, 5}, 30),      random_f64({n, n, 4}, 31),
            random_f64({n, kAtom37}, 32)};
  }

  Losses losses(const LossConfig& config, const Vars& v) const {
    LossInputs in;
    in.affines = {v[0], v[1]};
    in.angles = {v[2], v[3]};
    in.unnormalized_angles = {v[4], v[5]};
    in.frames = v[6];
    in.atoms = v[7];
    in.distogram = v[8];
    in.masked_msa = v[9];
    in.lddt = v[10];
    in.aligned_error = v[11];
    in.resolved = v[12];
    const float edges[] = {2, 4, 6, 8, 10}, breaks[] = {0, 4, 8};
    in.distogram_edges = Tensor::of<float>({5}, edges);
    in.aligned_error_breaks = Tensor::of<float>({3}, breaks);
    return all_losses(config, in, batch, labels, config.structural_violation_loss_weight != 0);
  }

  int64_t n;
  Tensor aatype, atoms;
  Arrays batch, labels;
};

LossConfig everything() {
  LossConfig config;
  config.predicted_aligned_error = config.predicted_lddt = config.experimentally_resolved = 1;
  return config;
}

TEST_CASE("the total's gradient reaches every output of the network") {
  const Example example(5);
  LossConfig config = everything();
  config.fape_clamp_distance = 4;
  config.atom_clamp_distance = 1000;  // 2,800 pairs: some would lie on the clamp
  Vars constants;
  for (const Tensor& t : example.inputs()) constants.emplace_back(t);
  const Tensor names =
      example.losses(config, constants).terms.at("structure_module/alt_naming_is_better");
  const float want[] = {0, 1, 0, 0, 0};
  for (int i = 0; i < 5; ++i) CHECK(names.data<float>()[i] == want[i]);
  gradcheck([&](const Vars& v) { return example.losses(config, v).total; }, example.inputs());
}

TEST_CASE("a structure that is not resolved well trains no confidence") {
  Example example(4);
  LossConfig config = everything();
  Vars vars;
  for (const Tensor& t : example.inputs()) {
    vars.emplace_back(t);
    vars.back().want_grad();
  }
  for (const double resolution : {0.0, 3.5}) {
    example.labels["resolution"] = Tensor::scalar(float(resolution));
    Tape tape;
    const Losses losses = example.losses(config, vars);
    tape.backward({losses.total});
    for (const char* head :
         {"predicted_lddt", "predicted_aligned_error", "experimentally_resolved"})
      CHECK(losses.terms.at(std::string(head) + "/loss").item() == 0);
    CHECK(losses.terms.at("distogram/loss").item() > 0);
    for (const int confidence : {10, 11, 12}) CHECK(!vars[size_t(confidence)].grad().defined());
    CHECK(vars[8].grad().defined());
  }
}

TEST_CASE("a label or feature that is missing or misshapen is named") {
  const Example example(4);
  Vars constants;
  for (const Tensor& t : example.inputs()) constants.emplace_back(t);
  const auto complaint = [&](Example broken) {
    try {
      broken.losses(everything(), constants);
    } catch (const Error& e) {
      CHECK(e.code() == Exit::kInput);
      return std::string(e.what());
    }
    return std::string();
  };
  for (const auto& item : example.labels) {
    if (item.first == "resolution" || item.first == "use_clamped_fape") continue;
    Example broken = example;
    broken.labels.erase(item.first);
    CHECK(complaint(broken) == "the labels have no '" + item.first + "'");
    broken.labels[item.first] = Tensor::zeros({3, 1});
    CHECK_THAT(complaint(broken), Catch::Contains("'" + item.first + "' of the labels has shape"));
  }
  Example broken = example;
  broken.batch.erase("bert_mask");
  CHECK(complaint(broken) == "the features have no 'bert_mask'");
  broken = example;
  broken.batch["aatype"] = Tensor::of<int32_t>({4}, std::vector<int32_t>{0, 1, 21, 2}.data());
  CHECK_THAT(complaint(broken), Catch::Contains("aatype holds 21"));
  broken = example;
  broken.batch["true_msa"] = Tensor::of<int32_t>({3, 4}, std::vector<int32_t>(12, 23).data());
  CHECK_THAT(complaint(broken), Catch::Contains("true_msa holds 23"));
}

TEST_CASE("any number of threads gives the same losses and gradients, bit for bit") {
  const Example example(67);
  LossConfig config = everything();
  config.structural_violation_loss_weight = 1;
  const auto run = [&](int threads) {
    const int kept = omp_get_max_threads();
    omp_set_num_threads(threads);
    Vars vars;
    for (const Tensor& t : example.inputs()) {
      vars.emplace_back(t.to(Dtype::f32));
      vars.back().want_grad();
    }
    Tape tape;
    const Losses losses = example.losses(config, vars);
    tape.backward({losses.total});
    omp_set_num_threads(kept);
    std::vector<Tensor> out;
    for (const auto& [name, value] : losses.terms) out.push_back(value.to(Dtype::f64).contiguous());
    for (const Var& v : vars) out.push_back(v.grad().to(Dtype::f64).contiguous());
    return out;
  };
  const std::vector<Tensor> one = run(1);
  for (const int threads : {2, 3, 5}) {
    const std::vector<Tensor> many = run(threads);
    REQUIRE(many.size() == one.size());
    for (size_t k = 0; k < one.size(); ++k)
      for (int64_t i = 0; i < one[k].numel(); ++i)
        REQUIRE(one[k].data<double>()[i] == many[k].data<double>()[i]);
  }
}

TEST_CASE("lDDT on a bin's edge falls to AlphaFold's side") {
  // 25 contacts, 10 of them 3 angstrom off, the rest 5: a quarter of 10 of 25. By jnp's formula in
  // f32, 50 floor((1 / 25) * 2.5) is in bin 4, in exact arithmetic in bin 5.
  const int64_t n = 26;
  const Tensor truth = Tensor::zeros({n, 3}, Dtype::f64), guess = Tensor::zeros({n, 3}, Dtype::f64),
               mask = Tensor::zeros({n}, Dtype::f64);
  for (int64_t i = 0; i < n; ++i) {
    mask.data<double>()[i] = 1;
    if (i == 0) continue;
    truth.data<double>()[3 * i] = 5 + 0.1 * double(i);
    guess.data<double>()[3 * i] = truth.data<double>()[3 * i] + (i <= 10 ? 3 : 5);
  }
  const double score = lddt_ca(guess, truth, mask).data<double>()[0];
  CHECK(score == Approx(0.1));
  CHECK(int(float(score) * 50.F) == 4);
}

TEST_CASE("AlphaFold's tree gives the losses' numbers, or says what is wrong with it") {
  const LossConfig c = alphafold_losses(data_path("tiny/config.json"));
  CHECK(c.predicted_aligned_error == 0.1);
  CHECK(c.structural_violation_loss_weight == 1);
  CHECK(alphafold_losses(data_path("tiny_no_template/config.json")).predicted_aligned_error == 0);
  const auto refused = [&](const std::string& from, const std::string& to) {
    std::ifstream in(data_path("tiny/config.json"));
    std::string text{std::istreambuf_iterator<char>(in), {}};
    REQUIRE(text.find(from) != std::string::npos);
    text.replace(text.find(from), from.size(), to);
    const std::string path = "losses_test_config.json";
    std::ofstream(path) << text;
    try {
      alphafold_losses(path);
    } catch (const Error& e) {
      std::remove(path.c_str());
      CHECK(e.code() == Exit::kInput);
      return std::string(e.what());
    }
    std::remove(path.c_str());
    return std::string();
  };
  CHECK_THAT(refused("\"chi_weight\"", "\"chi_wait\""), Catch::Contains("chi_weight' is missing"));
  CHECK_THAT(refused("\"clamp_distance\": 10.0", "\"clamp_distance\": \"far\""),
             Catch::Contains("fape.clamp_distance' holds string"));
  CHECK_THAT(refused("\"max_resolution\": 3.0", "\"max_resolution\": 4.0"),
             Catch::Contains("one range for all heads"));
}

}  // namespace
}  // namespace ff::test
