#include "nn/swiglu.h"

namespace cachalot {

SwigluMlp::Saved SwigluMlp::forward(Stream& s, Arena& arena, Tensor x, Tensor y) const {
  Saved saved{.x = x,
              .hidden = arena.take(recipe.act, x.rows, gate_up.out()),
              .activated = arena.take(recipe.act, x.rows, down.in()),
              .dy = {},
              .dhidden = {}};
  gate_up.forward(s, x, saved.hidden);
  on(s).swiglu_forward({.x = saved.hidden, .y = saved.activated});
  down.forward(s, saved.activated, y);
  return saved;
}

void SwigluMlp::backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor dx,
                               Accumulate dx_mode) const {
  saved.dy = dy;
  saved.dhidden = arena.take_like(saved.hidden);
  Arena::Scope scratch(arena);
  Tensor d_activated = arena.take_like(saved.activated);
  down.backward_input(s, dy, d_activated);
  on(s).swiglu_backward({.dy = d_activated, .x = saved.hidden, .dx = saved.dhidden});
  gate_up.backward_input(s, saved.dhidden, dx, dx_mode);
}

void SwigluMlp::backward_weight(Stream& s, const Saved& saved, Accumulate mode) const {
  down.backward_weight(s, saved.dy, saved.activated, mode);
  gate_up.backward_weight(s, saved.dhidden, saved.x, mode);
}

}  // namespace cachalot
