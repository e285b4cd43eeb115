// One transformer block, cut where V3's DualPipe cuts it: attention, dispatch, MLP, combine (report section
// 3.2.1).
//
//   forward_attention   x1 = x + MLA(norm(x));  n = norm(x1);  routing = gate(n)
//   forward_dispatch    rows of n go to the experts that chose them
//   forward_mlp         shared(n) and experts(rows), or the dense MLP(n)
//   forward_combine     y = x1 + shared + sum of the weighted expert rows
// and backwards the same phases in reverse; the backward of attention and MLP is split into the gradient for
// the input ("B") and for the weights ("W"). An executor may put each call on a stream of its choice and
// interleave the phases of two micro-batches; the phases of one micro-batch follow each other (events when
// streams differ). The gate belongs to the attention phase, the shared expert to the MLP phase. Published
// order of one forward beside one backward (profile-data, train.json): combine(B) attn(F) mlp(B) dispatch(F)
// dispatch(B) mlp(W) mlp(F) attn(B) attn(W) combine(F).
//
// Under Keep::for_recompute the outputs of the norms, MLA's up-projections and the output of SwiGLU are not kept:
// the backwards of MLP and attention begin by computing them again, to the same bits. The norms' outputs are at
// work in one block at a time, so the blocks of a micro-batch share their memory.
//
// fp8: the norms hand codes to what follows them, and both directions dispatch codes, of n and of dy, with scales
// that are powers of two (V3 report, section 3.3.3); what comes back is combined in bf16.
#pragma once

#include <optional>

#include "nn/experts.h"
#include "nn/gate.h"
#include "nn/mla.h"
#include "nn/rmsnorm.h"
#include "nn/swiglu.h"
#include "parallel/expert_dispatch.h"

namespace cachalot {

struct Block {
  RmsNorm input_norm;
  Mla attention;
  RmsNorm post_norm;
  std::optional<SwigluMlp> mlp;  // the dense MLP, or the shared experts beside routed ones
  // Routed experts, or none of the three:
  std::optional<Gate> gate;
  std::optional<ExpertDispatch> dispatch;
  std::optional<Experts> experts;
  Recipe recipe;

  // The outputs of the norms. [T, D]
  struct Normed {
    Tensor attention_in;  // fp8: codes
    Tensor normed;        // what the router reads; absent where it would be nothing but codes
    Tensor mlp_in;        // what the experts and the MLP take: `normed`, or its codes (fp8)
  };
  Normed take_normed(Arena& arena, int64_t rows) const;

  // One micro-batch in this block. All tensors live in its arena. [T, D] unless said otherwise.
  struct State {
    Keep keep = Keep::for_backward;
    Tensor x, x1;
    Tensor y;  // holds the MLP's output until the combination
    Normed normed;
    RmsNorm::Saved input_norm, post_norm;
    Mla::Saved attention;
    SwigluMlp::Saved mlp;
    Gate::Routing routing;
    ExpertDispatch::Plan plan;
    Experts::Saved experts;
    Tensor rows, expert_out;  // [R, D]; fp8: rows are codes. expert_out: until the combination
    // Backward.
    Tensor dy, d_normed, dx1, dx;
    Tensor dy_rows, d_rows;              // [R, D]; fp8: dy_rows are codes
    Tensor row_weights, d_row_weights;   // [1, R]
    Tensor d_weights;                    // [T, K]
  };

  struct Options {
    Tensor cache;               // this layer's latent cache, or absent
    Tensor replay;              // expert choices to follow, or absent
    bool with_balance = false;  // compute the sequence-wise balance loss
    Tensor y = {};              // where the output goes; absent: into the arena
    Normed normed = {};         // memory for them, also shared with other blocks; absent: from the arena
    Tensor expert_out = {};     // memory for it, the same
    Keep keep = Keep::for_backward;
  };

  State forward_attention(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x,
                          const Options& options) const;
  void forward_dispatch(Stream& s, Arena& arena, State& state) const;
  void forward_mlp(Stream& s, Arena& arena, State& state) const;
  void forward_combine(Stream& s, Arena& arena, State& state) const;  // state.y is the block's output

  void backward_combine(Stream& s, Arena& arena, State& state, Tensor dy) const;
  void backward_mlp(Stream& s, Arena& arena, State& state) const;
  void backward_dispatch(Stream& s, Arena& arena, State& state) const;
  // state.dx is the gradient for the block's input: where the caller put it, or in the arena.
  // balance_factor: see GateBackward.
  void backward_attention(Stream& s, Arena& arena, const TokenBatch& batch, State& state,
                          double balance_factor, Accumulate mode) const;
  void weight_mlp(Stream& s, Arena& arena, const State& state, Accumulate mode) const;
  void weight_attention(Stream& s, Arena& arena, const State& state, Accumulate mode) const;

  // What the norms gave to attention and to what follows it, into state.normed.
  void norm_input(Stream& s, const State& state) const;
  void norm_attended(Stream& s, const State& state) const;

  // All phases one after the other on one stream.
  State forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x, const Options& options) const;
  // A decoding step (Attend::absorb, not fp8): the residual stream x becomes the block's output. The same formulas
  // in fused operations, which round less: attention's output and the MLP's are not rounded before they are added.
  void decode(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor x) const;
  void backward(Stream& s, Arena& arena, const TokenBatch& batch, State& state, Tensor dy,
                double balance_factor, Accumulate mode) const;
};

}  // namespace cachalot
