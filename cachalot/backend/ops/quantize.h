// FP8 as DeepSeek-V3 trains in it: E4M3 with one f32 scale a tile of 128 (report section 3.3.2). Layouts of
// codes and scales: tensor/tensor.h.
//
//   amax  = the largest |x| of the tile in f32, NaN passed over, at least 1e-4
//   scale = amax / 448, rounded to nearest; with `power_of_two`, up to a power of two
//   code  = x / scale, the correctly rounded f32 quotient, then rounded to the nearest E4M3, ties to even;
//           0x7F where the quotient is NaN
//
// Codes and scales are the same bytes on every backend. (A kernel may use r = RN(1 / scale), q = x r,
// q + (x - q scale) r with two fused multiply-adds: that is the correctly rounded quotient for every code
// that is not zero. |q| <= 448 (1 + 2^-23), which rounds to 448: nothing needs clamping.)
// An infinity makes its tile's scale infinite: its own code is NaN, the others' are 0 with an infinite scale,
// so all of the tile are NaN as numbers. A NaN has the code of NaN and leaves its neighbours alone. Either
// way the products that meet it are NaN.
//
// x is f32, bf16 or (ref) f64, which is rounded to f32 first; or e4m3 with row tiles, read as
// f32(code * scale). Outputs with row tiles: rows of codes begin on 16 bytes (ld is a multiple of 16), so do
// the scales, and scale_ld is a multiple of 4. What lies between cols and ld and between rows and scale_ld is
// neither read nor written.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

// Row tiles of x [R, K], as the left operand of a product (`y`), and of its transpose, as an operand of the
// weight gradient (`transposed`), each optional, from one reading.
//   y           e4m3 [R, K], tiles of 1 x 128 along K
//   transposed  e4m3 [K, R'], tiles of 128 numbers of a column of x, zeros behind the end of the rows
// Without offsets: R' = R, the last tile ragged. With offsets (ops/grouped_gemm.h) and their `padded` ones
// (PadOffsets): expert e's rows stand in columns padded[e] ... of `transposed`, codes up to padded[e+1] are
// 0, and its tiles begin at padded[e]; R' >= padded[E] is a multiple of 128, columns at and after padded[E]
// are not written. Rows of x at and after offsets[E] belong to nobody: not read, not written in y.
// An x in e4m3 has no y: it is that already.
struct Quantize {
  Tensor x, y = {}, transposed = {};
  Tensor offsets = {}, padded = {};  // i32 [1, E+1] each, together or not at all
  bool power_of_two = false;
};

// The most columns that `transposed` can need for `rows` rows of `experts` experts.
constexpr int64_t padded_rows(int64_t rows, int64_t experts) {
  return (rows / kScaleBlock + experts) * kScaleBlock;
}

// padded[0] = 0, padded[e+1] = padded[e] + (offsets[e+1] - offsets[e]) rounded up to a multiple of 128.
struct PadOffsets {
  Tensor offsets, padded;  // i32 [1, E+1]
};

// Blocks of 128 x 128 of a weight and of its transpose.
//   x           f32, bf16, f64, or e4m3 blocks [E O, K]: E matrices above each other
//   y           e4m3 blocks [E O, K] with y.part_rows rows a part (gate and up of an expert are two parts:
//               O is a multiple of part_rows); absent where x is e4m3
//   transposed  e4m3 blocks [E K, O], part_rows = K; optional
// `transposed` has its own blocks of the transpose's numbers. Where they cover the same numbers as those of W
// (O is one part, or part_rows is a multiple of 128), they are W's: the codes and scales of an e4m3 x are
// carried over as they are, and those made here come out equal. Elsewhere an e4m3 x is read as f32(code *
// scale) and quantised again.
struct QuantizeWeight {
  Tensor x, y = {}, transposed = {};
  int64_t experts = 1;
  bool power_of_two = false;
};

// E5M6: 1 sign, 5 exponent (bias 15), 6 mantissa bits; largest 65024, smallest 2^-20; 12 bits a number. For
// the input of the projection after attention, which the backward needs again (report section 3.3.3).
//   scale = max(amax, 1e-4) / 65024 of a row tile of 128, rounded up to a power of two
//   x / scale, which is exact, rounded to the nearest E5M6, ties to even, subnormals included; NaN: all ones
//   eight numbers v0 ... v7, 12 bits each, are 3 words, highest bits first:
//     v0 v1 v2[11:4],  v2[3:0] v3 v4 v5[11:8],  v5[7:0] v6 v7;  behind the end of a row 0
//   x act [T, D], packed i32 [T, 3 ceil(D / 8)], scales f32 [ceil(D / 128), T]; an infinity: as above
struct PackE5m6 {
  Tensor x, packed, scales;
};

// y act = number * scale, exact in f32, rounded to y's format (which is exact in bf16 but for subnormals).
struct UnpackE5m6 {
  Tensor packed, scales, y;
};

}  // namespace cachalot
