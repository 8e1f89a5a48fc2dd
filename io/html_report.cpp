// Fills io/report/page.html, and draws the SVG plots.
#include "io/html_report.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/base/error.h"
#include "core/geometry/residue_constants.h"

namespace ff {
namespace {

constexpr char kPage[] =
#include "page.html.inc"
    ;
constexpr char kCss[] =
#include "page.css.inc"
    ;
constexpr char kJs[] =
#include "page.js.inc"
    ;

constexpr int64_t kMostPaeCells = 800, kMostPlotCells = 256, kMostCoverageRows = 300;
constexpr int64_t kMostMaps = 25;

/// Text for HTML, XML and attributes; what XML cannot hold becomes '?'.
std::string escaped(const std::string& text) {
  // nlohmann's dump replaces what is no UTF-8.
  const std::string clean = nlohmann::json::parse(
      nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  std::string out;
  for (const char c : clean) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? '?' : c;
    }
  return out;
}

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string base64(const void* data, size_t bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto* in = static_cast<const uint8_t*>(data);
  std::string out;
  out.reserve((bytes + 2) / 3 * 4);
  for (size_t i = 0; i < bytes; i += 3) {
    const uint32_t b1 = i + 1 < bytes ? in[i + 1] : 0, b2 = i + 2 < bytes ? in[i + 2] : 0;
    const uint32_t word = uint32_t(in[i]) << 16 | b1 << 8 | b2;
    out += kDigits[word >> 18];
    out += kDigits[word >> 12 & 63];
    out += i + 1 < bytes ? kDigits[word >> 6 & 63] : '=';
    out += i + 2 < bytes ? kDigits[word & 63] : '=';
  }
  return out;
}

using Rgb = std::array<uint8_t, 3>;

/// A PNG of width x height pixels as a data URI.
std::string png_uri(const std::vector<Rgb>& pixels, int64_t width, int64_t height) {
  std::string raw;
  for (int64_t y = 0; y < height; ++y) {
    raw += '\0';  // no filter
    raw.append(reinterpret_cast<const char*>(pixels.data() + y * width), size_t(width) * 3);
  }
  uLongf size = compressBound(raw.size());
  std::string packed(size, '\0');
  check(
      compress2(reinterpret_cast<Bytef*>(packed.data()), &size,
                reinterpret_cast<const Bytef*>(raw.data()), raw.size(), Z_BEST_COMPRESSION) == Z_OK,
      "compress2");
  packed.resize(size);
  std::string png("\x89PNG\r\n\x1a\n");
  const auto big_endian = [](uint32_t v) {
    return std::string{char(v >> 24), char(v >> 16), char(v >> 8), char(v)};
  };
  const auto chunk = [&](const std::string& tagged) {
    const auto crc =
        uint32_t(crc32(0, reinterpret_cast<const Bytef*>(tagged.data()), uInt(tagged.size())));
    png += big_endian(uint32_t(tagged.size() - 4)) + tagged + big_endian(crc);
  };
  constexpr char kRgb8[] = {8, 2, 0, 0, 0};
  chunk("IHDR" + big_endian(uint32_t(width)) + big_endian(uint32_t(height)) +
        std::string(kRgb8, sizeof kRgb8));
  chunk("IDAT" + packed);
  chunk("IEND");
  return "data:image/png;base64," + base64(png.data(), png.size());
}

/// Between evenly spaced colours, `t` from 0 to 1.
template <size_t n>
Rgb blend(const Rgb (&stops)[n], double t) {
  t = std::isfinite(t) ? std::clamp(t, 0.0, 1.0) * (n - 1) : 0;
  const size_t at = std::min(size_t(t), n - 2);
  Rgb out;
  for (size_t k = 0; k < 3; ++k)
    out[k] =
        uint8_t(std::lround(stops[at][k] + (stops[at + 1][k] - stops[at][k]) * (t - double(at))));
  return out;
}

constexpr Rgb kGreens[] = {
    {0, 68, 27}, {35, 139, 69}, {116, 196, 118}, {199, 233, 192}, {247, 252, 245}};
constexpr Rgb kIdentity[] = {
    {68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}};

/// The aligned error averaged down to at most `most` cells a side, with that side.
struct PaeMap {
  int64_t n = 0;
  std::vector<float> error;
};
PaeMap pae_map(const Tensor& pae, int64_t most) {
  const Tensor all = pae.contiguous();
  const int64_t n_res = all.size(0);
  PaeMap map;
  map.n = std::min(n_res, most);
  map.error.resize(size_t(map.n * map.n));
  for (int64_t y = 0; y < map.n; ++y)
    for (int64_t x = 0; x < map.n; ++x) {
      const int64_t y0 = y * n_res / map.n, y1 = (y + 1) * n_res / map.n;
      const int64_t x0 = x * n_res / map.n, x1 = (x + 1) * n_res / map.n;
      double sum = 0;
      for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) sum += all.data<float>()[i * n_res + j];
      map.error[size_t(y * map.n + x)] = float(sum / double((y1 - y0) * (x1 - x0)));
    }
  return map;
}

/// A step of 1, 2 or 5 times a power of ten, so that `most` has about six.
int64_t tick_step(int64_t most) {
  for (int64_t power = 1;; power *= 10)
    for (const int64_t step : {1, 2, 5})
      if (step * power * 6 >= most) return step * power;
}

/// A plot's frame: axes with ticks and their names.
class Svg {
 public:
  Svg(double width, double height, const std::string& title) {
    out_ =
        cat("<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 ", width, " ",
            height,
            "\" color=\"#1b2430\" font-family=\"system-ui, sans-serif\" "
            "font-size=\"12\" role=\"img\"><title>",
            title, "</title><rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>");
  }
  void raw(const std::string& element) { out_ += element; }
  void text(double x, double y, const std::string& anchor, const std::string& text,
            const std::string& more = "") {
    out_ += cat("<text x=\"", x, "\" y=\"", y, "\" text-anchor=\"", anchor,
                "\" fill=\"currentColor\"", more, ">", escaped(text), "</text>");
  }
  void line(double x1, double y1, double x2, double y2) {
    out_ += cat("<line x1=\"", x1, "\" y1=\"", y1, "\" x2=\"", x2, "\" y2=\"", y2,
                "\" stroke=\"currentColor\"/>");
  }
  void rect(double x, double y, double w, double h, const std::string& fill, double opacity) {
    out_ += cat("<rect x=\"", x, "\" y=\"", y, "\" width=\"", w, "\" height=\"", h, "\" fill=\"",
                fill, "\" fill-opacity=\"", opacity, "\"/>");
  }
  void image(double x, double y, double w, double h, const std::string& uri) {
    out_ += cat("<image x=\"", x, "\" y=\"", y, "\" width=\"", w, "\" height=\"", h,
                "\" preserveAspectRatio=\"none\" style=\"image-rendering:pixelated\" href=\"", uri,
                "\"/>");
  }
  void curve(const std::vector<std::pair<double, double>>& points, const std::string& colour,
             double width) {
    out_ += "<polyline fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"" +
            format("%.1f", width) + "\" stroke-linejoin=\"round\" points=\"";
    for (const auto& [x, y] : points) out_ += format("%.1f", x) + "," + format("%.1f ", y);
    out_ += "\"/>";
  }
  /// Residue numbers under a plot from x0 to x1.
  void residues(double x0, double x1, double y, int64_t n) {
    line(x0, y, x1, y);
    for (int64_t i = tick_step(n); i <= n; i += tick_step(n)) {
      const double x = x0 + (double(i) - 0.5) / double(n) * (x1 - x0);
      line(x, y, x, y + 4);
      text(x, y + 16, "middle", cat(i));
    }
  }
  std::string str() const { return out_ + "</svg>\n"; }

 private:
  std::string out_;
};

const char* const kCurves[] = {"#0b63ce", "#d95f02", "#1b9e77", "#7570b3", "#e7298a",
                               "#66a61e", "#a6761d", "#666666", "#e6ab02", "#17becf"};

std::string label_of(const Prediction& p, size_t rank) {
  return cat(rank + 1, ": ", p.model, ", seed ", p.seed);
}

std::string replaced(std::string page, const std::string& key, const std::string& value) {
  const std::string mark = "{{" + key + "}}";
  const size_t at = page.find(mark);
  check(at != std::string::npos, "page.html has no ", mark);
  return page.replace(at, mark.size(), value);
}

/// The atoms that the page draws: CA relative to the middle and the direction from C to O, in int16
/// steps of `unit` angstrom; -32768 where the residue has none.
nlohmann::json backbone(const Prediction& p) {
  constexpr int kC = atom37_index("C"), kO = atom37_index("O");
  constexpr double kSteps = 32000;
  const Tensor positions = p.positions.contiguous(), mask = p.mask.contiguous();
  const int64_t n = p.aatype.numel();
  const auto atom = [&](int64_t i, int a) {
    return positions.data<float>() + (i * kAtom37 + a) * 3;
  };
  const auto seen = [&](int64_t i, int a) { return mask.data<float>()[i * kAtom37 + a] >= 0.5f; };
  std::array<double, 3> middle{};
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (seen(i, kAtomCa)) {
      ++count;
      for (int k = 0; k < 3; ++k) middle[size_t(k)] += atom(i, kAtomCa)[k];
    }
  for (double& x : middle) x /= double(std::max<int64_t>(1, count));
  double reach = 1;
  for (int64_t i = 0; i < n; ++i)
    if (seen(i, kAtomCa))
      for (int k = 0; k < 3; ++k)
        reach = std::max(reach, std::abs(atom(i, kAtomCa)[k] - middle[size_t(k)]));
  const double unit = reach / kSteps;
  std::vector<int16_t> words(size_t(n) * 6, INT16_MIN);
  for (int64_t i = 0; i < n; ++i) {
    if (!seen(i, kAtomCa)) continue;
    const bool side = seen(i, kC) && seen(i, kO);
    for (int k = 0; k < 3; ++k) {
      int16_t* w = words.data() + i * 6 + k;
      w[0] = int16_t(std::lround((atom(i, kAtomCa)[k] - middle[size_t(k)]) / unit));
      // Of length 1.2 angstrom; only its direction is used.
      const double d =
          side ? std::clamp(double(atom(i, kO)[k]) - atom(i, kC)[k], -1.0, 1.0) : k == 1;
      w[3] = int16_t(std::lround(d * std::min(reach, 1.0) / unit));
    }
  }
  return {{"unit", unit}, {"words", base64(words.data(), words.size() * sizeof(int16_t))}};
}

nlohmann::json model_json(const Prediction& p) {
  nlohmann::json m = {{"name", p.model},
                      {"seed", p.seed},
                      {"mean", p.mean_plddt},
                      {"ptm", nullptr},
                      {"recycles", p.num_recycles}};
  if (p.ptm) m["ptm"] = *p.ptm;
  const Tensor plddt = p.plddt.contiguous();
  for (int64_t i = 0; i < plddt.numel(); ++i)
    m["plddt"].push_back(std::round(10 * plddt.data<float>()[i]) / 10);
  const nlohmann::json atoms = backbone(p);
  m["unit"] = atoms["unit"];
  m["backbone"] = atoms["words"];
  if (!p.pae.defined()) return m;
  const PaeMap map = pae_map(p.pae, kMostPaeCells);
  const double most = std::max(p.max_pae, 1.0);
  std::vector<uint8_t> levels;
  for (const float e : map.error)
    levels.push_back(uint8_t(std::lround(std::clamp(double(e) / most, 0.0, 1.0) * 255)));
  m["pae"] = {{"n", map.n}, {"max", most}, {"data", base64(levels.data(), levels.size())}};
  return m;
}

}  // namespace

Coverage coverage_of(const RawFeatures& raw) {
  Coverage c;
  c.n_seq = raw.n_seq;
  c.n_res = raw.n_res();
  c.present.resize(raw.msa.size());
  std::vector<float> identity(size_t(c.n_seq));
  const int8_t* query = raw.row(0);
  for (int64_t s = 0; s < c.n_seq; ++s) {
    int64_t aligned = 0, same = 0;
    for (int64_t i = 0; i < c.n_res; ++i) {
      const int8_t letter = raw.row(s)[i];
      aligned += letter != kGapRestype;
      same += letter != kGapRestype && letter == query[i];
    }
    identity[size_t(s)] = float(same) / float(std::max<int64_t>(1, aligned));
  }
  std::vector<int64_t> order(size_t(c.n_seq));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return identity[size_t(a)] > identity[size_t(b)]; });
  for (int64_t s = 0; s < c.n_seq; ++s) {
    const int64_t row = order[size_t(s)];
    c.identity.push_back(identity[size_t(row)]);
    for (int64_t i = 0; i < c.n_res; ++i)
      c.present[size_t(s * c.n_res + i)] = raw.row(row)[i] != kGapRestype;
  }
  return c;
}

std::string coverage_svg(const Coverage& c) {
  constexpr double kWidth = 720, kHeight = 320, kLeft = 62, kRight = 90, kTop = 12, kBottom = 44;
  const double x1 = kWidth - kRight, y1 = kHeight - kBottom;
  Svg svg(kWidth, kHeight, "Coverage of the alignment");
  const int64_t rows = std::min(c.n_seq, kMostCoverageRows);
  const int64_t columns = std::min<int64_t>(c.n_res, 1200);
  std::vector<Rgb> pixels(size_t(rows * columns), Rgb{255, 255, 255});
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x) {
      const int64_t s = y * c.n_seq / rows, i = x * c.n_res / columns;
      if (c.present[size_t(s * c.n_res + i)])
        pixels[size_t(y * columns + x)] = blend(kIdentity, c.identity[size_t(s)]);
    }
  svg.image(kLeft, kTop, x1 - kLeft, y1 - kTop, png_uri(pixels, columns, rows));
  std::vector<std::pair<double, double>> depth;
  for (int64_t x = 0; x < columns; ++x) {
    const int64_t i = x * c.n_res / columns;
    int64_t count = 0;
    for (int64_t s = 0; s < c.n_seq; ++s) count += c.present[size_t(s * c.n_res + i)];
    depth.emplace_back(kLeft + (double(x) + 0.5) / double(columns) * (x1 - kLeft),
                       kTop + double(count) / double(c.n_seq) * (y1 - kTop));
  }
  svg.curve(depth, "#fff", 3.5);
  svg.curve(depth, "#111", 1.6);
  svg.line(kLeft, kTop, kLeft, y1);
  svg.residues(kLeft, x1, y1, c.n_res);
  svg.text((kLeft + x1) / 2, kHeight - 8, "middle", "residue");
  for (int64_t s = 0; s <= c.n_seq; s += tick_step(c.n_seq)) {
    const double y = kTop + double(s) / double(c.n_seq) * (y1 - kTop);
    svg.line(kLeft - 4, y, kLeft, y);
    svg.text(kLeft - 7, y + 4, "end", cat(s));
  }
  svg.text(14, (kTop + y1) / 2, "middle", "sequences",
           cat(" transform=\"rotate(-90 14 ", (kTop + y1) / 2, ")\""));
  for (int k = 0; k < 50; ++k) {
    const Rgb colour = blend(kIdentity, 1 - k / 49.0);
    svg.rect(x1 + 22, kTop + k * (y1 - kTop) / 50, 12, (y1 - kTop) / 50 + 0.5,
             cat("rgb(", int(colour[0]), ",", int(colour[1]), ",", int(colour[2]), ")"), 1);
  }
  svg.text(x1 + 38, kTop + 10, "start", "100 %");
  svg.text(x1 + 38, (kTop + y1) / 2 + 4, "start", "identity");
  svg.text(x1 + 38, y1, "start", "0 %");
  return svg.str();
}

std::string plddt_svg(std::span<const Prediction> ranked) {
  constexpr double kWidth = 720, kHeight = 300, kLeft = 50, kTop = 12, kBottom = 44;
  constexpr size_t kMostNamed = 10;
  const bool named = ranked.size() > 1;
  const double x1 = kWidth - (named ? 190 : 14), y1 = kHeight - kBottom;
  Svg svg(kWidth, kHeight, "pLDDT of each residue");
  const auto y_of = [&](double v) {
    return kTop + (1 - std::clamp(v, 0.0, 100.0) / 100) * (y1 - kTop);
  };
  const std::pair<double, const char*> kBands[] = {
      {90, "#0053d6"}, {70, "#65cbf3"}, {50, "#ffdb13"}, {0, "#ff7d45"}};
  double high = 100;
  for (const auto& [low, colour] : kBands) {
    svg.rect(kLeft, y_of(high), x1 - kLeft, y_of(low) - y_of(high), colour, 0.13);
    high = low;
  }
  for (const int v : {0, 50, 70, 90, 100}) {
    svg.line(kLeft - 4, y_of(v), kLeft, y_of(v));
    svg.text(kLeft - 7, y_of(v) + 4, "end", cat(v));
  }
  svg.line(kLeft, kTop, kLeft, y1);
  const int64_t n = ranked.empty() ? 1 : ranked[0].plddt.numel();
  svg.residues(kLeft, x1, y1, n);
  svg.text((kLeft + x1) / 2, kHeight - 8, "middle", "residue");
  svg.text(14, (kTop + y1) / 2, "middle", "pLDDT",
           cat(" transform=\"rotate(-90 14 ", (kTop + y1) / 2, ")\""));
  for (size_t r = ranked.size(); r-- > 0;) {
    const Tensor plddt = ranked[r].plddt.contiguous();
    std::vector<std::pair<double, double>> points;
    for (int64_t i = 0; i < n; ++i)
      points.emplace_back(kLeft + (double(i) + 0.5) / double(n) * (x1 - kLeft),
                          y_of(plddt.data<float>()[i]));
    if (n == 1) points.emplace_back(x1, points[0].second);
    svg.curve(points, r < kMostNamed ? kCurves[r] : "#bbbbbb", r == 0 ? 1.8 : 1.0);
  }
  for (size_t r = 0; named && r < std::min(ranked.size(), kMostNamed); ++r) {
    const double y = kTop + 12 + 18 * double(r);
    svg.rect(x1 + 10, y - 6, 14, 3, kCurves[r], 1);
    svg.text(x1 + 29, y, "start", label_of(ranked[r], r));
  }
  return svg.str();
}

std::string pae_svg(std::span<const Prediction> ranked) {
  constexpr double kSide = 220, kGap = 58, kLeft = 52, kTop = 30, kScale = 46;
  constexpr size_t kColumns = 5;
  std::vector<size_t> shown;
  for (size_t r = 0; r < ranked.size() && std::ssize(shown) < kMostMaps; ++r)
    if (ranked[r].pae.defined()) shown.push_back(r);
  if (shown.empty()) return "";
  const size_t columns = std::min(kColumns, shown.size()),
               rows = (shown.size() + columns - 1) / columns;
  const double width = kLeft + double(columns) * (kSide + kGap),
               height = kTop + double(rows) * (kSide + kGap) + kScale;
  Svg svg(width, height, "Predicted aligned error");
  double most = 1;
  for (const size_t r : shown) most = std::max(most, ranked[r].max_pae);
  for (size_t k = 0; k < shown.size(); ++k) {
    const Prediction& p = ranked[shown[k]];
    const double x = kLeft + double(k % columns) * (kSide + kGap),
                 y = kTop + double(k / columns) * (kSide + kGap);
    const PaeMap map = pae_map(p.pae, kMostPlotCells);
    std::vector<Rgb> pixels;
    for (const float e : map.error) pixels.push_back(blend(kGreens, e / most));
    svg.image(x, y, kSide, kSide, png_uri(pixels, map.n, map.n));
    svg.text(x + kSide / 2, y - 8, "middle", label_of(p, shown[k]));
    const int64_t n = p.pae.size(0);
    svg.residues(x, x + kSide, y + kSide, n);
    svg.line(x, y, x, y + kSide);
    for (int64_t i = tick_step(n); i <= n; i += tick_step(n)) {
      const double at = y + (double(i) - 0.5) / double(n) * kSide;
      svg.line(x - 4, at, x, at);
      svg.text(x - 6, at + 4, "end", cat(i));
    }
  }
  const double x = kLeft, y = height - kScale + 4;
  for (int k = 0; k < 60; ++k) {
    const Rgb colour = blend(kGreens, k / 59.0);
    svg.rect(x + 3 * k, y, 3.5, 12,
             cat("rgb(", int(colour[0]), ",", int(colour[1]), ",", int(colour[2]), ")"), 1);
  }
  svg.text(x, y + 28, "start", "0");
  svg.text(x + 180, y + 28, "end", format("%.2f", most));
  svg.text(x + 190, y + 11, "start", "expected error, angstrom");
  return svg.str();
}

std::string report_html(const Report& report) {
  check(!report.ranked.empty(), "a report without predictions");
  const Prediction& best = report.ranked.front();
  nlohmann::json data;
  data["sequence"] = report.sequence;
  for (const Prediction& p : report.ranked) data["models"].push_back(model_json(p));
  std::string json = data.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  for (size_t at = 0; (at = json.find('<', at)) != std::string::npos;)
    json.replace(at, 1, "\\u003c");

  std::string facts;
  const auto fact = [&](const std::string& value, const char* what) {
    facts += "<span><b>" + escaped(value) + "</b>" + what + "</span>";
  };
  fact(cat(report.sequence.size()), "residues");
  fact(format("%.1f", best.mean_plddt), "mean pLDDT");
  if (best.ptm) fact(format("%.2f", *best.ptm), "pTM");
  fact(cat(report.coverage.n_seq),
       report.coverage.n_seq == 1 ? "sequence, no alignment" : "sequences");
  std::string warnings;
  if (!report.warnings.empty()) {
    warnings = "<div class=\"warnings\" role=\"alert\"><ul>";
    for (const std::string& warning : report.warnings)
      warnings += "<li>" + escaped(warning) + "</li>";
    warnings += "</ul></div>";
  }
  std::string tables;
  for (const auto& [heading, rows] : report.tables) {
    tables += "<section><h2>" + escaped(heading) + "</h2><table class=\"pairs\"><tbody>";
    for (const auto& [name, value] : rows)
      tables += "<tr><td>" + escaped(name) + "</td><td>" + escaped(value) + "</td></tr>";
    tables += "</tbody></table></section>";
  }
  // What users wrote goes in last, so that no mark in it is replaced.
  std::string page = replaced(kPage, "css", kCss);
  page = replaced(page, "js", kJs);
  page = replaced(page, "version", FASTFOLD_VERSION);
  page = replaced(page, "coverage", coverage_svg(report.coverage));
  page = replaced(page, "facts", facts);
  page = replaced(page, "data", json);
  page = replaced(page, "tables", tables);
  page = replaced(page, "warnings", warnings);
  page = replaced(page, "title", escaped(report.title));
  page = replaced(page, "tag", escaped(report.tag));
  return replaced(page, "tag", escaped(report.tag));
}

}  // namespace ff
