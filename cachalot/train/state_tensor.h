// What a run has learned, as a list: checkpoints are written from it and read into it. Whoever keeps
// something between steps that a resumed run must have bit for bit adds it to the list (Trainer::state()).
#pragma once

#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace cachalot {

struct StateTensor {
  // "master.", "moment1.", "moment2.", "average." or "router_bias." and the parameter's name
  std::string name;
  Tensor tensor;         // contiguous; f64, f32 or bf16
  bool on_host = false;  // in memory of the host, else of the trainer's device
};

constexpr const char* kMasterPrefix = "master.";
constexpr const char* kRouterBiasPrefix = "router_bias.";

inline int64_t bytes_of(const Tensor& t) { return t.size() * size_of(t.dtype); }
inline int64_t bytes_of(const std::vector<StateTensor>& state) {
  int64_t bytes = 0;
  for (const StateTensor& t : state) bytes += bytes_of(t.tensor);
  return bytes;
}

}  // namespace cachalot
