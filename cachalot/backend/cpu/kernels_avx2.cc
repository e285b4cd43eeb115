// Kernels for AVX2 and FMA (Haswell, Zen and later).
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 8
#define CACHALOT_MR 6  // 6 x 2 sums + 2 + 1 of 16 registers

namespace cachalot::cpu {

namespace avx2 {
namespace {
#include "backend/cpu/kernels.inc"
}  // namespace
}  // namespace avx2

const Kernels kernels_avx2 = {.isa = "avx2",
                              .floats = &avx2::kFloats,
                              .mr = avx2::kMr,
                              .nr = avx2::kNr,
                              .pack_along = avx2::pack_along,
                              .pack_across = avx2::pack_across,
                              .read = avx2::read_words};

}  // namespace cachalot::cpu

#endif
