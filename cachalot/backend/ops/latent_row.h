// A cache row in e4m3 (ops/latent_attention.h) on the host: what ref and cpu read and write.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "backend/ops/latent_attention.h"
#include "tensor/dtype.h"

namespace cachalot {

constexpr float kMostLatentScale = 128;  // 2^7

struct LatentRow {
  uint8_t* bytes;
  int64_t latent, rope;  // C, P

  int64_t tiles() const { return (latent + kScaleBlock - 1) / kScaleBlock; }
  uint8_t* codes() const { return bytes; }
  float scale(int64_t tile) const {
    float x;
    std::memcpy(&x, bytes + latent + 4 * tile, 4);
    return x;
  }
  void set_scale(int64_t tile, float x) const { std::memcpy(bytes + latent + 4 * tile, &x, 4); }
  bf16 key(int64_t i) const {
    bf16 x;
    std::memcpy(&x, bytes + latent + 4 * tiles() + 2 * i, 2);
    return x;
  }
  void set_key(int64_t i, bf16 x) const { std::memcpy(bytes + latent + 4 * tiles() + 2 * i, &x, 2); }

  // Number c of C + P.
  float operator()(int64_t c) const {
    if (c >= latent) return float(key(c - latent));
    return float(std::bit_cast<e4m3>(codes()[c])) * scale(c / kScaleBlock);
  }
};

inline LatentRow latent_row(const Tensor& cache, int64_t slot, int64_t latent, int64_t rope) {
  return {static_cast<uint8_t*>(cache.data) + slot * cache.ld, latent, rope};
}

}  // namespace cachalot
