#include "train/guard.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "train/bias_balance.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

const Guard::Routers kRouters{.layers = {1, 2}, .experts = 8, .per_token = 2};

// Falling losses with noise and norms that vary by a factor, as in training.
struct Training {
  explicit Training(const GuardSection& section) : guard(section, kRouters) {}
  double loss(int64_t step) const { return 3 + 2 * std::exp(-0.01 * double(step)) + 0.05 * noise(step, 1); }
  double norm(int64_t step) const { return 0.5 * std::exp(0.3 * noise(step, 2)); }
  double noise(int64_t step, uint64_t stream) const { return random_normal(7, stream, uint64_t(step)); }
  void steps(int64_t n) {
    for (int64_t i = 0; i < n; ++i, ++done) {
      EXPECT_FALSE(guard.judge(loss(done), norm(done))) << "step " << done << ": a false alarm";
      guard.learn(loss(done), norm(done), true, {}, {});
    }
  }
  std::string trouble(double l, double n) const {
    const auto verdict = guard.judge(l, n);
    return verdict ? verdict->trouble : "none";
  }
  Guard guard;
  int64_t done = 0;
};

TEST(Guard, ALongQuietRunHasNoFalseAlarmAndASpikeIsSeen) {
  Training t({});
  t.steps(2000);
  EXPECT_EQ(t.trouble(3.05, 0.5), "none");
  EXPECT_EQ(t.trouble(5.0, 0.5), "loss_spike");
  EXPECT_EQ(t.trouble(3.05, 500), "norm_spike");
  EXPECT_EQ(t.trouble(1.0, 1e-6), "none") << "low is no trouble";
  EXPECT_EQ(t.trouble(NAN, 0.5), "not_finite");
  EXPECT_EQ(t.trouble(3.0, INFINITY), "not_finite");
  const auto verdict = t.guard.judge(5.0, 0.5);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->action, Action::skip);
  EXPECT_TRUE(contains(verdict->what, "the loss is 5.0000, above "));
  EXPECT_TRUE(contains(verdict->what, "the median of the last 128 steps is 3."));
}

TEST(Guard, AFewStepsSayNothingAboutSpikesButNaNIsNeverFine) {
  Training t({});
  t.steps(31);
  EXPECT_EQ(t.trouble(1e9, 1e9), "none");
  EXPECT_EQ(t.trouble(NAN, 1), "not_finite");
  t.steps(1);
  EXPECT_EQ(t.trouble(1e9, 0.5), "loss_spike");
  GuardSection off;
  off.spike = 0;
  Training none(off);
  none.steps(100);
  EXPECT_EQ(none.trouble(1e9, 1e9), "none");
}

TEST(Guard, AWindowThatIsLoweredOnResumingIsTheOneThatCounts) {
  Training t({});
  t.steps(128);
  GuardSection shorter;
  shorter.window = 40;
  Training resumed(shorter);
  resumed.guard.restore(t.guard.state());
  resumed.done = t.done;
  resumed.steps(1);
  EXPECT_EQ(resumed.guard.state().losses.size(), 40u);
  EXPECT_EQ(resumed.guard.state().norms.size(), 40u);
}

// Spikes among the remembered steps would raise a mean and a deviation beyond all use.
TEST(Guard, TheLimitStaysWhereItIsThoughATenthOfTheStepsWereSpikes) {
  std::vector<double> calm, wild;
  for (int i = 0; i < 100; ++i) {
    calm.push_back(3 + 0.05 * random_normal(1, 1, uint64_t(i)));
    wild.push_back(i % 10 == 0 ? 30 : calm.back());
  }
  const double a = robust_limit(calm, 10, 0), b = robust_limit(wild, 10, 0);
  EXPECT_NEAR(a, 3.5, 0.15);
  EXPECT_NEAR(a, b, 0.15);
  EXPECT_DOUBLE_EQ(robust_limit({2, 2, 2}, 10, 0.01), 2 + 10 * 1.4826 * 0.01);
}

TEST(Guard, StepsThatWereLeftOutAreCountedAndNotLearnedFrom) {
  Training t({});
  t.steps(50);
  const std::vector<double> before = t.guard.state().losses;
  t.guard.learn(900, 900, false, {}, {});
  t.guard.learn(NAN, NAN, false, {}, {});
  EXPECT_EQ(t.guard.skipped(), 2);
  EXPECT_EQ(t.guard.state().losses, before);
  t.guard.learn(3, 0.5, true, {}, {});
  EXPECT_EQ(t.guard.skipped(), 0);
}

TEST(Guard, ARouterThatCollapsedAndAnExpertWithoutTokensAreNamedOnceTheyLast) {
  GuardSection section;
  section.collapse_steps = 5;
  section.on_collapse = "stop";
  Guard guard(section, kRouters);
  const std::vector<int32_t> fine(8, 10), all_to_two{40, 40, 0, 0, 0, 0, 0, 0};
  std::vector<int32_t> one_idle = fine;
  one_idle[6] = 0;
  const auto learn = [&](const std::vector<int32_t>& second) {
    return guard.learn(3, 1, true, {fine, second}, {0, max_violation(second)});
  };
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(learn(all_to_two));
  auto verdict = learn(all_to_two);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(std::string(verdict->trouble), "collapse");
  EXPECT_EQ(verdict->action, Action::stop);
  EXPECT_TRUE(contains(verdict->what, "layer 2: MaxVio has been above 2.7 for 5 steps (3 now"));
  EXPECT_FALSE(learn(fine));
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(learn(one_idle));
  verdict = learn(one_idle);
  ASSERT_TRUE(verdict);
  EXPECT_TRUE(contains(verdict->what, "layer 2: expert 6 has had no token for 5 steps"));
  EXPECT_FALSE(learn(one_idle)) << "told once in as many steps";
}

TEST(Guard, ARestoredGuardDecidesAsTheOneThatWasSaved) {
  Training a({}), b({});
  a.steps(80);
  b.guard.restore(a.guard.state());
  for (const double loss : {3.2, 4.0, 4.2, 4.4, 4.6, 5.0})
    for (const double norm : {0.5, 2.0, 5.0, 20.0}) EXPECT_EQ(a.trouble(loss, norm), b.trouble(loss, norm));
}

}  // namespace
}  // namespace cachalot
