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
    Arena::Scope scratch(arena);
    Tensor activated = arena.take(recipe.act, rows.rows, width);
    multiply(s, rows, gate_up, saved.hidden, offsets);
    on(s).swiglu_forward({.x = saved.hidden, .y = activated});
    multiply(s, activated, down, y, offsets);
    return saved;
  }
  if (keep != Keep::nothing) {
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

void Experts::backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor weights, Tensor drows,
                             Tensor dweights) const {
  const int64_t rows = dy.rows, width = down.cols;
  const Tensor offsets = saved.offsets;
  saved.dy = dy;
  if (!recipe.fp8) {
    saved.dhidden = arena.take_like(saved.hidden);
    saved.weighted = arena.take(recipe.act, rows, width);
    Arena::Scope scratch(arena);
    Tensor d_activated = arena.take_like(saved.weighted);
    multiply_back(s, dy, down, {}, d_activated, offsets);
    on(s).swiglu_backward({.dy = d_activated,
                           .x = saved.hidden,
                           .dx = saved.dhidden,
                           .y = saved.weighted,
                           .weights = weights,
                           .dweights = dweights});
    multiply_back(s, saved.dhidden, gate_up, {}, drows, offsets);
    return;
  }
  const Groups groups{.offsets = offsets, .padded = saved.padded, .experts = experts};
  saved.weighted = take_columns(arena, rows, width, groups);
  saved.dhidden = take_columns(arena, rows, 2 * width, groups);
  Arena::Scope scratch(arena);
  Tensor d_activated = arena.take(recipe.act, rows, width), weighted = arena.take_like(d_activated);
  multiply_back(s, dy, down, down_transposed, d_activated, offsets);
  Tensor dhidden = arena.take(recipe.act, rows, 2 * width),
         dhidden_codes = take_row_tiles(arena, rows, 2 * width);
  on(s).swiglu_backward({.dy = d_activated,
                         .x = saved.hidden,
                         .dx = dhidden,
                         .y = weighted,
                         .quantized = dhidden_codes,
                         .power_of_two = recipe.power_of_two,
                         .weights = weights,
                         .dweights = dweights,
                         .transposed = saved.dhidden,
                         .y_transposed = saved.weighted,
                         .offsets = offsets,
                         .padded = saved.padded});
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
  const Groups groups{.offsets = saved.offsets, .padded = saved.padded, .experts = experts};
  const auto operand = [&](Tensor rows) {  // what the dispatch moved
    return recipe.fp8 ? columns(s, arena, rows, /*power_of_two=*/true, groups) : rows;
  };
  {
    Arena::Scope scratch(arena);
    weight_grad(operand(saved.dy), saved.weighted, d_down);
  }
  Arena::Scope scratch(arena);
  weight_grad(saved.dhidden, operand(saved.rows), d_gate_up);
}

}  // namespace cachalot
