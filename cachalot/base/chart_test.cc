#include "base/chart.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace cachalot {
namespace {

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(Chart, ALineThroughEveryPointOfAShortSeries) {
  const std::string svg = line_chart({.title = "loss", .x_label = "step", .y_label = ""},
                                     {{.name = "train", .x = {1, 2, 3}, .y = {3, 2, 1}}});
  const size_t begin = svg.find(" d=\"M");
  ASSERT_NE(begin, std::string::npos);
  const std::string path = svg.substr(begin, svg.find("\"", begin + 4) - begin);
  EXPECT_EQ(count(path, "M"), 1u);
  EXPECT_EQ(count(path, "L"), 2u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(Chart, WhatIsNotFiniteLeavesAGap) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::string svg = line_chart({.title = "t", .x_label = "", .y_label = ""},
                                     {{.name = "a", .x = {1, 2, 3, 4, 5}, .y = {1, 2, nan, 2, 1}}});
  EXPECT_EQ(count(svg.substr(svg.find(" d=\"M")), "M"), 2u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(line_chart({}, {{.name = "a", .x = {1, 2}, .y = {nan, 2}}}), "");
  EXPECT_EQ(line_chart({}, {}), "");
}

// A long series becomes bins: the path stays small, and the band shows the extremes.
TEST(Chart, LongSeriesAreBinned) {
  ChartSeries s{.name = "noise", .x = {}, .y = {}};
  for (int i = 0; i < 100000; ++i) s.x.push_back(i), s.y.push_back(std::sin(i));
  const std::string svg = line_chart({.title = "t", .x_label = "", .y_label = ""}, {s});
  EXPECT_EQ(count(svg, "class=\"band"), 1u);
  EXPECT_LT(svg.size(), 20000u);
}

// The axis leaves room for the noise of the steps, and not for the one step that is wild.
TEST(Chart, ABandIsSeenButForWildStepsAndManySeriesHaveNone) {
  ChartSeries s{.name = "noise", .x = {}, .y = {}};
  for (int i = 0; i < 24000; ++i) s.x.push_back(i), s.y.push_back(i == 12345 ? 100 : i % 2 ? 4 : -4);
  const ChartOptions options{.title = "t", .x_label = "", .y_label = ""};
  const std::string svg = line_chart(options, {s});
  EXPECT_NE(svg.find(">4</text>"), std::string::npos) << "a tick at the edge of the band, far from the mean";
  EXPECT_EQ(svg.find("100</text>"), std::string::npos);
  EXPECT_EQ(count(line_chart(options, {s, s, s, s}), "class=\"band"), 0u);
}

TEST(Chart, SeriesWithMarksAreToldApartWithoutColour) {
  const ChartSeries a{.name = "a", .x = {1, 2}, .y = {1, 2}, .marks = true};
  const ChartSeries noisy{.name = "n", .x = {1, 2}, .y = {2, 3}};
  const std::string svg = line_chart({.title = "t", .x_label = "", .y_label = ""}, {noisy, a, a, a});
  EXPECT_EQ(count(svg, "<path class=\"c0\""), 1u);
  EXPECT_EQ(count(svg, "<path class=\"c1\""), 1u) << "the first of them is whole";
  EXPECT_EQ(count(svg, "<path class=\"c2 d1\""), 1u);
  EXPECT_EQ(count(svg, "<path class=\"c3 d2\""), 1u);
  EXPECT_NE(std::string(kChartStyle).find(".d2{stroke-dasharray"), std::string::npos);
}

TEST(Chart, AConstantAndALogarithmicAxisAreDrawn) {
  EXPECT_NE(
      line_chart({.title = "t", .x_label = "", .y_label = ""}, {{.name = "a", .x = {1, 2}, .y = {5, 5}}}),
      "");
  const std::string svg = line_chart({.title = "t", .x_label = "", .y_label = "", .logarithmic = true},
                                     {{.name = "a", .x = {1, 2, 3}, .y = {1e-4, 0, 1e-2}}});
  EXPECT_NE(svg, "");
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

// Ticks are counted beforehand: adding a step to a number that it cannot change would never end.
TEST(Chart, ValuesThatDifferByTheirLastBitAreDrawn) {
  const double next = std::nextafter(2.0, 3.0);
  for (const bool logarithmic : {false, true}) {
    const std::string svg =
        line_chart({.title = "t", .x_label = "", .y_label = "", .logarithmic = logarithmic},
                   {{.name = "a", .x = {1, 2}, .y = {2.0, next}}});
    EXPECT_NE(svg, "");
    EXPECT_LT(svg.size(), 20000u);
  }
  const std::string wide = line_chart({.title = "t", .x_label = "", .y_label = ""},
                                      {{.name = "a", .x = {1e15, 1e15 + 0.125}, .y = {-1e308, 1e308}}});
  EXPECT_LT(wide.size(), 20000u);
}

TEST(Chart, TextIsEscaped) {
  const std::string svg = line_chart({.title = "<script>\"&", .x_label = "", .y_label = ""},
                                     {{.name = "a<b", .x = {1, 2}, .y = {1, 2}}});
  EXPECT_EQ(svg.find("<script>"), std::string::npos);
  EXPECT_EQ(svg.find("a<b"), std::string::npos);
  EXPECT_NE(svg.find("&lt;script&gt;&quot;&amp;"), std::string::npos);
}

TEST(Chart, SeriesOfOneNameAndColourAreOneEntryOfTheLegend) {
  const std::string svg = line_chart({.title = "t", .x_label = "step", .y_label = "least and largest"},
                                     {{.name = "one", .x = {1, 2}, .y = {1, 2}, .colour = 3},
                                      {.name = "one", .x = {1, 2}, .y = {3, 4}, .colour = 3},
                                      {.name = "two", .x = {1, 2}, .y = {5, 6}}});
  const std::string legend = svg.substr(svg.find("legend"));
  EXPECT_EQ(count(legend, "<span>"), 2u);
  EXPECT_EQ(count(legend, "class=\"c3\""), 1u);
  EXPECT_EQ(count(svg, "<path class=\"c3\""), 2u);
  EXPECT_EQ(count(svg, "<path class=\"c2\""), 1u);
  EXPECT_EQ(count(svg, "<small>least and largest</small>"), 1u);
}

TEST(HeatMap, OnePixelAValue) {
  const std::string html = heat_map({.title = "load",
                                     .x_label = "expert",
                                     .y_label = "",
                                     .row_names = {"en", "code"},
                                     .first_column = "0",
                                     .last_column = "2",
                                     .values = {{0, 1, 2}, {1, 5, 0.5}}});
  EXPECT_NE(html.find("data:image/png;base64,"), std::string::npos);
  EXPECT_NE(html.find("<span>code</span>"), std::string::npos);
  EXPECT_EQ(heat_map({}), "");
}

}  // namespace
}  // namespace cachalot
