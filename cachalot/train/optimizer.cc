#include "train/optimizer.h"

namespace cachalot {

Optimizer::Optimizer(Device& device, const ParamSet& params, const AdamWOptions& options)
    : params_(&params), options_(options) {
  const Recipe recipe = params.recipe();
  const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const auto needs_master = [&](size_t i) { return params.weight(i).dtype != recipe.stat; };
  int64_t bytes = aligned(size_of(DType::f64));
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    if (!p.trained()) continue;
    CHECK(params.gradient(i), p.name + " has no gradient");
    bytes += 2 * aligned(p.size() * size_of(recipe.moment));
    if (needs_master(i)) bytes += aligned(p.size() * size_of(recipe.stat));
  }
  buffer_ = Buffer(device, bytes, "optimizer state");

  auto* at = static_cast<uint8_t*>(buffer_.data());
  const auto take = [&](DType dtype, int64_t rows, int64_t cols) {
    Tensor t = make_tensor(at, dtype, rows, cols);
    at += aligned(t.size() * size_of(dtype));
    return t;
  };
  grad_norm_squared_ = take(DType::f64, 1, 1);
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    State state;
    if (p.trained()) {
      if (needs_master(i)) state.master = take(recipe.stat, p.rows, p.cols);
      state.m = take(recipe.moment, p.rows, p.cols);
      state.v = take(recipe.moment, p.rows, p.cols);
    }
    states_.push_back(state);
  }
}

void Optimizer::init(Stream& s) {
  for (size_t i = 0; i < states_.size(); ++i) {
    if (!states_[i].m) continue;
    on(s).fill({.y = states_[i].m, .value = 0});
    on(s).fill({.y = states_[i].v, .value = 0});
  }
}

void Optimizer::adopt_masters(Stream& s) {
  for (size_t i = 0; i < states_.size(); ++i) {
    if (!states_[i].master) continue;
    if (params_->weight(i).dtype == DType::e4m3) quantise_weight(s, *params_, i, states_[i].master);
    else on(s).cast({.x = states_[i].master, .y = params_->weight(i)});
  }
}

void Optimizer::sum_gradients(Stream& s) {
  on(s).fill({.y = grad_norm_squared_, .value = 0});
  Tensor together;  // gradients that follow each other in memory: one sum instead of hundreds of small ones
  const auto sum = [&] {
    if (together) on(s).sum_squares({.x = together, .out = grad_norm_squared_});
  };
  for (size_t i = 0; i < states_.size(); ++i) {
    if (!states_[i].m) continue;
    const Tensor& g = params_->gradient(i);
    const auto* end = static_cast<const uint8_t*>(together.data) + together.size() * size_of(g.dtype);
    if (together && end == g.data) {
      together = make_tensor(together.data, g.dtype, 1, together.size() + g.size());
    } else {
      sum();
      together = make_tensor(g.data, g.dtype, 1, g.size());
    }
  }
  sum();
}

void Optimizer::update(Stream& s, double lr, int64_t count) {
  for (size_t i = 0; i < states_.size(); ++i) {
    const State& state = states_[i];
    if (!state.m) continue;
    const bool codes = params_->weight(i).dtype == DType::e4m3;
    on(s).adamw({.master = master(i),
                 .grad = params_->gradient(i),
                 .m = state.m,
                 .v = state.v,
                 .weight = state.master && !codes ? params_->weight(i) : Tensor{},
                 .grad_norm_squared = grad_norm_squared_,
                 .lr = lr,
                 .beta1 = options_.beta1,
                 .beta2 = options_.beta2,
                 .eps = options_.eps,
                 .weight_decay = params_->table()[i].decayed() ? options_.weight_decay : 0.0,
                 .max_norm = options_.max_norm,
                 .step = count});
    if (codes) quantise_weight(s, *params_, i, state.master);
  }
}

}  // namespace cachalot
