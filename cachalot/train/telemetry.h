// What a run tells: a line for people, redrawn on a terminal and now and then in a log; metrics.jsonl for
// programs.
//
// metrics.jsonl, one object a step, written when the step is done:
//   step, tokens (trained so far), loss (nats a token), mtp_loss [one a depth], balance_loss, lr, batch
//   (sequences of the step), grad_norm (before clipping; null when not finite), updated (false: the step
//   changed no weight, for its norm was not finite or the guard left it out), max_vio [one a layer with
//   experts], where experts are grouped groups_per_token [one a layer: groups that a token's experts lie in,
//   the mean] and experts_per_group (of a token, in a group that it reaches, all layers), seconds (since the
//   first step began), tokens_per_second (of this step), data_seconds (that the step waited for its data),
//   with an average of the weights average_wait_seconds (that the step waited for it), parts {name: tokens
//   trained so far} when the data has several, checkpoint_stall_seconds (that training waited for checkpoints
//   before this step, if it did; checkpoint_stall_after_seconds: for one after the last step of a process),
//   what train/meters.h adds: mfu, energy_joules, tokens_per_joule, cost; and after an evaluation held_out
//   {bits_per_byte, loss, tokens, bytes, mtp [{loss, acceptance}], average_bits_per_byte, sets {name: the
//   same}, expert_load {name: [layer][expert]}} (train/held_out.h)
// and lines that are no steps: {"event": what happened, "step": when, ...} (train/guard.h); "expert_load" has
// counts [layer][expert] of that step's tokens and the router's bias [layer][expert].
// The same numbers go into TensorBoard's files, under the tags that torchtitan uses.
// The line for people shows means over the layers (MaxVio) and depths (mtp), and the speed smoothed over some
// steps. In a log it has columns, whose heads come again now and then; it fits 120 characters.
#pragma once

#include <chrono>
#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "train/held_out.h"
#include "train/meters.h"
#include "train/metrics_file.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace cachalot {

class Telemetry {
 public:
  // `out` must outlive it. Starts the clock. Of a metrics.jsonl that is there, what belongs to the first
  // `kept_bytes` is kept and continued (train/metrics_file.h). Error when the file cannot be written.
  Telemetry(std::ostream& out, const ProgressStyle& style, const std::string& metrics_path,
            const TrainSection& train, int64_t kept_bytes = 0);

  // From here on lines have what the meters read, and RUN/tb has events.
  void use(Meters meters);
  // `expert_layers`: the numbers of the layers that a list of one number a layer is of.
  void write_tensorboard(const std::string& directory, std::vector<int64_t> expert_layers = {});
  // Steps whose experts' loads are written as events: some two hundred of the run, and the last.
  bool wants_expert_load(int64_t step) const;

  // Steps count from 1. While the disk is full, lines of metrics.jsonl are kept in memory.
  void step(int64_t step, const StepMetrics& m, const std::optional<HeldOut::Result>& held_out,
            const std::vector<std::pair<std::string, int64_t>>& part_tokens = {});
  // The score of a step whose line has been written.
  void scored(int64_t step, const HeldOut::Result& held_out);
  // Of the last line that is a step's; 0: none.
  int64_t last_step() const { return steps_.empty() ? 0 : int64_t(steps_.back()); }
  // Whether the last line of metrics.jsonl has one.
  bool last_is_scored() const { return scored_; }
  // A line of metrics.jsonl that is no step: {"event": ..., "step": ...}.
  void event(const Json& line);
  // Back to when metrics.jsonl had so many bytes: its later lines are removed.
  void rewind(int64_t kept_bytes);
  // Up to the end of the last step's line: what a step's events say comes before it.
  int64_t metrics_bytes() const { return step_end_; }
  void require_written();  // Error, if metrics.jsonl still lacks something
  // Seconds that the steps waited for checkpoints since the last line; go into the next one.
  void add_stall(double seconds) { stall_ += seconds; }
  void write_last_stall();             // after which no step comes: into the line of the last one
  void note(const std::string& line);  // a line of its own, at once
  void finish();                       // the last state of the progress line

  // The curve of the losses, held-out ones as marks; "" before two steps.
  std::string curve() const;
  double seconds() const;  // since the start
  double last_step_seconds() const { return last_; }
  double seconds_in_steps() const { return step_seconds_; }  // without evaluations and checkpoints
  void step_begins();                                        // what is between these two is a step's time
  void data_came();  // between them: the step waited for its data until now
  void step_ends();

 private:
  void write(const Json& line);
  void show_on_board(const Json& line);
  void restart_board();
  void extend_last_step(const Json& fields);
  void report_disk();
  double rate(int64_t step) const;
  double left(int64_t tokens) const;
  std::string in_words(const StepMetrics& m, const Json& line) const;
  void show_row(int64_t step, const StepMetrics& m, const Json& line);
  void show_score(int64_t step, const HeldOut::Result& held_out);
  void remember(const Json& line);
  std::ostream& out_;
  ProgressStyle style_;
  TrainSection train_;
  StepPlan plan_;
  MetricsFile metrics_;
  bool warned_ = false;  // that metrics.jsonl cannot be written
  bool scored_ = false;
  int64_t step_end_ = 0;                  // in metrics.jsonl, of the last step's line
  double stall_ = 0;                      // seconds
  double before_ = 0, last_seconds_ = 0;  // of the run until it was resumed; of the last line read
  std::optional<Progress> progress_;      // on a terminal
  int rows_ = 0;                          // below the heads of their columns; 0: heads first
  std::chrono::steady_clock::time_point start_, step_start_;
  double data_ = 0;         // seconds that the last step waited for data
  double last_joules_ = 0;  // of the last line read
  std::optional<Meters> meters_;
  std::optional<TensorBoardWriter> board_;
  std::vector<int64_t> expert_layers_;
  double last_ = 0, step_seconds_ = 0, recent_ = 0;  // seconds: of the last step, of all, smoothed a step
  std::vector<double> steps_, losses_, held_out_steps_, held_out_losses_;
};

}  // namespace cachalot
