// Charts for pages, as SVG text: curves and heat maps. Colours and dashes come from the page's style sheet
// (kChartStyle), light and dark. Every number shown is the caller's; text is escaped.
#pragma once

#include <string>
#include <vector>

namespace cachalot {

struct ChartSeries {
  std::string name;
  std::vector<double> x, y;  // x ascends; a y that is not finite leaves a gap
  int colour = -1;     // of the style sheet's eight; -1: its place among the series
  bool marks = false;  // points joined by a line, for few values; else a band of the extremes and its mean
};

struct ChartOptions {
  std::string title, x_label, y_label;
  bool from_zero = false;    // the axis of y begins at 0
  bool logarithmic = false;  // axis of y; values up to 0 leave gaps
  int width = 560, height = 260;
};

// Long series are cut into bins of equal length: a line through their means, and where there are no more than
// three series a band from least to largest.
// Series of one name share their entry in the legend. "" when no series has two finite points.
std::string line_chart(const ChartOptions& options, const std::vector<ChartSeries>& series);

// values[row][column], 1 in the middle of the scale: blue below (0), red above (2 and more), grey where not
// finite.
struct HeatMap {
  std::string title, x_label, y_label;
  std::vector<std::string> row_names;     // shown when there are at most 16
  std::string first_column, last_column;  // labels below the picture's edges
  std::vector<std::vector<double>> values;
};
std::string heat_map(const HeatMap& map);

extern const char* const kChartStyle;  // CSS of charts; the page's own colours are its variables

}  // namespace cachalot
