#include "data/row_sampler.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "data/permutation.h"

namespace cachalot {

namespace {

// Streams of the counter-based generator (base/rng.h) under the run's seed.
constexpr uint64_t kOffsetStream = 0x6f66667365740000;   // one draw an epoch
constexpr uint64_t kShuffleStream = 0x73687566666c6500;  // + epoch

}  // namespace

RowSampler::RowSampler(const TokenStream& stream, int64_t seq_len, Packing packing, uint64_t seed,
                       int64_t shortest)
    : seq_len_(seq_len), seed_(seed), best_fit_(packing == Packing::best_fit) {
  CHECK(seq_len > 0);
  const auto too_short = [&] {
    throw Error(fmt::format("{}the training text has {} tokens; one row needs {}",
                            stream.name().empty() ? "" : fmt::format("part \"{}\" of ", stream.name()),
                            stream.tokens(), best_fit_ ? shortest : seq_len + 1))
        .hint("give more text, or a shorter sequence length");
  };
  if (best_fit_) {
    packed_ = pack_best_fit(stream, seq_len + 1, shortest);
    rows_ = packed_.rows();
    if (rows_ == 0) too_short();
    return;
  }
  const int64_t targets = stream.tokens() - 1, t = seq_len;
  rows_ = std::max<int64_t>(targets, 0) / t;
  if (rows_ == 0) too_short();
  // Any offset below T must leave room for all rows; of a text that just holds them one is given up.
  if (rows_ > 1 && targets - rows_ * t < t - 1) --rows_;
  offsets_ = std::min(t, targets - rows_ * t + 1);
}

std::span<const TokenRange> RowSampler::row(int64_t n, TokenRange& storage) const {
  CHECK(n >= 0);
  const int64_t epoch = n / rows_;
  const int64_t k = permute(n % rows_, rows_, seed_, kShuffleStream + uint64_t(epoch));
  if (best_fit_) return packed_.row(k);
  const int64_t offset = int64_t(random_below(seed_, kOffsetStream, uint64_t(epoch), uint64_t(offsets_)));
  storage = {.first = offset + k * seq_len_, .count = seq_len_ + 1};
  return {&storage, 1};
}

double RowSampler::fill() const {
  return best_fit_ ? double(packed_.tokens()) / (double(rows_) * double(seq_len_ + 1)) : 1.0;
}

}  // namespace cachalot
