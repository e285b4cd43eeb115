#include "model/block.h"

namespace cachalot {

void Block::decode(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor x) const {
  attention.decode(s, arena, batch, cache, input_norm, x);
  Arena::Scope scratch(arena);
  Tensor normed = arena.take_like(x);
  if (experts) {
    const Gate::Routing routing = gate->decode(s, arena, post_norm, x, normed);
    experts->decode(s, arena, normed, routing.indices, routing.weights, mlp ? &*mlp : nullptr, x);
    return;
  }
  Tensor hidden = arena.take(x.dtype, x.rows, mlp->gate_up.out()),
         activated = arena.take(x.dtype, x.rows, mlp->down.in());
  post_norm.multiply(s, arena, x, normed, mlp->gate_up.w, hidden);
  on(s).swiglu_forward({.x = hidden, .y = activated});
  on(s).gemm({.a = activated,
              .b = mlp->down.w,
              .c = x,
              .trans_b = true,
              .accumulate = Accumulate::add,
              .read_ahead = true});
}

}  // namespace cachalot
