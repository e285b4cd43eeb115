// Rotary position tables, plain and YaRN, and their application to MLA's rope slices.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/buffer.h"
#include "config/model.h"

namespace cachalot {

// Frequencies of the P/2 pairs, radians a position. Plain: theta^(-2i/P). YaRN (arXiv:2309.00071 section 3.2;
// V3 report section 4.3) divides the slow ones by `factor`, keeps the fast ones, and ramps linearly between
// the pairs that turn beta_fast and beta_slow times within the original context.
std::vector<double> rope_frequencies(const ModelConfig& config);

// What the tables are scaled by: (0.1 mscale ln f + 1) / (0.1 mscale_all_dim ln f + 1); 1 for the published
// models.
double rope_attention_factor(const ModelConfig& config);

class RopeTable {  // cos and sin for positions 0 ... positions-1, on the device
 public:
  RopeTable(Stream& s, const ModelConfig& config, int64_t positions, DType stat);

  int64_t positions() const { return cos_.rows; }
  Tensor cos() const { return cos_; }
  Tensor sin() const { return sin_; }
  // Columns [h stride + offset, + P) of x for h < heads, in place; `inverse` for gradients.
  void apply(Stream& s, Tensor x, Tensor positions, int64_t heads, int64_t stride, int64_t offset) const;
  void apply_inverse(Stream& s, Tensor x, Tensor positions, int64_t heads, int64_t stride,
                     int64_t offset) const;

 private:
  Buffer buffer_;
  Tensor cos_, sin_;  // [positions, P/2]
};

}  // namespace cachalot
