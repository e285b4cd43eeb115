#include "nn/experts.h"

namespace cachalot {

Experts::Saved Experts::forward(Stream& s, Arena& arena, Tensor rows, Tensor offsets, Tensor y) const {
  const int64_t width = down.cols;  // I
  Saved saved{.rows = rows,
              .offsets = offsets,
              .hidden = arena.take(recipe.act, rows.rows, 2 * width),
              .activated = arena.take(recipe.act, rows.rows, width),
              .dy = {},
              .dhidden = {}};
  on(s).grouped_gemm({.x = rows, .w = gate_up, .y = saved.hidden, .offsets = offsets, .experts = experts});
  on(s).swiglu_forward({.x = saved.hidden, .y = saved.activated});
  on(s).grouped_gemm({.x = saved.activated, .w = down, .y = y, .offsets = offsets, .experts = experts});
  return saved;
}

void Experts::backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor drows) const {
  saved.dy = dy;
  saved.dhidden = arena.take_like(saved.hidden);
  Arena::Scope scratch(arena);
  Tensor d_activated = arena.take_like(saved.activated);
  on(s).grouped_gemm({.x = dy,
                      .w = down,
                      .y = d_activated,
                      .offsets = saved.offsets,
                      .experts = experts,
                      .input_grad = true});
  on(s).swiglu_backward({.dy = d_activated, .x = saved.hidden, .dx = saved.dhidden});
  on(s).grouped_gemm({.x = saved.dhidden,
                      .w = gate_up,
                      .y = drows,
                      .offsets = saved.offsets,
                      .experts = experts,
                      .input_grad = true});
}

void Experts::backward_weight(Stream& s, const Saved& saved, Accumulate mode) const {
  on(s).grouped_weight_grad({.dy = saved.dy,
                             .x = saved.activated,
                             .dw = d_down,
                             .offsets = saved.offsets,
                             .experts = experts,
                             .accumulate = mode});
  on(s).grouped_weight_grad({.dy = saved.dhidden,
                             .x = saved.rows,
                             .dw = d_gate_up,
                             .offsets = saved.offsets,
                             .experts = experts,
                             .accumulate = mode});
}

}  // namespace cachalot
