// From an operation's tensors to the kernel that fp8_tiles.h chose.
#pragma once

#include <array>
#include <utility>

#include "backend/cuda/hopper/fp8_gemm.h"
#include "backend/cuda/hopper/fp8_launch.cuh"
#include "backend/cuda/hopper/fp8_tiles.h"

namespace cachalot::cuda::hopper {

template <const auto& Choices, int I> struct Chosen { static constexpr Fp8Kernel k = Choices[I].kernel; };

// Queues the best of Choices for the shape.
template <const auto& Choices>
void queue_fp8(const Fp8Problem& p, const Fp8Shape& shape, const Card& card, cudaStream_t stream) {
  using Launch = void (*)(const Fp8Problem&, int, cudaStream_t);
  constexpr int kCount = int(std::size(Choices));
  static constexpr auto kLaunches = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Launch, size_t(kCount)>{&launch<Chosen<Choices, I>>...};
  }
  (std::make_integer_sequence<int, kCount>());
  kLaunches[size_t(choose(Choices, shape, card.multiprocessors))](p, card.multiprocessors, stream);
}

// What all products ask of their operands (fp8_gemm.h); nullptr: fine.
inline const char* refused_operand(const Tensor& t, ScaleTile tile) {
  if (t.dtype != DType::e4m3 || t.scale_tile != tile || !t.scales)
    return "an operand is not e4m3 with these scales";
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0 || t.ld % 16 != 0)
    return "codes do not begin on 16 bytes";
  if (t.cols % 16 != 0) return "K is not a multiple of 16";
  if (tile == ScaleTile::row && (reinterpret_cast<uintptr_t>(t.scales) % 16 != 0 || t.scale_ld % 4 != 0))
    return "scales do not begin on 16 bytes";
  return nullptr;
}
inline const char* refused_output(const Tensor& t) {
  if (t.dtype != DType::bf16 && t.dtype != DType::f32) return "the output is neither bf16 nor f32";
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0 || t.ld * size_of(t.dtype) % 16 != 0)
    return "rows of the output do not begin on 16 bytes";
  if (t.cols % 16 != 0) return "N is not a multiple of 16";
  return nullptr;
}
// A weight's blocks begin where tiles of 128 columns do.
inline const char* refused_blocks(const Tensor& b, int64_t rows_of_expert, int64_t experts) {
  const int64_t part = b.part_rows ? b.part_rows : b.first_row + b.rows;
  if (b.first_row % 128 != 0) return "B begins inside a block";
  if (part % 128 != 0 &&
      (b.first_row != 0 || (experts > 1 && part != rows_of_expert) || part < rows_of_expert))
    return "parts of B end inside a tile";
  return nullptr;
}

inline const char* refused(const Card& card) { return card.major == 9 ? nullptr : "not a Hopper card"; }

inline Fp8Problem problem_of(const Tensor& a, const Tensor& b, const Tensor& d) {
  return {.m = a.rows,
          .n = b.rows,
          .k = a.cols,
          .a = a.data,
          .b = b.data,
          .a_scales = a.scales,
          .b_scales = b.scales,
          .a_ld = a.ld,
          .a_scale_ld = a.scale_ld,
          .b_ld = b.ld,
          .b_scale_ld = b.scale_ld,
          .b_part_rows = b.part_rows,
          .b_first_row = b.first_row,
          .d = d.data,
          .d_ld = d.ld};
}

}  // namespace cachalot::cuda::hopper
