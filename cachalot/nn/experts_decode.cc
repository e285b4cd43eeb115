#include "nn/experts.h"

namespace cachalot {

void Experts::decode(Stream& s, Arena& arena, Tensor x, Tensor indices, Tensor weights,
                     const SwigluMlp* shared, Tensor residual) const {
  CHECK(!recipe.fp8);
  const int64_t t = x.rows, d = x.cols, rows = indices.size(), width = down.cols;
  Arena::Scope scratch(arena);
  ExpertMlp op{.x = x,
               .residual = residual,
               .indices = indices,
               .weights = weights,
               .gate_up = gate_up,
               .down = down,
               .y = residual,
               .experts = experts,
               .row_of = arena.take(DType::i32, t, indices.cols),
               .offsets = arena.take_vector(DType::i32, experts + 1),
               .rows = arena.take(recipe.act, rows, d),
               .hidden = arena.take(recipe.act, rows, 2 * width),
               .activated = arena.take(recipe.act, rows, width),
               .outputs = arena.take(recipe.act, rows, d)};
  if (shared) {
    const int64_t shared_width = shared->down.in();
    op.shared_gate_up = shared->gate_up.w;
    op.shared_down = shared->down.w;
    op.shared_hidden = arena.take(recipe.act, t, 2 * shared_width);
    op.shared_activated = arena.take(recipe.act, t, shared_width);
    op.shared_output = arena.take(recipe.act, t, d);
  }
  on(s).expert_mlp(op);
}

}  // namespace cachalot
