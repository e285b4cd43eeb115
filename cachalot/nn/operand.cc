#include "nn/operand.h"

namespace cachalot {

namespace {

int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

Tensor take_row_tiles(Arena& arena, int64_t rows, int64_t cols) {
  Tensor t = arena.take(DType::e4m3, rows, up(cols, 16));
  t.cols = cols;
  const Tensor scales = arena.take(DType::f32, up(cols, kScaleBlock) / kScaleBlock, up(rows, 4));
  t.scales = static_cast<float*>(scales.data);
  t.scale_ld = scales.cols;
  t.scale_tile = ScaleTile::row;
  return t;
}

Tensor operand(Stream& s, Arena& arena, Tensor x, const Recipe& recipe) {
  if (!recipe.fp8 || x.dtype == DType::e4m3) return x;
  Tensor codes = take_row_tiles(arena, x.rows, x.cols);
  on(s).quantize({.x = x, .y = codes, .power_of_two = recipe.power_of_two});
  return codes;
}

Tensor take_columns(Arena& arena, int64_t rows, int64_t cols, const Groups& groups) {
  return take_row_tiles(arena, cols, groups.offsets ? padded_rows(rows, groups.experts) : rows);
}

Tensor columns(Stream& s, Arena& arena, Tensor x, bool power_of_two, const Groups& groups) {
  Tensor codes = take_columns(arena, x.rows, x.cols, groups);
  on(s).quantize({.x = x,
                  .transposed = codes,
                  .offsets = groups.offsets,
                  .padded = groups.padded,
                  .power_of_two = power_of_two});
  return codes;
}

}  // namespace cachalot
