#include "train/held_out.h"

#include <algorithm>
#include <numbers>

namespace cachalot {

HeldOut::HeldOut(const Corpus& corpus, int64_t seq_len) {
  CHECK(seq_len >= 1);
  if (corpus.held_out().empty()) return;
  if (!corpus.train().empty()) tokens_.push_back(corpus.train().back());
  tokens_.insert(tokens_.end(), corpus.held_out().begin(), corpus.held_out().end());
  const TokenSpan all(tokens_);
  for (size_t first = 0; first + 1 < all.size(); first += size_t(seq_len)) {
    windows_.push_back(all.subspan(first, std::min(size_t(seq_len) + 1, all.size() - first)));
    bytes_.push_back(corpus.text_bytes(windows_.back().subspan(1)));
  }
}

double HeldOut::Result::bits_per_byte() const { return nats / std::numbers::ln2 / double(bytes); }

std::optional<HeldOut::Result> HeldOut::score(Trainer& trainer, int64_t limit,
                                              const std::atomic<bool>& stop) const {
  const int64_t all = int64_t(windows_.size()), n = limit == 0 ? all : std::min(limit, all);
  Result result;
  std::vector<TokenSpan> chosen;
  for (int64_t i = 0; i < n; ++i) {
    const size_t w = size_t(i * all / n);
    chosen.push_back(windows_[w]);
    result.tokens += int64_t(windows_[w].size()) - 1;
    result.bytes += bytes_[w];
  }
  if (result.bytes == 0) return std::nullopt;
  const auto nats = trainer.score(chosen, stop);
  if (!nats) return std::nullopt;
  result.nats = *nats;
  return result;
}

}  // namespace cachalot
