// What the guard (train/guard.h) remembers between steps; goes into checkpoints.
#pragma once

#include <cstdint>
#include <vector>

namespace cachalot {

struct GuardState {
  std::vector<double> losses, norms;  // of the last steps that were taken, oldest first
  std::vector<int64_t> collapsed;     // by layer with experts: steps in a row with too high a MaxVio
  std::vector<int64_t> idle;          // by layer and expert: steps in a row without a token
  int64_t skipped = 0;                // steps in a row that changed nothing
  template <class V> void visit(V& v) {
    v("losses", losses, "of the last steps");
    v("norms", norms, "of their gradients");
    v("collapsed", collapsed, "by layer: steps in a row");
    v("idle", idle, "by layer and expert: steps in a row without a token");
    v("skipped", skipped, "steps in a row that changed nothing");
  }
};

}  // namespace cachalot
