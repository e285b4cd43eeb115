#include "train/held_out.h"

#include <algorithm>
#include <numbers>

namespace cachalot {

HeldOut::HeldOut(const std::vector<TokenStream>& held_out, const Tokenizer& tokenizer, int64_t seq_len) {
  CHECK(seq_len >= 1);
  if (held_out.empty()) return;
  const int32_t end_of_text = int32_t(held_out[0].shards()[0].header().end_of_text);
  tokens_.push_back(end_of_text);
  for (const TokenStream& part : held_out) {
    const size_t begin = tokens_.size();
    tokens_.resize(begin + size_t(part.tokens()));
    part.read(0, std::span(tokens_).subspan(begin));
  }
  const auto text_bytes = [&](TokenSpan ids) {  // exactly the text's: an end-of-text token stands for none
    int64_t bytes = 0;
    for (const int32_t id : ids) bytes += id == end_of_text ? 0 : int64_t(tokenizer.token_bytes(id).size());
    return bytes;
  };
  const TokenSpan all(tokens_);
  for (size_t first = 0; first + 1 < all.size(); first += size_t(seq_len)) {
    windows_.push_back(all.subspan(first, std::min(size_t(seq_len) + 1, all.size() - first)));
    bytes_.push_back(text_bytes(windows_.back().subspan(1)));
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
