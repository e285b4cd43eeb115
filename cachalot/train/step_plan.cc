#include "train/step_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace cachalot {

namespace {

constexpr int64_t kMostTokens = int64_t{1} << 50;     // of a run (train/config.cc)
constexpr int64_t kMostRampSteps = int64_t{1} << 22;  // V3's ramp has 12 thousand

}  // namespace

StepPlan::StepPlan(const TrainSection& t) : seq_len_(t.seq_len) {
  plan_batches(t);
  // A piece may end far beyond the run, but not beyond 64 bits.
  const int64_t countable = std::max(steps_, kMostTokens / (largest_batch() * seq_len_));
  const auto after = [&](int64_t steps) { return tokens_after(std::min(steps, countable)); };
  const auto curve = [&](const Pieces& pieces, const char* key, double constant) {
    return pieces.empty() ? Curve(constant)
                          : Curve(pieces, fmt::format("train.schedule.{}", key), after, tokens());
  };
  bias_gamma_ = curve(t.schedule.bias_gamma, "bias_gamma", t.bias_gamma);
  balance_alpha_ = curve(t.schedule.balance_alpha, "balance_alpha", t.balance_alpha);
  mtp_lambda_ = curve(t.schedule.mtp_lambda, "mtp_lambda", t.mtp_lambda);
  if (!t.schedule.lr.empty()) {
    lr_ = curve(t.schedule.lr, "lr", 0);
    return;
  }
  Pieces pieces;
  if (t.warmup_steps > 0)
    pieces.push_back(
        {.until = TrainingPoint{.steps = t.warmup_steps}, .shape = "linear", .from = 0.0, .to = t.lr});
  if (t.warmup_steps < steps_)
    pieces.push_back({.until = {}, .shape = "cosine", .from = t.lr, .to = t.min_lr});
  lr_ = Curve(pieces, "train.lr", after, tokens());
}

void StepPlan::plan_batches(const TrainSection& t) {
  if (t.schedule.batch.empty()) {
    segments_ = {{.first_step = 1, .first_row = 0, .batch = t.batch}};
    steps_ = t.steps ? t.steps : (t.tokens + t.batch * t.seq_len - 1) / (t.batch * t.seq_len);
    return;
  }
  const int64_t micro = t.micro_batch;
  if (micro == 0)
    throw Error("train.schedule.batch is given and train.micro_batch is 0, all of the batch")
        .hint("say how many sequences go through the model at once: --train.micro_batch 1");
  const Curve curve(t.schedule.batch, "train.schedule.batch", {}, t.tokens);
  const auto rounded = [&](double batch) {
    return std::max<int64_t>(1, std::llround(batch / double(micro))) * micro;
  };
  int64_t step = 1, row = 0, walked = 0;
  const auto done = [&] { return t.steps ? step > t.steps : row * seq_len_ >= t.tokens; };
  while (!done()) {
    const int64_t begin = row * seq_len_, batch = rounded(curve.from(begin));
    if (segments_.empty() || segments_.back().batch != batch)
      segments_.push_back({.first_step = step, .first_row = row, .batch = batch});
    // All steps that begin before the value may change, and no more than the run has.
    const int64_t until = curve.constant_until(begin), step_tokens = batch * seq_len_;
    int64_t n = t.steps ? t.steps - step + 1 : (t.tokens - begin + step_tokens - 1) / step_tokens;
    if (until - begin < n * step_tokens) n = (until - begin + step_tokens - 1) / step_tokens;
    if (++walked > kMostRampSteps)
      throw Error(fmt::format("train.schedule.batch changes in more than {} steps", kMostRampSteps))
          .hint("let it grow in some pieces that are constant");
    step += n;
    row += n * batch;
  }
  steps_ = step - 1;
}

const StepPlan::Segment& StepPlan::segment(int64_t step) const {
  CHECK(step >= 1);
  return *std::prev(std::upper_bound(segments_.begin(), segments_.end(), step,
                                     [](int64_t s, const Segment& g) { return s < g.first_step; }));
}

int64_t StepPlan::rows_after(int64_t step) const {
  if (step == 0) return 0;
  const Segment& g = segment(step);
  return g.first_row + (step - g.first_step + 1) * g.batch;
}

int64_t StepPlan::largest_batch() const {
  int64_t most = 0;
  for (const Segment& g : segments_) most = std::max(most, g.batch);
  return most;
}

StepSettings StepPlan::at(int64_t step) const {
  const int64_t tokens = tokens_after(step);
  return {.lr = lr_.at(tokens),
          .bias_gamma = bias_gamma_.at(tokens),
          .balance_alpha = balance_alpha_.at(tokens),
          .mtp_lambda = mtp_lambda_.at(tokens)};
}

int64_t TrainSection::total_steps() const { return StepPlan(*this).steps(); }

}  // namespace cachalot
