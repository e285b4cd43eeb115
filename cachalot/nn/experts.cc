#include "nn/experts.h"

namespace cachalot {

void Experts::multiply(Stream& s, Tensor x, Tensor w, Tensor y, Tensor offsets) const {
  on(s).grouped_gemm({.x = x, .w = w, .y = y, .offsets = offsets, .experts = experts});
}

void Experts::multiply_back(Stream& s, Tensor dy, Tensor w, Tensor w_transposed, Tensor dx,
                            Tensor offsets) const {
  if (dy.dtype == DType::e4m3) return multiply(s, dy, w_transposed, dx, offsets);
  on(s).grouped_gemm({.x = dy, .w = w, .y = dx, .offsets = offsets, .experts = experts, .input_grad = true});
}

Experts::Saved Experts::forward(Stream& s, Arena& arena, Tensor rows, Tensor offsets, Tensor y,
                                Keep keep) const {
  const int64_t width = down.cols;  // I
  Saved saved;
  saved.rows = operand(s, arena, rows, recipe);
  saved.offsets = offsets;
  if (!recipe.fp8) {
    saved.hidden = arena.take(recipe.act, rows.rows, 2 * width);
    saved.activated = arena.take(recipe.act, rows.rows, width);
    multiply(s, rows, gate_up, saved.hidden, offsets);
    on(s).swiglu_forward({.x = saved.hidden, .y = saved.activated});
    multiply(s, saved.activated, down, y, offsets);
    return saved;
  }
  if (keep == Keep::for_backward) {
    saved.hidden = take_row_tiles(arena, rows.rows, 2 * width);
    saved.padded = arena.take_like(offsets);
    on(s).pad_offsets({.offsets = offsets, .padded = saved.padded});
  }
  Arena::Scope scratch(arena);
  Tensor hidden = arena.take(recipe.act, rows.rows, 2 * width),
         activated = take_row_tiles(arena, rows.rows, width);
  multiply(s, saved.rows, gate_up, hidden, offsets);
  on(s).swiglu_forward({.x = hidden,
                        .y = {},
                        .quantized = activated,
                        .cached = saved.hidden,
                        .power_of_two = recipe.power_of_two});
  multiply(s, activated, down, y, offsets);
  return saved;
}

void Experts::backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor drows) const {
  const int64_t rows = dy.rows, width = down.cols;
  const Tensor offsets = saved.offsets;
  if (!recipe.fp8) {
    saved.dy = dy;
    saved.dhidden = arena.take_like(saved.hidden);
    Arena::Scope scratch(arena);
    Tensor d_activated = arena.take_like(saved.activated);
    multiply_back(s, dy, down, {}, d_activated, offsets);
    on(s).swiglu_backward({.dy = d_activated, .x = saved.hidden, .dx = saved.dhidden});
    multiply_back(s, saved.dhidden, gate_up, {}, drows, offsets);
    return;
  }
  const Groups groups{.offsets = offsets, .padded = saved.padded, .experts = experts};
  const auto quantise = [&](Tensor x, Tensor y, Tensor transposed) {
    on(s).quantize({.x = x,
                    .y = y,
                    .transposed = transposed,
                    .offsets = offsets,
                    .padded = saved.padded,
                    .power_of_two = recipe.power_of_two});
  };
  saved.dy = take_columns(arena, rows, dy.cols, groups);
  saved.activated = take_columns(arena, rows, width, groups);
  saved.dhidden = take_columns(arena, rows, 2 * width, groups);
  Arena::Scope scratch(arena);
  Tensor d_activated = arena.take(recipe.act, rows, width);
  {
    Arena::Scope of_dy(arena);
    Tensor dy_codes = take_row_tiles(arena, rows, dy.cols);
    quantise(dy, dy_codes, saved.dy);
    multiply_back(s, dy_codes, down, down_transposed, d_activated, offsets);
  }
  Tensor activated = arena.take_like(d_activated);
  Tensor dhidden = arena.take(recipe.act, rows, 2 * width),
         dhidden_codes = take_row_tiles(arena, rows, 2 * width);
  on(s).swiglu_backward({.dy = d_activated,
                         .x = saved.hidden,
                         .dx = dhidden,
                         .y = activated,
                         .quantized = dhidden_codes,
                         .power_of_two = recipe.power_of_two});
  quantise(activated, {}, saved.activated);
  quantise(dhidden, {}, saved.dhidden);
  multiply_back(s, dhidden_codes, gate_up, gate_up_transposed, drows, offsets);
}

void Experts::backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const {
  const auto weight_grad = [&](Tensor dy, Tensor x, Tensor dw) {
    on(s).grouped_weight_grad({.dy = dy,
                               .x = x,
                               .dw = dw,
                               .offsets = recipe.fp8 ? saved.padded : saved.offsets,
                               .experts = experts,
                               .accumulate = mode});
  };
  weight_grad(saved.dy, saved.activated, d_down);
  Arena::Scope scratch(arena);
  const Groups groups{.offsets = saved.offsets, .padded = saved.padded, .experts = experts};
  const Tensor rows = recipe.fp8 ? columns(s, arena, saved.rows, /*power_of_two=*/true, groups) : saved.rows;
  weight_grad(saved.dhidden, rows, d_gate_up);
}

}  // namespace cachalot
