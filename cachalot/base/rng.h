// Counter-based random numbers: a pure function of (seed, stream, index), so that any thread, rank or resumed
// process draws the same number for the same thing.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace cachalot {

// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
inline std::array<uint32_t, 4> philox(uint64_t seed, uint64_t stream, uint64_t index) {
  std::array<uint32_t, 4> c{uint32_t(index), uint32_t(index >> 32), uint32_t(stream), uint32_t(stream >> 32)};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
    c = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1, uint32_t(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Uniform in the open interval (0, 1): 53 random bits and a half, so that log() is always finite.
inline double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto r = philox(seed, stream, index);
  const uint64_t bits = (uint64_t(r[0]) << 32 | r[1]) >> 11;
  return (double(bits) + 0.5) * 0x1p-53;
}

// Standard normal, by Box and Muller; one draw an index.
inline double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto r = philox(seed, stream, index);
  const double u = (double(uint64_t(r[0]) << 32 | r[1]) + 0.5) * 0x1p-64;
  const double v = (double(uint64_t(r[2]) << 32 | r[3]) + 0.5) * 0x1p-64;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586477 * v);
}

// Uniform in {0, ..., n-1} (n > 0); the bias is below n / 2^64.
inline uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n) {
  const auto r = philox(seed, stream, index);
  return uint64_t((unsigned __int128)(uint64_t(r[0]) << 32 | r[1]) * n >> 64);
}

}  // namespace cachalot
