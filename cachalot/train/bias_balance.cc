#include "train/bias_balance.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace cachalot {

BiasBalance::BiasBalance(Device& device, const ModelConfig& config, const ParamSet& params) {
  for (int64_t l = 0; l < config.layers_with_mtp(); ++l)
    if (config.has_experts(l)) {
      biases_.push_back(params.weight(fmt::format("layers.{}.mlp.gate_bias", l)));
      layers_.push_back(l);
    }
  const int64_t experts = config.n_routed_experts, row = (experts * 4 + 255) / 256 * 256;
  buffer_ = Buffer(device, int64_t(biases_.size()) * row, "expert counts");
  for (size_t i = 0; i < biases_.size(); ++i) {
    counts_.push_back(
        make_tensor(static_cast<uint8_t*>(buffer_.data()) + int64_t(i) * row, DType::i32, 1, experts));
    host_.emplace_back(size_t(experts), 0);
  }
}

void BiasBalance::collect(Stream& s, const TrainingPass& pass, Accumulate mode) {
  const std::vector<Tensor> counts = pass.counts();
  CHECK(counts.size() == counts_.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    if (mode == Accumulate::overwrite) on(s).cast({.x = counts[i], .y = counts_[i]});
    else on(s).add({.a = counts_[i], .b = counts[i], .y = counts_[i]});
  }
}

void BiasBalance::download(Stream& s) {
  for (size_t i = 0; i < counts_.size(); ++i) on(s).download(counts_[i], host_[i].data());
}

void BiasBalance::update(Stream& s, double gamma) {
  if (gamma == 0) return;
  for (size_t i = 0; i < counts_.size(); ++i)
    on(s).update_gate_bias({.counts = counts_[i], .bias = biases_[i], .gamma = gamma});
}

std::vector<double> BiasBalance::max_violation() const {
  std::vector<double> result;
  for (const auto& counts : host_) result.push_back(cachalot::max_violation(counts));
  return result;
}

std::vector<std::vector<float>> BiasBalance::biases(Stream& s) const {
  std::vector<std::vector<float>> result;
  for (const Tensor& b : biases_) {
    CHECK(b.dtype == DType::f32);
    result.emplace_back(size_t(b.size()));
    on(s).download(b, result.back().data());
  }
  on(s).synchronize();
  return result;
}

double max_violation(const std::vector<int32_t>& counts) {
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (sum == 0) return 0;
  return double(*std::max_element(counts.begin(), counts.end())) * double(counts.size()) / double(sum) - 1;
}

}  // namespace cachalot
