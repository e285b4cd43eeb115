#include "data/bpe_encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "base/error.h"
#include "data/unicode.h"

namespace cachalot {

namespace {

// Bytes of a character by its first byte, for text that is valid UTF-8; 1 for what begins none.
int character_length(uint8_t lead) { return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

// The character's bytes as one number, first byte lowest.
uint32_t character(const char* p, int length) {
  uint32_t c = 0;
  for (int i = 0; i < length; ++i) c |= uint32_t(uint8_t(p[i])) << 8 * i;
  return c;
}

bool continues(char byte) { return (uint8_t(byte) & 0xC0) == 0x80; }

}  // namespace

BpeModel::BpeModel(size_t merges) {
  CHECK(merges <= kMaxMerges);
  const int log2_slots = std::bit_width(2 * merges + 1);
  slots_.assign(size_t(1) << log2_slots, kEmpty);
  slots_shift_ = 64 - log2_slots;
  tokens_.reserve(merges);
}

bool BpeModel::add_merge(int32_t left, int32_t right, int32_t token) {
  uint64_t& slot = slots_[place(key(left, right))];
  if (slot != kEmpty) return false;
  const uint32_t rank = uint32_t(tokens_.size());
  slot = key(left, right) << 24 | rank;
  tokens_.push_back(token);
  last_rank_.resize(std::max(last_rank_.size(), size_t(std::max({left, right, token})) + 1), kNone);
  last_rank_[size_t(token)] = rank;
  return true;
}

void BpeModel::finish(const std::vector<std::string_view>& tokens) {
  byte_ranks_.resize(1 << 16);
  for (size_t left = 0; left < 256; ++left)
    for (size_t right = 0; right < 256; ++right)
      byte_ranks_[left << 8 | right] = rank(byte_tokens_[left], byte_tokens_[right]);
  for (const uint64_t slot : slots_) {
    if (slot == kEmpty) continue;
    for (const uint64_t half : {slot >> 44, slot >> 24 & 0xFFFFF})
      if (last_rank_[half] != kNone && last_rank_[half] >= (slot & kNone)) in_order_ = false;
  }
  list_joins(tokens);
  list_words(tokens);
  list_characters();
}

void BpeModel::list_joins(const std::vector<std::string_view>& tokens) {
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  for (const std::string_view token : tokens) {
    for (size_t at = 1; at < token.size(); ++at) {
      if (continues(token[at])) continue;  // inside a character: pieces are never cut there
      size_t begin = at - 1, end = at + 1;
      while (begin > 0 && continues(token[begin])) --begin;
      while (end < token.size() && continues(token[end])) ++end;
      const int left = int(std::min<size_t>(at - begin, 5)), right = int(std::min<size_t>(end - at, 5));
      if (!continues(token[begin]) && left == character_length(uint8_t(token[begin])) &&
          right == character_length(uint8_t(token[at]))) {
        pairs.emplace_back(character(&token[begin], left), character(&token[at], right));
      } else {
        const size_t place = size_t(uint8_t(token[at - 1])) << 8 | uint8_t(token[at]);
        joined_bytes_[place >> 6] |= uint64_t(1) << (place & 63);
      }
    }
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  const int log2_bits = std::bit_width(16 * pairs.size() + 63);  // one bit in 16 or fewer is set
  joined_.assign(size_t(1) << (log2_bits - 6), 0);
  joined_shift_ = 64 - log2_bits;
  for (const auto& [left, right] : pairs) {
    const size_t place = joined_place(left, right);
    joined_[place >> 6] |= uint64_t(1) << (place & 63);
  }
}

void BpeModel::list_words(const std::vector<std::string_view>& tokens) {
  const int log2_slots = std::bit_width(2 * tokens.size() + 1);
  words_.assign(size_t(1) << log2_slots, {});
  words_shift_ = 64 - log2_slots;
  BpeWorker worker(*this);
  IdBuffer ids;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty() || tokens[id].size() > WordKey::kMaxBytes) continue;
    ids.clear();
    worker.merge(tokens[id], ids);
    if (ids.size() != 1 || ids.data()[0] != int32_t(id)) continue;
    const WordKey key = WordKey::of(tokens[id]);
    size_t at = size_t(key.hash() >> words_shift_);
    while (words_[at].token >= 0) at = (at + 1) & (words_.size() - 1);
    words_[at] = {key, int32_t(id)};
  }
}

void BpeModel::list_characters() {
  if (!in_order_) return;
  characters_.assign(1 << 16, -1);
  std::string bytes;
  for (uint32_t c = 0x80; c < characters_.size(); ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    bytes.clear();
    append_utf8(c, bytes);
    characters_[c] = find_word(WordKey::of(bytes));
  }
}

size_t BpeModel::begin(std::string_view part, int32_t* tokens) const {
  size_t count = 0;
  for (size_t at = 0; at < part.size();) {
    const uint8_t lead = uint8_t(part[at]);
    const size_t length = std::min<size_t>(size_t(character_length(lead)), part.size() - at);
    if ((length == 2 || length == 3) && !characters_.empty() && !continues(char(lead))) {
      const uint8_t second = uint8_t(part[at + 1]) & 0x3F;
      const uint32_t c = length == 2
                             ? (lead & 0x1Fu) << 6 | second
                             : (lead & 0x0Fu) << 12 | uint32_t(second) << 6 | (uint8_t(part[at + 2]) & 0x3Fu);
      const size_t next = at + length;
      if (characters_[c] >= 0 && (at == 0 || !may_join_parts(uint8_t(part[at - 1]), lead)) &&
          (next == part.size() || !may_join_parts(uint8_t(part[next - 1]), uint8_t(part[next])))) {
        tokens[count++] = characters_[c];
        at = next;
        continue;
      }
    }
    for (size_t i = 0; i < length; ++i) tokens[count++] = byte_tokens_[uint8_t(part[at + i])];
    at += length;
  }
  return count;
}

void IdBuffer::grow(size_t count) {
  const size_t capacity = std::max({size_t(4096), size_ + count, capacity_ + capacity_ / 2});
  auto larger = std::make_unique_for_overwrite<int32_t[]>(capacity);
  if (size_ > 0) std::memcpy(larger.get(), ids_.get(), size_ * sizeof(int32_t));
  ids_ = std::move(larger);
  capacity_ = capacity;
}

void BpeWorker::encode_new(std::string_view piece, IdBuffer& out) {
  const size_t before = out.size();
  const char* begin = piece.data();  // of the part
  const char* const end = begin + piece.size();
  int length = character_length(uint8_t(*begin));
  uint32_t left = character(begin, std::min<int>(length, int(end - begin)));
  for (const char* at = begin + length; at < end; at += length) {
    length = std::min<int>(character_length(uint8_t(*at)), int(end - at));
    const uint32_t right = character(at, length);
    if (!model_.may_join(left, right, uint8_t(at[-1]))) {
      encode_part(std::string_view(begin, size_t(at - begin)), out);
      begin = at;
    }
    left = right;
  }
  encode_part(std::string_view(begin, size_t(end - begin)), out);
  const size_t count = out.size() - before;
  if (begin != piece.data() && piece.size() <= Words::kMaxBytes && count <= Words::kMaxIds)
    words_.insert(word_key(piece.data(), piece.size(), end), out.data() + before, count);
}

void BpeWorker::encode_part(std::string_view part, IdBuffer& out) {
  const auto append = [&](const auto& entry) {
    std::memcpy(out.room(entry.count), entry.ids.data(), entry.count * sizeof(int32_t));
    out.advance(entry.count);
  };
  const size_t before = out.size();
  const auto ids = [&] { return out.data() + before; };
  const auto count = [&] { return out.size() - before; };
  if (part.size() <= Words::kMaxBytes) {
    const WordKey key = WordKey::of(part);
    if (const Words::Entry* entry = words_.find(key)) return append(*entry);
    if (const int32_t token = model_.find_word(key); token >= 0) out.push_back(token);
    else merge(part, out);
    if (count() <= Words::kMaxIds) words_.insert(key, ids(), count());
  } else if (part.size() <= Phrases::kMaxBytes) {
    const PhraseKey key = PhraseKey::of(part);
    if (const Phrases::Entry* entry = phrases_.find(key)) return append(*entry);
    merge(part, out);
    if (count() <= Phrases::kMaxIds) phrases_.insert(key, ids(), count());
  } else {
    merge(part, out);
  }
}

void BpeWorker::merge(std::string_view part, IdBuffer& out) {
  int32_t* tokens = out.room(part.size());
  const size_t n = model_.begin(part, tokens);
  out.advance(n <= kShort ? merge_short(tokens, n, n == part.size() ? part.data() : nullptr)
                          : merge_long(tokens, n));
}

size_t BpeWorker::merge_short(int32_t* tokens, size_t n, const char* bytes) const {
  std::array<uint32_t, kShort> rank;  // of the pair that begins here
  for (size_t i = 0; i + 1 < n; ++i)
    rank[i] = bytes ? model_.rank_of_bytes(uint8_t(bytes[i]), uint8_t(bytes[i + 1]))
                    : model_.rank(tokens[i], tokens[i + 1]);
  rank[n - 1] = BpeModel::kNone;
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) best = rank[i] < rank[best] ? i : best;
    if (rank[best] == BpeModel::kNone) break;
    tokens[best] = model_.token_of(rank[best]);
    --n;
    for (size_t i = best + 1; i < n; ++i) {
      tokens[i] = tokens[i + 1];
      rank[i] = rank[i + 1];
    }
    if (best + 1 < n) rank[best] = model_.rank(tokens[best], tokens[best + 1]);
    if (best > 0) rank[best - 1] = model_.rank(tokens[best - 1], tokens[best]);
  }
  return n;
}

size_t BpeWorker::merge_long(int32_t* tokens, size_t count) {
  constexpr uint32_t kEnd = ~uint32_t(0);
  if (count >= kEnd)
    throw Error(fmt::format("a piece of {} bytes that the pre-tokenizer does not cut", count))
        .hint("cut the text into parts of less than 4 GiB");
  const uint32_t n = uint32_t(count);
  symbols_.resize(n);
  heap_.clear();
  for (uint32_t i = 0; i < n; ++i) symbols_[i] = {tokens[i], i - 1, i + 1 < n ? i + 1 : kEnd};
  const auto candidate = [&](uint32_t left) {  // appended if the symbol and its neighbour are a merge
    const uint32_t rank = model_.rank(symbols_[left].token, symbols_[symbols_[left].next].token);
    if (rank != BpeModel::kNone) heap_.push_back(uint64_t(rank) << 32 | left);
    return rank != BpeModel::kNone;
  };
  const auto push = [&](uint32_t left) {
    if (candidate(left)) std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  };
  for (uint32_t i = 0; i + 1 < n; ++i) candidate(i);
  std::make_heap(heap_.begin(), heap_.end(), std::greater<>());

  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const uint32_t left = uint32_t(heap_.back()), rank = uint32_t(heap_.back() >> 32);
    heap_.pop_back();
    Symbol& symbol = symbols_[left];
    if (symbol.token < 0 || symbol.next == kEnd) continue;
    const uint32_t right = symbol.next;
    if (model_.rank(symbol.token, symbols_[right].token) != rank) continue;  // a neighbour has changed since
    symbol.token = model_.token_of(rank);
    symbol.next = symbols_[right].next;
    symbols_[right].token = -1;
    if (symbol.next != kEnd) {
      symbols_[symbol.next].prev = left;
      push(left);
    }
    if (symbol.prev != kEnd) push(symbol.prev);
  }
  size_t left = 0;
  for (uint32_t i = 0; i != kEnd; i = symbols_[i].next) tokens[left++] = symbols_[i].token;
  return left;
}

}  // namespace cachalot
