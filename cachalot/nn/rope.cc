#include "nn/rope.h"

#include <algorithm>
#include <cmath>

namespace cachalot {

namespace {

constexpr double kTwoPi = 6.283185307179586477;

// The pair (as a real number) that turns `turns` times within the original context.
double pair_with_turns(const ModelConfig& c, double turns) {
  const double length = double(c.yarn->original_max_position_embeddings);
  return double(c.qk_rope_head_dim) * std::log(length / (turns * kTwoPi)) / (2 * std::log(c.rope_theta));
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& c) {
  const int64_t dim = c.qk_rope_head_dim;
  std::vector<double> frequency(dim / 2);
  for (int64_t i = 0; i < dim / 2; ++i) frequency[i] = std::pow(c.rope_theta, -2.0 * double(i) / double(dim));
  if (!c.yarn) return frequency;
  const double low = std::max(std::floor(pair_with_turns(c, c.yarn->beta_fast)), 0.0);
  double high = std::min(std::ceil(pair_with_turns(c, c.yarn->beta_slow)), double(dim - 1));
  if (high == low) high += 0.001;  // as the published code: a step instead of a division by zero
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double slow =
        std::clamp((double(i) - low) / (high - low), 0.0, 1.0);  // 0: keep, 1: divide by the factor
    frequency[i] *= slow / c.yarn->factor + (1 - slow);
  }
  return frequency;
}

double rope_attention_factor(const ModelConfig& c) {
  if (!c.yarn) return 1;
  return yarn_mscale(c.yarn->factor, c.yarn->mscale) / yarn_mscale(c.yarn->factor, c.yarn->mscale_all_dim);
}

RopeTable::RopeTable(Stream& s, const ModelConfig& config, int64_t positions, DType stat) {
  const std::vector<double> frequency = rope_frequencies(config);
  const double factor = rope_attention_factor(config);
  const int64_t pairs = int64_t(frequency.size()), n = positions * pairs;
  buffer_ = Buffer(s.device(), 2 * n * size_of(stat), "rotary tables");
  cos_ = make_tensor(buffer_.data(), stat, positions, pairs);
  sin_ = make_tensor(static_cast<uint8_t*>(buffer_.data()) + n * size_of(stat), stat, positions, pairs);
  const auto fill = [&]<class T>(T) {
    std::vector<T> cos(n), sin(n);
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t i = 0; i < pairs; ++i) {
        cos[p * pairs + i] = T(std::cos(double(p) * frequency[i]) * factor);
        sin[p * pairs + i] = T(std::sin(double(p) * frequency[i]) * factor);
      }
    on(s).upload(cos.data(), cos_);
    on(s).upload(sin.data(), sin_);
  };
  if (stat == DType::f64) fill(double{});
  else fill(float{});
}

void RopeTable::apply(Stream& s, Tensor x, Tensor positions, int64_t heads, int64_t stride,
                      int64_t offset) const {
  on(s).rope({.x = x,
              .positions = positions,
              .cos = cos_,
              .sin = sin_,
              .heads = heads,
              .stride = stride,
              .offset = offset,
              .width = 2 * cos_.cols});
}

void RopeTable::apply_inverse(Stream& s, Tensor x, Tensor positions, int64_t heads, int64_t stride,
                              int64_t offset) const {
  on(s).rope({.x = x,
              .positions = positions,
              .cos = cos_,
              .sin = sin_,
              .heads = heads,
              .stride = stride,
              .offset = offset,
              .width = 2 * cos_.cols,
              .inverse = true});
}

}  // namespace cachalot
