#include "data/minhash.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace cachalot {

void check(const MinHashOptions& o) {
  const auto in = [](const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      throw Error(fmt::format("dedup.near.{} is {}; it is a number from {} to {}", name, value, least, most));
  };
  in("shingle_words", o.shingle_words, 1, 100);
  in("bands", o.bands, 1, 200);
  in("rows", o.rows, 1, 100);
  if (!(o.jaccard > 0 && o.jaccard <= 1))
    throw Error(fmt::format("dedup.near.jaccard is {}; it is above 0 and at most 1", o.jaccard));
}

void find_shingles(const Words& words, int64_t shingle_words, std::vector<uint64_t>& shingles) {
  shingles.clear();
  const size_t n = words.hash.size(), length = std::min(size_t(shingle_words), n);
  if (n == 0) return;
  shingles.reserve(n - length + 1);
  RollingHash rolling(length);
  shingles.push_back(rolling.first(words.hash.data()));
  for (size_t i = 1; i + length <= n; ++i)
    shingles.push_back(rolling.next(words.hash[i - 1], words.hash[i + length - 1]));
  std::sort(shingles.begin(), shingles.end());
  shingles.erase(std::unique(shingles.begin(), shingles.end()), shingles.end());
}

double jaccard(std::span<const uint64_t> a, std::span<const uint64_t> b) {
  size_t common = 0, i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    const uint64_t x = a[i], y = b[j];
    common += x == y;
    i += x <= y;
    j += y <= x;
  }
  const size_t all = a.size() + b.size() - common;
  return all == 0 ? 0 : double(common) / double(all);
}

MinHasher::MinHasher(const MinHashOptions& options) : bands_(options.bands), rows_(options.rows) {
  const size_t orders = size_t(bands_ * rows_);
  for (size_t i = 0; i < orders; ++i) {
    const auto random = philox(0x6D696E68617368, 0, i);
    factor_.push_back(random[0] | 1);
    addend_.push_back(random[1]);
  }
  least_.resize(orders);
}

void MinHasher::keys(std::span<const uint64_t> shingles, std::span<uint64_t> keys) {
  CHECK(int64_t(keys.size()) == bands_);
  std::fill(keys.begin(), keys.end(), 0);
  if (shingles.empty()) return;
  std::fill(least_.begin(), least_.end(), UINT32_MAX);
  const size_t orders = least_.size();
  const uint32_t *factor = factor_.data(), *addend = addend_.data();
  uint32_t* least = least_.data();
  for (const uint64_t shingle : shingles) {
    const uint32_t x = uint32_t(shingle >> 32);
    for (size_t i = 0; i < orders; ++i) {
      const uint32_t h = x * factor[i] + addend[i];
      least[i] = h < least[i] ? h : least[i];
    }
  }
  for (int64_t band = 0; band < bands_; ++band) {
    uint64_t h = uint64_t(band) + 1;
    for (int64_t row = 0; row < rows_; ++row) h = mix(h + 0x9E3779B97F4A7C15u + least[band * rows_ + row]);
    keys[size_t(band)] = h == 0 ? 1 : h;
  }
}

}  // namespace cachalot
