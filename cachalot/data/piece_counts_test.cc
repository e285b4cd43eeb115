#include "data/piece_counts.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "base/rng.h"

namespace cachalot {
namespace {

TEST(PieceCounts, EqualsAMap) {
  PieceCounts counts;
  std::map<std::string, int64_t> expected;
  for (uint64_t i = 0; i < 60'000; ++i) {  // more strings than a first table holds, and than a block
    std::string piece = std::to_string(random_below(3, 1, i, 20'000) * 7919);
    piece.resize(1 + random_below(3, 2, i, 24), i % 3 ? 'x' : '\0');
    if (i % 1000 == 0) piece.append(size_t(70 * i), 'y');
    counts.add(piece, int64_t(i % 5));
    expected[piece] += int64_t(i % 5);
  }
  EXPECT_EQ(counts.size(), expected.size());
  std::map<std::string, int64_t> found;
  counts.for_each([&](std::string_view piece, int64_t count) { found[std::string(piece)] += count; });
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace cachalot
