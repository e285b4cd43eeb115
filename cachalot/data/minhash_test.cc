#include "data/minhash.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/rng.h"

namespace cachalot {
namespace {

std::vector<uint64_t> set_of(std::initializer_list<uint64_t> items) { return items; }

TEST(MinHash, JaccardIsExact) {
  EXPECT_EQ(jaccard(set_of({1, 2, 3, 4}), set_of({3, 4, 5})), 2.0 / 5);
  EXPECT_EQ(jaccard(set_of({1}), set_of({1})), 1);
  EXPECT_EQ(jaccard(set_of({1}), set_of({2})), 0);
  EXPECT_EQ(jaccard(set_of({}), set_of({})), 0);
}

TEST(MinHash, ShinglesAreEveryFiveWordsOnce) {
  Words words;
  std::vector<uint64_t> shingles;
  find_words("a b c d e a b c d e a", words);
  find_shingles(words, 5, shingles);
  EXPECT_EQ(shingles.size(), 5u);  // 7 windows, two of which occur twice
  find_words("a b c", words);
  find_shingles(words, 5, shingles);
  EXPECT_EQ(shingles.size(), 1u);
  find_words("...", words);
  find_shingles(words, 5, shingles);
  EXPECT_TRUE(shingles.empty());
}

// Two random sets of 300 with similarity j; how often they share a band, against the formula of minhash.h.
TEST(MinHash, CandidatesAppearWithTheProbabilityOfTheFormula) {
  const MinHashOptions options;
  MinHasher hasher(options);
  for (const double j : {0.4, 0.6, 0.7, 0.8, 0.9}) {
    const int tries = 1500, size = 300;
    const int common = int(std::lround(2 * j * size / (1 + j)));
    int found = 0;
    for (int t = 0; t < tries; ++t) {
      std::vector<uint64_t> a, b;
      for (int i = 0; i < size; ++i) {
        a.push_back(mix(uint64_t(t) << 32 | uint64_t(i)));
        b.push_back(mix(uint64_t(t) << 32 | uint64_t(i < common ? i : i + 1000)));
      }
      std::vector<uint64_t> x(size_t(options.bands)), y(size_t(options.bands));
      hasher.keys(a, x);
      hasher.keys(b, y);
      bool shared = false;
      for (size_t band = 0; band < x.size(); ++band) shared |= x[band] == y[band];
      found += shared;
    }
    const double p = 1 - std::pow(1 - std::pow(double(common) / (2 * size - common), double(options.rows)),
                                  double(options.bands));
    EXPECT_NEAR(double(found) / tries, p, 4.5 * std::sqrt(p * (1 - p) / tries) + 0.004) << j;
  }
}

TEST(MinHash, EmptyTextsAreNoCandidates) {
  MinHasher hasher({});
  std::vector<uint64_t> keys(20, 7);
  hasher.keys({}, keys);
  for (const uint64_t key : keys) EXPECT_EQ(key, 0u);
  const std::vector<uint64_t> one = {5};
  hasher.keys(one, keys);
  for (const uint64_t key : keys) EXPECT_NE(key, 0u);
  MinHashOptions bad;
  bad.jaccard = 0;
  EXPECT_THROW(check(bad), Error);
}

}  // namespace
}  // namespace cachalot
