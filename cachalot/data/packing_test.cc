#include "data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/rng.h"

namespace cachalot {
namespace {

std::vector<TokenRange> random_documents(uint64_t seed, int64_t count, int64_t longest) {
  std::vector<TokenRange> documents;
  int64_t first = 100;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = 1 + int64_t(random_below(seed, 0, uint64_t(i), uint64_t(longest)));
    documents.push_back({first, n});
    first += n;
  }
  return documents;
}

TEST(Packing, EveryTokenOfEveryDocumentIsInOneRowAndNoRowIsTooLong) {
  for (const int64_t capacity : {1, 2, 7, 64, 65, 1000, 5000}) {
    for (const int64_t longest : {int64_t{1}, capacity, 3 * capacity + 1, int64_t{40}}) {
      for (uint64_t seed = 0; seed < 4; ++seed) {
        const auto documents = random_documents(seed, 300, longest);
        const auto rows = pack_best_fit(documents, capacity);
        std::vector<int> seen(size_t(documents.back().first + documents.back().count), 0);
        for (const auto& row : rows) {
          int64_t tokens = 0, last = -1;
          for (const TokenRange& p : row) {
            EXPECT_GT(p.count, 0);
            EXPECT_GT(p.first, last);  // in the order of the stream
            last = p.first;
            tokens += p.count;
            for (int64_t i = p.first; i < p.first + p.count; ++i) ++seen[size_t(i)];
          }
          EXPECT_LE(tokens, capacity);
        }
        EXPECT_TRUE(std::all_of(seen.begin() + 100, seen.end(), [](int n) { return n == 1; }));
        EXPECT_TRUE(std::all_of(seen.begin(), seen.begin() + 100, [](int n) { return n == 0; }));
      }
    }
  }
}

TEST(Packing, ADocumentThatFitsARowIsNotCutAndALongerOneGivesFullRowsAndARest) {
  const int64_t capacity = 128;
  const auto documents = random_documents(5, 500, 400);
  std::vector<TokenRange> pieces;
  for (const auto& row : pack_best_fit(documents, capacity))
    pieces.insert(pieces.end(), row.begin(), row.end());
  std::sort(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  size_t at = 0;
  for (const TokenRange& d : documents) {
    int64_t left = d.count;
    for (int64_t begin = d.first; left > 0; ++at) {
      ASSERT_EQ(pieces[at], (TokenRange{begin, std::min(left, capacity)}));
      begin += pieces[at].count;
      left -= pieces[at].count;
    }
  }
  EXPECT_EQ(at, pieces.size());
}

// The textbook algorithm, one row after another.
std::vector<std::vector<TokenRange>> slow(std::vector<TokenRange> pieces, int64_t capacity) {
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const auto& a, const auto& b) { return a.count > b.count; });
  std::vector<std::vector<TokenRange>> rows;
  std::vector<int64_t> room;
  for (const TokenRange& p : pieces) {
    int64_t best = -1;
    for (size_t r = 0; r < rows.size(); ++r)
      if (room[r] >= p.count && (best < 0 || room[r] < room[size_t(best)])) best = int64_t(r);
    if (best < 0) {
      best = int64_t(rows.size());
      rows.emplace_back();
      room.push_back(capacity);
    }
    rows[size_t(best)].push_back(p);
    room[size_t(best)] -= p.count;
  }
  return rows;
}

TEST(Packing, IsBestFitDecreasing) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const int64_t capacity = 200;
    const auto documents = random_documents(seed, 400, capacity - 1);
    const auto fast = pack_best_fit(documents, capacity);
    const auto expected = slow(documents, capacity);
    ASSERT_EQ(fast.size(), expected.size());
    // Which of several rows with equal room is taken may differ; the rows' lengths may not.
    const auto lengths = [](const auto& rows) {
      std::vector<int64_t> n;
      for (const auto& row : rows) {
        n.push_back(0);
        for (const TokenRange& p : row) n.back() += p.count;
      }
      std::sort(n.begin(), n.end());
      return n;
    };
    EXPECT_EQ(lengths(fast), lengths(expected));
  }
}

TEST(Packing, RowsOfManyDocumentsAreNearlyFull) {
  const auto documents = random_documents(3, 20000, 3000);
  const int64_t capacity = 4097;
  const auto rows = pack_best_fit(documents, capacity);
  const int64_t tokens = std::accumulate(documents.begin(), documents.end(), int64_t{0},
                                         [](int64_t sum, const TokenRange& d) { return sum + d.count; });
  EXPECT_GT(double(tokens), 0.99 * double(int64_t(rows.size()) * capacity));
}

TEST(Packing, RowsAreCutIntoDocumentsAtTheEndOfText) {
  const std::vector<int32_t> row{5, 6, 1, 7, 1, 1, 8, 9};
  const auto documents = split_documents(row, 1);
  ASSERT_EQ(documents.size(), 4u);
  std::vector<size_t> sizes;
  std::vector<int32_t> all;
  for (const auto& d : documents) {
    sizes.push_back(d.size());
    all.insert(all.end(), d.begin(), d.end());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{3, 2, 1, 2}));
  EXPECT_EQ(all, row);
  EXPECT_TRUE(split_documents({}, 1).empty());
}

}  // namespace
}  // namespace cachalot
