#include "cli/prompt.h"

namespace cachalot::cli {

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const ModelConfig& config,
                                   const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  const int32_t begin = int32_t(config.bos_token_id);
  if (ids.empty() || (tokenizer.add_bos() && ids[0] != begin)) ids.insert(ids.begin(), begin);
  return ids;
}

}  // namespace cachalot::cli
