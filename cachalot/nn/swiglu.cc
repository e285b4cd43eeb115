#include "nn/swiglu.h"

#include <optional>

namespace cachalot {

SwigluMlp::Saved SwigluMlp::forward(Stream& s, Arena& arena, Tensor x, Tensor y, Keep keep) const {
  const int64_t rows = x.rows, width = down.in();
  Saved saved;
  saved.x = operand(s, arena, x, recipe);
  if (!recipe.fp8) {
    saved.hidden = arena.take(recipe.act, rows, 2 * width);
    std::optional<Arena::Scope> scratch;
    if (keep == Keep::for_recompute) scratch.emplace(arena);
    saved.activated = arena.take(recipe.act, rows, width);
    gate_up.forward(s, x, saved.hidden);
    on(s).swiglu_forward({.x = saved.hidden, .y = saved.activated});
    down.forward(s, saved.activated, y);
    if (scratch) saved.activated = {};
    return saved;
  }
  if (keep != Keep::nothing) saved.hidden = take_row_tiles(arena, rows, 2 * width);
  Arena::Scope scratch(arena);
  Tensor hidden = arena.take(recipe.act, rows, 2 * width), activated = take_row_tiles(arena, rows, width);
  gate_up.forward(s, saved.x, hidden);
  on(s).swiglu_forward({.x = hidden,
                        .y = {},
                        .quantized = activated,
                        .cached = saved.hidden,
                        .power_of_two = recipe.power_of_two});
  down.forward(s, activated, y);
  return saved;
}

void SwigluMlp::backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor dx,
                               Accumulate dx_mode) const {
  const int64_t rows = dy.rows, width = down.in();
  if (!recipe.fp8) {
    saved.dy = dy;
    saved.dhidden = arena.take_like(saved.hidden);
    if (!saved.activated) {
      saved.activated = arena.take(recipe.act, rows, width);
      on(s).swiglu_forward({.x = saved.hidden, .y = saved.activated});
    }
    Arena::Scope scratch(arena);
    Tensor d_activated = arena.take_like(saved.activated);
    down.backward_input(s, dy, d_activated);
    on(s).swiglu_backward({.dy = d_activated, .x = saved.hidden, .dx = saved.dhidden});
    gate_up.backward_input(s, saved.dhidden, dx, dx_mode);
    return;
  }
  saved.dy = take_columns(arena, rows, dy.cols);
  saved.activated = take_columns(arena, rows, width);
  saved.dhidden = take_columns(arena, rows, 2 * width);
  Arena::Scope scratch(arena);
  Tensor d_activated = arena.take(recipe.act, rows, width);
  {
    Arena::Scope of_dy(arena);
    Tensor dy_codes = take_row_tiles(arena, rows, dy.cols);
    on(s).quantize({.x = dy, .y = dy_codes, .transposed = saved.dy, .power_of_two = recipe.power_of_two});
    down.backward_input(s, dy_codes, d_activated);
  }
  Tensor activated = arena.take_like(d_activated);
  Tensor dhidden = arena.take(recipe.act, rows, 2 * width),
         dhidden_codes = take_row_tiles(arena, rows, 2 * width);
  on(s).swiglu_backward({.dy = d_activated,
                         .x = saved.hidden,
                         .dx = dhidden,
                         .y = activated,
                         .quantized = dhidden_codes,
                         .power_of_two = recipe.power_of_two,
                         .transposed = saved.dhidden,
                         .y_transposed = saved.activated});
  gate_up.backward_input(s, dhidden_codes, dx, dx_mode);
}

void SwigluMlp::backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const {
  down.backward_weight(s, saved.dy, saved.activated, mode);
  Arena::Scope scratch(arena);
  Tensor x = recipe.fp8 ? columns(s, arena, saved.x, /*power_of_two=*/true) : saved.x;
  gate_up.backward_weight(s, saved.dhidden, x, mode);
}

}  // namespace cachalot
