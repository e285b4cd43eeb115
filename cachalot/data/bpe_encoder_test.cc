#include "data/bpe_encoder.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>

#include "base/rng.h"

namespace cachalot {
namespace {

using Ids = std::vector<int32_t>;

// Merging by the definition.
struct Rules {
  std::vector<std::string> tokens;  // by id: 256 bytes, then what merges give
  std::map<std::string, int32_t> ids;
  std::map<std::pair<int32_t, int32_t>, uint32_t> ranks;
  std::vector<int32_t> results;  // by rank

  Rules() {
    for (int byte = 0; byte < 256; ++byte) id_of(std::string(1, char(byte)));
  }
  explicit Rules(const std::vector<std::pair<std::string, std::string>>& merges) : Rules() {
    for (const auto& [left, right] : merges) add(left, right);
  }

  int32_t id_of(const std::string& bytes) {
    const auto [at, is_new] = ids.emplace(bytes, int32_t(tokens.size()));
    if (is_new) tokens.push_back(bytes);
    return at->second;
  }
  void add(const std::string& left, const std::string& right) {
    const int32_t l = id_of(left), r = id_of(right), joined = id_of(left + right);
    if (ranks.emplace(std::pair(l, r), uint32_t(results.size())).second) results.push_back(joined);
  }

  Ids merged(std::string_view piece) const {
    Ids ids;
    for (const char byte : piece) ids.push_back(uint8_t(byte));
    for (;;) {
      uint32_t best_rank = ~0u;
      size_t best = 0;
      for (size_t i = 0; i + 1 < ids.size(); ++i)
        if (const auto at = ranks.find({ids[i], ids[i + 1]}); at != ranks.end() && at->second < best_rank)
          best_rank = at->second, best = i;
      if (best_rank == ~0u) return ids;
      ids[best] = results[best_rank];
      ids.erase(ids.begin() + ptrdiff_t(best) + 1);
    }
  }

  BpeModel model() const {
    BpeModel model(results.size());
    for (int byte = 0; byte < 256; ++byte) model.set_byte(uint8_t(byte), byte);
    std::vector<std::pair<int32_t, int32_t>> by_rank(results.size());
    for (const auto& [pair, rank] : ranks) by_rank[rank] = pair;
    for (size_t rank = 0; rank < results.size(); ++rank)
      EXPECT_TRUE(model.add_merge(by_rank[rank].first, by_rank[rank].second, results[rank]));
    model.finish({tokens.begin(), tokens.end()});
    return model;
  }
};

Ids encode(BpeWorker& worker, std::string_view piece) {
  IdBuffer ids;
  worker.encode(piece, piece.data() + piece.size(), ids);
  return {ids.data(), ids.data() + ids.size()};
}

const std::vector<std::string>& alphabet() {
  static const std::vector<std::string> all = {"a", "b",  "c",  " ",  "д",  "е",
                                               "ж", "的", "一", "了", "是", "😀"};
  return all;
}

std::string random_piece(uint64_t seed, uint64_t least, uint64_t most) {
  std::string piece;
  const uint64_t count = least + random_below(seed, 1, 0, most - least + 1);
  for (uint64_t i = 0; i < count; ++i) piece += alphabet()[random_below(seed, 2, i, alphabet().size())];
  return piece;
}

enum class Order { trained, shuffled };

// Merges of bytes that come from random pieces, so that they join bytes within characters, whole characters,
// and parts of neighbouring characters. `trained`: each joins two tokens of which the list made both before.
Rules random_rules(uint64_t seed, int count, Order order) {
  Rules rules;
  for (int i = 0; i < count; ++i) {
    const uint64_t draw = seed * 1000 + uint64_t(i);
    const std::string text = random_piece(draw, 2, 6);
    if (order == Order::trained) {  // two neighbours of a text that the list has merged so far
      const Ids ids = rules.merged(text);
      if (ids.size() < 2) continue;
      const size_t at = random_below(draw, 5, 0, ids.size() - 1);
      const std::string left = rules.tokens[size_t(ids[at])], right = rules.tokens[size_t(ids[at + 1])];
      rules.add(left, right);
    } else {
      const size_t begin = random_below(draw, 5, 0, text.size() - 1);
      const size_t size = 2 + random_below(draw, 6, 0, std::min<size_t>(text.size() - begin - 1, 7));
      const size_t cut = 1 + random_below(draw, 7, 0, size - 1);
      rules.add(text.substr(begin, cut), text.substr(begin + cut, size - cut));
    }
  }
  return rules;
}

TEST(BpeEncoder, EqualsMergingByTheDefinition) {
  for (const Order order : {Order::trained, Order::shuffled}) {
    for (uint64_t seed = 0; seed < 60; ++seed) {
      const Rules rules = random_rules(seed, 20 + int(seed % 5) * 30, order);
      const BpeModel model = rules.model();
      BpeWorker worker(model);
      for (uint64_t i = 0; i < 250; ++i) {
        const std::string piece = random_piece(seed * 1'000'003 + i, 1, i % 10 ? 12 : 80);
        const Ids expected = rules.merged(piece);
        ASSERT_EQ(encode(worker, piece), expected) << piece;
        ASSERT_EQ(encode(worker, piece), expected) << "remembered: " << piece;
      }
    }
  }
}

TEST(BpeEncoder, ATokenWhoseBytesMergeToOthersIsNotTakenForThem) {
  // "abc" is a token, but its bytes become "a" and "bc": that merge comes first.
  const Rules rules({{"b", "c"}, {"a", "b"}, {"ab", "c"}});
  const BpeModel model = rules.model();
  BpeWorker worker(model);
  EXPECT_EQ(encode(worker, "abc"), (Ids{'a', rules.merged("bc")[0]}));
}

TEST(BpeEncoder, PartsOfNeighbouringCharactersMayBeOneToken) {
  // The last byte of one character and the first of the next: neither may begin as a character, nor be cut
  // apart.
  const Rules rules(
      {{"\x84", "\xE4"}, {"\xE7", "\x9A"}, {"\xE7\x9A", "\x84"}, {"\xB8", "\x80"}, {"\xE4", "\xB8\x80"}});
  const BpeModel model = rules.model();
  BpeWorker worker(model);
  const std::string piece = "的一";  // E7 9A 84, E4 B8 80
  EXPECT_EQ(encode(worker, piece), rules.merged(piece));
  EXPECT_EQ(encode(worker, piece).size(), 3u);
}

TEST(BpeEncoder, ForgettingChangesNothing) {
  const Rules rules = random_rules(7, 150, Order::trained);
  const BpeModel model = rules.model();
  BpeWorker worker(model);
  for (int pass = 0; pass < 2; ++pass) {
    for (uint64_t i = 0; i < 300'000; ++i) {  // more words than are remembered
      std::string word = random_piece(random_below(9, 1, i, 250'000), 2, 5);
      IdBuffer ids;
      worker.encode(word, word.data() + word.size(), ids);
      if (i % 50) continue;
      EXPECT_EQ(Ids(ids.data(), ids.data() + ids.size()), rules.merged(word)) << word;
    }
  }
}

TEST(BpeEncoder, AMegabyteOfOneLetterTakesMoments) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (size_t n = 1; n <= 64; n *= 2) merges.emplace_back(std::string(n, 'a'), std::string(n, 'a'));
  const Rules rules(merges);
  const BpeModel model = rules.model();
  BpeWorker worker(model);
  const auto start = std::chrono::steady_clock::now();
  const Ids ids = encode(worker, std::string(1 << 20, 'a'));
  EXPECT_EQ(ids, Ids((1 << 20) / 128, ids[0]));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 20);  // about 0.2 s; quadratic merging would take hours
}

TEST(BpeEncoder, RefusesToListAPairTwice) {
  BpeModel model(2);
  EXPECT_TRUE(model.add_merge('a', 'b', 256));
  EXPECT_FALSE(model.add_merge('a', 'b', 257));
}

}  // namespace
}  // namespace cachalot
