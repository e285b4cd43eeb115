// Balancing the experts without an auxiliary loss (V3 report section 2.1.2): after each step every router's
// bias moves by gamma against the load error of the whole step, counted in integers.
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

  // Adds a micro-batch's counts to the step's; `mode` overwrite for the first.
  void collect(Stream& s, const TrainingPass& pass, Accumulate mode);
  // Queues the copy of the step's counts to the host; counts() holds them after the next synchronize().
  void download(Stream& s);
  // bias[e] += gamma sign(mean - counts[e]) in every layer.
  void update(Stream& s, double gamma);

  const std::vector<std::vector<int32_t>>& counts() const { return host_; }
  std::vector<double> max_violation() const;  // of every layer
  std::vector<std::vector<float>> biases(Stream& s) const;  // waits for them
  const std::vector<int64_t>& layers() const { return layers_; }  // the numbers of the layers with experts
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
  std::vector<Tensor> counts_, biases_;
  std::vector<std::vector<int32_t>> host_;
  std::vector<int64_t> layers_;
};

// MaxVio = max_e counts[e] / mean - 1: how much the busiest expert has above its share; 0 when perfectly
// balanced, or when there is no token (Wang et al., arXiv:2408.15664).
double max_violation(const std::vector<int32_t>& counts);

}  // namespace cachalot
