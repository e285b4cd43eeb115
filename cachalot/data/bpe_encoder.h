// From a piece of text (data/pre_tokenizer.h) to its tokens.
//
// A piece starts as one token per byte; the adjacent pair of lowest rank (place in the list of merges;
// leftmost first) is replaced until no pair is a merge. Nearly all pieces of a text are words that were met
// before, so what was merged is kept (BpeWorker). Of a piece that was not, three facts save work, none of
// which changes a token:
//
//   - Where no token of the vocabulary joins two neighbouring characters, none ever will: the piece is cut
//     there (BpeModel::may_join) and each part is merged, or remembered, by itself. A run of Han characters,
//     which no space cuts, falls into words of a few characters.
//   - A part whose bytes are a token is that token, if merging the token's bytes gave it (tried once, at
//     loading).
//   - In a list where every merge comes after those that make its two halves, as trained lists are, merging
//     by rank is: for each merge of the list, apply it wherever it stands. So a character that becomes one
//     token, and of which no token holds a part together with a part of a neighbour, may begin as that token:
//     nothing outside depends on when its bytes were merged, and whatever takes it in comes later in the
//     list.
//
// A short part is merged by looking for the lowest rank again and again, O(n^2) with a small constant; a long
// one with a heap, O(n log n), so that a megabyte of the same letter takes moments.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

namespace cachalot {

// A string of 1 to 8 * kWords - 1 bytes as a key: the bytes, zeros, and in the last byte the length.
template <size_t kWords> struct PieceKey {
  static constexpr size_t kMaxBytes = 8 * kWords - 1;
  std::array<uint64_t, kWords> words{};  // all zero: no string

  static PieceKey of(std::string_view s) {
    static_assert(std::endian::native == std::endian::little, "the first byte is the lowest");
    PieceKey key;
    std::memcpy(key.words.data(), s.data(), s.size());
    key.words.back() |= uint64_t(s.size()) << 56;
    return key;
  }
  bool operator==(const PieceKey& other) const {  // in line: std::array's is a call of memcmp
    uint64_t difference = 0;
    for (size_t i = 0; i < kWords; ++i) difference |= words[i] ^ other.words[i];
    return difference == 0;
  }
  uint64_t hash() const {  // the high bits are the mixed ones
    uint64_t h = 0;
    for (const uint64_t word : words) h = std::rotl(h, 29) * 0x9E3779B97F4A7C15u ^ word;
    h *= 0xBF58476D1CE4E5B9u;
    return (h ^ h >> 32) * 0x94D049BB133111EBu;
  }
};
using WordKey = PieceKey<2>;
using PhraseKey = PieceKey<8>;

// The merges of one tokenizer. Filled by set_byte and add_merge, then finish(); after that safe to use from
// several threads. Ids are below 2^20.
class BpeModel {
 public:
  static constexpr uint32_t kNone = (1 << 24) - 1;  // the rank of no merge
  static constexpr size_t kMaxMerges = kNone;

  explicit BpeModel(size_t merges = 0);
  void set_byte(uint8_t byte, int32_t token) { byte_tokens_[byte] = token; }
  // The merge that comes next in the list: what `left` and `right` become. False when the pair is there
  // already.
  bool add_merge(int32_t left, int32_t right, int32_t token);
  void finish(const std::vector<std::string_view>& tokens);  // the bytes of every token, by id; "": none

  // Rank of the merge of two tokens, or kNone.
  uint32_t rank(int32_t left, int32_t right) const {
    return uint32_t(slots_[place(key(left, right))] & kNone);
  }
  uint32_t rank_of_bytes(uint8_t left, uint8_t right) const { return byte_ranks_[size_t(left) << 8 | right]; }
  int32_t token_of(uint32_t rank) const { return tokens_[rank]; }

  // The tokens that `part` may begin as: of its bytes or, see above, of its characters. Returns how many.
  size_t begin(std::string_view part, int32_t* tokens) const;

  // The token that the word as a whole becomes; -1: it becomes several.
  int32_t find_word(const WordKey& word) const {
    for (size_t at = size_t(word.hash() >> words_shift_);; at = (at + 1) & (words_.size() - 1))
      if (words_[at].token < 0 || words_[at].key == word) return words_[at].token;
  }

  // May a token hold both characters (the bytes of their UTF-8, first byte lowest) side by side? Never a
  // wrong no.
  bool may_join(uint32_t left, uint32_t right, uint8_t left_last_byte) const {
    const size_t at = joined_place(left, right);
    return (joined_[at >> 6] >> (at & 63) & 1) || may_join_parts(left_last_byte, uint8_t(right));
  }

 private:
  // May a token hold the end of one character, but not all of it and of its neighbour, and the start of the
  // next?
  bool may_join_parts(uint8_t left_last, uint8_t right_first) const {
    const size_t at = size_t(left_last) << 8 | right_first;
    return joined_bytes_[at >> 6] >> (at & 63) & 1;
  }

  // Merges by open addressing, at most half full: left id, right id (20 bits each), rank (24). An empty slot
  // reads as "rank kNone" of a pair that would be found nowhere else either.
  static constexpr uint64_t kEmpty = ~uint64_t(0);
  static uint64_t key(int32_t left, int32_t right) { return uint64_t(left) << 20 | uint64_t(right); }
  size_t place(uint64_t wanted) const {
    size_t at = size_t(wanted * 0x9E3779B97F4A7C15u >> slots_shift_);  // 2^64 / golden ratio
    while (slots_[at] >> 24 != wanted && slots_[at] != kEmpty) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  size_t joined_place(uint32_t left, uint32_t right) const {
    const uint64_t h = (left * 0x9E3779B97F4A7C15u) ^ (right * 0xC2B2AE3D27D4EB4Fu);
    return size_t((h ^ h >> 29) * 0xBF58476D1CE4E5B9u >> joined_shift_);
  }
  void list_joins(const std::vector<std::string_view>& tokens);
  void list_words(const std::vector<std::string_view>& tokens);
  void list_characters();

  std::array<int32_t, 256> byte_tokens_{};
  std::vector<uint64_t> slots_;
  int slots_shift_ = 0;
  std::vector<int32_t> tokens_;       // by rank: what the merge gives
  std::vector<uint32_t> last_rank_;   // by token: of the last merge that gives it; kNone: none does
  bool in_order_ = true;              // every merge comes after those that make its halves
  std::vector<uint32_t> byte_ranks_;  // by left byte << 8 | right byte

  // Tokens of up to 15 bytes whose bytes merge to the token itself; open addressing, at most half full.
  struct Word {
    WordKey key;
    int32_t token = -1;
  };
  std::vector<Word> words_;
  int words_shift_ = 0;
  // By code point below 2^16, of those beyond ASCII: its token; -1: it is several. Empty unless in_order_.
  std::vector<int32_t> characters_;

  // One bit for each pair of characters that some token holds, at its hash: other pairs may share the bit.
  std::vector<uint64_t> joined_;
  int joined_shift_ = 0;
  // For tokens that begin or end inside a character: last byte on the left << 8 | first byte on the right.
  std::array<uint64_t, 1024> joined_bytes_{};
};

// Ids of unknown number, written in place.
class IdBuffer {
 public:
  const int32_t* data() const { return ids_.get(); }
  size_t size() const { return size_; }
  void clear() { size_ = 0; }
  // Where the next ids go, with room for `count`; advance() says how many there are.
  int32_t* room(size_t count) {
    if (capacity_ - size_ < count) [[unlikely]]
      grow(count);
    return ids_.get() + size_;
  }
  void advance(size_t count) { size_ += count; }
  void push_back(int32_t id) { *room(1) = id, ++size_; }

 private:
  void grow(size_t count);
  std::unique_ptr<int32_t[]> ids_;
  size_t size_ = 0, capacity_ = 0;
};

// A bounded memory of what strings of up to 8 * kWords - 1 bytes were merged to: sets of two entries, the one
// used last first. Bounded work whatever the text: a lookup compares two entries.
template <size_t kWords, size_t kIds> class PieceCache {
 public:
  using Key = PieceKey<kWords>;
  static constexpr size_t kMaxBytes = Key::kMaxBytes, kMaxIds = kIds;

  struct Entry {
    Key key;
    std::array<int32_t, kIds> ids;
    uint32_t count = 0;
  };

  explicit PieceCache(int log2_sets) : sets_(size_t(1) << log2_sets), shift_(64 - log2_sets) {}

  Entry* find(const Key& key) {
    Set& set = sets_[place(key)];
    if (set[0].key == key) return &set[0];
    if (set[1].key != key) return nullptr;
    std::swap(set[0], set[1]);
    return &set[0];
  }

  void insert(const Key& key, const int32_t* ids, size_t count) {
    Set& set = sets_[place(key)];
    set[1] = set[0];
    set[0].key = key;
    set[0].count = uint32_t(count);
    std::memcpy(set[0].ids.data(), ids, count * sizeof(int32_t));
  }

 private:
  struct alignas(64) Set : std::array<Entry, 2> {};
  size_t place(const Key& key) const { return size_t(key.hash() >> shift_); }
  std::vector<Set> sets_;
  int shift_;
};

// Working memory of one thread: two caches (5 MiB together) and room to merge in. What it has seen before
// never changes the ids.
class BpeWorker {
 public:
  explicit BpeWorker(const BpeModel& model) : model_(model) {}

  // Appends the tokens of `piece`, which is not empty and cuts no character in two. The bytes up to
  // `readable` exist.
  void encode(std::string_view piece, const char* readable, IdBuffer& out) {
    const size_t n = piece.size();
    if (n <= Words::kMaxBytes) {
      const WordKey key = word_key(piece.data(), n, readable);
      if (const Words::Entry* entry = words_.find(key)) {
        int32_t* ids = out.room(Words::kMaxIds);
        std::memcpy(ids, entry->ids.data(), sizeof(entry->ids));
        return out.advance(entry->count);
      }
    }
    encode_new(piece, out);
  }

  // The same without remembering anything.
  void merge(std::string_view piece, IdBuffer& out);

 private:
  using Words = PieceCache<2, 3>;       // 32 bytes an entry
  using Phrases = PieceCache<8, 15>;    // 128 bytes an entry
  static constexpr size_t kShort = 64;  // tokens that are merged without a heap

  // WordKey::of without a call of memcpy where 16 bytes may be read.
  static WordKey word_key(const char* p, size_t n, const char* readable) {
    if (readable - p < 16) return WordKey::of({p, n});
    WordKey key;
    std::memcpy(key.words.data(), p, 16);
    const uint64_t all = ~uint64_t(0);
    key.words[0] &= n >= 8 ? all : ~(all << 8 * n);
    key.words[1] &= n > 8 ? ~(all << 8 * (n - 8)) : 0;
    key.words[1] |= uint64_t(n) << 56;
    return key;
  }

  void encode_new(std::string_view piece, IdBuffer& out);
  void encode_part(std::string_view part, IdBuffer& out);
  // Merge the first n of `tokens` in place; return how many are left. `bytes`: the n bytes that they are, or
  // null.
  size_t merge_short(int32_t* tokens, size_t n, const char* bytes) const;
  size_t merge_long(int32_t* tokens, size_t n);

  struct Symbol {
    int32_t token;        // -1: merged into the symbol before
    uint32_t prev, next;  // kEnd at the ends
  };

  const BpeModel& model_;
  Words words_{16};
  Phrases phrases_{12};
  std::vector<Symbol> symbols_;
  // Rank, then place of the left symbol; std::push_heap with greater: the lowest on top.
  std::vector<uint64_t> heap_;
};

}  // namespace cachalot
