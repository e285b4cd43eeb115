// `--dry-run`: what a run would take, before it takes it.
#pragma once

#include <iosfwd>
#include <string>

#include "train/trainer.h"

namespace cachalot {

// Tells the disk that checkpoints need and what is free there, where the copy that they are written from
// would lie, and how long what is left of the run takes, after `done` steps, by some steps on random tokens,
// timed on `device`; nothing is written. The memory must fit (MemoryPlan::require_fit).
void print_dry_run(std::ostream& out, const ModelConfig& model, const RunConfig& config, Device& device,
                   const MemoryPlan& plan, const std::string& run_dir, const std::string& device_name,
                   int64_t done);

}  // namespace cachalot
