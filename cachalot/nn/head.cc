#include "nn/head.h"

#include <algorithm>

namespace cachalot {

namespace {

// A gradient of the weight is added once a chunk, [V, D] in f32: with many rows larger chunks, up to 256 MiB of
// logits.
int64_t rows_at_once(const Head& head, int64_t rows) {
  constexpr int64_t kMostLogits = int64_t(1) << 26;
  return std::max(head.chunk_rows, std::min(rows / 16, kMostLogits / head.linear.out()) / 64 * 64);
}

}  // namespace

void Head::losses(Stream& s, Arena& arena, Tensor x, Tensor targets, Tensor losses) const {
  Arena::Scope scratch(arena);
  const int64_t chunk_size = rows_at_once(*this, x.rows);
  Tensor logits = arena.take(recipe.stat, std::min(chunk_size, x.rows), linear.out());
  for (int64_t first = 0; first < x.rows; first += chunk_size) {
    const int64_t n = std::min(chunk_size, x.rows - first);
    Tensor chunk = logits.slice_rows(0, n);
    linear.forward(s, x.slice_rows(first, n), chunk);
    on(s).cross_entropy(
        {.logits = chunk, .targets = targets.slice_cols(first, n), .loss = losses.slice_cols(first, n)});
  }
}

void Head::losses_and_gradients(Stream& s, Arena& arena, Tensor x, Tensor targets, double scale,
                                Tensor losses, Tensor dx, Accumulate mode) const {
  Arena::Scope scratch(arena);
  const int64_t chunk_size = rows_at_once(*this, x.rows);
  Tensor logits = arena.take(recipe.stat, std::min(chunk_size, x.rows), linear.out());
  // The gradient enters two products beside bf16 numbers: rounded like every other gradient, they are bf16 too.
  Tensor dlogits = recipe.act == recipe.stat ? logits : arena.take(recipe.act, logits.rows, logits.cols);
  for (int64_t first = 0; first < x.rows; first += chunk_size) {
    const int64_t n = std::min(chunk_size, x.rows - first);
    Tensor chunk = logits.slice_rows(0, n), gradient = dlogits.slice_rows(0, n),
           x_chunk = x.slice_rows(first, n);
    linear.forward(s, x_chunk, chunk);
    on(s).cross_entropy({.logits = chunk,
                         .targets = targets.slice_cols(first, n),
                         .loss = losses.slice_cols(first, n),
                         .gradient = true,
                         .scale = scale});
    if (recipe.act != recipe.stat) on(s).cast({.x = chunk, .y = gradient});
    linear.backward_input(s, gradient, dx.slice_rows(first, n));
    linear.backward_weight(s, gradient, x_chunk, first == 0 ? mode : Accumulate::add);
  }
}

}  // namespace cachalot
