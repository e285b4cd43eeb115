#include "train/held_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numbers>

namespace cachalot {

namespace {

double bits(double nats, int64_t bytes) { return nats / std::numbers::ln2 / double(bytes); }

Json depths_json(const std::vector<TextScore::Depth>& depths) {
  Json json = Json::array();
  for (const TextScore::Depth& d : depths)
    json.push_back({{"loss", d.loss()}, {"acceptance", d.acceptance()}});
  return json;
}

std::string acceptance_text(const std::vector<TextScore::Depth>& depths) {
  std::string text;
  for (const TextScore::Depth& d : depths)
    if (d.targets > 0)
      text += fmt::format("{}{:.1f} %", text.empty() ? ", MTP accepts " : " ", 100 * d.acceptance());
  return text;
}

}  // namespace

HeldOut::HeldOut(const std::vector<TokenStream>& held_out, const Tokenizer& tokenizer, int64_t seq_len,
                 const std::vector<TokenStream>& validation, std::optional<int32_t> begin) {
  CHECK(seq_len >= 1);
  const auto add = [&](const TokenStream& part, bool is_held_out) {
    const int32_t end_of_text = int32_t(part.shards()[0].header().end_of_text);
    std::vector<int32_t>& tokens =
        tokens_.emplace_back(size_t(part.tokens()) + 1, begin.value_or(end_of_text));
    part.read(0, std::span(tokens).subspan(1));
    const auto text_bytes = [&](TokenSpan ids) {  // exactly the text's: an end-of-text token stands for none
      int64_t bytes = 0;
      for (const int32_t id : ids) bytes += id == end_of_text ? 0 : int64_t(tokenizer.token_bytes(id).size());
      return bytes;
    };
    const TokenSpan all(tokens);
    const size_t before = windows_.size();
    for (size_t first = 0; first + 1 < all.size(); first += size_t(seq_len)) {
      windows_.push_back(all.subspan(first, std::min(size_t(seq_len) + 1, all.size() - first)));
      bytes_.push_back(text_bytes(windows_.back().subspan(1)));
    }
    if (windows_.size() > before)
      ranges_.push_back(
          {.name = part.name(), .first = before, .end = windows_.size(), .held_out = is_held_out});
  };
  for (const TokenStream& part : held_out) add(part, true);
  for (const TokenStream& set : validation) add(set, false);
}

double HeldOut::Set::bits_per_byte() const { return bits(score.nats, bytes); }
double HeldOut::Result::bits_per_byte() const { return bits(nats, bytes); }
double HeldOut::Result::average_bits_per_byte() const { return bits(average_nats, bytes); }

std::vector<std::string> HeldOut::sets() const {
  std::vector<std::string> names;
  for (const Range& r : ranges_) names.push_back(r.name);
  return names;
}

bool HeldOut::in_result(const Range& range) const {
  const auto held_out = [](const Range& r) { return r.held_out; };
  return range.held_out == std::any_of(ranges_.begin(), ranges_.end(), held_out);
}

std::vector<TokenSpan> HeldOut::windows_of(const Range& range, int64_t limit, int64_t* bytes) const {
  const int64_t all = int64_t(windows_.size()), n = limit == 0 ? all : std::min(limit, all);
  std::vector<TokenSpan> windows;
  for (int64_t i = 0; i < n; ++i)
    if (const size_t w = size_t(i * all / n); range.first <= w && w < range.end) {
      windows.push_back(windows_[w]);
      *bytes += bytes_[w];
    }
  return windows;
}

std::optional<HeldOut::Result> HeldOut::score(const Scorer& scorer, int64_t limit) const {
  Result result;
  for (const Range& range : ranges_) {
    Set set{.name = range.name, .score = {}, .bytes = 0};
    const std::vector<TokenSpan> windows = windows_of(range, limit, &set.bytes);
    if (set.bytes == 0) continue;
    const auto score = scorer(windows);
    if (!score) return std::nullopt;
    set.score = *score;
    if (in_result(range)) {
      TextScore sum{.nats = result.nats, .targets = result.tokens, .depths = std::move(result.depths)};
      sum += *score;
      result.nats = sum.nats;
      result.tokens = sum.targets;
      result.depths = std::move(sum.depths);
      result.bytes += set.bytes;
    }
    result.sets.push_back(std::move(set));
  }
  return result.bytes == 0 ? std::nullopt : std::optional(std::move(result));
}

std::optional<HeldOut::Result> HeldOut::score(Trainer& trainer, int64_t limit,
                                              const std::atomic<bool>& stop) const {
  std::optional<Result> result = score(
      [&](std::span<const TokenSpan> windows) { return trainer.score_text(windows, Drafts::yes, stop); },
      limit);
  Ema* average = trainer.average();
  if (!result || !average) return result;
  average->lend(trainer.stream());
  bool stopped = false;
  for (const Range& range : ranges_) {
    int64_t bytes = 0;
    const std::vector<TokenSpan> windows = windows_of(range, limit, &bytes);
    if (stopped || bytes == 0 || !in_result(range)) continue;
    const auto score = trainer.score_text(windows, Drafts::no, stop);
    stopped = !score;
    if (score) result->average_nats += score->nats;
  }
  average->take_back(trainer.stream());
  return stopped ? std::nullopt : std::move(result);
}

Json held_out_json(const HeldOut::Result& r) {
  Json json{
      {"bits_per_byte", r.bits_per_byte()}, {"loss", r.loss()}, {"tokens", r.tokens}, {"bytes", r.bytes}};
  if (!r.depths.empty()) json["mtp"] = depths_json(r.depths);
  if (r.average_nats > 0) json["average_bits_per_byte"] = r.average_bits_per_byte();
  for (const HeldOut::Set& set : r.sets) {
    if (r.sets.size() == 1) break;
    Json& one = json["sets"][set.name];
    one = {{"bits_per_byte", set.bits_per_byte()},
           {"loss", set.loss()},
           {"tokens", set.score.targets},
           {"bytes", set.bytes}};
    if (!set.score.depths.empty()) one["mtp"] = depths_json(set.score.depths);
  }
  for (const HeldOut::Set& set : r.sets)
    if (!set.score.expert_load.empty()) json["expert_load"][set.name] = set.score.expert_load;
  return json;
}

std::string held_out_text(const HeldOut::Result& r) {
  std::string text = fmt::format("held out {:.4f} bits per byte (loss {:.4f}){}", r.bits_per_byte(), r.loss(),
                                 acceptance_text(r.depths));
  if (r.average_nats > 0)
    text += fmt::format("; with the average of the weights {:.4f}", r.average_bits_per_byte());
  for (const HeldOut::Set& set : r.sets)
    if (r.sets.size() > 1)
      text += fmt::format("\n  {:<14} {:.4f} bits per byte{}", set.name, set.bits_per_byte(),
                          acceptance_text(set.score.depths));
  return text;
}

}  // namespace cachalot
