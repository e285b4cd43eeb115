// Line plots of characters, for the end of a run.
#pragma once

#include <string>
#include <vector>

namespace cachalot {

struct PlotSeries {
  std::string name;
  std::vector<double> x, y;  // same length; points with a NaN or an infinity are left out
};

struct PlotOptions {
  int width = 72, height = 16;  // columns of the whole plot with its labels, rows of the drawing area
  std::string x_label{}, y_label{};
  bool ascii = false;  // only 7-bit characters; otherwise braille dots, 2 x 4 a character
};

// The first series is a line, further ones are single marks (o, x, +) on top: a curve and its held-out
// points. Ends with a newline; "" when there is no finite point.
//
//   loss
//   4 |*
//     |  *
//   3 |    **
//     |      ****   o
//   2 |          **********
//     +--------------------
//      0        500     1000  step
//      * train   o held out
std::string plot(const std::vector<PlotSeries>& series, const PlotOptions& options);

}  // namespace cachalot
