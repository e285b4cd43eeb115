// Vectors for AVX-512F (Skylake-SP, Zen 4 and later).
#include "backend/cpu/vector.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 16
#define CACHALOT_MR 12

namespace cachalot::cpu {

namespace avx512 {
namespace {
#include "backend/cpu/vector.inc"
}  // namespace
}  // namespace avx512

const Vectors vectors_avx512 = {.isa = "avx512",
                                .lanes = avx512::kLanes,
                                .f32 = avx512::Rows<float>::table(),
                                .bf16 = avx512::Rows<uint16_t>::table(),
                                .product = avx512::product,
                                .adamw = avx512::adamw,
                                .sum_squares = avx512::sum_squares,
                                .largest = avx512::largest,
                                .exp_shifted = avx512::exp_shifted,
                                .largest_size = avx512::largest_size,
                                .larger_sizes = avx512::larger_sizes,
                                .encode = avx512::encode,
                                .encode_each = avx512::encode_each,
                                .scale = avx512::scale,
                                .sigmoid = avx512::sigmoid,
                                .soften = avx512::soften,
                                .soften_backward = avx512::soften_backward};

}  // namespace cachalot::cpu

#endif
