// Kernels for AVX-512 with BF16 and VBMI (Zen 4 and later; Sapphire Rapids has them too, but there a dot
// instruction of bf16 takes longer than the multiply-adds that it replaces).
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 16
#define CACHALOT_MR 12  // 12 x 2 sums + 2 + 1 of 32 registers

namespace cachalot::cpu {

namespace avx512_bf16 {
namespace {
// Each stands on those before it.
// clang-format off
#include "backend/cpu/kernels.inc"
#include "backend/cpu/e4m3_vbmi.inc"
#include "backend/cpu/bf16_pairs.inc"
#include "backend/cpu/bf16_dot.inc"
// clang-format on
}  // namespace
}  // namespace avx512_bf16

const Kernels kernels_avx512_bf16 = {.isa = "avx512_bf16",
                                     .floats = &avx512_bf16::kFloats,
                                     .halves = &avx512_bf16::kHalves,
                                     .mr = avx512_bf16::kMr,
                                     .nr = avx512_bf16::kNr,
                                     .pack_along = avx512_bf16::pack_along,
                                     .pack_across = avx512_bf16::pack_across,
                                     .read = avx512_bf16::read_words};

}  // namespace cachalot::cpu

#endif
