// How well a finished model foretells given text: bits per byte, the loss of a token, and what of multi-token
// prediction's drafts it accepts, set by set. What validation shows during training, for any model directory.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>

#include "config/precision.h"
#include "train/config.h"
#include "train/held_out.h"

namespace cachalot {

struct ModelScoreOptions {
  NamedPaths texts;      // by set: text files, or folders of token shards
  int64_t window = 0;    // tokens that are scored together and see each other; 0: the context, at most 2048
  int64_t together = 4;  // windows in one pass
  bool drafts = true;    // also run the MTP depths of the model
  Precision precision = Precision::f32;
  std::function<void(int64_t read, int64_t all)> loading = {};   // parameters
  std::function<void(int64_t done, int64_t all)> progress = {};  // windows
};

struct ModelScore {
  HeldOut::Result result;  // its sums: of all sets
  int64_t window = 0;
};

// `model`: a model directory or a run. A text begins with the model's bos_token_id, as in `cachalot generate`;
// texts of one set follow one another behind end-of-text tokens, as in training; every token is scored once,
// its context what its window holds before it. nullopt when `stop` was set. Error: no tokenizer beside the
// model, texts that hold nothing, shards of another tokenizer, a window beyond the model's context.
std::optional<ModelScore> score_model(Device& device, const std::string& model,
                                      const ModelScoreOptions& options, ThreadPool* pool,
                                      const std::atomic<bool>& stop);

// A line for every set and one for all.
std::string model_score_table(const HeldOut::Result& r);

}  // namespace cachalot
