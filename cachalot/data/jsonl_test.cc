#include "data/jsonl.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/json.h"

namespace cachalot {
namespace {

std::string read(std::string_view line, std::string* text = nullptr, std::string* id = nullptr) {
  JsonField fields[] = {{.name = "text"}, {.name = "id"}};
  const std::string wrong = read_json_fields(line, fields);
  if (text) *text = fields[0].found ? fields[0].value : "-";
  if (id) *id = fields[1].found ? fields[1].value : "-";
  return wrong;
}

TEST(Jsonl, FieldsAreDecodedWhereverTheyStand) {
  std::string text, id;
  EXPECT_EQ(
      read(
          R"( {"a":[1,{"text":"no"},"x"],"id":-1.5e3,"b":{"c":null},"text":"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é"} )",
          &text, &id),
      "");
  EXPECT_EQ(text, "a\"\\/\b\f\n\r\té😀é");
  EXPECT_EQ(id, "-1.5e3");
  EXPECT_EQ(read(R"({"text":null,"id":"7"})", &text, &id), "");
  EXPECT_EQ(text, "-");
  EXPECT_EQ(id, "7");
  EXPECT_EQ(read("{}", &text, &id), "");
  EXPECT_EQ(text, "-");
}

TEST(Jsonl, HalfOfASurrogatePairBecomesTheReplacementCharacter) {
  std::string text;
  EXPECT_EQ(read(R"({"text":"\ud800"})", &text), "");
  EXPECT_EQ(text, "\uFFFD");
  EXPECT_EQ(read(R"({"text":"\ud800\u0041\udc00x"})", &text), "");
  EXPECT_EQ(text, "\uFFFDA\uFFFDx");
  EXPECT_EQ(read(R"({"text":"\ud800\ud83d\ude00"})", &text), "");
  EXPECT_EQ(text, "\uFFFD😀");
}

TEST(Jsonl, WhatIsNoJsonIsRefused) {
  for (const char* bad : {"",
                          "x",
                          "[]",
                          "{",
                          "{\"a\"",
                          "{\"a\":}",
                          "{\"a\":1,}",
                          "{\"a\":1}x",
                          "{\"a\":01}",
                          "{\"a\":1.}",
                          "{\"a\":1e}",
                          "{\"a\":-}",
                          "{\"a\":tru}",
                          "{'a':1}",
                          "{\"a\":\"\n\"}",
                          "{\"a\":\"\\x\"}",
                          "{\"a\":\"\\u12g4\"}",
                          "{\"a\":\"b}",
                          "{\"text\":true}",
                          "{\"text\":[\"a\"]}",
                          "{\"text\":\"a\",\"text\":\"b\"}",
                          "{\"a\":[1 2]}",
                          "{\"a\":{1:2}}",
                          "{\"text\":\"\\ud800\\u\"}"})
    EXPECT_NE(read(bad), "") << bad;
  EXPECT_NE(read("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}"), "");
  EXPECT_EQ(read("{\"a\":" + std::string(60, '[') + std::string(60, ']') + "}"), "");
}

TEST(Jsonl, WrittenStringsReadBack) {
  std::string all = "\u2028\u2029\u2030 é 中 😀 </script>";
  for (char c = 1; c != '\x7F'; ++c) all += c;
  all += '\x7F';
  std::string json = "{\"text\":";
  append_json_string(all, json);
  json += "}";
  for (const char c : json) EXPECT_GE(uint8_t(c), 0x20);
  EXPECT_EQ(json.find("\u2028"), std::string::npos);
  std::string text;
  EXPECT_EQ(read(json, &text), "");
  EXPECT_EQ(text, all);
  EXPECT_EQ(parse_json(json, "line").at("text").get<std::string>(), all);
}

}  // namespace
}  // namespace cachalot
