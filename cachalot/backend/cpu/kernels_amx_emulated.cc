// The kernels of AMX with tiles in plain memory: any machine runs the same packing and the same loops, so
// that they are tested where there is no AMX. Slow.
#include "backend/cpu/kernels.h"

#define CACHALOT_LANES 4
#define CACHALOT_MR 4  // 4 x 2 sums + 2 + 1 of 16 registers

namespace cachalot::cpu {

namespace amx_emulated {
namespace {
// Each stands on those before it.
// clang-format off
#include "backend/cpu/kernels.inc"
#include "backend/cpu/bf16_pairs.inc"
#include "backend/cpu/amx_emulated_tiles.inc"
#include "backend/cpu/amx.inc"
// clang-format on
}  // namespace
}  // namespace amx_emulated

const Kernels kernels_amx_emulated = {.isa = "amx_emulated",
                                      .floats = &amx_emulated::kFloats,
                                      .halves = &amx_emulated::kHalves,
                                      .mr = amx_emulated::kMr,
                                      .nr = amx_emulated::kNr,
                                      .pack_along = amx_emulated::pack_along,
                                      .pack_across = amx_emulated::pack_across,
                                      .read = amx_emulated::read_words};

}  // namespace cachalot::cpu
