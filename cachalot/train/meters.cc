#include "train/meters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "backend/ceilings.h"
#include "backend/cpu_kernel_set.h"
#include "backend/cuda/cuda.h"
#include "config/params.h"

namespace cachalot {

double training_flops_per_token(const ModelConfig& model, int64_t seq_len) {
  double active = 0;
  for (const Param& p : parameter_table(model)) {
    if (!p.trained() || p.kind == ParamKind::embedding) continue;
    const bool routed = p.name.find(".mlp.experts.") != std::string::npos;
    double n = double(p.size());
    if (routed) n *= double(model.num_experts_per_tok) / double(model.n_routed_experts);
    if (p.kind == ParamKind::head) n *= double(1 + model.num_nextn_predict_layers);  // each depth has logits
    active += n;
  }
  const double pair = double(model.num_attention_heads *
                             (model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim));
  return 6 * active + 6 * double(model.layers_with_mtp()) * pair * double(seq_len) / 2;
}

ProductCeiling product_ceiling(Device& device, const std::string& device_name) {
  if (device_name.starts_with("cuda")) {
    const CudaStatus cuda = probe_cuda();
    const size_t index = device_name.size() > 5 ? size_t(std::atol(device_name.c_str() + 5)) : 0;
    if (index < cuda.devices.size()) {
      const CudaDeviceInfo& card = cuda.devices[index];
      // NVIDIA's data sheets, dense, a multiprocessor: H100 and H200 SXM 989.4 TFLOP/s of 132, A100 312 of
      // 108.
      const double each = card.major == 9                      ? 989.4e12 / 132
                          : card.major == 8 && card.minor == 0 ? 312e12 / 108
                                                               : 0;
      if (each > 0) {
        const double flops = each * double(card.multiprocessors);
        return {flops, fmt::format("{:.0f} TFLOP/s nominal", 1e-12 * flops)};
      }
    }
  }
  if (!device_name.starts_with("cuda") && cpu_kernel_set(device).empty())
    return {0, "a device without a known ceiling"};
  constexpr int64_t kBytes = int64_t(8) << 20;  // of the memory tests that come with it
  const double flops = measure_ceilings(device, kBytes, 0.05).bf16_flops;
  return {flops, flops >= 1e12 ? fmt::format("{:.1f} TFLOP/s measured", 1e-12 * flops)
                               : fmt::format("{:.0f} GFLOP/s measured", 1e-9 * flops)};
}

Meters::Meters(const ModelConfig& model, const TrainSection& train, Device& device,
               const std::string& device_name, EnergyMeter energy)
    : flops_per_token_(training_flops_per_token(model, train.seq_len)),
      price_per_hour_(train.price_per_hour),
      price_per_kwh_(train.price_per_kwh),
      ceiling_(product_ceiling(device, device_name)),
      energy_(std::move(energy)) {}

void Meters::add_to(Json& line, int64_t tokens, double step_seconds, double seconds) {
  tokens_here_ += tokens;
  if (ceiling_.flops > 0 && step_seconds > 0)
    line["mfu"] = double(tokens) * flops_per_token_ / step_seconds / ceiling_.flops;
  const double here = energy_.joules(), joules = joules_before_ + here;
  if (energy_.measures()) {
    line["energy_joules"] = joules;
    if (here > 0) line["tokens_per_joule"] = double(tokens_here_) / here;
  }
  if (price_per_hour_ > 0 || (price_per_kwh_ > 0 && energy_.measures()))
    line["cost"] = price_per_hour_ * seconds / 3600 + price_per_kwh_ * joules / 3.6e6;
}

std::string Meters::peak() const {
  if (ceiling_.flops <= 0) return "";
  return ceiling_.flops >= 1e13 ? fmt::format("{:.0f}T", 1e-12 * ceiling_.flops)
                                : fmt::format("{:.0f}G", 1e-9 * ceiling_.flops);
}

std::string Meters::describe() const {
  const std::string energy = energy_.measures() ? "energy of " + energy_.describe() : energy_.describe();
  return fmt::format("MFU of {}; {}", ceiling_.source, energy);
}

}  // namespace cachalot
