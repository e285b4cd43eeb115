// Host side of bf16_gemm.cuh: tensor maps, grid, launch.
#pragma once

#include <algorithm>

#include "backend/cuda/hopper/bf16_gemm.cuh"
#include "backend/cuda/hopper/launch.cuh"

namespace cachalot::cuda::hopper {

// Sizes in elements. A: [m, k] or [k, m]; B: an expert's [n, k] or [k, n], stacked (ragged depth: one, as
// long as A).
struct Bf16Problem {
  int64_t m = 0, n = 0, k = 0;
  const void *a = nullptr, *b = nullptr;
  int64_t a_ld = 0, b_ld = 0;
  void* d = nullptr;
  int64_t d_ld = 0;
  bool add = false;
  int64_t parts = 1, max_rows = 0;
  const int32_t* offsets = nullptr;
  int band = 8;
  Faults faults = {};
  FaultOf fault_of = FaultOf::grouped_gemm;
};

template <class Named> void launch(const Bf16Problem& p, int multiprocessors, cudaStream_t stream) {
  constexpr Bf16Kernel K = Named::k;
  constexpr bool kDepthParts = K.ragged == Ragged::depth;
  const auto operand = [&](const void* data, Major major, int64_t rows, int64_t ld, int64_t parts, int box) {
    const bool along_k = major == Major::k;
    const int64_t high = along_k ? rows : p.k;
    return tensor_map({.data = data,
                       .dtype = DType::bf16,
                       .dimensions = 3,
                       .size = {along_k ? p.k : rows, high, parts},
                       .stride = {0, ld * 2, high * ld * 2},
                       .box = {64, along_k ? box : K.kDepth, 1}});
  };
  const Bf16Operands o{
      .a = operand(p.a, K.a_major, p.m, p.a_ld, 1, K.tile_m() / K.share_n),
      .b = operand(p.b, K.b_major, p.n, p.b_ld, kDepthParts ? 1 : p.parts, K.tile_n() / K.share_m),
      .out = out_matrix<K.out>(p.d, p.m, p.n, p.d_ld, kDepthParts ? p.parts : 1, K.tile_n(), p.add),
      .grid = {.units_m = int((p.m + K.tile_m() * K.share_m - 1) / (K.tile_m() * K.share_m)),
               .units_n = int((p.n + K.tile_n() * K.share_n - 1) / (K.tile_n() * K.share_n)),
               .band = p.band,
               .depth = int(p.k),
               .parts = int(p.parts),
               .max_rows = int(p.max_rows),
               .offsets = p.offsets,
               .limit = int(K.ragged == Ragged::rows    ? p.m
                            : K.ragged == Ragged::count ? p.max_rows
                                                        : p.k),
               .faults = p.faults,
               .fault_of = p.fault_of}};
  int64_t units = INT32_MAX;  // of ragged rows, the device knows
  if (kDepthParts) units = int64_t(o.grid.units_m) * o.grid.units_n * p.parts;
  static_assert(K.shared() <= 232448, "shared memory");
  const Clusters<Bf16Operands> start{&bf16_product<Named>, K.threads(), K.cluster(), K.shared()};
  start(std::min(units, room<Named>(start, multiprocessors)), o, stream);
}

}  // namespace cachalot::cuda::hopper
