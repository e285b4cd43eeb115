// `--dry-run`: what a run would take, before it takes it.
#pragma once

#include <iosfwd>
#include <string>

#include "train/trainer.h"

namespace cachalot {

// The most checkpoints that lie on the disk at once, one that is being written among them, and how many stay.
struct CheckpointCount {
  int64_t most = 0, kept = 0;
};
CheckpointCount count_checkpoints(const TrainSection& train);

// Tells the disk that checkpoints need, less what lies in `run_dir` already, and what is free there. Needs no
// memory: also of a run that does not fit.
void print_disk(std::ostream& out, const ModelConfig& model, const RunConfig& config,
                const std::string& run_dir);

// Tells where the copy that checkpoints are written from would lie, and how long what is left of the run
// takes, after `done` steps, by some steps on random tokens, timed on `device`; nothing is written. The memory
// must fit (MemoryPlan::require_fit).
void print_dry_run(std::ostream& out, const ModelConfig& model, const RunConfig& config, Device& device,
                   const MemoryPlan& plan, const std::string& device_name, int64_t done);

}  // namespace cachalot
