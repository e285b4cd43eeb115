// A model's needles (tasks/needle.h) over a grid of context lengths and depths: what part of a long context
// it can use.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "infer/engine.h"
#include "tasks/needle.h"

namespace cachalot {

struct NeedleGridOptions {
  std::vector<int64_t> lengths;
  std::vector<double> depths;  // 0 ... 1
  int64_t cases = 5;           // of every cell
  int64_t distractors = 0;
  uint64_t seed = 1;
  // evenly spread depths: 0, 1 / (n - 1), ..., 1
  static std::vector<double> even_depths(int64_t n);
};

struct NeedleGrid {
  struct Cell {
    int64_t length = 0;
    double depth = 0;
    int64_t asked = 0, found = 0;
    double share() const { return asked ? double(found) / double(asked) : 0; }
  };
  std::vector<Cell> cells;  // length by length, depth by depth
  int64_t context = 0;      // max_position_embeddings of the model
  double share() const;     // of all
  double share(int64_t length) const;
};

// Asks every case, `together` at a time. `done` hears how many were answered; nothing when `stop` was set:
// the grid then holds what was asked before.
NeedleGrid run_needle_grid(Engine& engine, const Haystack& haystack, const NeedleGridOptions& options,
                           const std::function<void(int64_t done, int64_t of)>& done,
                           const std::atomic<bool>& stop);

// A table of per cents, a row for each depth, shaded.
std::string needle_table(const NeedleGrid& grid);
Json needle_json(const NeedleGrid& grid, const NeedleGridOptions& options);

}  // namespace cachalot
