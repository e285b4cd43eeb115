// `cachalot pretrain`: text files or token shards in, a run directory with a Hugging Face checkpoint out.
#pragma once

#include <atomic>
#include <iosfwd>
#include <optional>
#include <string>

#include "base/progress.h"
#include "train/config.h"
#include "train/held_out.h"

namespace cachalot {

struct PretrainOptions {
  std::string config_path;  // for messages
  std::string run_dir;
  bool overwrite = false;  // replace the run that is there
  std::string device = "cpu";
  ProgressStyle style;  // of the progress line
};

struct PretrainResult {
  int64_t steps = 0;
  bool stopped = false;  // by `stop`, before the budget was used up
  double last_loss = 0;
  std::optional<HeldOut::Result> held_out;
  std::string checkpoint;  // the last one; empty when stopped before the first step
};

// Trains as `config` (validated) says and tells `out` about it. When `stop` becomes true the step in progress
// is finished, a checkpoint is saved and the function returns. Ten steps in a row whose gradient is not
// finite: a checkpoint of the weights, which they did not change, then an Error.
PretrainResult pretrain(const RunConfig& config, const PretrainOptions& options, std::ostream& out,
                        const std::atomic<bool>& stop);

}  // namespace cachalot
