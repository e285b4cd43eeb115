// What a model makes of text that is given: the loss of every token, and how often what a depth of
// multi-token prediction drafts is what the model itself would have chosen (V3 report, sections 2.2 and
// 5.4.3).
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/training_pass.h"

namespace cachalot {

using TokenSpan = std::span<const int32_t>;

struct TextScore {
  double nats = 0;  // sum of -log p (natural) over the targets of the main model
  int64_t targets = 0;
  struct Depth {
    double nats = 0;  // the same of the depth
    int64_t targets = 0;
    // Teacher-forced: at each place, given the true tokens before it, the depth's likeliest token and the
    // main model's, which has seen as many tokens more as the depth drafts ahead. Equal: the draft is
    // accepted.
    int64_t accepted = 0;
    double loss() const { return targets ? nats / double(targets) : 0; }
    double acceptance() const { return targets ? double(accepted) / double(targets) : 0; }
  };
  std::vector<Depth> depths;  // 1, 2, ...
  // Tokens that every expert got, of each layer with experts that ran (MTP layers last): which text uses
  // which.
  std::vector<std::vector<int64_t>> expert_load;
  TextScore& operator+=(const TextScore& other);
};

enum class Drafts : bool { no = false, yes = true };  // also run the depths of multi-token prediction

// `windows` of at least 2 tokens, the first of which is context only, `together` at a time; those too short
// for the depths count for the main model alone. nullopt when `stop` was set meanwhile.
std::optional<TextScore> score_text(Stream& s, Arena& arena, const Transformer& model,
                                    std::span<const TokenSpan> windows, int64_t together, Drafts drafts,
                                    const std::atomic<bool>& stop);

}  // namespace cachalot
