#include "base/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace cachalot {
namespace {

// The message of the Error that parsing `text` throws; "" when it parses.
std::string refusal(const std::string& text) {
  try {
    parse_json(text, "config.json");
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(Json, BuildsEveryKindOfValueInOrder) {
  const Json j = parse_json(R"( {"b": [1, -2, 3.5, "x", true, null, {}], "a": {"c": [[]]}} )", "t");
  EXPECT_EQ(j.dump(), R"({"b":[1,-2,3.5,"x",true,null,{}],"a":{"c":[[]]}})");
  EXPECT_EQ(parse_json("7", "t").dump(), "7");
  EXPECT_EQ(parse_json("\"\\u00e9\\ud83d\\ude00\"", "t").get<std::string>(), "é😀");
}

TEST(Json, KeepsWholeNumbersExactly) {
  EXPECT_EQ(parse_json("9007199254740993", "t").get<int64_t>(), 9007199254740993);
  EXPECT_EQ(parse_json("-9223372036854775808", "t").get<int64_t>(), INT64_MIN);
  EXPECT_EQ(parse_json("18446744073709551615", "t").get<uint64_t>(), UINT64_MAX);
}

TEST(Json, RefusesDuplicateKeysAtAnyDepthNamingThem) {
  EXPECT_NE(refusal(R"({"a": 1, "b": {"x": 1, "x": 2}})").find("\"x\" occurs twice"), std::string::npos);
  EXPECT_EQ(refusal(R"({"a": {"x": 1}, "b": {"x": 2}})"), "");  // the same key in two objects is fine
}

TEST(Json, NamesTheFileAndTheByteOfASyntaxError) {
  const std::string what = refusal("{\"a\": 1,, \"b\": 2}");
  EXPECT_EQ(what.find("config.json: "), 0u) << what;
  EXPECT_NE(what.find("byte 9"), what.npos) << what;
}

TEST(Json, RefusesWhatIsNotOneJsonValue) {
  for (const char* text :
       {"", " ", "{", "[1", "{\"a\"}", "[1,]", "1 2", "{} x", "nul", "'a'", "01", "[1e999]", "\"\x80\"",
        "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"a\nb\"", "NaN", "// c\n1"})
    EXPECT_NE(refusal(text), "") << text;
}

TEST(Json, RefusesANulAndWhateverStandsBehindIt) {
  using namespace std::literals;
  for (const auto text : {"{}\0"sv, "{}\0x"sv, "[1, 2]\0[3]"sv, "\"a\0b\""sv, "\0"sv})
    EXPECT_NE(refusal(std::string(text)), "");
}

TEST(Json, RefusesDeepNestingBeforeTheStackDoes) {
  EXPECT_EQ(refusal(std::string(64, '[') + std::string(64, ']')), "");
  EXPECT_NE(refusal(std::string(65, '[') + std::string(65, ']')).find("nested deeper"), std::string::npos);
  EXPECT_NE(refusal(std::string(1000000, '[')).find("nested deeper"), std::string::npos);
}

TEST(Json, NamesKindsAsUsersDo) {
  EXPECT_EQ(json_kind(parse_json("1", "t")), "whole number");
  EXPECT_EQ(json_kind(parse_json("1.5", "t")), "number");
  EXPECT_EQ(json_kind(parse_json("true", "t")), "true/false");
  EXPECT_EQ(json_kind(parse_json("[]", "t")), "array");
}

}  // namespace
}  // namespace cachalot
