// DeepSeek-V3: embedding, blocks, final norm, head, and the MTP depths behind them. One forward for training,
// scoring, prefill and decoding: only the TokenBatch differs.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/block.h"
#include "model/mtp.h"
#include "model/params.h"
#include "nn/embedding.h"
#include "nn/head.h"

namespace cachalot {

class Transformer {
 public:
  // Layers are views of `params`, which must outlive the model. `positions`: length of the rotary tables.
  Transformer(Stream& s, const ModelConfig& config, const ParamSet& params, int64_t positions);
  Transformer(const Transformer&) = delete;  // blocks point at the table and the embedding

  struct Options {
    std::span<const Tensor> caches;  // latent cache of every layer (MTP layers last), or empty
    std::span<const Tensor> replay;  // expert choices of every layer to follow; absent entries route freely
    bool with_balance = false;
    bool keep_states = true;  // false (inference): layers share their memory, State::blocks stays empty
    bool recompute = false;   // of the states, keep only what the backward computes the rest from (Keep)
    Tensor hidden = {};       // where State::hidden shall be; absent: in the arena
  };

  struct State {  // one micro-batch
    Tensor embedded;
    std::vector<Block::State> blocks;
    RmsNorm::Saved norm;
    Tensor hidden;  // h^0 [T, D]: after the final norm
    Tensor dembedded;
  };
  State forward(Stream& s, Arena& arena, const TokenBatch& batch, const Options& options) const;
  // `dhidden` [T, D]: gradient for h^0. Writes or adds the gradients of all parameters but the head's. Of
  // what the blocks' backwards leave in `state`, only the memory of dembedded is not used again.
  void backward(Stream& s, Arena& arena, const TokenBatch& batch, State& state, Tensor dhidden,
                double balance_factor, Accumulate mode, Accumulate embedding_mode) const;

  // Depth k = 1, 2, ...; `previous`: h^(k-1) of the same rows.
  Mtp::State forward_mtp(Stream& s, Arena& arena, const TokenBatch& batch, int64_t depth, Tensor previous,
                         const Options& options) const;

  const ModelConfig& config() const { return config_; }
  Recipe recipe() const { return recipe_; }
  const Head& head() const { return head_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  const std::vector<Mtp>& mtp() const { return mtp_; }
  int64_t positions() const { return table_.positions(); }

 private:
  Block make_block(const ParamSet& params, int64_t layer) const;
  Block::Options block_options(int64_t layer, const Options& options) const;

  ModelConfig config_;
  Recipe recipe_;
  RopeTable table_;
  Embedding embedding_;
  std::vector<Block> blocks_;
  RmsNorm norm_;
  Head head_;
  std::vector<Mtp> mtp_;
};

}  // namespace cachalot
