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
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/training_pass.h"
#include "train/activity.h"
#include "train/bias_balance.h"
#include "train/config.h"
#include "train/ema.h"
#include "train/optimizer.h"
#include "train/scoring.h"
#include "train/state_tensor.h"
#include "train/step_plan.h"

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

// The first micro-batch of a step, computed twice.
struct Recheck {
  bool differed = false;
  bool settled = true;  // a third time gave the numbers of one of the two, and those were used
  std::string what;     // differed: which numbers
};

struct StepMetrics {
  StepSettings settings;
  double loss = 0;                 // mean over the step's targets of -log p, natural logarithm
  std::vector<double> mtp_losses;  // the same of every depth
  double balance = 0;    // sequence-wise balance loss before alpha, mean over sequences; 0 when alpha is 0
  double grad_norm = 0;  // before clipping
  bool updated = false;  // false: the norm was not finite, or a hook left the update out; nothing has changed
  std::optional<Recheck> recheck;
  std::vector<double> max_vio;  // of every layer with experts: max_violation()
  // Groups that a token's experts lie in, the mean, of the same layers; empty where there is one group.
  std::vector<double> groups_per_token;
  double experts_per_group = 0;  // of a token, in a group that it reaches: the mean of all layers
  std::optional<double> average_wait;  // seconds that the update waited for the average of the weights
  std::vector<std::vector<int32_t>>
      counts;  // tokens every expert got in the step, of every layer with experts
};

// What a step does besides, for those who watch over a run.
struct StepHooks {
  // Before the update, with the step's loss and gradient norm: false leaves it out. A norm that is not finite
  // leaves it out in any case.
  std::function<bool(double loss, double grad_norm)> accept = {};
  // Computes the first micro-batch twice and compares the bits of its losses and of every gradient.
  bool recheck = false;
  Activity* activity = nullptr;
};

class Trainer {
 public:
  // Takes all memory; weights are undefined until init(). `model` and `train` are checked (train/config.h).
  Trainer(Stream& s, const ModelConfig& model, const TrainSection& train, int64_t arena_bytes);
  // Random weights from train.seed, zero moments.
  void init();

  // Runs a micro-batch and an evaluation on the "plan" device and reads how much they took.
  static MemoryPlan plan(const ModelConfig& model, const TrainSection& train);

  // Whole micro-batches of sequences of train.seq_len + 1 tokens each, or of fewer: at least MTP depths + 2.
  // The losses are means over all targets of the step, and the experts' loads are those of all of it.
  StepMetrics step(std::span<const TokenSpan> sequences, const StepSettings& settings,
                   const StepHooks& hooks = {});
  // With the plain fields of `train`.
  StepMetrics step(std::span<const TokenSpan> sequences, double lr);

  // Sum of -log p (natural) over all targets of `windows`, main model only. A window holds between 2 and
  // train.seq_len + 1 tokens; its first is context only. nullopt when `stop` was set meanwhile.
  std::optional<double> score(std::span<const TokenSpan> windows, const std::atomic<bool>& stop);
  // The same and what the depths of multi-token prediction make of it (train/scoring.h).
  std::optional<TextScore> score_text(std::span<const TokenSpan> windows, Drafts drafts,
                                      const std::atomic<bool>& stop);

  int64_t updates() const { return updates_; }  // that took place

  // Everything that a resumed run must have bit for bit, besides `updates`: what checkpoints keep
  // (train/checkpoint.h). Read it, or fill it and then call adopt_state().
  std::vector<StateTensor> state() const;
  // The tensors of state() hold other numbers: weights follow their masters.
  void adopt_state(int64_t updates);

  // Of the layers with experts, in the order of StepMetrics::counts: their numbers, and their routers' biases
  // (which the host waits for).
  const std::vector<int64_t>& expert_layers() const { return balance_.layers(); }
  std::vector<std::vector<float>> router_biases() const { return balance_.biases(*stream_); }

  // train.ema_decay: the average of the weights; nullptr: there is none.
  Ema* average() const { return ema_.get(); }

  Stream& stream() const { return *stream_; }
  const ParamSet& params() const { return params_; }
  const Optimizer& optimizer() const { return optimizer_; }
  const Transformer& model() const { return model_; }
  int64_t arena_high_water() const { return arena_.high_water(); }

 private:
  std::vector<uint64_t> fingerprint(const TrainingPass& pass);
  std::string describe_difference(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) const;

  Stream* stream_;
  TrainSection train_;
  ParamSet params_;
  Optimizer optimizer_;
  BiasBalance balance_;
  Transformer model_;
  Arena arena_;
  std::unique_ptr<Ema> ema_;
  int64_t updates_ = 0;
};

}  // namespace cachalot
