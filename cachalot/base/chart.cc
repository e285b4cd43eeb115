#include "base/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/html.h"
#include "base/png.h"

namespace cachalot {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kBins = 240;
constexpr int kColours = 8;  // .c0 ... in the style sheet

// 12, 1.5k, 3.2M, 4e-05
std::string short_number(double v) {
  const double a = std::abs(v);
  if (a != 0 && (a < 1e-3 || a >= 1e13)) return fmt::format("{:.2g}", v);
  for (const auto& [unit, size] : {std::pair{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e4}})
    if (a >= size) return fmt::format("{:.4g}{}", v / (*unit == 'k' ? 1e3 : size), unit);
  return fmt::format("{:.4g}", v);
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double v) {
    if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
  }
  bool empty() const { return low > high; }
};

// About `count` round numbers in [low, high]; none where doubles are too coarse for their distance.
std::vector<double> ticks(double low, double high, int count) {
  const double rough = (high - low) / count, power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double m : {1.0, 2.0, 2.5, 5.0})
    if (m * power >= rough) {
      step = m * power;
      break;
    }
  if (!(step >= 1e-12 * std::max(std::abs(low), std::abs(high))) || !std::isfinite(step)) return {};
  constexpr double kMost = 50;
  const double first = std::ceil(low / step - 1e-9), last = std::floor(high / step + 1e-9);
  const int n = int(std::clamp(last - first + 1, 0.0, kMost));
  std::vector<double> at;
  for (int i = 0; i < n; ++i) at.push_back((first + i) * step + 0.0);
  return at;
}

// The same for exponents of 10: powers, or their 1, 2, 5 where few powers are in sight.
std::vector<double> log_ticks(double low, double high, int count) {
  if (high - low > count) return ticks(low, high, count);
  std::vector<double> at;
  for (double power = std::floor(low); power <= high; ++power)
    for (const double m : {1.0, 2.0, 5.0})
      if ((m == 1 || high - low < 2.5) && power + std::log10(m) >= low && power + std::log10(m) <= high)
        at.push_back(power + std::log10(m));
  if (at.size() < 2) {
    at = ticks(std::pow(10, low), std::pow(10, high), count);
    for (double& t : at) t = std::log10(t);
  }
  return at;
}

struct Binned {
  std::vector<double> x, mean, low, high;
};
Binned bin(const ChartSeries& s) {
  Binned b;
  const size_t bins = std::min(s.x.size(), s.marks ? s.x.size() : kBins);
  for (size_t i = 0; i < bins; ++i) {
    const size_t begin = i * s.x.size() / bins, end = (i + 1) * s.x.size() / bins;
    double x = 0, sum = 0;
    size_t n = 0;
    Range range;
    for (size_t j = begin; j < end; ++j) {
      x += s.x[j] / double(end - begin);
      range.add(s.y[j]);
      if (std::isfinite(s.y[j])) sum += s.y[j], ++n;
    }
    b.x.push_back(x);
    b.mean.push_back(n ? sum / double(n) : kNone);
    b.low.push_back(n ? range.low : kNone);
    b.high.push_back(n ? range.high : kNone);
  }
  return b;
}

// Of what is finite; none where nothing is.
double quantile(std::vector<double> v, double q) {
  std::erase_if(v, [](double x) { return !std::isfinite(x); });
  if (v.empty()) return kNone;
  const auto at = v.begin() + ptrdiff_t(q * double(v.size() - 1));
  std::nth_element(v.begin(), at, v.end());
  return *at;
}

Rgb heat(double v) {
  if (!std::isfinite(v)) return {128, 128, 128};
  const double t = std::clamp(v - 1, -1.0, 1.0), s = std::sqrt(std::abs(t));
  const Rgb middle{247, 247, 247}, end = t < 0 ? Rgb{33, 102, 172} : Rgb{178, 24, 43};
  Rgb c{};
  for (size_t i = 0; i < 3; ++i) c[i] = uint8_t(std::lround(middle[i] + s * (end[i] - middle[i])));
  return c;
}

}  // namespace

const char* const kChartStyle = R"(
.chart{background:var(--card);border-radius:8px;padding:10px 12px;margin:0}
.chart figcaption{font-weight:600;margin-bottom:4px}
.chart figcaption small{font-weight:400;font-size:12px;color:var(--faint);margin-left:6px}
.chart svg{width:100%;height:auto;display:block}
.chart text{fill:var(--faint);font:11px system-ui,sans-serif}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--faint)}
.chart .legend i{display:inline-block;width:22px;height:3px;vertical-align:middle;margin-right:5px}
.chart path{fill:none;stroke-width:1.6;stroke-linejoin:round}
.chart .band{stroke:none;opacity:.18}
.c0{stroke:#0072b2;color:#0072b2}.c1{stroke:#d55e00;color:#d55e00}.c2{stroke:#009e73;color:#009e73}
.c3{stroke:#cc79a7;color:#cc79a7}.c4{stroke:#e69f00;color:#e69f00}.c5{stroke:#56b4e9;color:#56b4e9}
.c6{stroke:#8c6bb1;color:#8c6bb1}.c7{stroke:#7f7f7f;color:#7f7f7f}
.legend i{background:currentColor}
.d1{stroke-dasharray:9 3}.d2{stroke-dasharray:4 3}.d3{stroke-dasharray:2 3}.d4{stroke-dasharray:9 3 2 3}
.d5{stroke-dasharray:16 3}.d6{stroke-dasharray:4 3 2 3}.d7{stroke-dasharray:7 7}
.legend .d1{background:repeating-linear-gradient(90deg,currentColor 0 9px,transparent 0 12px)}
.legend .d2{background:repeating-linear-gradient(90deg,currentColor 0 4px,transparent 0 7px)}
.legend .d3{background:repeating-linear-gradient(90deg,currentColor 0 2px,transparent 0 5px)}
.legend .d4{background:linear-gradient(90deg,currentColor 9px,transparent 0 12px,currentColor 0 14px,
transparent 0 17px,currentColor 0)}
.legend .d5{background:linear-gradient(90deg,currentColor 16px,transparent 0 19px,currentColor 0)}
.legend .d6{background:repeating-linear-gradient(90deg,currentColor 0 4px,transparent 0 7px,
currentColor 0 9px,transparent 0 12px)}
.legend .d7{background:repeating-linear-gradient(90deg,currentColor 0 7px,transparent 0 14px)}
@media(max-width:600px){.chart svg{overflow:visible}.chart text{font-size:16px}}
.heat img{width:100%;image-rendering:pixelated;display:block;border-radius:3px}
.heat .names{display:grid;font-size:11px;color:var(--faint);text-align:right;padding-right:6px}
.heat .names span{align-self:center;white-space:nowrap}
.heat .ends{display:flex;justify-content:space-between;font-size:11px;color:var(--faint)}
)";

std::string line_chart(const ChartOptions& o, const std::vector<ChartSeries>& series) {
  const auto has_band = [&](const ChartSeries& s) {  // of many series they would only cover each other
    return !s.marks && s.x.size() > kBins && series.size() <= 3;
  };
  const auto scale = [&](double y) { return !o.logarithmic ? y : y > 0 ? std::log10(y) : kNone; };
  std::vector<Binned> binned;
  Range rx, ry;
  bool drawn = false;
  for (const ChartSeries& s : series) {
    CHECK(s.x.size() == s.y.size());
    binned.push_back(bin(s));
    Binned& b = binned.back();
    size_t points = 0;
    for (size_t i = 0; i < b.x.size(); ++i) {
      for (auto* v : {&b.mean, &b.low, &b.high}) (*v)[i] = scale((*v)[i]);
      if (!std::isfinite(b.mean[i])) continue;
      ++points;
      rx.add(b.x[i]);
      ry.add(b.mean[i]);
    }
    drawn = drawn || points >= 2;
    if (!has_band(s)) continue;
    // Nearly all of a band is seen. It may pass the edge: one wild step must not flatten the rest.
    constexpr double kSeen = 0.9;
    ry.add(quantile(b.low, 1 - kSeen));
    ry.add(quantile(b.high, kSeen));
  }
  if (!drawn || rx.low == rx.high) return "";
  if (o.from_zero && !o.logarithmic) ry.add(0);
  const double room =
      ry.high > ry.low ? 0.05 * (ry.high - ry.low) : std::max(1e-12, 0.05 * std::abs(ry.high));
  const double low = o.from_zero && !o.logarithmic && ry.low == 0 ? 0 : ry.low - room, high = ry.high + room;

  const double left = 52, right = 10, top = 8, bottom = 34, w = o.width - left - right,
               h = o.height - top - bottom;
  const auto px = [&](double x) { return left + w * (x - rx.low) / (rx.high - rx.low); };
  const auto py = [&](double y) { return top + h * (1 - (std::clamp(y, low, high) - low) / (high - low)); };

  std::string svg = fmt::format(
      "<figure class=\"chart\"><figcaption>{}{}</figcaption><svg viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"{}\">",
      html_escape(o.title), o.y_label.empty() ? "" : "<small>" + html_escape(o.y_label) + "</small>", o.width,
      o.height, html_escape(o.title));
  for (const double t : o.logarithmic ? log_ticks(low, high, 5) : ticks(low, high, 5))
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/><text x=\"{:.1f}\" "
        "y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
        left, left + w, py(t), py(t), left - 6, py(t) + 4, short_number(o.logarithmic ? std::pow(10, t) : t));
  for (const double t : ticks(rx.low, rx.high, 6))
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", px(t),
                       top + h + 15, short_number(t));
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", left + w / 2,
                     o.height - 4, html_escape(o.x_label));
  const auto colour_of = [&](size_t i) {
    return fmt::format("c{}", (series[i].colour < 0 ? int(i) : series[i].colour) % kColours);
  };
  // Where few values join smooth lines, dashes tell them apart without colour: the first is whole.
  std::vector<std::string> dash(series.size());
  for (size_t i = 0, marked = 0; i < series.size(); ++i)
    if (series[i].marks && marked++ > 0) dash[i] = fmt::format(" d{}", (marked - 1) % kColours);
  for (size_t i = 0; i < series.size(); ++i) {
    const Binned& b = binned[i];
    const std::string colour = colour_of(i);
    std::string line, upper, lower;
    bool pen = false;
    for (size_t j = 0; j < b.x.size(); ++j) {
      if (!std::isfinite(b.mean[j])) {
        pen = false;
        continue;
      }
      line += fmt::format("{}{:.1f} {:.1f}", pen ? "L" : "M", px(b.x[j]), py(b.mean[j]));
      pen = true;
      if (!std::isfinite(b.low[j])) continue;
      upper += fmt::format("{}{:.1f} {:.1f}", upper.empty() ? "M" : "L", px(b.x[j]), py(b.high[j]));
      lower = fmt::format("L{:.1f} {:.1f}", px(b.x[j]), py(b.low[j])) + lower;
    }
    if (has_band(series[i]))
      svg += fmt::format("<path class=\"band {}\" style=\"fill:currentColor\" d=\"{}{}Z\"/>", colour, upper,
                         lower);
    svg += fmt::format("<path class=\"{}{}\" d=\"{}\"><title>{}</title></path>", colour, dash[i], line,
                       html_escape(series[i].name));
    if (series[i].marks)
      for (size_t j = 0; j < b.x.size(); ++j)
        if (std::isfinite(b.mean[j]))
          svg += fmt::format(
              "<circle class=\"{}\" style=\"fill:currentColor\" r=\"2.6\" cx=\"{:.1f}\" "
              "cy=\"{:.1f}\"><title>{}: {} at {}</title></circle>",
              colour, px(b.x[j]), py(b.mean[j]), html_escape(series[i].name), short_number(series[i].y[j]),
              short_number(b.x[j]));
  }
  svg += "</svg>";
  if (series.size() > 1) {
    svg += "<div class=\"legend\">";
    std::set<std::string> listed;
    for (size_t i = 0; i < series.size(); ++i)
      if (listed.insert(series[i].name).second)
        svg += fmt::format("<span><i class=\"{}{}\"></i>{}</span>", colour_of(i), dash[i],
                           html_escape(series[i].name));
    svg += "</div>";
  }
  return svg + "</figure>\n";
}

std::string heat_map(const HeatMap& map) {
  if (map.values.empty() || map.values[0].empty()) return "";
  const size_t rows = map.values.size(), columns = map.values[0].size();
  std::vector<Rgb> pixels;
  for (const std::vector<double>& row : map.values) {
    CHECK(row.size() == columns);
    for (const double v : row) pixels.push_back(heat(v));
  }
  const bool named = rows <= 16 && map.row_names.size() == rows;
  const int height = named ? int(rows) * 18 : std::clamp(int(rows) * 3, 60, 220);
  std::string out = fmt::format(
      "<figure class=\"chart heat\"><figcaption>{}</figcaption><div style=\"display:grid;"
      "grid-template-columns:auto 1fr\">",
      html_escape(map.title));
  out += "<div class=\"names\">";
  if (named)
    for (const std::string& name : map.row_names) out += fmt::format("<span>{}</span>", html_escape(name));
  else out += fmt::format("<span>{}</span>", html_escape(map.y_label));
  out += fmt::format("</div><img alt=\"{}\" style=\"height:{}px\" src=\"data:image/png;base64,{}\"></div>",
                     html_escape(map.title), height, base64(encode_png(int(columns), int(rows), pixels)));
  out += fmt::format("<div class=\"ends\"><span>{}</span><span>{}</span><span>{}</span></div></figure>\n",
                     html_escape(map.first_column), html_escape(map.x_label), html_escape(map.last_column));
  return out;
}

}  // namespace cachalot
