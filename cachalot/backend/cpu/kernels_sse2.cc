// Kernels for every machine: SSE2 on x86-64, NEON on ARM, by GCC's vector types.
#include "backend/cpu/kernels.h"

#define CACHALOT_LANES 4
#define CACHALOT_MR 4  // 4 x 2 sums + 2 + 1 of 16 registers

namespace cachalot::cpu {

namespace sse2 {
namespace {
#include "backend/cpu/kernels.inc"
}  // namespace
}  // namespace sse2

#if defined(__x86_64__)
#define CACHALOT_ISA_NAME "sse2"
#else
#define CACHALOT_ISA_NAME "generic"
#endif

const Kernels kernels_sse2 = {.isa = CACHALOT_ISA_NAME,
                              .floats = &sse2::kFloats,
                              .mr = sse2::kMr,
                              .nr = sse2::kNr,
                              .pack_along = sse2::pack_along,
                              .pack_across = sse2::pack_across,
                              .read = sse2::read_words};

}  // namespace cachalot::cpu
