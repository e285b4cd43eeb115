#include "train/step_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/json.h"
#include "config/fields.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

TrainSection simple(double lr, double min_lr, int64_t warmup_steps, int64_t steps) {
  TrainSection t = tiny_training();
  t.lr = lr;
  t.min_lr = min_lr;
  t.warmup_steps = warmup_steps;
  t.steps = steps;
  return t;
}

TEST(StepPlan, PlainFieldsWarmUpLinearlyThenFallAlongACosineToTheSmallestRate) {
  const StepPlan s(simple(1.0, 0.1, 10, 110));
  EXPECT_DOUBLE_EQ(s.at(1).lr, 0.1);
  EXPECT_DOUBLE_EQ(s.at(5).lr, 0.5);
  EXPECT_DOUBLE_EQ(s.at(10).lr, 1.0);
  EXPECT_DOUBLE_EQ(s.at(60).lr, 0.55);                                    // half of the cosine
  EXPECT_NEAR(s.at(35).lr, 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2, 1e-12);  // a quarter
  EXPECT_DOUBLE_EQ(s.at(110).lr, 0.1);
  EXPECT_DOUBLE_EQ(s.at(1000).lr, 0.1);
  for (int64_t i = 11; i < 110; ++i) EXPECT_LT(s.at(i + 1).lr, s.at(i).lr) << i;
  EXPECT_EQ(s.at(7).bias_gamma, tiny_training().bias_gamma);
  EXPECT_EQ(s.rows_after(7), 28);
}

TEST(StepPlan, WithoutWarmUpTheFirstStepIsAlreadyOnTheCosine) {
  const StepPlan s(simple(2.0, 0.0, 0, 4));
  EXPECT_DOUBLE_EQ(s.at(2).lr, 1.0);
  EXPECT_GT(s.at(1).lr, 1.0);
  EXPECT_LT(s.at(1).lr, 2.0);
  EXPECT_DOUBLE_EQ(s.at(4).lr, 0.0);
}

TEST(StepPlan, AWarmUpAsLongAsTheRunEndsAtThePeak) {
  const StepPlan s(simple(3.0, 1.0, 4, 4));
  EXPECT_DOUBLE_EQ(s.at(2).lr, 1.5);
  EXPECT_DOUBLE_EQ(s.at(4).lr, 3.0);
}

// The first step of which the end is at or after so many tokens.
int64_t step_at(const StepPlan& plan, double tokens) {
  int64_t low = 1, high = plan.steps();
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (double(plan.tokens_after(middle)) >= tokens) high = middle;
    else low = middle + 1;
  }
  return low;
}

TEST(StepPlan, TheShippedConfigurationIsTheReportsSchedule) {
  const char* source = std::getenv("CACHALOT_SOURCE");
  if (!source) GTEST_SKIP() << "CACHALOT_SOURCE is not set (ctest sets it)";
  const RunConfig config = load_run_config(std::string(source) + "/configs/v3-671b.json", {});
  const StepPlan plan(config.train);
  const auto at = [&](double tokens) { return plan.at(step_at(plan, tokens)); };
  const double one_step = 15360.0 * 4096;
  EXPECT_NEAR(double(plan.tokens()), 14.8e12, one_step);

  // 0 -> 2.2e-4 in 2K steps, there until 10T tokens, a cosine to 2.2e-5 over 4.3T, 333B more, 167B at 7.3e-6.
  EXPECT_NEAR(plan.at(1000).lr, 1.1e-4, 2e-5);  // by tokens, and the batch grows
  EXPECT_DOUBLE_EQ(plan.at(2000).lr, 2.2e-4);
  EXPECT_LT(plan.at(1999).lr, 2.2e-4);
  EXPECT_DOUBLE_EQ(at(1e12).lr, 2.2e-4);
  EXPECT_DOUBLE_EQ(at(10e12 - one_step).lr, 2.2e-4);
  EXPECT_NEAR(at(12.15e12).lr, (2.2e-4 + 2.2e-5) / 2, 1e-8);
  EXPECT_NEAR(at(14.3e12).lr, 2.2e-5, 1e-10);
  EXPECT_DOUBLE_EQ(at(14.6e12).lr, 2.2e-5);
  EXPECT_DOUBLE_EQ(at(14.634e12).lr, 7.3e-6);
  EXPECT_DOUBLE_EQ(plan.at(plan.steps()).lr, 7.3e-6);

  // 3072 sequences, growing to 15360 over the first 469B tokens.
  EXPECT_EQ(plan.batch(1), 3072);
  EXPECT_NEAR(double(plan.batch(step_at(plan, 234.5e9))), 9216, 8);
  EXPECT_EQ(plan.batch(step_at(plan, 469e9) + 1), 15360);
  EXPECT_EQ(plan.batch(plan.steps()), 15360);
  EXPECT_EQ(plan.largest_batch(), 15360);

  EXPECT_EQ(at(14.29e12).bias_gamma, 0.001);
  EXPECT_EQ(at(14.31e12).bias_gamma, 0);
  EXPECT_EQ(at(9.99e12).mtp_lambda, 0.3);
  EXPECT_EQ(at(10.01e12).mtp_lambda, 0.1);
  EXPECT_EQ(at(1e9).balance_alpha, 1e-4);
  EXPECT_EQ(at(14.7e12).balance_alpha, 1e-4);
}

TEST(StepPlan, ABatchThatGrowsTakesWholeMicroBatchesAndEveryTokenOfTheBudget) {
  TrainSection t = tiny_training();  // 9 tokens a row
  t.steps = 0;
  t.tokens = 2000;
  t.micro_batch = 2;
  fields::read(t.schedule.batch,
               parse_json(R"([{"until": 900, "shape": "linear", "from": 2, "to": 11}])", "t"), "");
  const StepPlan plan(t);
  int64_t rows = 0;
  for (int64_t step = 1; step <= plan.steps(); ++step) {
    EXPECT_EQ(plan.rows_after(step) - rows, plan.batch(step)) << step;
    EXPECT_EQ(plan.batch(step) % 2, 0);
    EXPECT_GE(plan.batch(step), plan.batch(std::max<int64_t>(1, step - 1)));
    rows = plan.rows_after(step);
  }
  EXPECT_EQ(plan.batch(1), 2);
  EXPECT_EQ(plan.batch(plan.steps()), 12) << "11 rounded to micro-batches";
  EXPECT_GE(plan.tokens(), 2000);
  EXPECT_LT(plan.tokens_after(plan.steps() - 1), 2000);
  EXPECT_EQ(t.total_steps(), plan.steps());
}

// A constant tail is planned at once: a run of 2^40 steps takes no time.
TEST(StepPlan, LongRunsArePlannedAtOnce) {
  TrainSection t = tiny_training();
  t.steps = int64_t{1} << 40;
  t.micro_batch = 1;
  fields::read(t.schedule.batch, parse_json(R"([{"until": "1K", "to": 2}, {"to": 4}])", "t"), "");
  const StepPlan plan(t);
  EXPECT_EQ(plan.steps(), int64_t{1} << 40);
  EXPECT_EQ(plan.batch(56), 2);  // 55 steps of 18 tokens end at 990
  EXPECT_EQ(plan.batch(57), 4);
}

TEST(StepPlan, APieceMayEndFarBeyondTheRun) {
  TrainSection t = simple(1.0, 0.1, 0, 100);
  t.batch = 4096, t.seq_len = 64;  // 2^68 tokens at the end of the piece
  t.schedule.lr = {
      {.until = TrainingPoint{.steps = int64_t{1} << 50}, .shape = "linear", .from = 1.0, .to = 2.0}};
  const StepPlan s(t);
  EXPECT_GT(s.at(1).lr, 1.0);
  EXPECT_LT(s.at(100).lr, 1.0 + 1e-6);
}

TEST(StepPlan, SchedulesThatCannotBeAreErrorsOfTheConfiguration) {
  const auto message = [](const char* key, const char* json, int64_t micro_batch) {
    RunConfig config;
    config.data.files = {"a.txt"};
    config.tokenizer.vocab_size = 300;
    config.train.tokens = 100000;
    config.train.warmup_steps = 0;
    config.train.micro_batch = micro_batch;
    Json train = {{"schedule", {{key, parse_json(json, "t")}}}};
    return error_of([&] {
      fields::read(config.train, train, "c.json: train");
      config.validate("c.json");
    });
  };
  EXPECT_EQ(message("lr", R"([{"to": 1e-3}])", 0), "no error");
  EXPECT_TRUE(contains(message("batch", R"([{"to": 8}])", 0), "train.micro_batch is 0"));
  EXPECT_EQ(message("batch", R"([{"to": 8}])", 4), "no error");
  EXPECT_TRUE(contains(message("batch", R"([{"to": 0.5}])", 4), "train.schedule.batch goes to 0.5"));
  EXPECT_TRUE(contains(message("batch", R"([{"to": 8, "until": "4 steps"}, {"to": 9}])", 4),
                       "c.json: train.schedule.batch[0].until is \"4 steps\""));
  EXPECT_TRUE(contains(message("mtp_lambda", R"([{"shape": "linear", "to": 8}])", 0),
                       "c.json: train.schedule.mtp_lambda[0] is linear from nowhere"));
  EXPECT_TRUE(contains(message("gamma", R"([])", 0), "gamma"));
  EXPECT_TRUE(contains(message("lr", R"({"to": 1})", 0), "array"));
}

}  // namespace
}  // namespace cachalot
