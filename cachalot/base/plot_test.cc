#include "base/plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace cachalot {
namespace {

TEST(Plot, DrawsALineFromCornerToCornerWithAxes) {
  const std::string picture =
      plot({{.name = "loss", .x = {0, 4, 8}, .y = {4, 2, 0}}},
           {.width = 12, .height = 5, .x_label = "step", .y_label = "loss", .ascii = true});
  EXPECT_EQ(picture,
            "loss\n"
            "4 |*\n"
            "  | **\n"
            "2 |   **\n"
            "  |     **\n"
            "0 |       **\n"
            "  +---------\n"
            "   0  step\n")
      << picture;
}

TEST(Plot, BrailleUsesFourDotsARow) {
  const std::string picture = plot({{.name = "a", .x = {0, 1}, .y = {0, 1}}}, {.width = 12, .height = 2});
  EXPECT_NE(picture.find("⣀"), std::string::npos) << picture;  // the two lowest dots of a cell
  EXPECT_NE(picture.find("⠉"), std::string::npos) << picture;  // the two highest
}

TEST(Plot, MarksTheSecondSeriesAndNamesBoth) {
  const std::string picture =
      plot({{.name = "train", .x = {0, 1, 2}, .y = {3, 2, 1}}, {.name = "held out", .x = {1}, .y = {2.5}}},
           {.width = 40, .height = 8, .ascii = true});
  EXPECT_NE(picture.find('o'), std::string::npos) << picture;
  EXPECT_NE(picture.find("* train   o held out"), std::string::npos) << picture;
}

TEST(Plot, LeavesOutWhatIsNotFinite) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(plot({{.name = "a", .x = {0, 1}, .y = {nan, inf}}}, {}), "");
  EXPECT_EQ(plot({}, {}), "");
  const std::string with_gap = plot({{.name = "a", .x = {0, 1, 2, 3, 4}, .y = {1, 1, nan, 1, 1}}},
                                    {.width = 44, .height = 3, .ascii = true});
  EXPECT_NE(with_gap.find("* "), std::string::npos) << with_gap;  // the line is broken where the NaN was
}

TEST(Plot, SurvivesAConstantAndASinglePoint) {
  EXPECT_NE(plot({{.name = "a", .x = {5}, .y = {0}}}, {.ascii = true}).find('*'), std::string::npos);
  EXPECT_NE(plot({{.name = "a", .x = {0, 1}, .y = {1e-9, 1e-9}}}, {.ascii = true}).find('*'),
            std::string::npos);
  EXPECT_NE(plot({{.name = "a", .x = {0, 1}, .y = {-7e9, 7e9}}}, {.ascii = true}).find('*'),
            std::string::npos);
}

// Doubles are too coarse for labels between them: a label beyond the edge would have no row.
TEST(Plot, WhatDiffersInItsLastDigitsOnlyIsDrawnAsAConstant) {
  for (int exponent = -1050; exponent < 1020; exponent += 3) {
    const double low = std::ldexp(1.2345, exponent);
    double high = low;
    for (int ulps = 1; ulps < 30; ++ulps) {
      high = std::nextafter(high, std::numeric_limits<double>::infinity());
      const std::string picture = plot({{.name = "a", .x = {1, 2, 3}, .y = {low, high, low}}},
                                       {.width = 40, .height = 7, .ascii = true});
      EXPECT_EQ(std::count(picture.begin(), picture.end(), '\n'), 7 + 2) << low << " " << ulps;
      const std::string flat = plot({{.name = "a", .x = {1, 2, 3}, .y = {low, low, low}}},
                                    {.width = 40, .height = 7, .ascii = true});
      if (exponent > -900) {
        EXPECT_EQ(picture, flat) << low << " " << ulps;
      }
    }
  }
  EXPECT_EQ(plot({{.name = "a", .x = {0, 1}, .y = {-1e308, 1e308}}}, {}), "");  // no axis is so long
}

TEST(Plot, IsNeverWiderThanAsked) {
  const std::string picture = plot({{.name = "a", .x = {0, 123456}, .y = {0.001, 7.5}}},
                                   {.width = 50, .x_label = "step", .ascii = true});
  for (size_t at = 0; at < picture.size();) {
    const size_t end = picture.find('\n', at);
    EXPECT_LE(end - at, 50u) << picture;
    at = end + 1;
  }
}

TEST(Plot, RefusesSeriesOfUnequalLength) {
  EXPECT_THROW(plot({{.name = "a", .x = {0, 1}, .y = {1}}}, {}), InternalError);
}

}  // namespace
}  // namespace cachalot
