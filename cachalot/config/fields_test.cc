#include "config/fields.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace cachalot {
namespace {

struct Inner {
  double rate = 0.5;
  std::vector<int64_t> sizes = {1, 2};
  template <class V> void visit(V& v) {
    v("rate", rate, "how fast");
    v("sizes", sizes, "how large");
  }
};
struct Outer {
  int64_t width = 4;
  bool on = false;
  std::string name = "x";
  std::optional<double> limit;
  std::optional<Inner> extra;
  Inner inner;
  template <class V> void visit(V& v) {
    v("width", width, "D: how wide");
    v("on", on, "whether");
    v("name", name, "what it is called");
    v("limit", limit, "none or a bound");
    v("extra", extra, "none or more");
    v("inner", inner, "a part");
  }
};

Outer parse(const std::string& text) {
  Outer o;
  read_fields(o, parse_json(text, "test"), "f.json");
  return o;
}
std::string message_of(const std::string& text) {
  try {
    parse(text);
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "no error";
}

TEST(Fields, AbsentKeysKeepTheirDefaultsAndPresentOnesAreRead) {
  const Outer o = parse(R"({"width": 3.0, "inner": {"sizes": [7]}, "limit": 2, "extra": {"rate": 1e-3}})");
  EXPECT_EQ(o.width, 3);
  EXPECT_FALSE(o.on);
  EXPECT_EQ(o.inner.rate, 0.5);
  EXPECT_EQ(o.inner.sizes, std::vector<int64_t>{7});
  EXPECT_EQ(o.limit, 2.0);
  ASSERT_TRUE(o.extra);
  EXPECT_EQ(o.extra->rate, 1e-3);
}

TEST(Fields, WriteThenReadGivesTheSameJson) {
  Outer o;
  o.width = 9;
  o.name = "Wal \xc3\xa9";
  o.extra.emplace().sizes = {};
  const Json json = write_fields(o);
  Outer back;
  read_fields(back, json, "");
  EXPECT_EQ(write_fields(back), json);
  EXPECT_TRUE(json["limit"].is_null());
}

TEST(Fields, UnknownKeyIsRefusedWithTheNearestKnownOne) {
  EXPECT_EQ(message_of(R"({"widht": 3})"), "f.json: widht is not a known key | did you mean f.json: width?");
  EXPECT_EQ(message_of(R"({"inner": {"rat": 3}})"),
            "f.json: inner.rat is not a known key | did you mean f.json: inner.rate?");
  EXPECT_NE(message_of(R"({"inner": {"zzzzzzzzzzzz": 3}})").find("known here: rate, sizes"),
            std::string::npos);
}

TEST(Fields, WrongKindNamesKeyValueAndExpectation) {
  EXPECT_EQ(message_of(R"({"width": 3.5})"), "f.json: width is 3.5 (number), not a whole number | ");
  EXPECT_EQ(message_of(R"({"width": 1e300})"), "f.json: width is 1e+300 (number), not a whole number | ");
  EXPECT_EQ(message_of(R"({"width": 9223372036854775808})"),
            "f.json: width is 9223372036854775808 (whole number), not a whole number below 2^63 | ");
  EXPECT_EQ(message_of(R"({"on": 1})"), "f.json: on is 1 (whole number), not true or false | ");
  EXPECT_EQ(message_of(R"({"name": 5})"), "f.json: name is 5 (whole number), not a string | ");
  EXPECT_EQ(message_of(R"({"inner": {"sizes": [1, "b"]}})"),
            "f.json: inner.sizes[1] is \"b\" (string), not a whole number | ");
  EXPECT_EQ(message_of(R"({"inner": 3})"), "f.json: inner is 3 (whole number), not an object | ");
  EXPECT_EQ(message_of(R"({"inner": {"rate": null}})"), "f.json: inner.rate is null (null), not a number | ");
}

TEST(Fields, LongValuesAreCutBetweenCharacters) {
  std::string text = "{\"width\": \"" + std::string(55, 'a') + "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\"}";
  EXPECT_NE(message_of(text).find(std::string(55, 'a') + "... (string)"), std::string::npos)
      << message_of(text);
}

TEST(Fields, OverrideGuessesTheKindAndCreatesTheWay) {
  Json json = Json::object();
  fields::override_key(json, "width", "8");
  fields::override_key(json, "on", "true");
  fields::override_key(json, "name", "two words");
  fields::override_key(json, "inner.rate", "1e-4");
  fields::override_key(json, "inner.sizes", "[1,2,3]");
  fields::override_key(json, "limit", "null");
  Outer o;
  o.limit = 3;
  read_fields(o, json, "");
  EXPECT_EQ(o.width, 8);
  EXPECT_TRUE(o.on);
  EXPECT_EQ(o.name, "two words");
  EXPECT_EQ(o.inner.rate, 1e-4);
  EXPECT_EQ(o.inner.sizes.size(), 3u);
  EXPECT_FALSE(o.limit);
  fields::override_key(json, "extra", "null");
  fields::override_key(json, "extra.rate", "2");  // an optional section that was off
  read_fields(o, json, "");
  EXPECT_EQ(o.extra->rate, 2);
}

TEST(Fields, OverrideRefusesKeysThatAreNone) {
  Json json = Json::object();
  EXPECT_THROW(fields::override_key(json, "", "1"), Error);
  EXPECT_THROW(fields::override_key(json, "a..b", "1"), Error);
  EXPECT_THROW(fields::override_key(json, "a.", "1"), Error);
  fields::override_key(json, "width", "8");
  EXPECT_THROW(fields::override_key(json, "width.x", "1"), Error);
}

TEST(Fields, ListNamesEveryLeafWithItsValueAndMeaning) {
  const auto lines = list_fields(Outer{}, "model.");
  ASSERT_EQ(lines.size(), 7u);
  EXPECT_EQ(lines[0].key, "model.width");
  EXPECT_EQ(lines[0].value, "4");
  EXPECT_EQ(lines[0].meaning, "D: how wide");
  EXPECT_EQ(lines[6].key, "model.inner.sizes");
  EXPECT_EQ(lines[6].value, "[1,2]");
}

}  // namespace
}  // namespace cachalot
