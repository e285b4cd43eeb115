// What a run tells: a line for people, redrawn on a terminal and now and then in a log; metrics.jsonl for
// programs.
//
// metrics.jsonl, one object a step, written when the step is done:
//   step, tokens (trained so far), loss (nats a token), mtp_loss [one a depth], balance_loss, lr, grad_norm
//   (before clipping; null when not finite), updated (false: the norm was not finite and the step changed
//   nothing), max_vio [one a layer with experts], seconds (since the first step began), tokens_per_second (of
//   this step), parts {name: tokens trained so far} when the data has several, and after an evaluation held_out
//   {bits_per_byte, loss, tokens, bytes}
// The line for people shows means over the layers (MaxVio) and depths (mtp), and the speed smoothed over some
// steps.
#pragma once

#include <chrono>
#include <fstream>
#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "train/held_out.h"
#include "train/trainer.h"

namespace cachalot {

class Telemetry {
 public:
  // `out` must outlive it. Starts the clock.
  Telemetry(std::ostream& out, const ProgressStyle& style, const std::string& metrics_path,
            const TrainSection& train);

  // Steps count from 1. Error when metrics.jsonl cannot be written.
  void step(int64_t step, const StepMetrics& m, const std::optional<HeldOut::Result>& held_out,
            const std::vector<std::pair<std::string, int64_t>>& part_tokens = {});
  void note(const std::string& line);  // a line of its own, at once
  void finish();                       // the last state of the progress line

  // The curve of the losses, held-out ones as marks; "" before two steps.
  std::string curve() const;
  double seconds() const;                                    // since the start
  double seconds_in_steps() const { return step_seconds_; }  // without evaluations and checkpoints
  void step_begins();                                        // what is between these two is a step's time
  void step_ends();

 private:
  std::ostream& out_;
  ProgressStyle style_;
  TrainSection train_;
  std::string metrics_path_;
  std::ofstream metrics_;
  std::optional<Progress> progress_;  // on a terminal
  std::chrono::steady_clock::time_point start_, step_start_;
  double last_ = 0, step_seconds_ = 0, recent_ = 0;  // seconds: of the last step, of all, smoothed a step
  std::vector<double> steps_, losses_, held_out_steps_, held_out_losses_;
};

}  // namespace cachalot
