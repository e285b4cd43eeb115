// What a step costs beside its time: the share of the device's arithmetic (MFU), energy, money.
//
//   MFU = tokens a second x FLOPs a token / the device's bf16 products a second
//   FLOPs a token = 6 (active parameters without the embedding) + 6 L H (N + P + U) T / 2
// with T keys seen by the last token of a sequence, half of them on average; MTP modules count as layers and
// heads of their own. Recomputing and what routing adds do not count: the usual definition (PaLM, appendix
// B).
#pragma once

#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "backend/energy.h"
#include "base/json.h"
#include "config/model.h"
#include "train/config.h"

namespace cachalot {

double training_flops_per_token(const ModelConfig& model, int64_t seq_len);

// The denominator of MFU: the nominal figure of cards that publish one (dense bf16), measured otherwise.
struct ProductCeiling {
  double flops = 0;    // a second
  std::string source;  // "989 TFLOP/s nominal"
};
ProductCeiling product_ceiling(Device& device, const std::string& device_name);

class Meters {
 public:
  // `device_name` as open_device() takes it.
  Meters(const ModelConfig& model, const TrainSection& train, Device& device, const std::string& device_name)
      : Meters(model, train, device, device_name, EnergyMeter(device_name)) {}
  Meters(const ModelConfig& model, const TrainSection& train, Device& device, const std::string& device_name,
         EnergyMeter energy);

  void go_on_from(double joules) { joules_before_ = joules; }  // that the run had used before this process
  // mfu; with counters energy_joules (of the run so far) and tokens_per_joule (of this process); with a price
  // cost. `seconds`: the run's age.
  void add_to(Json& line, int64_t tokens, double step_seconds, double seconds);
  double flops_per_token() const { return flops_per_token_; }
  std::string peak() const;  // of which MFU is a share, in short: "989T"; "" when it is not known
  // "MFU of 989 TFLOP/s nominal; energy of the processor and the GPU"
  std::string describe() const;

 private:
  double flops_per_token_ = 0, price_per_hour_ = 0, price_per_kwh_ = 0;
  ProductCeiling ceiling_;
  EnergyMeter energy_;
  double joules_before_ = 0;
  int64_t tokens_here_ = 0;
};

}  // namespace cachalot
