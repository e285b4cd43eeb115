// What can be chosen about a kernel of fp8_gemm.cuh, and what follows from it. Host and device.
#pragma once

#include <cstdint>

namespace cachalot::cuda::hopper {

constexpr int kDepth = 128;  // of K a stage: one promotion

// What the device knows and the host does not.
enum class Ragged : uint8_t {
  none,   // one product
  rows,   // D rows [offsets[e], offsets[e+1]) belong to expert e                        (contiguous)
  count,  // D rows [e * max_rows, e * max_rows + counts[e]) belong to expert e          (masked)
  depth,  // K range [offsets[e], offsets[e+1]) belongs to expert e, which has its own D (weight gradient)
};
enum class ScalesOfB : uint8_t { blocks, rows };  // 128 x 128 | 1 x 128
enum class Out : uint8_t { bf16, f32 };

struct Fp8Kernel {
  int math_m = 2, math_n = 1;     // warpgroups, 64 rows each
  int columns = 128, passes = 1;  // a warpgroup's tile is 64 x (columns * passes); one wgmma: 64 x columns
  int stages = 4;
  int share_m = 1, share_n = 1, splits = 1;
  int slots = 2;  // slabs of shared memory a warp stores through
  int blocks_per_sm = 1;
  bool aligned = true;  // tiles begin at multiples of 128 columns, or 128 is a multiple of theirs
  Ragged ragged = Ragged::none;
  ScalesOfB scales_of_b = ScalesOfB::blocks;
  Out out = Out::bf16;
  // How the tensor cores are kept busy while sums are promoted. turns: one warpgroup multiplies at a time,
  // and hands over while its last wgmma run. overlap: a warpgroup has two products in flight, in two sets
  // of accumulators.
  bool turns = false, overlap = false;
  int hand_over = 2;  // turns: when the wgmma of this number, of four, is done
  // turns of two warpgroups: the second follows `lag` stages behind, so that it multiplies while the first
  // stores, and the other way round. Worth it where tiles end often.
  int lag = 0;
  bool add = false;  // D bf16: D += (of f32: OutMatrix::add)
  // Most of the traffic is D: it leaves the second-level cache first, the operands last. Elsewhere the stream of D
  // drives them out between two uses (a third of all reads missed).
  bool streams_out = false;

  constexpr int math() const { return math_m * math_n; }
  constexpr int width() const { return columns * passes; }  // of a warpgroup
  constexpr int tile_m() const { return 64 * math_m; }
  constexpr int tile_n() const { return width() * math_n; }
  constexpr int cluster() const { return share_m * share_n * splits; }
  constexpr int threads() const { return 128 * math() + 128; }
  constexpr bool row_scales() const { return scales_of_b == ScalesOfB::rows; }
  constexpr bool ragged_rows() const { return ragged == Ragged::rows || ragged == Ragged::count; }
  // Columns under one scale of B, and how many such groups a tile has.
  constexpr int group() const {
    return aligned ? (tile_n() < 128 ? tile_n() : 128) : columns % 64 == 0 ? 64 : columns % 32 == 0 ? 32 : 16;
  }
  constexpr int groups() const { return row_scales() ? 1 : tile_n() / group(); }

  // Shared memory.
  constexpr int a_bytes() const { return tile_m() * kDepth; }
  constexpr int b_bytes() const { return tile_n() * kDepth; }
  // Ragged rows begin anywhere, copies on 16 bytes: up to 3 scales before the first.
  constexpr int a_scale_box() const { return tile_m() + (ragged_rows() ? 4 : 0); }
  constexpr int a_scale_bytes() const { return (a_scale_box() * 4 + 127) / 128 * 128; }
  constexpr int b_scale_bytes() const { return row_scales() ? (tile_n() * 4 + 127) / 128 * 128 : 0; }
  constexpr int note_bytes() const { return 16 + (groups() * 4 + 15) / 16 * 16; }
  constexpr int slot_slabs() const {
    const int slab = out == Out::bf16 ? 64 : 32, all = (width() + slab - 1) / slab;
    return splits > 1 ? 0 : slots < all ? slots : all;
  }
  constexpr int staging() const { return math() * 4 * slot_slabs() * 2048; }
  constexpr int stage_bytes() const {
    return a_bytes() + b_bytes() + a_scale_bytes() + b_scale_bytes() + note_bytes() + 16;
  }
  constexpr int shared() const { return stages * stage_bytes() + staging() + 16; }
};

}  // namespace cachalot::cuda::hopper
