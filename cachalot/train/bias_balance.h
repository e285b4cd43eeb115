// Balancing the experts without an auxiliary loss (V3 report section 2.1.2): after each step every router's
// bias moves by gamma against the load error of the whole step, counted in integers. Beside the loads the
// groups that the tokens reach are counted: where a group is a node, what the all-to-all costs.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/buffer.h"
#include "model/params.h"
#include "model/training_pass.h"

namespace cachalot {

class BiasBalance {
 public:
  // One row of counts for every layer with experts (MTP layers last), in order of layers.
  BiasBalance(Device& device, const ModelConfig& config, const ParamSet& params);

  // Adds a micro-batch's counts to the step's; `mode` overwrite for the first. Groups are counted only where
  // there are several.
  void collect(Stream& s, const TrainingPass& pass, Accumulate mode);
  // Queues the copy of the step's counts to the host; counts(), max_violation() and groups_per_token() are of
  // them after the next synchronize().
  void download(Stream& s);
  // bias[e] += gamma sign(mean - counts[e]) in every layer.
  void update(Stream& s, double gamma);

  const std::vector<std::vector<int32_t>>& counts() const { return host_; }
  std::vector<double> max_violation() const;  // of every layer
  // The mean number of groups that a token's experts lie in, of every layer; empty with one group.
  std::vector<double> groups_per_token() const;
  // Experts of a token in a group that it reaches, over all layers; 0 with one group.
  double experts_per_group() const;
  std::vector<std::vector<float>> biases(Stream& s) const;  // waits for them
  const std::vector<int64_t>& layers() const { return layers_; }  // the numbers of the layers with experts
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  int64_t groups_ = 1, chosen_ = 1;  // of the experts; experts a token
  Buffer buffer_;
  std::vector<Tensor> counts_, biases_;
  Tensor visits_;  // i32 [1, layers]: groups reached, over the step's tokens
  std::vector<std::vector<int32_t>> host_;
  std::vector<int32_t> host_visits_;
  std::vector<int64_t> layers_;
};

// MaxVio = max_e counts[e] / mean - 1: how much the busiest expert has above its share; 0 when perfectly
// balanced, or when there is no token (Wang et al., arXiv:2408.15664).
double max_violation(const std::vector<int32_t>& counts);

}  // namespace cachalot
