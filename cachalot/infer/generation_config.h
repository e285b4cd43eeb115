// A model's own wishes for how it is sampled: generation_config.json, as Hugging Face writes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/model.h"

namespace cachalot {

struct GenerationConfig {
  std::optional<double> temperature;  // 0 when the file says do_sample: false
  std::optional<double> top_p;
  std::optional<int64_t> top_k;     // 0: all tokens
  std::vector<int32_t> end_tokens;  // "eos_token_id", one or a list; absent: config.json's
};

// Reads <model_directory>/generation_config.json; without one, nothing is wished for. Error naming file,
// field and value for what is malformed; keys that are not about sampling are left alone.
GenerationConfig load_generation_config(const std::string& model_directory, const ModelConfig& config);

}  // namespace cachalot
