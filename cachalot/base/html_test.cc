#include "base/html.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

TEST(Html, WhatIsEscapedIsTextInsideElementsAndAttributes) {
  EXPECT_EQ(html_escape("a<b>&\"'\n\tz"), "a&lt;b&gt;&amp;&quot;&#39;\n\tz");
  EXPECT_EQ(html_escape("\x01\x7F"), "&#xFFFD;&#xFFFD;");
  EXPECT_EQ(html_escape("a\u202Eb\u2069"), "a\uFFFDb\uFFFD");
  EXPECT_EQ(html_escape("\xE4\xB8"), "\uFFFD\uFFFD");  // a character that was cut
  EXPECT_EQ(html_escape("\u4E2D"), "\u4E2D");
}

}  // namespace
}  // namespace cachalot
