// A pseudo-random permutation of {0, ..., n-1} without a table, as a function of (seed, stream).
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/error.h"
#include "base/rng.h"

namespace cachalot {

// A Feistel network of four rounds permutes {0, ..., 2^(2h)-1}, the smallest such range that holds n; a value
// outside n is sent through again until it falls inside (at most 4 trips on average), which keeps it a
// permutation.
inline int64_t permute(int64_t index, int64_t n, uint64_t seed, uint64_t stream) {
  const int half = std::max(1, (int(std::bit_width(uint64_t(n - 1))) + 1) / 2);
  const uint64_t mask = (uint64_t(1) << half) - 1;
  CHECK(0 <= index && index < n && half <= 32);  // the generator's word
  uint64_t value = uint64_t(index);
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (philox(seed, stream, round << 60 | right)[0] & mask);
      left = right;
      right = next;
    }
    value = left << half | right;
  } while (value >= uint64_t(n));
  return int64_t(value);
}

}  // namespace cachalot
