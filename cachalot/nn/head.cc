#include "nn/head.h"

#include <algorithm>

namespace cachalot {

namespace {

// With many rows larger chunks, up to 256 MiB of logits; a small vocabulary is not worth cutting below 16 MiB.
int64_t rows_at_once(const Head& head, int64_t rows) {
  constexpr int64_t kFewRows = 256, kMostLogits = int64_t(1) << 26, kFewLogits = int64_t(1) << 22;
  if (head.chunk_rows) return head.chunk_rows;
  const int64_t of_many = std::min(rows / 16, kMostLogits / head.linear.out());
  return std::max(kFewRows, std::max(of_many, kFewLogits / head.linear.out()) / 64 * 64);
}

// A product for the weight's gradient reads and writes [V, D] in f32: the fewer the better. Gradients of logits are
// kept for several chunks, up to 512 MiB of them in bf16.
int64_t gradients_at_once(const Head& head, int64_t chunk) {
  constexpr int64_t kMostGradients = int64_t(1) << 28;
  const int64_t rows = head.gradient_rows ? head.gradient_rows : kMostGradients / head.linear.out();
  return std::max<int64_t>(1, rows / chunk) * chunk;
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
  // The gradient enters two products beside bf16 numbers: rounded like every other gradient, it is bf16 too.
  const bool apart = recipe.act != recipe.stat;
  const int64_t chunk = rows_at_once(*this, x.rows),
                together = apart ? gradients_at_once(*this, chunk) : chunk;
  Tensor logits = arena.take(recipe.stat, std::min(chunk, x.rows), linear.out());
  Tensor dlogits = apart ? arena.take(recipe.act, std::min(together, x.rows), linear.out()) : logits;
  for (int64_t first = 0; first < x.rows; first += together) {
    const int64_t rows = std::min(together, x.rows - first);
    for (int64_t at = 0; at < rows; at += chunk) {
      const int64_t n = std::min(chunk, rows - at);
      const Tensor some = logits.slice_rows(0, n);
      linear.forward(s, x.slice_rows(first + at, n), some);
      on(s).cross_entropy({.logits = some,
                           .targets = targets.slice_cols(first + at, n),
                           .loss = losses.slice_cols(first + at, n),
                           .gradient = true,
                           .scale = scale,
                           .dlogits = apart ? dlogits.slice_rows(at, n) : Tensor{}});
    }
    const Tensor gradient = dlogits.slice_rows(0, rows);
    linear.backward_input(s, gradient, dx.slice_rows(first, rows));
    linear.backward_weight(s, gradient, x.slice_rows(first, rows), first == 0 ? mode : Accumulate::add);
  }
}

}  // namespace cachalot
