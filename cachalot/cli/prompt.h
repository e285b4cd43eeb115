// A person's text as the tokens that a model continues.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/model.h"
#include "data/tokenizer.h"

namespace cachalot::cli {

// What begins a text is the model's bos_token_id: where tokenizer_config.json asks for it (add_bos_token), and
// before an empty prompt, which begins a text of its own. Not the tokenizer's bos_token: a model trained here
// has met documents behind the end of the one before (bos_token_id is the end-of-text token), and never the
// begin-of-text token that its tokenizer lists after DeepSeek-V3's example.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const ModelConfig& config,
                                   const std::string& text);

}  // namespace cachalot::cli
