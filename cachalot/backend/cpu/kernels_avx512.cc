// Kernels for AVX-512F (Skylake-SP, Zen 4 and later).
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 16
#define CACHALOT_MR 12  // 12 x 2 sums + 2 + 1 of 32 registers

namespace cachalot::cpu {

namespace avx512 {
namespace {
#include "backend/cpu/kernels.inc"
}  // namespace
}  // namespace avx512

const Kernels kernels_avx512 = {.isa = "avx512",
                                .floats = &avx512::kFloats,
                                .mr = avx512::kMr,
                                .nr = avx512::kNr,
                                .pack_along = avx512::pack_along,
                                .pack_across = avx512::pack_across,
                                .read = avx512::read_words};

}  // namespace cachalot::cpu

#endif
