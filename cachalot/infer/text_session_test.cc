#include "infer/text_session.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"
#include "base/text.h"

namespace cachalot {
namespace {

// Pushes `text` in pieces of 1 ... 5 bytes and returns everything shown; every piece shown must be whole
// characters.
struct Shown {
  std::string text;
  bool stopped;
};
Shown run(const std::string& text, const std::vector<std::string>& stops, uint64_t seed) {
  TextSession session(stops);
  std::string all;
  size_t at = 0;
  for (uint64_t i = 0; at < text.size(); ++i) {
    const size_t n = std::min<size_t>(text.size() - at, 1 + random_below(seed, 1, i, 5));
    const std::string shown = session.push(std::string_view(text).substr(at, n));
    EXPECT_TRUE(session.stopped() || utf8_complete_prefix(shown) == shown.size());
    all += shown;
    at += n;
  }
  all += session.finish();
  return {all, session.stopped()};
}

TEST(TextSession, NeverSplitsACharacterAndLosesNoByte) {
  const std::string text =
      "a\u00e9\u6f22\U0001F40B z\u00df\u0301 \xff\xc3( \xe6\xbc \xf0\x9f\x90 end\xe2\x82";  // some invalid
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Shown s = run(text, {}, seed);
    EXPECT_EQ(s.text, text);
    EXPECT_FALSE(s.stopped);
  }
}

TEST(TextSession, HoldsBackAnUnfinishedCharacterAndFlushesItAtTheEnd) {
  TextSession session;
  EXPECT_EQ(session.push("a\xe6\xbc"), "a");
  EXPECT_EQ(session.push("\xa2"), "\u6f22");
  EXPECT_EQ(session.push("\xf0\x9f"), "");
  EXPECT_EQ(session.finish(), "\xf0\x9f");
  EXPECT_EQ(session.finish(), "");
}

TEST(TextSession, AStopStringMaySpanTokensAndIsNotShown) {
  TextSession session({"\n\nUser:"});
  EXPECT_EQ(session.push("Hi.\n"), "Hi.");  // could begin the stop string
  EXPECT_EQ(session.push("\nUs"), "");
  EXPECT_FALSE(session.stopped());
  EXPECT_EQ(session.push("er: next"), "");
  EXPECT_TRUE(session.stopped());
  EXPECT_EQ(session.push("more"), "");
  EXPECT_EQ(session.finish(), "");
}

TEST(TextSession, WhatTurnsOutNotToBeAStopStringIsShown) {
  TextSession session({"stop"});
  EXPECT_EQ(session.push("a st"), "a ");
  EXPECT_EQ(session.push("ep st"), "step ");
  EXPECT_EQ(session.finish(), "st");
}

// First complete wins, the longest of those complete together; whatever the tokens were.
TEST(TextSession, OverlappingStopStringsDoNotDependOnTokens) {
  const struct {
    std::string text;
    std::vector<std::string> stops;
    std::string shown;
    bool stopped;
  } cases[] = {
      {"xabcdy", {"bcd", "abcdX"}, "xa", true},   // "abcdX" never comes
      {"xabcdXy", {"bcd", "abcdX"}, "xa", true},  // "bcd" is complete earlier
      {"xabcy", {"c", "abc", "bc"}, "x", true},   // complete together: the longest
      {"aaab", {"aab"}, "a", true},               // the prefix restarts inside itself
      {"ababac", {"abac"}, "ab", true},
      {"ababab", {"abac"}, "ababab", false},
      {"x\u6f22\u6f23", {"\u6f23"}, "x\u6f22", true},  // shares its first two bytes with the character before
      {"x\u6f22\u6f22", {"\u6f23"}, "x\u6f22\u6f22", false},
      {"###", {"#"}, "", true},
      {"", {"#"}, "", false},
  };
  for (const auto& c : cases)
    for (uint64_t seed = 0; seed < 50; ++seed) {
      const Shown s = run(c.text, c.stops, seed);
      EXPECT_EQ(s.text, c.shown) << c.text;
      EXPECT_EQ(s.stopped, c.stopped) << c.text;
    }
}

TEST(TextSession, AgreesWithASearchOfTheWholeText) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const auto letters = [&](uint64_t stream, size_t n) {
      std::string s;
      for (size_t i = 0; i < n; ++i) s.push_back(char('a' + random_below(seed, stream, i, 2)));
      return s;
    };
    const std::string text = letters(2, 24);
    const std::vector<std::string> stops{letters(3, 1 + seed % 7), letters(4, 2 + seed % 5)};
    size_t end = std::string::npos, begin = 0;
    for (const auto& stop : stops)
      if (const size_t at = text.find(stop); at != std::string::npos) {
        const size_t e = at + stop.size();
        if (end == std::string::npos || e < end || (e == end && at < begin)) end = e, begin = at;
      }
    const Shown s = run(text, stops, seed);
    EXPECT_EQ(s.text, end == std::string::npos ? text : text.substr(0, begin))
        << text << " " << stops[0] << " " << stops[1];
    EXPECT_EQ(s.stopped, end != std::string::npos);
  }
}

TEST(TextSession, RefusesAnEmptyStopString) { EXPECT_THROW(TextSession({"a", ""}), Error); }

}  // namespace
}  // namespace cachalot
