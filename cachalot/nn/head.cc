#include "nn/head.h"

#include <algorithm>

namespace cachalot {

void Head::losses(Stream& s, Arena& arena, Tensor x, Tensor targets, Tensor losses) const {
  Arena::Scope scratch(arena);
  Tensor logits = arena.take(recipe.stat, std::min(chunk_rows, x.rows), linear.out());
  for (int64_t first = 0; first < x.rows; first += chunk_rows) {
    const int64_t n = std::min(chunk_rows, x.rows - first);
    Tensor chunk = logits.slice_rows(0, n);
    linear.forward(s, x.slice_rows(first, n), chunk);
    on(s).cross_entropy(
        {.logits = chunk, .targets = targets.slice_cols(first, n), .loss = losses.slice_cols(first, n)});
  }
}

void Head::losses_and_gradients(Stream& s, Arena& arena, Tensor x, Tensor targets, double scale,
                                Tensor losses, Tensor dx, Accumulate mode) const {
  Arena::Scope scratch(arena);
  Tensor logits = arena.take(recipe.stat, std::min(chunk_rows, x.rows), linear.out());
  for (int64_t first = 0; first < x.rows; first += chunk_rows) {
    const int64_t n = std::min(chunk_rows, x.rows - first);
    Tensor chunk = logits.slice_rows(0, n), x_chunk = x.slice_rows(first, n);
    linear.forward(s, x_chunk, chunk);
    on(s).cross_entropy({.logits = chunk,
                         .targets = targets.slice_cols(first, n),
                         .loss = losses.slice_cols(first, n),
                         .gradient = true,
                         .scale = scale});
    linear.backward_input(s, chunk, dx.slice_rows(first, n));
    linear.backward_weight(s, chunk, x_chunk, first == 0 ? mode : Accumulate::add);
  }
}

}  // namespace cachalot
