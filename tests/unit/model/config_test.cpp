// Presets against AlphaFold's model/config.py, and AlphaFold's own configuration files.
#include "core/model/config.h"

#include <unistd.h>
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/nearest.h"

using namespace ff;

namespace {

const std::string kData = std::string(TEST_DATA) + "/param_shapes/";

/// Writes tiny's configuration after `change`, reads it, and returns the error.
template <class Change>
std::string error_after(Change change) {
  nlohmann::json root = nlohmann::json::parse(std::ifstream(kData + "tiny.config.json"));
  change(root);
  const auto path = std::filesystem::temp_directory_path() / cat("ff_config_test_", getpid());
  std::ofstream(path) << root;
  std::string text;
  try {
    alphafold_config(path);
  } catch (const Error& e) {
    text = e.what();
    CHECK(e.code() == Exit::kInput);
  }
  std::filesystem::remove(path);
  return text;
}

}  // namespace

TEST_CASE("presets follow AlphaFold's model/config.py") {
  struct Row {
    const char* name;
    int64_t extra;
    bool templates, ptm;
  };
  for (const Row& row :
       {Row{"model_1", 5120, true, false}, Row{"model_2", 1024, true, false},
        Row{"model_3", 5120, false, false}, Row{"model_4", 5120, false, false},
        Row{"model_5", 1024, false, false}, Row{"model_1_ptm", 5120, true, true},
        Row{"model_2_ptm", 1024, true, true}, Row{"model_3_ptm", 5120, false, true},
        Row{"model_4_ptm", 5120, false, true}, Row{"model_5_ptm", 1024, false, true}}) {
    const ModelConfig c = preset_config(row.name);
    INFO(row.name);
    CHECK(c.name == row.name);
    CHECK(c.data.max_extra_msa == row.extra);
    CHECK(c.data.max_msa_clusters == 512);
    CHECK(c.data.use_templates == row.templates);
    CHECK(c.data.reduce_msa_clusters_by_max_templates == row.templates);
    CHECK(c.templates.enabled == row.templates);
    CHECK(c.evoformer.msa_dropout == 0.15);
    CHECK(c.evoformer.pair_dropout == 0.25);
    CHECK(c.templates.pair_stack.pair_dropout == 0.25);
    CHECK(c.structure.dropout == 0.1);
    CHECK(c.templates.embed_torsion_angles == row.templates);
    CHECK(c.heads.pae_weight == (row.ptm ? 0.1 : 0.0));
    CHECK(c.evoformer_num_block == 48);
    CHECK(c.num_recycle == 3);
    CHECK(c.templates.pair_stack.pair_transition_factor == 2);
  }
  CHECK(preset_names().size() == 11);
  CHECK_FALSE(preset_config("demo").templates.enabled);
  CHECK(preset_config("demo").heads.pae_weight > 0);
}

TEST_CASE("an unknown preset gets the nearest name") {
  CHECK_THROWS_WITH(preset_config("model_1_pmt"), Catch::Contains("did you mean 'model_1_ptm'?"));
  try {
    preset_config("zzz");
    FAIL("accepted");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kUsage);
  }
}

TEST_CASE("AlphaFold's configuration tree is read") {
  const ModelConfig c = alphafold_config(kData + "tiny.config.json");
  CHECK(c.msa_channel == 16);
  CHECK(c.evoformer.num_outer_channel == 6);
  CHECK(c.evoformer.triangle_attention_ending_node.num_head == 2);
  CHECK(c.evoformer.triangle_attention_ending_node.key_dim == 0);
  CHECK(c.templates.pair_stack.triangle_multiplication_incoming_channel == 10);
  CHECK(c.templates.attention.gating == false);
  CHECK(c.templates.attention.key_dim == 8);
  CHECK(c.structure.num_point_v == 4);
  CHECK(c.heads.plddt_num_channels == 20);
  CHECK(c.heads.pae_weight == 0.1);
  CHECK(c.num_recycle == 2);
  CHECK(c.data.max_msa_clusters == 7);
  CHECK(alphafold_config(kData + "tiny_no_template.config.json").templates.enabled == false);
}

TEST_CASE("a configuration that does not fit names its key") {
  using nlohmann::json;
  CHECK(error_after([](json&) {}).empty());
  CHECK_THAT(error_after([](json& j) { j["model"].erase("num_recycle"); }),
             Catch::Contains("key 'model.num_recycle' is missing"));
  CHECK_THAT(
      error_after([](json& j) { j["model"]["embeddings_and_evoformer"]["msa_channel"] = "many"; }),
      Catch::Contains("msa_channel' holds string, expected an integer"));
  CHECK_THAT(error_after([](json& j) {
               j["model"]["embeddings_and_evoformer"]["evoformer_num_block"] = int64_t(1) << 60;
             }),
             Catch::Contains("model.evoformer_stack.no_blocks"));
  CHECK_THAT(
      error_after([](json& j) { j["model"]["embeddings_and_evoformer"]["msa_channel"] = 17; }),
      Catch::Contains("heads do not divide"));
  CHECK_THAT(error_after([](json& j) { j = json::array(); }), Catch::Contains("is missing"));
  CHECK_THROWS_WITH(alphafold_config(kData + "tiny_multimer.config.json"),
                    Catch::Contains("multimer"));
  CHECK_THROWS_WITH(alphafold_config("/no/such/file"), Catch::Contains("cannot be opened"));
}

TEST_CASE("edit distance and the nearest name") {
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("ab", "ba") == 1);
  CHECK(did_you_mean("no_blok", {"no_blocks", "c_m"}) == "; did you mean 'no_blocks'?");
  CHECK(did_you_mean("zebra", {"no_blocks", "c_m"}).empty());
}

namespace {

/// The message with which `change` is refused.
template <class Change>
std::string refusal(Change change) {
  try {
    change();
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kUsage);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE(
    "a configuration file and overrides change what they name, and say what they do not know") {
  using Catch::Contains;
  ModelConfig config = preset_config("model_1");
  apply_override(config, "model.num_recycle=7");
  apply_override(config, "data.masked_msa.replace_fraction=0");
  CHECK(config.num_recycle == 7);
  CHECK(config.data.masked_msa_replace_fraction == 0);

  // Everything of the schema travels through a file.
  const auto path = std::filesystem::temp_directory_path() / cat("ff_config_file_", getpid());
  std::ofstream(path) << config_json(config);
  ModelConfig other = preset_config("model_5_ptm");
  apply_config_file(other, path);
  CHECK(config_json(other) == config_json(config));
  CHECK(other.templates.enabled);

  std::ofstream(path) << "model:\n  num_recycle: 2\n  evoformer_stack: {no_blok: 3}\n";
  CHECK_THAT(refusal([&] { apply_config_file(config, path); }),
             Contains(path.string() + ":3") && Contains("no_blok") && Contains("'no_blocks'"));
  std::ofstream(path) << "model: [1, 2\n";
  CHECK_THAT(refusal([&] { apply_config_file(config, path); }), Contains("is not YAML"));
  std::ofstream(path) << "- 1\n";
  CHECK_THAT(refusal([&] { apply_config_file(config, path); }), Contains("expected sections"));
  std::ofstream(path) << "? [a]\n: 1\n";
  CHECK_THAT(refusal([&] { apply_config_file(config, path); }), Contains("key: value"));
  std::filesystem::remove(path);

  CHECK_THAT(refusal([&] { apply_override(config, "model.num_recycles=7"); }),
             Contains("num_recycles") && Contains("'num_recycle'"));
  CHECK_THAT(refusal([&] { apply_override(config, "model.c_z=many"); }), Contains("many"));
  CHECK_THAT(refusal([&] { apply_override(config, "model.c_z=-4"); }), Contains("-4"));
  CHECK_THAT(refusal([&] { apply_override(config, "model.c_z"); }), Contains("key=value"));
  CHECK_THAT(refusal([&] { apply_override(config, "model=3"); }), Contains("section"));
}

TEST_CASE("a dropout rate that is none") {
  ModelConfig c = preset_config("demo");
  for (const char* key : {"model.evoformer_stack.msa_dropout", "model.evoformer_stack.pair_dropout",
                          "model.template.dropout_rate", "model.structure_module.dropout_rate"})
    for (const char* value : {"=-0.1", "=1"})
      CHECK_THROWS_WITH(apply_override(c, std::string(key) + value), Catch::Contains(key));
}
