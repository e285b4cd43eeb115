#include "base/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace cachalot {
namespace {

struct Fixture {
  std::ostringstream out;
  double time = 0;
  ProgressStyle style(bool terminal, int width = 80) {
    return {.terminal = terminal, .width = width, .seconds = [this] { return time; }};
  }
  int64_t lines() const { return std::ranges::count(out.str(), '\n'); }
  int64_t draws() const { return std::ranges::count(out.str(), '\r'); }
};

TEST(Progress, LogGetsALineEachTenthAndOneAtTheEnd) {
  Fixture f;
  Progress progress(f.out, "train", 1000, f.style(false));
  for (int i = 1; i <= 1000; ++i) progress.update(i);
  EXPECT_EQ(f.lines(), 9);
  progress.finish();
  EXPECT_EQ(f.lines(), 10);
  EXPECT_EQ(f.draws(), 0);
  EXPECT_NE(f.out.str().find("train   50%  500/1000"), std::string::npos) << f.out.str();
  EXPECT_NE(f.out.str().find("train  100%  1000/1000"), std::string::npos) << f.out.str();
}

TEST(Progress, LogGetsALineWhenNothingWasSaidForLong) {
  Fixture f;
  Progress progress(f.out, "train", 1000, f.style(false));
  for (int i = 1; i <= 60; ++i) f.time += 1, progress.update(i);
  EXPECT_EQ(f.lines(), 2);  // at 30 s and 60 s; no tenth was reached
}

TEST(Progress, SaysTheTimeLeft) {
  Fixture f;
  Progress progress(f.out, "train", 100, f.style(false));
  f.time = 50;
  progress.update(25, "loss 3.2");
  EXPECT_NE(f.out.str().find("2 m 30 s left, loss 3.2"), std::string::npos) << f.out.str();
  f.time = 200;
  progress.update(100, "loss 1.0");
  progress.finish();
  EXPECT_NE(f.out.str().find("100/100, 3 m 20 s, loss 1.0"), std::string::npos) << f.out.str();
}

TEST(Progress, TerminalIsRedrawnAtMostTenTimesASecond) {
  Fixture f;
  {
    Progress progress(f.out, "train", 10000, f.style(true));
    for (int i = 1; i <= 1000; ++i) f.time += 0.001, progress.update(i);
    EXPECT_GE(f.draws(), 9);
    EXPECT_LE(f.draws(), 11);
    EXPECT_EQ(f.lines(), 0);
  }
  EXPECT_EQ(f.lines(), 1);  // destroyed without finish(): what follows starts on a line of its own
}

TEST(Progress, TerminalLineFitsTheWidth) {
  Fixture f;
  Progress progress(f.out, "épreuve" + std::string(100, 'x'), 10, f.style(true, 30));
  progress.update(5);
  const std::string line = f.out.str().substr(4);  // after \r ESC [ K
  EXPECT_EQ(line.size(), 30u);                     // 29 columns, one of them two bytes
}

TEST(Progress, ANarrowTerminalCutsBetweenTwoNumbers) {
  Fixture f;
  Progress progress(f.out, "train", 10, f.style(true, 60));
  progress.update(5, "loss 3.21, 5.1K tok/s");
  EXPECT_TRUE(f.out.str().ends_with("  5/10, 0.0 s left")) << f.out.str();
  f.time = 1;
  progress.update(6, "loss 3.21, 5.1K tok/s");
  EXPECT_TRUE(f.out.str().ends_with("  6/10, 0.7 s left")) << f.out.str();
}

TEST(Progress, ANarrowTerminalShowsTheTimeLeftAndNoBar) {
  Fixture f;
  Progress progress(f.out, "convert (MB)", 1627, f.style(true, 40));
  f.time = 10;
  progress.update(794, "lm_head.weight");
  EXPECT_EQ(f.out.str(), "\r\x1b[Kconvert (MB)   48%  794/1627, 10 s left");
}

TEST(Progress, TheBarMayBeLeftOutForNumbers) {
  Fixture f;
  ProgressStyle style = f.style(true);
  style.bar = false;
  Progress progress(f.out, "train", 600, style);
  progress.update(1, "loss 3.2");
  EXPECT_EQ(f.out.str(), "\r\x1b[Ktrain    0%  1/600, 0.0 s left, loss 3.2");
}

TEST(Progress, ACallerWhoKnowsTheTimeLeftIsBelieved) {
  Fixture f;
  f.time = 10;
  Progress progress(f.out, "train", 1000, f.style(false));  // resumed: 899 steps were done by others
  f.time = 50;
  progress.update(900, "", 150);
  EXPECT_TRUE(f.out.str().ends_with("900/1000, 2 m 30 s left\n")) << f.out.str();
}

TEST(Progress, PrintPutsALineAboveTheBar) {
  Fixture f;
  Progress progress(f.out, "train", 10, f.style(true));
  progress.update(5);
  progress.print("held out 2.1");
  const std::string text = f.out.str();
  EXPECT_NE(text.find("\r\x1b[Kheld out 2.1\n\r\x1b[Ktrain"), std::string::npos) << text;
}

TEST(Progress, AShareThatIsWholeIsShownAsItIs) {
  Fixture f;
  Progress progress(f.out, "train", 100, f.style(false));
  progress.update(29);  // 100 * 0.29 is less in doubles
  EXPECT_NE(f.out.str().find(" 29% "), std::string::npos) << f.out.str();
}

TEST(Progress, NeverShowsAHundredPercentBeforeTheEnd) {
  Fixture f;
  Progress progress(f.out, "train", 100000, f.style(true));
  progress.update(99999);
  EXPECT_EQ(f.out.str().find("100%"), std::string::npos) << f.out.str();
}

TEST(Progress, WorksWithoutATotal) {
  Fixture f;
  Progress progress(f.out, "read", 0, f.style(false));
  progress.update(5);
  f.time = 31;
  progress.update(6);
  progress.finish();
  EXPECT_EQ(f.out.str(), "read  6\nread  6, 31 s\n");
}

TEST(Progress, StyleOfAStringStreamIsALog) {
  std::ostringstream out;
  EXPECT_FALSE(progress_style(out).terminal);
}

}  // namespace
}  // namespace cachalot
