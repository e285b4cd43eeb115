// What watches a run whose owner sleeps: numbers that are not finite, spikes of the loss or of the gradient's
// norm, routers that collapse. Pure arithmetic on what a step reports; the training loop does what a verdict
// says.
//
// Spike: a value above   median + k 1.4826 max(MAD, floor)   of the last `window` steps that were taken, with
// MAD the median distance from the median (1.4826 MAD estimates a normal distribution's deviation; both are
// robust: the spikes themselves hardly move them). The norm is judged by its logarithm. The floors, 1 % of
// the loss and 10 % of the norm, keep a quiet run from crying wolf.
//
// Collapse, of a layer with experts: MaxVio above a share of what it is when all tokens choose the same K
// experts, E/K - 1, or an expert without any token, for a number of steps in a row.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/guard_state.h"

namespace cachalot {

enum class Action : uint8_t { log, skip, rewind, stop };
Action parse_action(const std::string& text);
const char* name_of(Action action);

struct Verdict {
  const char* trouble = "";  // "not_finite", "loss_spike", "norm_spike", "collapse", "idle_expert"
  std::string what;          // for people, with the values
  const char* setting = "";  // that chose the action: "guard.on_spike"
  Action action = Action::log;
};

class Guard {
 public:
  // The layers with experts by number, their experts and how many a token chooses.
  struct Routers {
    std::vector<int64_t> layers;
    int64_t experts = 0, per_token = 0;
  };
  Guard(const GuardSection& section, Routers routers);

  // Before the update of a step. nullopt: nothing is wrong with it.
  std::optional<Verdict> judge(double loss, double grad_norm) const;
  // After it, with `taken` false where the update was left out. What the routers' loads say.
  std::optional<Verdict> learn(double loss, double grad_norm, bool taken,
                               const std::vector<std::vector<int32_t>>& counts,
                               const std::vector<double>& max_vio);

  const GuardState& state() const { return state_; }
  void restore(GuardState state) { state_ = std::move(state); }
  int64_t skipped() const { return state_.skipped; }  // steps in a row

 private:
  GuardSection section_;
  Routers routers_;
  GuardState state_;
};

// median + k 1.4826 max(MAD, floor); `values` is not empty.
double robust_limit(std::vector<double> values, double k, double floor);

}  // namespace cachalot
