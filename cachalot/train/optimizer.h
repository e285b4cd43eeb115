// AdamW over a model's parameters with V3's formats (ops/adamw.h; V3 report section 3.3.3): FP32 masters,
// BF16 moments, one global gradient norm. Nothing here waits for the device.
#pragma once

#include <functional>
#include <vector>

#include "backend/buffer.h"
#include "model/params.h"

namespace cachalot {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  // of matrices: norm gains and router biases have none (Param::decayed)
  double max_norm = 1.0;      // 0: no clipping
};

class Optimizer {
 public:
  // `params`, with gradients, must outlive it. init() queues zeros into the moments; masters get their numbers
  // from initialize() (model/params.h), a checkpoint or init-from.
  Optimizer(Device& device, const ParamSet& params, const AdamWOptions& options);
  void init(Stream& s);

  // Queues: the squared norm of all gradients, parameter after parameter, in double.
  void sum_gradients(Stream& s);
  // Queues: the update of every parameter; E4M3 weights and their transposes are quantised from their
  // masters, once a step. A norm that is not finite changes nothing. `count` counts the updates that took
  // place: 1 for the first.
  void update(Stream& s, double lr, int64_t count);
  // Both.
  void step(Stream& s, double lr, int64_t count) {
    sum_gradients(s);
    update(s, lr, count);
  }

  // The squared norm of the last sum_gradients(), f64 [1, 1] on the device.
  Tensor grad_norm_squared() const { return grad_norm_squared_; }
  // The best copy of a parameter: the FP32 master, which is the weight itself where the weight is FP32.
  Tensor master(size_t i) const { return states_[i].master ? states_[i].master : params_->weight(i); }
  // The moments of a parameter; absent: not trained.
  Tensor first_moment(size_t i) const { return states_[i].m; }
  Tensor second_moment(size_t i) const { return states_[i].v; }
  // Queues: weights from their masters, after those have been given other numbers (a checkpoint's).
  void adopt_masters(Stream& s);
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  struct State {
    Tensor master, m, v;  // master absent: the weight is its own; all absent: not trained (router bias)
  };
  const ParamSet* params_;
  AdamWOptions options_;
  Buffer buffer_;
  std::vector<State> states_;
  Tensor grad_norm_squared_;
};

}  // namespace cachalot
