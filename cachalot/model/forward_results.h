// What `cachalot forward` writes: everything one forward (and backward) computes, under the names of the
// golden files (docs/formats.md), so that any implementation can be compared with ours.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/precision.h"
#include "model/training_pass.h"

namespace cachalot {

struct ForwardRequest {
  std::vector<int32_t> tokens;    // [B, T + 1]
  int64_t batch = 0, length = 0;  // B, T
  bool gradients = false;
  double mtp_lambda = 0.3, balance_alpha = 0;
  // Expert choices to follow, by layer: [rows, K] ascending. Layers that are absent route freely.
  std::map<int64_t, std::vector<int32_t>> routing;
};

struct NamedTensor {
  std::string name;
  DType dtype = DType::f32;  // f32 or i32
  std::vector<int64_t> shape;
  std::vector<float> values;
  std::vector<int32_t> indices;
};

struct ForwardResults {
  // logits [B, T, V]; hidden.N [B, T, D], N = 0 (embedding) ... L (after the final norm); router.N.indices
  // i32 and router.N.weights [rows, K]; mtp.K.logits [B, T-K, V], mtp.K.hidden [B, T-K, D] (before
  // shared_head.norm); grad.<Hugging Face name> of every parameter.
  std::vector<NamedTensor> tensors;
  double loss_main = 0, loss_total = 0, loss_balance = 0;
  std::vector<double> loss_mtp;

  const NamedTensor& at(const std::string& name) const;  // CHECKs
};

// Reads the model from a directory and runs it. Errors: tokens out of range, sequences too long or too short.
ForwardResults run_forward(Device& device, const std::string& model_directory, Precision precision,
                           bool drop_mtp, const ForwardRequest& request);

// tokens int32 [B, T+1] of a safetensors file; expert choices from the router.N.indices of another one.
void read_tokens(const std::string& path, ForwardRequest& request);
void read_routing(const std::string& path, ForwardRequest& request);
void write_results(const std::string& path, const ForwardResults& results);

}  // namespace cachalot
