// Vectors for AVX2 and FMA (Haswell and later).
#include "backend/cpu/vector.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 8
#define CACHALOT_MR 6

namespace cachalot::cpu {

namespace avx2 {
namespace {
#include "backend/cpu/vector.inc"
}  // namespace
}  // namespace avx2

const Vectors vectors_avx2 = {.isa = "avx2",
                              .lanes = avx2::kLanes,
                              .f32 = avx2::Rows<float>::table(),
                              .bf16 = avx2::Rows<uint16_t>::table(),
                              .product = avx2::product,
                              .adamw = avx2::adamw,
                              .sum_squares = avx2::sum_squares,
                              .largest = avx2::largest,
                              .exp_shifted = avx2::exp_shifted,
                              .largest_size = avx2::largest_size,
                              .larger_sizes = avx2::larger_sizes,
                              .encode = avx2::encode,
                              .encode_each = avx2::encode_each,
                              .scale = avx2::scale,
                              .sigmoid = avx2::sigmoid,
                              .soften = avx2::soften,
                              .soften_backward = avx2::soften_backward};

}  // namespace cachalot::cpu

#endif
