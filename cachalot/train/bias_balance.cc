#include "train/bias_balance.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace cachalot {

namespace {

int64_t sum(const std::vector<int32_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

BiasBalance::BiasBalance(Device& device, const ModelConfig& config, const ParamSet& params)
    : groups_(config.n_group), chosen_(config.num_experts_per_tok) {
  for (int64_t l = 0; l < config.layers_with_mtp(); ++l)
    if (config.has_experts(l)) {
      biases_.push_back(params.weight(fmt::format("layers.{}.mlp.gate_bias", l)));
      layers_.push_back(l);
    }
  const auto aligned = [](int64_t numbers) { return (numbers * 4 + 255) / 256 * 256; };
  const int64_t experts = config.n_routed_experts, row = aligned(experts), layers = int64_t(biases_.size());
  buffer_ = Buffer(device, layers * row + aligned(layers), "expert counts");
  visits_ = make_tensor(static_cast<uint8_t*>(buffer_.data()) + layers * row, DType::i32, 1, layers);
  host_visits_.resize(biases_.size());
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
  if (groups_ == 1) return;
  const std::vector<Tensor> choices = pass.choices();
  CHECK(choices.size() == counts_.size());
  for (size_t i = 0; i < choices.size(); ++i)
    on(s).count_groups({.indices = choices[i],
                        .visits = visits_.slice_cols(int64_t(i), 1),
                        .experts = counts_[i].cols,
                        .groups = groups_,
                        .accumulate = mode});
}

void BiasBalance::download(Stream& s) {
  for (size_t i = 0; i < counts_.size(); ++i) on(s).download(counts_[i], host_[i].data());
  if (groups_ > 1 && visits_.cols > 0) on(s).download(visits_, host_visits_.data());
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

std::vector<double> BiasBalance::groups_per_token() const {
  std::vector<double> result;
  if (groups_ == 1) return result;
  for (size_t i = 0; i < host_.size(); ++i) {
    const int64_t choices = sum(host_[i]);
    result.push_back(choices == 0 ? 0 : double(host_visits_[i]) * double(chosen_) / double(choices));
  }
  return result;
}

double BiasBalance::experts_per_group() const {
  if (groups_ == 1) return 0;
  int64_t choices = 0;
  for (const auto& counts : host_) choices += sum(counts);
  const int64_t visits = sum(host_visits_);
  return visits == 0 ? 0 : double(choices) / double(visits);
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
  const int64_t all = sum(counts);
  if (all == 0) return 0;
  return double(*std::max_element(counts.begin(), counts.end())) * double(counts.size()) / double(all) - 1;
}

}  // namespace cachalot
