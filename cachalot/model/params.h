// The parameters of a model on a device: one allocation for the weights, one for their gradients.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/buffer.h"
#include "config/params.h"
#include "nn/recipe.h"

namespace cachalot {

class ParamSet {
 public:
  struct Options {
    bool gradients = false;
    // Which linear weights stay E4M3 with scales (an FP8 checkpoint, inference); empty: none.
    std::function<bool(const Param&)> fp8 = {};
  };
  ParamSet(Device& device, const ModelConfig& config, Recipe recipe, const Options& options);

  const std::vector<Param>& table() const { return table_; }
  Recipe recipe() const { return recipe_; }
  Tensor weight(size_t i) const { return weights_[i]; }
  Tensor gradient(size_t i) const {
    return gradients_.empty() ? Tensor{} : gradients_[i];
  }                                             // absent: not trained
  size_t index(const std::string& name) const;  // CHECKs that it exists
  Tensor weight(const std::string& name) const { return weight(index(name)); }
  Tensor gradient(const std::string& name) const { return gradient(index(name)); }
  // The scales of an E4M3 weight as a tensor, [block rows of all parts, ceil(cols / 128)] f32.
  Tensor scales(size_t i) const;

  int64_t weight_bytes() const { return weight_buffer_.bytes(); }
  int64_t gradient_bytes() const { return gradient_buffer_.bytes(); }

 private:
  std::vector<Param> table_;
  Recipe recipe_;
  std::unordered_map<std::string, size_t> index_;
  Buffer weight_buffer_, gradient_buffer_;
  std::vector<Tensor> weights_, gradients_;
};

// Random weights: normal with standard deviation initializer_range (V3 report section 4.2), norm gains 1,
// router bias 0. Element i of parameter p is a pure function of (seed, p, i).
void initialize(Stream& s, const ParamSet& params, const ModelConfig& config, uint64_t seed);

}  // namespace cachalot
