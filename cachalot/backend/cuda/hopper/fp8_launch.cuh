// Host side of fp8_gemm.cuh: tensor maps, grid, launch.
#pragma once

#include <algorithm>

#include "backend/cuda/hopper/fp8_gemm.cuh"
#include "backend/cuda/hopper/launch.cuh"

namespace cachalot::cuda::hopper {

// One product or one per part (expert); sizes in elements.
struct Fp8Problem {
  int64_t m = 0, n = 0, k = 0;  // rows of A; rows of B a part; depth in all
  const void *a = nullptr, *b = nullptr;
  const float *a_scales = nullptr, *b_scales = nullptr;
  int64_t a_ld = 0, a_scale_ld = 0, b_ld = 0, b_scale_ld = 0;
  int64_t b_part_rows = 0, b_first_row = 0;  // Tensor::part_rows, first_row
  void* d = nullptr;
  int64_t d_ld = 0;
  bool add = false;
  int64_t parts = 1, max_rows = 0;  // max_rows: Ragged::count, rows that A has for each part
  const int32_t* offsets = nullptr;
  int band = 8;
  Faults faults = {};
  FaultOf fault_of = FaultOf::grouped_gemm;
  bool early = false;  // B and its scales were there before the previous kernel of the stream started
};

template <class Named> void launch(const Fp8Problem& p, int multiprocessors, cudaStream_t stream) {
  constexpr Fp8Kernel K = Named::k;
  constexpr bool kDepthParts = K.ragged == Ragged::depth;
  const int64_t k_blocks = (p.k + kDepth - 1) / kDepth, b_parts = kDepthParts ? 1 : p.parts;
  const auto operand = [&](const void* data, int64_t rows, int64_t ld, int box) {
    return tensor_map(
        {.data = data, .dtype = DType::e4m3, .size = {p.k, rows}, .stride = {0, ld}, .box = {kDepth, box}});
  };
  const auto scales = [&](const float* data, int64_t rows, int64_t ld, int box) {
    return tensor_map({.data = data,
                       .dtype = DType::f32,
                       .size = {rows, k_blocks},
                       .stride = {0, ld * 4},
                       .box = {box, 1},
                       .swizzle = Swizzle::none});
  };
  Fp8Operands o{.a = operand(p.a, p.m, p.a_ld, K.tile_m() / K.share_n),
                .b = operand(p.b, p.n * b_parts, p.b_ld, K.tile_n() / K.share_m),
                .a_scales = scales(p.a_scales, p.m, p.a_scale_ld, K.a_scale_box()),
                .out = out_matrix<K.out>(p.d, p.m, p.n, p.d_ld, kDepthParts ? p.parts : 1, K.width(), p.add)};
  if constexpr (K.row_scales()) {
    o.b_scales = scales(p.b_scales, p.n, p.b_scale_ld, K.tile_n());
  } else {
    o.b_block_scales = p.b_scales;
    o.b_scale_ld = int(p.b_scale_ld), o.b_first_row = int(p.b_first_row);
    o.b_part_rows = int(p.b_part_rows ? p.b_part_rows : p.n * b_parts + p.b_first_row);
  }
  o.b_rows = int(p.n), o.rows = int(p.m), o.early = p.early;
  constexpr int kUnitM = K.tile_m() * K.share_m, kUnitN = K.tile_n() * K.share_n;
  o.grid = {.units_m = int((p.m + kUnitM - 1) / kUnitM),
            .units_n = int((p.n + kUnitN - 1) / kUnitN),
            .band = p.band,
            .depth = int(p.k),
            .parts = int(p.parts),
            .max_rows = int(p.max_rows),
            .offsets = p.offsets,
            .limit = int(K.ragged == Ragged::rows    ? p.m
                         : K.ragged == Ragged::count ? p.max_rows
                                                     : p.k),
            .faults = p.faults,
            .fault_of = p.fault_of};
  int64_t units = int64_t(o.grid.units_m) * o.grid.units_n;
  if (kDepthParts) units *= p.parts;
  static_assert(K.shared() <= 232448 / K.blocks_per_sm - (K.blocks_per_sm > 1 ? 1024 : 0), "shared memory");
  const Clusters<Fp8Operands> start{&fp8_product<Named>, K.threads(), K.cluster(), K.shared()};
  // A split tile is its cluster's only one; how many tiles ragged rows make, the device knows.
  if (K.ragged == Ragged::rows || K.ragged == Ragged::count) units = INT32_MAX;
  start(K.splits > 1 ? units : std::min(units, room<Named>(start, multiprocessors * K.blocks_per_sm)), o,
        stream);
}

}  // namespace cachalot::cuda::hopper
