// Parameter names and shapes against DeepMind's lists, and the errors of files that do not fit.
#include "core/model/params.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"

using namespace ff;

namespace {

std::string shapes_file(const std::string& name) {
  return std::string(TEST_DATA) + "/param_shapes/" + name + ".json";
}

std::map<std::string, Dims> listed_shapes(const std::string& name) {
  nlohmann::json root = nlohmann::json::parse(std::ifstream(shapes_file(name)));
  std::map<std::string, Dims> shapes;
  const nlohmann::json list = root.contains("shapes") ? root["shapes"] : root;
  for (const auto& [key, value] : list.items())
    shapes[key] = Dims(std::span<const int64_t>(value.get<std::vector<int64_t>>()));
  return shapes;
}

void compare(const ModelConfig& config, const std::string& list) {
  const auto expected = listed_shapes(list);
  std::map<std::string, Dims> ours;
  for (const ParamSpec& spec : param_specs(config)) {
    CHECK(ours.emplace(spec.name, spec.shape).second);
    CHECK(expected.count(spec.name) == 1);
  }
  for (const auto& [name, shape] : expected) {
    INFO(name << " " << shape.str() << " ours " << ours[name].str());
    CHECK(ours[name] == shape);
  }
}

Arrays arrays_of(const ModelConfig& config) {
  Arrays arrays;
  for (const ParamSpec& spec : param_specs(config)) arrays[spec.name] = Tensor::zeros(spec.shape);
  return arrays;
}

std::string misfit(const ModelConfig& config, Arrays arrays) {
  try {
    Params(config, std::move(arrays), "params.npz");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    return e.what();
  }
  return "";
}

ModelConfig tiny() { return alphafold_config(shapes_file("tiny.config")); }

const std::string kOuterBias =
    "alphafold/alphafold_iteration/evoformer/evoformer_iteration/outer_product_mean//output_b";

}  // namespace

TEST_CASE("param_specs gives DeepMind's names and shapes, no more and no fewer") {
  for (const char* preset : {"model_1", "model_3", "model_1_ptm"}) {
    INFO(preset);
    compare(preset_config(preset), preset);
  }
  for (const char* fixture : {"tiny", "tiny_no_template", "wide"}) {
    INFO(fixture);
    compare(alphafold_config(shapes_file(cat(fixture, ".config"))), fixture);
  }
}

TEST_CASE("presets of the same family share their parameters") {
  const auto count = [](const char* preset) {
    int64_t n = 0;
    for (const ParamSpec& spec : param_specs(preset_config(preset))) n += spec.shape.product();
    return n;
  };
  CHECK(count("model_1") == 93229082);
  CHECK(count("model_2") == 93229082);
  CHECK(count("model_3") == 92899674);
  CHECK(count("model_4") == 92899674);
  CHECK(count("model_5") == 92899674);
  CHECK(count("model_2_ptm") == 93237338);
  CHECK(count("model_5_ptm") == 92899674 + 128 * 64 + 64);
  CHECK(count("demo") > 2000000);
  CHECK(count("demo") < 6000000);
}

TEST_CASE("a model without the extra MSA's stack has nothing of it") {
  ModelConfig without = tiny();
  without.extra_msa_stack_num_block = 0;
  std::set<std::string> left;
  for (const ParamSpec& spec : param_specs(tiny()))
    if (spec.name.find("extra_msa") == std::string::npos) left.insert(spec.name);
  std::set<std::string> ours;
  for (const ParamSpec& spec : param_specs(without)) ours.insert(spec.name);
  CHECK(left.size() < param_specs(tiny()).size());
  CHECK(ours == left);
}

TEST_CASE("Params reports every misfit at once") {
  const ModelConfig config = tiny();
  CHECK(misfit(config, arrays_of(config)).empty());

  Arrays arrays = arrays_of(config);
  arrays.erase(kOuterBias);
  const std::string bias =
      "alphafold/alphafold_iteration/evoformer/evoformer_iteration/"
      "triangle_attention_starting_node//feat_2d_weights";
  arrays[bias] = Tensor::zeros({2, 16, 4});
  arrays["surplus//w"] = Tensor::zeros({1});
  const std::string text = misfit(config, arrays);
  CHECK_THAT(text, Catch::StartsWith("params.npz: 3 keys do not fit:\n"));
  CHECK_THAT(text, Catch::Contains(".../evoformer/evoformer_iteration/"
                                   "triangle_attention_starting_node//feat_2d_weights: "
                                   "file [2, 16, 4], model expects [2, 16, 2]"));
  CHECK_THAT(text, Catch::Contains("outer_product_mean//output_b: missing"));
  CHECK_THAT(text, Catch::Contains("surplus//w: the model has no such parameter"));

  arrays = arrays_of(config);
  arrays[kOuterBias] = Tensor::zeros({2, 16}, Dtype::i32);
  CHECK_THAT(misfit(config, arrays), Catch::Contains("file holds integers"));
}

TEST_CASE("Params says what kind of file a wrong one is") {
  Arrays multimer;
  for (const auto& [name, shape] : listed_shapes("model_1_multimer_v3"))
    multimer[name] = Tensor::zeros({1});
  CHECK_THAT(misfit(preset_config("model_1_ptm"), multimer), Catch::Contains("multimer"));

  const auto hint = [](const char* preset, const char* file) {
    ModelConfig want = tiny(), have = want;
    const ModelConfig want_sizes = preset_config(preset), have_sizes = preset_config(file);
    want.templates.enabled = want_sizes.templates.enabled;
    have.templates.enabled = have_sizes.templates.enabled;
    want.heads.pae_weight = want_sizes.heads.pae_weight;
    have.heads.pae_weight = have_sizes.heads.pae_weight;
    return misfit(want, arrays_of(have));
  };
  CHECK_THAT(hint("model_1", "model_3"), Catch::Contains("no template parameters"));
  CHECK_THAT(hint("model_3", "model_1"), Catch::Contains("has template parameters"));
  CHECK_THAT(hint("model_1_ptm", "model_1"), Catch::Contains("without _ptm"));
  CHECK_THAT(hint("model_1", "model_1_ptm"), Catch::Contains("with _ptm"));
}

TEST_CASE("A scope reads slices of stacked parameters as views") {
  const ModelConfig config = tiny();
  Arrays arrays = arrays_of(config);
  Tensor stacked = arrays[kOuterBias];
  for (int64_t i = 0; i < stacked.numel(); ++i) stacked.data<float>()[i] = float(i);
  const Params params(config, std::move(arrays), "params.npz");
  const Scope scope(params, "alphafold/alphafold_iteration/evoformer");
  const Var slice = ((scope / "evoformer_iteration").block(1) / "outer_product_mean")["output_b"];
  CHECK(slice.shape() == Dims{16});
  CHECK(slice.value().data<float>() == stacked.data<float>() + 16);
  CHECK_THROWS_WITH(scope["no_such"],
                    Catch::Contains("alphafold/alphafold_iteration/evoformer//no_such"));
}

TEST_CASE("fresh parameters have the deviations of their kind and depend on names alone") {
  const ModelConfig config = preset_config("demo");
  const Arrays arrays = initial_params(config, 7);
  CHECK(misfit(config, arrays).empty());
  const auto deviation = [](const Tensor& t) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < t.numel(); ++i) {
      const double x = t.data<float>()[i];
      sum += x;
      squares += x * x;
    }
    const double mean = sum / double(t.numel());
    return std::sqrt(squares / double(t.numel()) - mean * mean);
  };
  const std::string block = "alphafold/alphafold_iteration/evoformer/evoformer_iteration/";
  // c_m = 128, c_z = 64; the means and deviations of some 10^5 values lie within 1 %.
  CHECK(deviation(arrays.at(block + "msa_transition/transition1//weights")) ==
        Approx(std::sqrt(2.0 / 128)).epsilon(0.01));
  CHECK(deviation(arrays.at(block + "triangle_multiplication_outgoing/left_projection//weights")) ==
        Approx(std::sqrt(1.0 / 64)).epsilon(0.02));
  CHECK(deviation(arrays.at(block + "msa_row_attention_with_pair_bias/attention//query_w")) ==
        Approx(std::sqrt(2.0 / (128 + 128))).epsilon(0.01));
  CHECK(deviation(arrays.at(block + "msa_row_attention_with_pair_bias//feat_2d_weights")) ==
        Approx(std::sqrt(1.0 / 64)).epsilon(0.05));
  CHECK(deviation(arrays.at(block + "msa_transition/transition2//weights")) == 0);
  CHECK(arrays.at(block + "triangle_multiplication_outgoing/left_gate//bias").data<float>()[0] ==
        1);
  CHECK(arrays
            .at("alphafold/alphafold_iteration/structure_module/fold_iteration/"
                "invariant_point_attention//trainable_point_weights")
            .data<float>()[0] == Approx(0.541324854612918));
  // Cut at two deviations of the uncut normal.
  const Tensor w = arrays.at(block + "msa_transition/transition1//weights");
  float largest = 0;
  for (int64_t i = 0; i < w.numel(); ++i) largest = std::max(largest, std::abs(w.data<float>()[i]));
  CHECK(largest <= 2 * std::sqrt(2.0 / 128) / 0.8796 + 1e-6);
  CHECK(largest > 1.9 * std::sqrt(2.0 / 128) / 0.8796);

  ModelConfig other = config;
  other.heads.pae_weight = 0;
  const Arrays fewer = initial_params(other, 7), reseeded = initial_params(config, 8);
  CHECK(fewer.size() + 2 == arrays.size());
  const std::string name = block + "msa_transition/transition1//weights";
  const auto same = [&](const Tensor& a, const Tensor& b) {
    return std::memcmp(a.raw(), b.raw(), size_t(a.numel()) * 4) == 0;
  };
  CHECK(same(arrays.at(name), fewer.at(name)));
  CHECK_FALSE(same(arrays.at(name), reseeded.at(name)));
  CHECK_FALSE(same(w.select(0, 0), w.select(0, 1)));
}
