// A cache row in e4m3 (ops/latent_attention.h) on the device.
#pragma once

#include "backend/ops/latent_attention.h"
#include "tensor/dtype.h"

namespace cachalot::cuda {

struct LatentRow {
  uint8_t* bytes;  // on 4
  int64_t latent, rope;

  __device__ int64_t tiles() const { return (latent + kScaleBlock - 1) / kScaleBlock; }
  __device__ float scale(int64_t tile) const { return reinterpret_cast<const float*>(bytes + latent)[tile]; }
  __device__ void set_scale(int64_t tile, float x) const {
    reinterpret_cast<float*>(bytes + latent)[tile] = x;
  }
  __device__ bf16* keys() const { return reinterpret_cast<bf16*>(bytes + latent + 4 * tiles()); }
  __device__ void set_key(int64_t i, bf16 x) const { keys()[i] = x; }
  // Number c of C + P.
  __device__ float operator()(int64_t c) const {
    if (c >= latent) return float(keys()[c - latent]);
    e4m3 code;
    code.bits = bytes[c];
    return float(code) * scale(c / kScaleBlock);
  }
};

__device__ inline LatentRow latent_row(const Tensor& cache, int64_t slot, int64_t latent, int64_t rope) {
  return {static_cast<uint8_t*>(cache.data) + slot * cache.ld, latent, rope};
}

}  // namespace cachalot::cuda
