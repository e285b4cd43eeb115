// Vectors for AVX-512 with products of bf16 pairs, where they are worth it (Zen 4 and later; kernels.h
// chooses).
#include "backend/cpu/vector.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 16
#define CACHALOT_MR 12
#define CACHALOT_PAIRS

namespace cachalot::cpu {

namespace avx512_bf16 {
namespace {
#include "backend/cpu/vector.inc"
}  // namespace
}  // namespace avx512_bf16

const Vectors vectors_avx512_bf16 = {.isa = "avx512_bf16",
                                     .lanes = avx512_bf16::kLanes,
                                     .f32 = avx512_bf16::Rows<float>::table(),
                                     .bf16 = avx512_bf16::Rows<uint16_t>::table(),
                                     .product = avx512_bf16::product,
                                     .adamw = avx512_bf16::adamw,
                                     .sum_squares = avx512_bf16::sum_squares,
                                     .largest = avx512_bf16::largest,
                                     .exp_shifted = avx512_bf16::exp_shifted,
                                     .largest_size = avx512_bf16::largest_size,
                                     .larger_sizes = avx512_bf16::larger_sizes,
                                     .encode = avx512_bf16::encode,
                                     .encode_each = avx512_bf16::encode_each,
                                     .scale = avx512_bf16::scale,
                                     .sigmoid = avx512_bf16::sigmoid,
                                     .soften = avx512_bf16::soften,
                                     .soften_backward = avx512_bf16::soften_backward,
                                     .product_pairs = avx512_bf16::product_pairs,
                                     .pair_rows = avx512_bf16::pair_rows,
                                     .soften_pairs = avx512_bf16::soften_pairs,
                                     .soften_backward_pairs = avx512_bf16::soften_backward_pairs};

}  // namespace cachalot::cpu

#endif
