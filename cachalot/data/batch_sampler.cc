#include "data/batch_sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/rng.h"

namespace cachalot {

namespace {

// Streams of the counter-based generator (base/rng.h) under the run's seed.
constexpr uint64_t kOffsetStream = 0x6f66667365740000;   // one draw an epoch
constexpr uint64_t kShuffleStream = 0x73687566666c6500;  // + epoch

// A pseudo-random permutation of {0, ..., n-1} without a table: a Feistel network of four rounds permutes
// {0, ..., 2^(2h)-1}, the smallest such range that holds n; a value outside n is sent through again until it
// falls inside (at most 4 trips on average), which keeps it a permutation.
int64_t permute(int64_t index, int64_t n, uint64_t seed, uint64_t stream) {
  const int half = std::max(1, (int(std::bit_width(uint64_t(n - 1))) + 1) / 2);
  const uint64_t mask = (uint64_t(1) << half) - 1;
  CHECK(half <= 32);  // the generator's word
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

}  // namespace

BatchSampler::BatchSampler(BatchSamplerOptions options) : options_(options) {
  CHECK(options.batch_rows > 0 && options.seq_len > 0);
  const int64_t targets = options.tokens - 1, t = options.seq_len;
  windows_ = std::max<int64_t>(targets, 0) / t;
  if (windows_ == 0)
    throw Error(fmt::format("the training text has {} tokens; one row needs {}",
                            std::max<int64_t>(options.tokens, 0), t + 1))
        .hint("give more text, or a shorter sequence length");
  // Any offset below T must leave room for all windows; of a text that just holds them one is given up.
  if (windows_ > 1 && targets - windows_ * t < t - 1) --windows_;
  offsets_ = std::min(t, targets - windows_ * t + 1);
}

int64_t BatchSampler::start(int64_t step, int64_t row) const {
  CHECK(step >= 0 && 0 <= row && row < options_.batch_rows);
  const int64_t sample = step * options_.batch_rows + row;
  const int64_t epoch = sample / windows_;
  const int64_t offset =
      int64_t(random_below(options_.seed, kOffsetStream, uint64_t(epoch), uint64_t(offsets_)));
  const int64_t window =
      permute(sample % windows_, windows_, options_.seed, kShuffleStream + uint64_t(epoch));
  return offset + window * options_.seq_len;
}

std::vector<std::span<const int32_t>> BatchSampler::rows(std::span<const int32_t> stream,
                                                         int64_t step) const {
  CHECK(int64_t(stream.size()) == options_.tokens);
  std::vector<std::span<const int32_t>> rows;
  for (int64_t row = 0; row < options_.batch_rows; ++row)
    rows.push_back(stream.subspan(size_t(start(step, row)), size_t(options_.seq_len + 1)));
  return rows;
}

}  // namespace cachalot
