// The FP8 kernels that are compiled, and which of them a product takes: a model of the time, no measurement
// at run time. Pure host code.
#pragma once

#include <span>

#include "backend/cuda/hopper/fp8_kernel.h"

namespace cachalot::cuda::hopper {

// A kernel and what it costs where all multiprocessors run it (H200, docs/log.md): microseconds for 128 of K
// of a tile, for a tile besides, and once (0: in `tile`).
struct Fp8Choice {
  Fp8Kernel kernel;
  double stage = 0, tile = 0, start = 0;
};

struct Fp8Shape {
  int64_t m = 0, n = 0, k = 0;  // m: rows of A, of an expert where there are several
  int64_t experts = 1;
};

// Microseconds, and the index of the kernel that takes fewest.
double predicted_time(const Fp8Choice& choice, const Fp8Shape& shape, int multiprocessors);
int choose(std::span<const Fp8Choice> choices, const Fp8Shape& shape, int multiprocessors);

// D bf16 = A B^T with a weight's blocks.
inline constexpr Fp8Choice kFp8Dense[] = {
    // Many rows: 128 x 256; for short K 128 x 192, with the stores under the next products; 128 x 176 where
    // that wastes less at the edges.
    {{.columns = 128, .passes = 2, .stages = 4, .share_m = 2, .slots = 1, .turns = true, .hand_over = 0},
     0.785,
     1.55,
     5.0},
    {{.columns = 192,
      .stages = 4,
      .share_m = 2,
      .slots = 3,
      .aligned = false,
      .turns = true,
      .hand_over = 0,
      .lag = 1},
     0.60,
     0.90,
     5.0},
    {{.columns = 176, .stages = 5, .share_m = 2, .aligned = false, .turns = true, .hand_over = 0},
     0.59,
     0.95,
     5.0},
    // Up to 128 rows: the weight is streamed once, K split until all multiprocessors stream.
    {{.columns = 128, .stages = 5, .overlap = true}, 0.43, 2.1},
    {{.columns = 96, .passes = 2, .stages = 5, .slots = 1, .aligned = false, .overlap = true}, 0.70, 4.8},
    {{.columns = 64, .stages = 8, .overlap = true}, 0.32, 2.6},
    {{.columns = 64, .stages = 8, .splits = 2, .overlap = true}, 0.338, 3.5},
    {{.columns = 112, .stages = 6, .splits = 2, .aligned = false, .overlap = true}, 0.45, 8.5},
    {{.columns = 128, .stages = 6, .splits = 4, .overlap = true}, 0.44, 6.0},
    // Up to 64 rows (or twice 64).
    {{.math_m = 1, .columns = 64, .stages = 8, .splits = 2, .overlap = true}, 0.28, 2.8},
    {{.math_m = 1, .columns = 64, .stages = 8, .overlap = true}, 0.28, 3.0},
    {{.math_m = 1, .columns = 128, .stages = 4, .slots = 1, .blocks_per_sm = 2, .overlap = true}, 0.30, 4.6},
    {{.math_m = 1,
      .columns = 96,
      .stages = 5,
      .slots = 1,
      .blocks_per_sm = 2,
      .aligned = false,
      .overlap = true},
     0.27,
     4.5},
    {{.math_m = 1, .columns = 64, .stages = 6, .splits = 4, .blocks_per_sm = 2, .overlap = true}, 0.43, 3.4},
    {{.math_m = 1, .columns = 128, .stages = 4, .splits = 4, .blocks_per_sm = 2, .overlap = true}, 0.50, 7.0},
};
inline constexpr Fp8Choice kFp8DenseF32[] = {
    {{.columns = 128, .stages = 5, .out = Out::f32, .overlap = true}, 0.43, 2.4},
};
// D bf16 += A B^T: an input gradient beside another.
inline constexpr Fp8Choice kFp8DenseAdd[] = {
    {{.columns = 128,
      .passes = 2,
      .stages = 4,
      .share_m = 2,
      .turns = true,
      .hand_over = 0,
      .lag = 1,
      .add = true},
     0.8125,
     3.0,
     5.0},
    {{.columns = 128, .stages = 5, .overlap = true, .add = true}, 0.43, 3.0},
    {{.math_m = 1, .columns = 64, .stages = 8, .overlap = true, .add = true}, 0.28, 4.0},
};

// Experts with rows one after the other, D bf16 or f32.
inline constexpr Fp8Choice kFp8Grouped[] = {
    {{.columns = 128,
      .passes = 2,
      .stages = 4,
      .share_m = 2,
      .slots = 1,
      .ragged = Ragged::rows,
      .turns = true,
      .hand_over = 0},
     0.83,
     1.32,
     5.0},
    {{.columns = 128,
      .passes = 2,
      .stages = 4,
      .share_m = 2,
      .ragged = Ragged::rows,
      .turns = true,
      .hand_over = 0,
      .lag = 1},
     0.853,
     0.70,
     5.0},
    {{.columns = 128,
      .passes = 2,
      .stages = 4,
      .ragged = Ragged::rows,
      .turns = true,
      .hand_over = 0,
      .lag = 1},
     0.861,
     0.88,
     5.0},
    {{.math_m = 1, .math_n = 2, .columns = 128, .stages = 4, .ragged = Ragged::rows, .turns = true},
     0.52,
     1.5},
};
inline constexpr Fp8Choice kFp8GroupedF32[] = {
    {{.columns = 128, .stages = 5, .ragged = Ragged::rows, .out = Out::f32, .overlap = true}, 0.43, 2.4},
};

// Experts whose rows stand apart.
inline constexpr Fp8Choice kFp8Masked[] = {
    {{.columns = 128, .passes = 2, .stages = 4, .ragged = Ragged::count, .turns = true, .hand_over = 0},
     0.80,
     1.2,
     4.3},
    {{.columns = 112,
      .passes = 2,
      .stages = 4,
      .slots = 3,
      .aligned = false,
      .ragged = Ragged::count,
      .turns = true,
      .hand_over = 0,
      .lag = 1},
     0.73,
     1.1,
     4.3},
    {{.columns = 128, .stages = 5, .ragged = Ragged::count, .overlap = true}, 0.49, 1.0},
    {{.math_m = 1,
      .columns = 128,
      .stages = 4,
      .slots = 1,
      .blocks_per_sm = 2,
      .ragged = Ragged::count,
      .overlap = true},
     0.47,
     1.0},
};

// Weight gradients: row tiles on both sides, D f32. The first: experts with so few rows that writing D is all.
inline constexpr Fp8Choice kFp8WeightGrad[] = {
    {{.columns = 128,
      .stages = 3,
      .share_m = 2,
      .slots = 4,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .overlap = true,
      .streams_out = true},
     0.83,
     0.5},
    {{.columns = 128,
      .passes = 2,
      .stages = 4,
      .share_m = 2,
      .slots = 1,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .turns = true,
      .hand_over = 0},
     1.04,
     2.4},
    {{.math_m = 3,
      .columns = 128,
      .stages = 4,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .turns = true,
      .hand_over = 0},
     0.765,
     2.1},
    {{.columns = 128,
      .stages = 5,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .overlap = true},
     0.56,
     2.0},
};
// The same of one matrix with many rows behind it: few tiles and a long K, which a cluster cuts among its blocks.
inline constexpr Fp8Choice kFp8DenseWeightGrad[] = {
    {{.math_m = 3,
      .columns = 128,
      .stages = 4,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .turns = true,
      .hand_over = 0},
     0.785,
     2.1},
    {{.columns = 128,
      .stages = 5,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .overlap = true},
     0.56,
     2.0},
    {{.columns = 128,
      .stages = 5,
      .splits = 2,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .overlap = true},
     0.60,
     9.0},
    {{.columns = 128,
      .stages = 5,
      .splits = 3,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .overlap = true},
     0.60,
     12.0},
    {{.columns = 128,
      .stages = 5,
      .splits = 4,
      .ragged = Ragged::depth,
      .scales_of_b = ScalesOfB::rows,
      .out = Out::f32,
      .overlap = true},
     0.60,
     15.0},
};

}  // namespace cachalot::cuda::hopper
