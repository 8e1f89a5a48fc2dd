// Parameter names and shapes against DeepMind's lists, and the errors of files that do not fit.
#include "core/model/params.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

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
