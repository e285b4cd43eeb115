// The steps of a run, from where it stands to the end of its budget: data in, steps, evaluations,
// checkpoints, and what the guard says about them.
#pragma once

#include <atomic>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>

#include "data/loader.h"
#include "train/checkpoint_writer.h"
#include "train/guard.h"
#include "train/held_out.h"
#include "train/step_plan.h"
#include "train/telemetry.h"
#include "train/trainer.h"
#include "train/watchdog.h"

namespace cachalot {

// All of it outlives the loop.
struct LoopParts {
  const RunConfig* config = nullptr;
  const RunDirectory* run = nullptr;
  Device* device = nullptr;
  Stream* stream = nullptr;
  Trainer* trainer = nullptr;  // with weights
  Loader* loader = nullptr;
  const HeldOut* held_out = nullptr;
  Telemetry* telemetry = nullptr;
  CheckpointWriter* writer = nullptr;
  Activity* activity = nullptr;
  Watchdog* watchdog = nullptr;   // none: nobody waits for a hang
  std::function<void()> restart;  // makes the trainer's state that of step 0
  BitsIdentity bits;
};

struct LoopResult {
  int64_t steps = 0;  // done, of the whole run
  int64_t here = 0;   // done by this process
  int64_t tokens_here = 0;
  bool stopped = false;  // before the budget was used up
  double last_loss = 0;
  std::optional<HeldOut::Result> held_out;
  std::string checkpoint;               // the newest; empty: none
  int64_t saved = 0;                    // checkpoints, by this process
  double stall = 0, longest_stall = 0;  // seconds that training waited for them
};

class TrainingLoop {
 public:
  explicit TrainingLoop(LoopParts parts);

  // An earlier process' run goes on: the trainer, the loader and metrics.jsonl stand where `checkpoint` left
  // them, or at the beginning, but for the rows that a rewind to there left out.
  void resume(const std::optional<Checkpoint>& checkpoint);
  // When `stop` becomes true the step in progress is finished and a checkpoint saved. A checkpoint that
  // cannot be written on the way is told and tried again at the next interval; the last one must be: Error.
  // What the guard finds is told, and done as the configuration says: Error where that is to stop,
  // MachineError where the machine computes wrong numbers.
  LoopResult run(const std::atomic<bool>& stop);

 private:
  const TrainSection& train() const { return parts_.config->train; }
  // A verdict that its action does not end: the rest of the step is left to do, or the run stands elsewhere.
  enum class After : bool { go_on = false, rewound = true };
  void one_step(const std::atomic<bool>& stop);
  void report(const Verdict& verdict, int64_t step);
  After act(const Verdict& verdict, int64_t step);
  void rewind(const Verdict& verdict, int64_t step);
  void stand_at(const Checkpoint& checkpoint);
  void check_machine(const Recheck& recheck, int64_t step);
  [[noreturn]] void stop_after_skips(const Verdict& verdict, int64_t step);
  bool evaluation_due() const;
  void evaluate(int64_t limit, const std::atomic<bool>& stop);
  void save();
  void save_and_wait();
  void hear_of_checkpoints(CheckpointWriter::Wait wait);
  std::string newest() const;
  RunState state() const;

  LoopParts parts_;
  StepPlan plan_;
  LoopResult result_;
  Guard guard_;
  RewindState rewinds_;
  int64_t saved_step_ = 0;                           // of the newest complete checkpoint
  std::optional<int64_t> saving_step_;               // of the one being written
  std::optional<CheckpointWriter::Outcome> failed_;  // the newest, when it could not be written
};

}  // namespace cachalot
