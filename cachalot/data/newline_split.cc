#include "data/newline_split.h"

#include "base/rng.h"
#include "base/text.h"
#include "data/unicode.h"

namespace cachalot {

namespace {

constexpr uint64_t kSplitSeed = 0x73706c6974000000;  // see data/fim.cc

// Where the line ends begin in " ?[punctuation or symbol]+[CR LF]+"; npos: the text is something else.
size_t line_ends(std::string_view text, const CodepointSet& punctuation) {
  size_t at = text.starts_with(' ') ? 1 : 0;
  const size_t begin = at;
  while (at < text.size()) {
    const int length = utf8_length(text, at);
    if (length == 0 || !punctuation.contains(decode_utf8(text, at, length))) break;
    at += size_t(length);
  }
  if (at == begin || at == text.size()) return std::string_view::npos;
  return text.find_first_not_of("\r\n", at) == std::string_view::npos ? at : std::string_view::npos;
}

}  // namespace

NewlineSplitter::NewlineSplitter(const Tokenizer& tokenizer)
    : splits_(size_t(tokenizer.vocab_size()) / 64 + 1, 0) {
  CodepointSet punctuation;
  add_category("P", punctuation);
  add_category("S", punctuation);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    const size_t cut = line_ends(bytes, punctuation);
    if (cut == std::string_view::npos) continue;
    std::vector<int32_t>& parts = parts_[id];
    for (const std::string_view part : {bytes.substr(0, cut), bytes.substr(cut)})
      for (const int32_t token : tokenizer.encode(part, {.parse_special = false})) parts.push_back(token);
    splits_[size_t(id) >> 6] |= uint64_t(1) << (id & 63);
  }
}

void NewlineSplitter::split(std::vector<int32_t>& ids, double rate, uint64_t seed, uint64_t document) const {
  if (rate <= 0) return;
  std::vector<int32_t> out;
  size_t copied = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!can_split(ids[i]) || random_uniform(seed ^ kSplitSeed, document, i) >= rate) continue;
    const std::vector<int32_t>& parts = parts_.at(ids[i]);
    out.insert(out.end(), ids.begin() + int64_t(copied), ids.begin() + int64_t(i));
    out.insert(out.end(), parts.begin(), parts.end());
    copied = i + 1;
  }
  if (copied == 0) return;
  out.insert(out.end(), ids.begin() + int64_t(copied), ids.end());
  ids = std::move(out);
}

}  // namespace cachalot
