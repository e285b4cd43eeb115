// A run as a list of steps, computed once from its configuration: how many rows each step takes and with
// which learning rate, balancing and loss weights it runs. Pure data, the same on every rank and after every
// stop.
#pragma once

#include <cstdint>
#include <vector>

#include "train/config.h"
#include "train/schedule.h"

namespace cachalot {

// What a step runs with.
struct StepSettings {
  double lr = 0;
  double bias_gamma = 0, balance_alpha = 0, mtp_lambda = 0;
};

// The learning rate of a step is its curve where the step ends: never 0 in a warm-up, the peak at its last
// step, the smallest at the run's last. The batch is its curve where the step begins, rounded to whole
// micro-batches. Without a list in train.schedule: `batch`, `bias_gamma`, `balance_alpha`, `mtp_lambda` all
// along, and lr linear from 0 in warmup_steps, then along a cosine to min_lr.
class StepPlan {
 public:
  // Error: a schedule that cannot be, naming its key (train/schedule.h).
  explicit StepPlan(const TrainSection& train);

  int64_t steps() const { return steps_; }             // of the run; steps count from 1
  int64_t rows() const { return rows_after(steps_); }  // of the run
  int64_t tokens() const { return rows() * seq_len_; }
  int64_t batch(int64_t step) const { return segment(step).batch; }
  int64_t largest_batch() const;
  int64_t rows_after(int64_t step) const;  // of the first `step` steps
  int64_t tokens_after(int64_t step) const { return rows_after(step) * seq_len_; }
  StepSettings at(int64_t step) const;

 private:
  struct Segment {  // steps with the same batch
    int64_t first_step = 1, first_row = 0, batch = 0;
  };
  const Segment& segment(int64_t step) const;
  void plan_batches(const TrainSection& train);

  int64_t seq_len_ = 0, steps_ = 0;
  std::vector<Segment> segments_;
  Curve lr_{0}, bias_gamma_{0}, balance_alpha_{0}, mtp_lambda_{0};
};

}  // namespace cachalot
