// Writes tokens to the FP8 latent cache (latent_decode.h): a warp a token, 16 numbers a lane.
// Reads 1152 bytes and writes 656 a token; bound by memory, and by its launch when tokens are few.
#include "backend/cuda/hopper/latent_decode.h"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kWarps = 4;

__device__ inline float number(uint32_t pair, int upper) {
  return __uint_as_float(upper ? pair & 0xFFFF0000u : pair << 16);
}

__global__ void __launch_bounds__(32 * kWarps) append_kernel(const LatentAppend a) {
  start();
  const int64_t t = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (t >= a.rows) return;
  const int64_t slot = a.slots[t];
  if (slot < 0 || !a.faults.fine(FaultOf::latent_attention, slot, a.cache_slots)) return;
  const uint4* from = reinterpret_cast<const uint4*>(a.x + t * a.ld);
  uint8_t* to = static_cast<uint8_t*>(a.cache) + slot * 656;
  const uint4 x[2] = {from[2 * lane], from[2 * lane + 1]};
  const uint32_t words[8] = {x[0].x, x[0].y, x[0].z, x[0].w, x[1].x, x[1].y, x[1].z, x[1].w};
  float largest = 1e-4f;
#pragma unroll
  for (int i = 0; i < 16; ++i) largest = fmaxf(largest, fabsf(number(words[i / 2], i % 2)));
  for (int step = 1; step < 8; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  // The power of two at or above largest / 448; division by it is exact.
  const uint32_t ratio = __float_as_uint(__fdiv_rn(largest, 448.0f));
  const int exponent = min(int(ratio >> 23) - 127 + ((ratio & 0x7FFFFF) != 0), 7);
  const float scale = __uint_as_float(uint32_t(exponent + 127) << 23),
              over = __uint_as_float(uint32_t(127 - exponent) << 23);
  uint32_t codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(low)
        : "f"(number(words[2 * i], 1) * over), "f"(number(words[2 * i], 0) * over));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(high)
        : "f"(number(words[2 * i + 1], 1) * over), "f"(number(words[2 * i + 1], 0) * over));
    codes[i] = uint32_t(high) << 16 | low;
  }
  reinterpret_cast<uint4*>(to)[lane] = make_uint4(codes[0], codes[1], codes[2], codes[3]);
  if (lane % 8 == 0) reinterpret_cast<float*>(to + 512)[lane / 8] = scale;
  if (lane < 8) reinterpret_cast<uint4*>(to + 528)[lane] = from[64 + lane];
}

}  // namespace

void latent_append(const Queue& queue, const LatentAppend& a) {
  if (a.rows == 0) return;
  launch(queue, append_kernel, unsigned((a.rows + kWarps - 1) / kWarps), 32 * kWarps, 0, a);
}

}  // namespace cachalot::cuda::hopper
