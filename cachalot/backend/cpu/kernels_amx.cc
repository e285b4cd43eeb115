// Kernels for AMX-BF16 (Sapphire Rapids and later), and AVX-512 for what is not bf16.
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CACHALOT_LANES 16
#define CACHALOT_MR 12  // 12 x 2 sums + 2 + 1 of 32 registers

namespace cachalot::cpu {

namespace amx {
namespace {
// Each stands on those before it.
// clang-format off
#include "backend/cpu/kernels.inc"
#include "backend/cpu/e4m3_vbmi.inc"
#include "backend/cpu/bf16_pairs.inc"
#include "backend/cpu/amx_tiles.inc"
#include "backend/cpu/amx.inc"
// clang-format on
}  // namespace
}  // namespace amx

const Kernels kernels_amx = {.isa = "amx",
                             .floats = &amx::kFloats,
                             .halves = &amx::kHalves,
                             .mr = amx::kMr,
                             .nr = amx::kNr,
                             .pack_along = amx::pack_along,
                             .pack_across = amx::pack_across,
                             .read = amx::read_words};

}  // namespace cachalot::cpu

#endif
