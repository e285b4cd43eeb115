// Vectors for every machine: SSE2 on x86-64, NEON on ARM, by GCC's vector types.
#include "backend/cpu/vector.h"

#define CACHALOT_LANES 4
#define CACHALOT_MR 4

namespace cachalot::cpu {

namespace sse2 {
namespace {
#include "backend/cpu/vector.inc"
}  // namespace
}  // namespace sse2

const Vectors vectors_sse2 = {.isa = "sse2",
                              .lanes = sse2::kLanes,
                              .f32 = sse2::Rows<float>::table(),
                              .bf16 = sse2::Rows<uint16_t>::table(),
                              .product = sse2::product,
                              .adamw = sse2::adamw,
                              .sum_squares = sse2::sum_squares,
                              .largest = sse2::largest,
                              .exp_shifted = sse2::exp_shifted,
                              .largest_size = sse2::largest_size,
                              .larger_sizes = sse2::larger_sizes,
                              .encode = sse2::encode,
                              .encode_each = sse2::encode_each,
                              .scale = sse2::scale,
                              .sigmoid = sse2::sigmoid,
                              .soften = sse2::soften,
                              .soften_backward = sse2::soften_backward};

}  // namespace cachalot::cpu
