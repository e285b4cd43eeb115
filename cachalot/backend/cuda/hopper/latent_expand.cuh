// An FP8 cache's codes become bf16 numbers in shared memory, where they are.
#pragma once

#include "backend/cuda/hopper/latent_unit.cuh"

namespace cachalot::cuda::hopper {

// E4M3's bits s eeee mmm, put at s 0000 eeee mmm 0000, are a bf16 of 2^-120 times the value (below the
// smallest normal number of either format too): two codes are taken to 16 bits each with their signs, shifted
// and masked, and one multiplication by 2^120 scale, which is exact for a scale that is a power of two, makes
// them numbers. Four instructions a pair, two of them the multiplier's: with six the whole kernel took 331 us
// instead of 295 (128 heads, 128 sequences of 4096 tokens).
template <uint32_t Selector> __device__ __forceinline__ uint32_t expand_pair(uint32_t codes, uint32_t scale) {
  uint32_t x;
  asm("prmt.b32 %0, %1, %1, %2;" : "=r"(x) : "r"(codes), "n"(Selector));
  x = x * 16 & 0x87F087F0u;  // the shift as a product
  asm("mul.rn.bf16x2 %0, %0, %1;" : "+r"(x) : "r"(scale));
  return x;
}
__device__ __forceinline__ uint4 expand(uint32_t low, uint32_t high, uint32_t scale) {  // 8 codes
  constexpr uint32_t kFirst = 0x9180, kSecond = 0xB3A2;  // bytes 0 and 1, 2 and 3, each below its own sign
  return make_uint4(expand_pair<kFirst>(low, scale), expand_pair<kSecond>(low, scale),
                    expand_pair<kFirst>(high, scale), expand_pair<kSecond>(high, scale));
}

// Where a block's codes lie in its stage: eight pieces [64 tokens][64] in the upper half; scales [64][4] f32
// at the beginning.
constexpr int kCodesAt = 4 * kChunkBytes, kPieceBytes = 64 * 64;

// A stage as the copy engine filled it, by a warpgroup. Chunk c of numbers is written
// over pieces 2 c - 8 and 2 c - 7 of codes, which everybody must have read by then.
__device__ __forceinline__ void expand_block(uint8_t* tile) {
  const int thread = threadIdx.x % 128, row = thread / 4,
            part = thread % 4;  // 16 codes of rows `row` and row + 32
  uint32_t powers[2][2];        // a row's four scales times 2^120, as bf16
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 scales = *reinterpret_cast<const uint4*>(tile + (row + 32 * i) * 16);
    constexpr uint32_t kLift = 120u << 23;
    powers[i][0] = __byte_perm(scales.x + kLift, scales.y + kLift, 0x7632);
    powers[i][1] = __byte_perm(scales.z + kLift, scales.w + kLift, 0x7632);
  }
  meet(kScoresOnly, 128);
  const uint8_t* const from = tile + kCodesAt + row * 64 + part * 16;
  uint8_t* const to = tile + row * 128;
  const int at = (2 * part) ^ (row % 8), at2 = at ^ 1;
  uint4 codes[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) codes[i] = *reinterpret_cast<const uint4*>(from + i * 32 * 64);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    uint4 next[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (c < 7) next[i] = *reinterpret_cast<const uint4*>(from + (c + 1) * kPieceBytes + i * 32 * 64);
    if (c == 4 || c == 7) meet(kScoresOnly, 128);  // pieces 0 ... 5, and 6 and 7, have been read
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t power = __byte_perm(powers[i][c / 4], 0, c / 2 % 2 ? 0x3232 : 0x1010);
      *reinterpret_cast<uint4*>(to + c * kChunkBytes + i * 32 * 128 + at * 16) =
          expand(codes[i].x, codes[i].y, power);
      *reinterpret_cast<uint4*>(to + c * kChunkBytes + i * 32 * 128 + at2 * 16) =
          expand(codes[i].z, codes[i].w, power);
      codes[i] = next[i];
    }
  }
}

}  // namespace cachalot::cuda::hopper
