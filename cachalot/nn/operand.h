// Operands of linear layers in the fp8 recipe: codes with a scale for each 1 x 128 numbers, in a
// micro-batch's memory. Elsewhere a product takes the numbers themselves, and none of this is called for.
#pragma once

#include "backend/buffer.h"
#include "nn/recipe.h"

namespace cachalot {

// Memory for codes and scales [rows, cols] as ops/quantize.h wants outputs.
Tensor take_row_tiles(Arena& arena, int64_t rows, int64_t cols);

// What a layer multiplies its weight by: x, or in fp8 the codes of x (which x may be already).
Tensor operand(Stream& s, Arena& arena, Tensor x, const Recipe& recipe);

// The rows that the experts of a layer own, for the weight gradient: offsets and those of whole tiles.
// Absent: a dense layer.
struct Groups {
  Tensor offsets, padded;
  int64_t experts = 1;
};
// Memory for the transpose of `rows` rows of `cols` numbers.
Tensor take_columns(Arena& arena, int64_t rows, int64_t cols, const Groups& groups = {});
// The transpose of x (act, or codes, which are tiled anew), quantised.
Tensor columns(Stream& s, Arena& arena, Tensor x, bool power_of_two, const Groups& groups = {});

}  // namespace cachalot
