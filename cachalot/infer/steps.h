// The device's part of inference: one piece of a prompt, one decoding step. Which sequences, when and what
// their tokens mean is the engine's (infer/engine.h).
//
// Multi-token prediction as a drafter (V3 report section 2.2). Depth k at position i takes h^(k-1)_i and
// token t_(i+k) and predicts t_(i+k+1). With n tokens known, the trunk has run positions 0 ... n-2, so every
// depth can run up to position n-2 and depth k draws the draft of t_(n-1+k):
//
//   depth 1 at n-2 takes t_(n-1), known                  -> d_1, a draft of t_n
//   depth 2 at n-2 takes h^1_(n-2) and d_1               -> d_2, a draft of t_(n+1)
//   the trunk runs t_(n-1) d_1 d_2 at n-1, n, n+1        -> what plain decoding would draw there
//
// The last k - 1 positions of depth k stand on drafts, so what its cache holds there is provisional: from
// true tokens come positions 0 ... n-1-k only, and the next step runs depth k again from position n-k, over
// the old values. For that it needs h^(k-1) of the last few positions: `windows` keeps them, position i of a
// sequence in row i mod W.
//
// A draft counts if the trunk draws the same token there. Draws are a function of (logits, seed, position)
// alone (ops/sample.h), so speculation gives the tokens of plain decoding at any temperature; only the number
// of steps changes. Rejected tokens stay in the cache as garbage behind the sequence's length until they are
// overwritten.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "infer/cache_batch.h"
#include "model/transformer.h"

namespace cachalot {

struct EngineOptions {
  int64_t max_context = 0;      // tokens of a sequence, its prompt included
  int64_t max_sequences = 1;    // running at the same time
  int64_t prefill_chunk = 256;  // tokens of a prompt run together
  int64_t speculate = 0;        // MTP depths used for drafting; 0: plain decoding
  int64_t page_size = 64;
  CacheFormat cache = CacheFormat::act;
  // A request's bits do not depend on what runs beside it: decoding's products take rows one like the other,
  // and contexts are cut at fixed places (docs/numerics.md). Costs speed where the device has to do something
  // for it.
  bool batch_invariant = false;
};

struct Sampling {          // ops/sample.h
  double temperature = 0;  // 0: the likeliest token
  double top_p = 1;
  int64_t top_k = 0;  // 0: all
  uint64_t seed = 0;
};

// A sequence that is being generated, as the device's part sees it.
struct Sequence {
  std::vector<int32_t> tokens;  // t_0 ... t_(n-1): the prompt, then what was drawn
  Sampling sampling;
  PageTable pages;     // room for tokens and drafts
  int64_t window = 0;  // 0 ... max_sequences - 1: which windows are its own
  int64_t drafts = 0;  // to try in the next decoding step
  // Positions 0 ... cached[k]-1 are in the cache of depth k (0: the trunk), from true tokens.
  std::vector<int64_t> cached;

  int64_t known() const { return int64_t(tokens.size()); }  // n
};

struct Drawn {
  std::vector<int32_t> drafts;  // d_1 ... d_s
  std::vector<int32_t> tokens;  // s + 1: what plain decoding draws for t_n, for t_(n+1) if t_n is d_1, ...
};

class Steps {
 public:
  // `params` must outlive it. `positions`: length of the rotary tables.
  Steps(Device& device, const ModelConfig& config, const ParamSet& params, const EngineOptions& options,
        int64_t positions, int64_t arena_bytes);

  static KvShape cache_shape(const ModelConfig& config, Recipe recipe, const EngineOptions& options);

  static constexpr int64_t kNoToken = -1;
  // Runs the next `count` tokens of a prompt through the trunk and, with speculation, the MTP depths. With
  // the last piece it draws the first new token and waits for it; before that it returns kNoToken at once.
  int64_t prefill(Sequence& sequence, int64_t count);

  // One decoding step of all `sequences`: drafts, verification, draws; the host waits once, at the end. Whose
  // tokens to keep is the caller's: it appends them and sets cached[0] to the new n - 1.
  std::vector<Drawn> decode(std::span<Sequence* const> sequences) {
    start(sequences);
    return finish();
  }
  // The same in two halves. Where looks_ahead(), the next step of the same sequences may be started before the one
  // under way is finished: it takes its tokens on the device, so that this need not wait for the host.
  // finish() is of the older one.
  void start(std::span<Sequence* const> sequences);
  std::vector<Drawn> finish();
  bool looks_ahead() const { return beside_.has_value(); }
  int64_t under_way() const { return int64_t(under_way_.size()); }  // steps that were started: 0, 1 or 2

  Stream& stream() { return stream_; }
  KvCache& cache() { return cache_; }
  const Arena& arena() const { return arena_; }
  int64_t window_bytes() const { return window_buffer_.bytes(); }

 private:
  // What a decoding step queues follows from a few numbers (decode_key). Where the device can record a graph,
  // the second step with the same numbers is recorded and from then on replayed: the arena hands out the same
  // addresses each time, and what changes from step to step travels in one upload before it.
  struct Recorded {
    bool met = false;
    GraphPtr graph;
  };
  using DecodeKey = std::vector<int64_t>;
  static constexpr size_t kMostGraphs = 64;
  // `known`: what `work` calls has run before, if in a step of another key.
  void run_recorded(DecodeKey key, bool known, const std::function<void()>& work);

  struct UnderWay {
    std::vector<Sequence*> sequences;
    std::vector<int64_t> drafts;  // of each
    Tensor drawn;
    int64_t place;      // of `drawn` and of its upload: 0 or 1
    int64_t uploaded;   // numbers
    EventPtr drawn_at;  // when a step was started behind it
  };

  struct Depth;
  Depth plan_depth(IndexPack& pack, int64_t k, std::span<Sequence* const> sequences);
  // Runs a depth and draws its drafts into drafts[sequence], where those of the depths before are.
  void draft(const IndexPack& pack, const Depth& depth, std::span<Sequence* const> sequences,
             std::span<const Tensor> drafts);
  int64_t table_width() const;  // pages of the longest sequence there may be
  int64_t window_row(const Sequence& sequence, int64_t position) const;
  // Window rows of positions first ... end-1, -1 for all but the last W.
  std::vector<int32_t> window_rows(const Sequence& sequence, int64_t first, int64_t end) const;
  // What all layers share of a decoding step: where contexts are cut.
  TokenBatch planned(TokenBatch batch);
  Tensor trunk(const TokenBatch& batch);                                // h^0 [T, D]
  Tensor mtp(int64_t depth, const TokenBatch& batch, Tensor previous);  // h^depth [T, D]
  void sample(const Sampling& sampling, Tensor logits, Tensor positions, Tensor tokens);
  static std::vector<int32_t> wait_for(Stream& s, Tensor tokens);

  ModelConfig config_;
  Recipe recipe_;
  EngineOptions options_;
  Stream stream_;
  Transformer model_;
  KvCache cache_;
  int64_t window_ = 0;  // W
  Buffer window_buffer_;
  std::vector<Tensor> windows_;  // of h^0 ... h^(S-1): [max_sequences * W, D]
  Arena arena_;
  std::map<DecodeKey, Recorded> recorded_;
  std::vector<UnderWay> under_way_;  // the older one first
  // What travels beside a step under way: the tokens that it drew, what the next one uploads. Only where queues are
  // worth it: where graphs are.
  std::optional<Stream> beside_;
};

}  // namespace cachalot
