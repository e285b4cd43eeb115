#include "base/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"

namespace cachalot {

namespace {

struct Range {
  double low = INFINITY, high = -INFINITY;
  void add(double v) { low = std::min(low, v), high = std::max(high, v); }
  void widen() {  // a constant gets room around it, and so does what differs in its last digits only
    constexpr double kTold = 1e-12, kLeast = 1e-300;
    const double size = std::max(std::abs(low), std::abs(high));
    if (high - low > kTold * size && size > kLeast) return;
    const double room = size > kLeast ? size * 0.1 : 1;
    low -= room, high += room;
  }
  double share(double v) const { return (v - low) / (high - low); }  // 0 at low, 1 at high
};

// A step of 1, 2 or 5 times a power of ten that cuts `span` into at most `parts` parts.
double nice_step(double span, int parts) {
  const double raw = span / std::max(1, parts), power = std::pow(10, std::floor(std::log10(raw)));
  for (const double m : {1.0, 2.0, 5.0})
    if (m * power >= raw * (1 - 1e-9)) return m * power;
  return 10 * power;
}

// The multiples of `step` in the range.
std::vector<double> ticks(const Range& range, double step) {
  const double first = std::ceil(range.low / step - 1e-9), last = std::floor(range.high / step + 1e-9);
  std::vector<double> values(size_t(std::max(0.0, last - first + 1)));
  for (size_t i = 0; i < values.size(); ++i) values[i] = (first + double(i)) * step;
  return values;
}

std::string label(double value, double step) {
  if (std::abs(value) < step * 1e-6) value = 0;
  const double a = std::max(std::abs(value), step);
  if (a >= 1e6 || step < 1e-4) return fmt::format("{:.3g}", value);
  return fmt::format("{:.{}f}", value, std::max(0, int(std::ceil(-std::log10(step) - 1e-9))));
}

// Dots of an area of cells; a cell is 2 x 4 dots (braille) or one (ascii).
class Canvas {
 public:
  Canvas(int columns, int rows, bool ascii)
      : columns_(columns),
        rows_(rows),
        ascii_(ascii),
        dots_(size_t(columns) * size_t(rows)),
        marks_(dots_.size()) {}
  int width() const { return columns_ * (ascii_ ? 1 : 2); }
  int height() const { return rows_ * (ascii_ ? 1 : 4); }
  void dot(int x, int y) {  // y counts upwards
    static constexpr uint8_t kBraille[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    const int down = height() - 1 - y;
    if (ascii_) dots_[cell(x, down)] = 1;
    else dots_[cell(x / 2, down / 4)] |= kBraille[down % 4][x % 2];
  }
  void mark(int x, int y, char symbol) {
    const int down = height() - 1 - y;
    marks_[ascii_ ? cell(x, down) : cell(x / 2, down / 4)] = symbol;
  }
  void line(int x0, int y0, int x1,
            int y1) {  // Bresenham, "Algorithm for computer control of a digital plotter"
    const int dx = std::abs(x1 - x0), dy = -std::abs(y1 - y0), sx = x0 < x1 ? 1 : -1, sy = y0 < y1 ? 1 : -1;
    for (int error = dx + dy;;) {
      dot(x0, y0);
      if (x0 == x1 && y0 == y1) return;
      const int twice = 2 * error;
      if (twice >= dy) error += dy, x0 += sx;
      if (twice <= dx) error += dx, y0 += sy;
    }
  }
  std::string row(int r) const {
    std::string text;
    for (int c = 0; c < columns_; ++c) {
      const size_t i = cell(c, r);
      if (marks_[i]) text += marks_[i];
      else if (!dots_[i]) text += ' ';
      else if (ascii_) text += '*';
      else text += {char(0xE2), char(0xA0 | dots_[i] >> 6), char(0x80 | (dots_[i] & 0x3F))};  // U+2800 + dots
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  }

 private:
  size_t cell(int column, int row) const { return size_t(row) * size_t(columns_) + size_t(column); }
  int columns_, rows_;
  bool ascii_;
  std::vector<uint8_t> dots_;
  std::vector<char> marks_;
};

}  // namespace

std::string plot(const std::vector<PlotSeries>& series, const PlotOptions& options) {
  Range xs, ys;
  for (const PlotSeries& s : series) {
    CHECK(s.x.size() == s.y.size());
    for (size_t i = 0; i < s.x.size(); ++i)
      if (std::isfinite(s.x[i]) && std::isfinite(s.y[i])) xs.add(s.x[i]), ys.add(s.y[i]);
  }
  if (xs.low > xs.high) return "";
  xs.widen(), ys.widen();
  if (!std::isfinite(xs.high - xs.low) || !std::isfinite(ys.high - ys.low)) return "";  // beyond any axis

  // Labels of the y axis stand on the rows nearest to round values.
  const int rows = std::max(2, options.height);
  const double y_step = nice_step(ys.high - ys.low, std::max(2, rows / 3));
  std::vector<std::string> y_labels(static_cast<size_t>(rows));
  size_t margin = 0;
  for (const double v : ticks(ys, y_step)) {
    const int row = rows - 1 - int(std::lround(ys.share(v) * (rows - 1)));
    y_labels[size_t(row)] = label(v, y_step);
    margin = std::max(margin, y_labels[size_t(row)].size());
  }
  const int columns = std::max(8, options.width - int(margin) - 2);

  Canvas canvas(columns, rows, options.ascii);
  const auto column_of = [&](double v) { return int(std::lround(xs.share(v) * (canvas.width() - 1))); };
  const auto row_of = [&](double v) { return int(std::lround(ys.share(v) * (canvas.height() - 1))); };
  constexpr char kMarks[] = {'o', 'x', '+'};
  for (size_t n = 0; n < series.size(); ++n) {
    const PlotSeries& s = series[n];
    bool joined = false;  // to the point before; a gap where a value is missing
    int last_x = 0, last_y = 0;
    for (size_t i = 0; i < s.x.size(); ++i) {
      if (!std::isfinite(s.x[i]) || !std::isfinite(s.y[i])) {
        joined = false;
        continue;
      }
      const int x = column_of(s.x[i]), y = row_of(s.y[i]);
      if (n > 0) canvas.mark(x, y, kMarks[(n - 1) % 3]);
      else canvas.line(joined ? last_x : x, joined ? last_y : y, x, y);
      last_x = x, last_y = y, joined = true;
    }
  }

  std::string out;
  if (!options.y_label.empty()) out += options.y_label + "\n";
  const char* wall = options.ascii ? "|" : "│";
  for (int r = 0; r < rows; ++r)
    out += fmt::format("{:>{}} {}{}\n", y_labels[size_t(r)], margin, wall, canvas.row(r));
  out += fmt::format("{:{}} {}", "", margin, options.ascii ? "+" : "└");
  for (int c = 0; c < columns; ++c) out += options.ascii ? "-" : "─";
  out += '\n';

  // Labels of the x axis start below their column; one that would touch its neighbour or not fit is left out.
  const double x_step = nice_step(xs.high - xs.low, std::max(1, columns / 12));
  const std::string x_label = options.x_label.empty() ? "" : "  " + options.x_label;
  const size_t origin = margin + 2, end = origin + size_t(columns);
  std::string axis(origin, ' ');
  for (const double v : ticks(xs, x_step)) {
    const size_t at = origin + size_t(xs.share(v) * (columns - 1));
    const std::string text = label(v, x_step);
    if (at < axis.size() + (axis.size() > origin) || at + text.size() + x_label.size() > end) continue;
    axis.resize(at, ' ');
    axis += text;
  }
  axis += x_label;
  out += axis + "\n";

  if (series.size() > 1) {
    out += std::string(margin + 2, ' ');
    for (size_t n = 0; n < series.size(); ++n)
      out += fmt::format("{}{} {}", n ? "   " : "",
                         n               ? std::string(1, kMarks[(n - 1) % 3])
                         : options.ascii ? "*"
                                         : "⠒",
                         series[n].name);
    out += '\n';
  }
  return out;
}

}  // namespace cachalot
