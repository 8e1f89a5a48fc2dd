// The report's page and plots: what users wrote stays text, odd predictions are drawn.
#include "io/html_report.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/geometry/residue_constants.h"

using namespace ff;
using Catch::Contains;

namespace {

Prediction prediction(int64_t n, bool with_pae) {
  Prediction p;
  p.model = "model_1_ptm";
  p.aatype = Tensor::zeros({n}, Dtype::i32);
  p.positions = Tensor::zeros({n, kAtom37, 3});
  p.mask = Tensor::zeros({n, kAtom37});
  p.plddt = Tensor::empty({n});
  for (int64_t i = 0; i < n; ++i) {
    p.plddt.data<float>()[i] = float(i % 101);
    // A helix without the fifth residue's atoms.
    if (i == 4) continue;
    for (int a = 0; a < 5; ++a) {
      p.mask.data<float>()[i * kAtom37 + a] = 1;
      float* x = p.positions.data<float>() + (i * kAtom37 + a) * 3;
      x[0] = float(2.3 * std::cos(1.75 * double(i)) + a);
      x[1] = float(2.3 * std::sin(1.75 * double(i)));
      x[2] = 1.5f * float(i);
    }
  }
  if (with_pae) {
    p.pae = Tensor::zeros({n, n});
    p.max_pae = 31.75;
    p.ptm = 0.5;
  }
  p.mean_plddt = 50;
  return p;
}

Coverage coverage(int64_t n_seq, int64_t n_res) {
  Coverage c;
  c.n_seq = n_seq;
  c.n_res = n_res;
  c.identity.assign(size_t(n_seq), 1);
  c.present.assign(size_t(n_seq * n_res), 1);
  return c;
}

std::string page_of(const std::vector<Prediction>& ranked, const std::string& title = "t") {
  const int64_t n = ranked[0].aatype.numel();
  Report report{.tag = "tag",
                .title = title,
                .sequence = std::string(size_t(n), 'A'),
                .ranked = ranked,
                .coverage = coverage(3, n),
                .tables = {{"Inputs", {{title, title}}}},
                .warnings = {title}};
  return report_html(report);
}

nlohmann::json data_of(const std::string& page) {
  const std::string mark = "id=\"data\">";
  const size_t from = page.find(mark) + mark.size();
  return nlohmann::json::parse(page.substr(from, page.find("</script>", from) - from));
}

/// Whether every tag is closed in its order; enough of XML for what is written here.
bool well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = 0; (at = xml.find('<', at)) != std::string::npos;) {
    const size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    at = end;
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
    }
  }
  return open.empty();
}

}  // namespace

TEST_CASE("the page holds its predictions and loads nothing") {
  const std::string page = page_of({prediction(30, true), prediction(30, false)});
  const nlohmann::json data = data_of(page);
  REQUIRE(data["models"].size() == 2);
  CHECK(data["models"][0]["plddt"].size() == 30);
  CHECK(data["models"][0]["pae"]["n"] == 30);
  CHECK(data["models"][0]["ptm"] == 0.5);
  CHECK_FALSE(data["models"][1].contains("pae"));
  CHECK(data["models"][1]["ptm"].is_null());
  for (const char* loader : {" src=", "href=\"http", "@import", "url(", "fetch(", "XMLHttp"})
    CHECK_THAT(page, !Contains(loader));
  CHECK_THAT(page, !Contains("{{"));
}

TEST_CASE("text of users stays text") {
  for (const std::string hostile :
       {"</script><script>alert(1)</script>", "<!-- {{data}} {{tag}} -->", "\"'&<>", "\xff\xfe\x01",
        "a\xe2\x80\xa8z"}) {
    INFO(hostile);
    std::vector<Prediction> ranked{prediction(5, true)};
    ranked[0].model = hostile;
    const std::string page = page_of(ranked, hostile);
    CHECK_THAT(page, !Contains("<script>alert") && !Contains("<!-- "));
    CHECK(data_of(page)["models"].size() == 1);
    CHECK(page.find('\xff') == std::string::npos);
    CHECK(well_formed(pae_svg(ranked)));
    CHECK_THAT(pae_svg(ranked), !Contains("<script>"));
  }
}

TEST_CASE("sizes from one residue to five thousand") {
  for (const int64_t n : {1, 2, 5, 40, 5000}) {
    INFO(n);
    const std::vector<Prediction> ranked(2, prediction(n, true));
    const std::string page = page_of(ranked);
    CHECK(data_of(page)["models"][0]["pae"]["n"] == std::min<int64_t>(n, 800));
    CHECK(page.size() < 4'000'000);
    for (const std::string& svg : {plddt_svg(ranked), pae_svg(ranked), coverage_svg(coverage(1, n)),
                                   coverage_svg(coverage(1000, n))}) {
      CHECK(well_formed(svg));
      CHECK(svg.size() < 1'000'000);
    }
  }
  CHECK(pae_svg(std::vector{prediction(5, false)}).empty());
}

TEST_CASE("coverage sorts by identity") {
  const RawFeatures raw =
      make_raw_features("ACDEF", parse_a3m(">q\nACDEF\n>a\nGGGGG\n>b\nACD--\n", "x.a3m"));
  const Coverage c = coverage_of(raw);
  REQUIRE(c.n_seq == 3);
  CHECK(c.identity == std::vector<float>{1, 1, 0});
  CHECK(std::vector<int8_t>(c.present.begin() + 5, c.present.begin() + 10) ==
        std::vector<int8_t>{1, 1, 1, 0, 0});
}
