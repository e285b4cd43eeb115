// One micro-batch through the training objective: main loss, MTP losses, sequence-wise balance loss, and
// gradients.
//   L = main + lambda / depths * sum_k mtp_k + alpha * mean over sequences of sum over layers of balance
// each main and MTP loss the mean over its targets in the global batch (V3 report sections 2.1.2 and 2.2).
#pragma once

#include "model/transformer.h"

namespace cachalot {

// Factors that turn this micro-batch's sums into its share of L; with G sequences of T inputs in the global
// batch: main 1 / (G T), mtp[k-1] = lambda / depths / (G (T - k)), balance = alpha / G.
struct LossScales {
  double main = 0;
  std::vector<double> mtp;
  double balance = 0;

  static LossScales uniform(int64_t sequences, int64_t tokens, int64_t depths, double lambda, double alpha);
};

struct TrainingPass {
  Transformer::State trunk;
  std::vector<Mtp::State> mtp;
  Tensor losses;                   // [1, T] stat: -log p of every target
  std::vector<Tensor> mtp_losses;  // [1, T_k] stat

  // Router counts i32 [1, E] of every layer with experts (MTP layers last), in order of layers.
  std::vector<Tensor> counts() const;
  // The chosen experts i32 [T, K] of the same layers.
  std::vector<Tensor> choices() const;
  // Balance losses [1, S] of the same layers; empty when alpha is 0.
  std::vector<Tensor> balance() const;
};

// Forward only: what scoring and validation run.
TrainingPass forward_losses(Stream& s, Arena& arena, const Transformer& model, const TrainingBatch& batch,
                            const Transformer::Options& options);
// Forward and backward. Gradients are overwritten or added to, by `mode`.
TrainingPass forward_backward(Stream& s, Arena& arena, const Transformer& model, const TrainingBatch& batch,
                              const LossScales& scales, const Transformer::Options& options, Accumulate mode);

}  // namespace cachalot
