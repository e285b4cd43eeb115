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

class ThreadPool;

class ParamSet {
 public:
  struct Options {
    bool gradients = false;
    // Which linear weights stay E4M3 with scales beside a recipe of more bits (an FP8 checkpoint, inference);
    // empty: none. In the fp8 recipe all are E4M3, and those of linear layers have a transpose with
    // gradients.
    std::function<bool(const Param&)> fp8 = {};
  };
  ParamSet(Device& device, const ModelConfig& config, Recipe recipe, const Options& options);

  const std::vector<Param>& table() const { return table_; }
  Recipe recipe() const { return recipe_; }
  Tensor weight(size_t i) const { return weights_[i]; }
  Tensor gradient(size_t i) const {
    return gradients_.empty() ? Tensor{} : gradients_[i];
  }  // absent: not trained
  size_t index(const std::string& name) const;  // CHECKs that it exists
  Tensor weight(const std::string& name) const { return weight(index(name)); }
  // fp8 recipe with gradients: the transpose of each expert's matrix, E4M3 blocks; absent elsewhere.
  Tensor transposed(size_t i) const { return transposed_.empty() ? Tensor{} : transposed_[i]; }
  Tensor transposed(const std::string& name) const { return transposed(index(name)); }
  // The transposes of two parameters of equal columns as one, where they lie side by side: those of attn.q_a
  // and attn.kv_a do, unless a block of scales would have to be cut. Absent elsewhere.
  Tensor transposed_both(const std::string& left, const std::string& right) const;
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
  std::vector<Tensor> weights_, transposed_, gradients_;
};

// Queues: E4M3 weight i and its transpose from numbers of the same shape (a master).
void quantise_weight(Stream& s, const ParamSet& params, size_t i, const Tensor& numbers);
// Queues: the transpose of E4M3 weight i, where there is one, from its codes.
void transpose_weight(Stream& s, const ParamSet& params, size_t i);
// Sets E4M3 weight i and its transpose from numbers in host memory, rows after rows; returns when it is done.
void upload_quantised(Stream& s, const ParamSet& params, size_t i, const std::vector<float>& numbers);
// The same for some rows, without the transpose: whole blocks of 128, or to the end of a part
// (Param::part_rows).
void upload_quantised_rows(Stream& s, const ParamSet& params, size_t i, int64_t first_row, int64_t rows,
                           const float* numbers, ThreadPool& threads);

// Random weights: normal with standard deviation initializer_range (V3 report section 4.2), norm gains 1,
// router bias 0. Element i of parameter p is a pure function of (seed, p, i), the same for every precision:
// `masters` (f32; the weight itself where it is its own master) get the numbers as they are drawn, weights are
// rounded from them. Masters that began on the grid of bf16 would leave it only after several small steps, and
// the weights, rounded to nearest, would stand still as long.
void initialize(Stream& s, const ParamSet& params, const ModelConfig& config, uint64_t seed,
                const std::function<Tensor(size_t param)>& masters = {});

}  // namespace cachalot
