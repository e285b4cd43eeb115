// Continued pre-training: weights of a model directory instead of random ones.
#pragma once

#include <string>

#include "data/tokenizer.h"
#include "train/trainer.h"

namespace cachalot {

// What `model` may have otherwise than the model in `directory`: nothing that decides shapes. Error naming
// the fields and both values. Reads config.json alone.
void require_same_shapes(const ModelConfig& model, const std::string& directory);

// Whether `directory`, a model or run directory, has a tokenizer; Error when `tokenizer` has other tokens than
// it under some id: the weights would read another text than the one that is there.
bool has_tokenizer(const std::string& directory);
void require_same_tokens(const Tokenizer& tokenizer, const std::string& directory);

// After trainer.init(): masters, weights and router biases are the directory's, moments stay zero.
// `directory`: a model or run directory of the same shapes; what else its configuration says (rotary
// scaling, longest context) does not matter. Waits for the device.
void initialize_from(Stream& s, Trainer& trainer, const std::string& directory);

}  // namespace cachalot
