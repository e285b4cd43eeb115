#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "config/fields.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

Pieces pieces(const char* json) {
  Pieces list;
  fields::read(list, parse_json(json, "test"), "lr");
  return list;
}

Curve curve(const char* json, int64_t end = 0) {
  return Curve(
      pieces(json), "lr", [](int64_t steps) { return 10 * steps; }, end);
}

TEST(Curve, EveryShapeGoesFromItsBeginningToItsEnd) {
  const Curve c = curve(R"([{"until": 100, "shape": "linear", "from": 0, "to": 8}, {"until": 200},
                            {"until": "30 steps", "shape": "cosine", "to": 4},
                            {"until": "0.4K", "shape": "sqrt", "to": 0}])");
  EXPECT_DOUBLE_EQ(c.at(1), 0.08);
  EXPECT_DOUBLE_EQ(c.at(50), 4);
  EXPECT_DOUBLE_EQ(c.at(100), 8);
  EXPECT_DOUBLE_EQ(c.at(150), 8);
  EXPECT_DOUBLE_EQ(c.at(250), 6);
  EXPECT_NEAR(c.at(225), 4 + 4 * (1 + std::sqrt(0.5)) / 2, 1e-12);
  EXPECT_DOUBLE_EQ(c.at(300), 4);
  EXPECT_DOUBLE_EQ(c.at(325), 2);
  EXPECT_DOUBLE_EQ(c.at(400), 0);
  EXPECT_DOUBLE_EQ(c.at(4000), 0) << "the last value lasts";
}

TEST(Curve, AStepThatEndsAtAJumpHasTheOldValueAndOneThatBeginsThereTheNew) {
  const Curve c = curve(R"([{"until": 100, "to": 3}, {"to": 2}])");
  EXPECT_EQ(c.at(100), 3);
  EXPECT_EQ(c.from(100), 2);
  EXPECT_EQ(c.from(99), 3);
  EXPECT_EQ(c.at(101), 2);
  EXPECT_EQ(c.constant_until(0), 100);
  EXPECT_GT(c.constant_until(100), int64_t{1} << 60);
}

TEST(Curve, APieceWithoutUntilLastsToTheEndOfTheRun) {
  const Curve c = curve(R"([{"until": 100, "to": 4}, {"shape": "cosine", "to": 0}])", 300);
  EXPECT_DOUBLE_EQ(c.at(200), 2);
  EXPECT_DOUBLE_EQ(c.at(300), 0);
}

TEST(Curve, ListsThatCannotBeAreRefusedByTheirPlace) {
  const struct {
    const char *json, *message;
  } cases[] = {
      {R"([{"to": 1, "until": "7 apples"}])", R"(lr[0].until is "7 apples")"},
      {R"([{"to": 1, "until": 0}])", "lr[0].until is 0"},
      {R"([{"to": 1, "until": "1.5 steps"}])", "lr[0].until is \"1.5 steps\""},
      {R"([{"to": 1, "until": true}])", "lr[0].until is true"},
      {R"([{"to": 1, "untill": 5}])", "until"},
      {R"([{"to": 1, "shape": "square"}])", R"(lr[0].shape is "square")"},
      {R"([{"shape": "linear", "to": 1, "until": 5}])", "lr[0] is linear from nowhere"},
      {R"([{"shape": "linear", "from": 1, "until": 5}])", "lr[0] is linear to nowhere"},
      {R"([{"until": 5}])", "lr[0] has no value"},
      {R"([{"to": 1}, {"to": 2}])", "lr[0] has no \"until\""},
      {R"([{"to": 1, "until": 9}, {"to": 2, "until": 9}])", "lr[1] ends at 9 tokens, and begins at 9"},
      {R"([{"to": -1}])", "lr[0].to is -1"},
      {R"([{"from": 1, "to": 2}])", "lr[0] is constant from 1 to 2"},
      {R"([{"from": 1, "to": 2, "shape": "cosine"}])", "the end of a run whose tokens are not known"},
  };
  for (const auto& c : cases) EXPECT_TRUE(contains(error_of([&] { curve(c.json); }), c.message));
  EXPECT_TRUE(contains(
      error_of([] { Curve(pieces(R"([{"to": 1, "until": "3 steps"}, {"to": 2}])"), "batch", {}, 0); }),
      "batch[0].until is \"3 steps\""));
}

TEST(Curve, PointsKeepTheirMeaningThroughJson) {
  for (const char* text : {"\"469B\"", "14800000000000", "\"2000 steps\"", "\"14.3T\"", "\"1.5M tokens\""}) {
    TrainingPoint point, again;
    assign(point, parse_json(text, "t"), "until");
    assign(again, Json(point), "until");
    EXPECT_EQ(point.tokens, again.tokens) << text;
    EXPECT_EQ(point.steps, again.steps) << text;
  }
  TrainingPoint point;
  assign(point, Json("14.633T"), "until");
  EXPECT_EQ(point.tokens, 14'633'000'000'000);
}

}  // namespace
}  // namespace cachalot
