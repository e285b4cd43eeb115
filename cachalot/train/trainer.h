// One training step on one device: micro-batches forward and backward, AdamW, the balancing of the experts.
//
//   for each micro-batch: forward, backward; gradients = (first) or += ; router counts likewise
//   norm of all gradients -> clipped AdamW update -> bias of every router
//
// Everything of a step is queued; the host waits once, at its end, when losses, gradient norm and router
// counts come down together. Memory is taken in the constructor and never in a step.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/training_pass.h"
#include "train/bias_balance.h"
#include "train/config.h"
#include "train/optimizer.h"

namespace cachalot {

// What training takes on the device, in bytes, by owner (docs/architecture.md, "Memory").
struct MemoryPlan {
  int64_t weights = 0, gradients = 0, optimizer = 0;
  int64_t tables = 0;  // rotary tables, router counts
  int64_t arena = 0;   // activations of one micro-batch
  int64_t total() const { return weights + gradients + optimizer + tables + arena; }
  // Throws Error naming the settings to change when it does not fit `device`.
  void require_fit(const Device& device, const TrainSection& train) const;
};

using TokenSpan = std::span<const int32_t>;

struct StepMetrics {
  double lr = 0;
  double loss = 0;                 // mean over the step's targets of -log p, natural logarithm
  std::vector<double> mtp_losses;  // the same of every depth
  double balance = 0;    // sequence-wise balance loss before alpha, mean over sequences; 0 when alpha is 0
  double grad_norm = 0;  // before clipping
  bool updated = false;  // false: the norm was not finite and nothing has changed
  std::vector<double> max_vio;  // of every layer with experts: max_violation()
  std::vector<std::vector<int32_t>>
      counts;  // tokens every expert got in the step, of every layer with experts
};

class Trainer {
 public:
  // Takes all memory; weights are undefined until init(). `model` and `train` are checked (train/config.h).
  Trainer(Stream& s, const ModelConfig& model, const TrainSection& train, int64_t arena_bytes);
  // Random weights from train.seed, zero moments.
  void init();

  // Runs a micro-batch and an evaluation on the "plan" device and reads how much they took.
  static MemoryPlan plan(const ModelConfig& model, const TrainSection& train);

  // train.batch sequences of train.seq_len + 1 tokens each, or of fewer: at least MTP depths + 2. The losses are
  // means over all targets of the step.
  StepMetrics step(std::span<const TokenSpan> sequences, double lr);

  // Sum of -log p (natural) over all targets of `windows`, main model only. A window holds between 2 and
  // train.seq_len + 1 tokens; its first is context only. nullopt when `stop` was set meanwhile.
  std::optional<double> score(std::span<const TokenSpan> windows, const std::atomic<bool>& stop);

  int64_t updates() const { return updates_; }  // that took place
  const ParamSet& params() const { return params_; }
  const Optimizer& optimizer() const { return optimizer_; }
  const Transformer& model() const { return model_; }
  int64_t arena_high_water() const { return arena_.high_water(); }

 private:
  Stream* stream_;
  TrainSection train_;
  ParamSet params_;
  Optimizer optimizer_;
  BiasBalance balance_;
  Transformer model_;
  Arena arena_;
  int64_t updates_ = 0;
};

}  // namespace cachalot
