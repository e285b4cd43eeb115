// `cachalot pretrain`: text files or token shards in, a run directory with a Hugging Face checkpoint out.
// Given again, it goes on where the run stands.
#pragma once

#include <atomic>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "base/progress.h"
#include "train/config.h"
#include "train/held_out.h"

namespace cachalot {

struct PretrainOptions {
  std::string config_path;  // for messages
  std::string run_dir;
  // A run that is there is resumed if the configuration is the same (train/resume.h); or:
  bool overwrite = false;             // it is replaced
  bool require_resume = false;        // Error, if there is none
  bool allow_different_bits = false;  // resume with another program or other arithmetic
  std::string device = "cpu";
  bool dry_run = false;  // tell what the run would take (train/dry_run.h); nothing is written
  ProgressStyle style;   // of the progress line
  // Called by a thread of its own when the run hangs, at once, with what is known about it; empty: nobody
  // watches. Then that is written to RUN/hang.txt, and end_hung called: when it is, or after a few seconds, for
  // it may be the disk that hangs. The process should end.
  std::function<void(const std::string& report)> on_hang = {};
  std::function<void()> end_hung = {};
  // Empty: open_device(). Tests put devices with faults here.
  std::function<std::unique_ptr<Device>(const std::string& name, const DeviceOptions&)> open = {};
};

struct PretrainResult {
  int64_t steps = 0;                        // done, of the whole run
  int64_t resumed_from = 0;                 // steps that were done before
  bool stopped = false;                     // by `stop`, before the budget was used up
  double last_loss = 0;                     // of a step done here
  std::optional<HeldOut::Result> held_out;  // of the last evaluation, if made here
  std::string checkpoint;                   // the last one; empty when stopped before the first step
};

// Trains as `config` (validated) says and tells `out` about it. When `stop` becomes true the step in progress
// is finished, a checkpoint is saved and the function returns. A run that ends, however often it was stopped
// or killed, ends with the bits of one that never was. What the guard finds (train/guard.h) may end the run
// with an Error, or a MachineError; so do too many steps in a row that changed nothing, after a checkpoint of
// the weights.
PretrainResult pretrain(const RunConfig& config, const PretrainOptions& options, std::ostream& out,
                        const std::atomic<bool>& stop);

}  // namespace cachalot
