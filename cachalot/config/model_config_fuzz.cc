// Any bytes are a valid configuration or an Error; a valid one survives being written and read, and its
// parameter table can be built.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "config/model.h"
#include "config/params.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  try {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    const ModelConfig config = parse_model_config(json, "fuzz");
    CHECK(parse_model_config(model_config_json(config, "bfloat16"), "again") == config);
    CHECK(std::isfinite(config.softmax_scale()));
    if (config.layers_with_mtp() * (8 + 3 * config.n_routed_experts) > 20'000) return 0;  // slow, not wrong
    const std::vector<Param> table = parameter_table(config);
    CHECK(parameter_count(table) > 0);
    CHECK(active_parameter_count(config) > 0 && active_parameter_count(config) <= parameter_count(table));
  } catch (const Error&) {
  }
  return 0;
}
