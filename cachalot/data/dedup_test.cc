#include "data/dedup.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

// A corpus of sets of shingles: groups of look-alikes among strangers.
class Dedup : public testing::Test {
 protected:
  Dedup() : folder_((fs::temp_directory_path() / ("dedup_" + std::to_string(::getpid()))).string()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Dedup() override { fs::remove_all(folder_); }

  void add(std::vector<uint64_t> set, uint64_t text) {
    std::sort(set.begin(), set.end());
    sets_.push_back(std::move(set));
    texts_.push_back(text);
  }
  // A set of `size`, of which a share is that of `like`.
  std::vector<uint64_t> set(size_t size, uint64_t name, const std::vector<uint64_t>& like = {},
                            double share = 0) {
    std::vector<uint64_t> out(like.begin(), like.begin() + int64_t(double(like.size()) * share));
    for (uint64_t i = out.size(); i < size; ++i) out.push_back(mix(name << 32 | i));
    return out;
  }

  DedupResult find(const DedupOptions& options, int threads, int64_t per_unit) {
    std::vector<std::string> files;
    MinHasher hasher(options.near);
    std::vector<uint64_t> keys(static_cast<size_t>(options.near.bands));
    for (size_t from = 0; from < sets_.size(); from += size_t(per_unit)) {
      Fingerprints unit;
      unit.keys.resize(options.near.on ? size_t(options.near.bands) : 0);
      for (size_t i = from; i < std::min(from + size_t(per_unit), sets_.size()); ++i) {
        unit.text.push_back({.high = mix(texts_[i]), .low = texts_[i]});
        unit.shingles.push_back(uint32_t(sets_[i].size()));
        hasher.keys(sets_[i], keys);
        for (size_t band = 0; band < unit.keys.size(); ++band) unit.keys[band].push_back(keys[band]);
      }
      files.push_back(folder_ + "/unit" + std::to_string(files.size()));
      write_fingerprints(files.back(), unit);
    }
    ThreadPool pool(threads);
    return find_duplicates(
        files, options, folder_ + "/work",
        [&](const auto& wanted, const auto& document) {
          for (size_t i = 0; i < sets_.size(); ++i)
            if (wanted(int64_t(i))) document(int64_t(i), sets_[i]);
        },
        pool, [](double) {});
  }

  // 400 documents: strangers, exact copies, near copies of various similarity, chains.
  void fill() {
    for (uint64_t i = 0; i < 400; ++i) {
      const size_t size = 50 + random_below(1, 0, i, 300);
      const uint64_t kind = random_below(1, 1, i, 5), other = i == 0 ? 0 : random_below(1, 2, i, i);
      if (i > 0 && kind == 0) add(sets_[other], texts_[other]);
      else if (i > 0 && kind <= 2)
        add(set(sets_[other].size(), i, sets_[other], 0.7 + 0.3 * random_uniform(1, 3, i)), i + 1000);
      else add(set(size, i), i + 1000);
    }
  }

  std::string folder_;
  std::vector<std::vector<uint64_t>> sets_;
  std::vector<uint64_t> texts_;
};

TEST_F(Dedup, NothingGoesWithoutAKeptTwinAndNearlyEveryTwinGoes) {
  fill();
  const DedupOptions options;
  const DedupResult result = find(options, 2, 64);
  int64_t twins = 0, missed = 0, removed = 0;
  for (size_t j = 0; j < sets_.size(); ++j) {
    bool exact = false, near = false;
    for (size_t i = 0; i < j; ++i) {
      exact |= texts_[i] == texts_[j];
      near |= !result.removed[i] && jaccard(sets_[i], sets_[j]) >= options.near.jaccard;
    }
    if (result.removed[j]) {
      ++removed;
      EXPECT_TRUE(exact || near) << j;
    }
    EXPECT_TRUE(!exact || result.removed[j]) << j;
    twins += near;
    missed += near && !result.removed[j];
  }
  EXPECT_GT(twins, 80);
  EXPECT_LE(double(missed), 0.05 * double(twins));
  EXPECT_EQ(removed, result.exact + result.near);
  for (const Duplicate& d : result.samples) {
    EXPECT_LT(d.kept, d.document);
    EXPECT_TRUE(result.removed[size_t(d.document)]);
    EXPECT_NEAR(d.jaccard, jaccard(sets_[size_t(d.document)], sets_[size_t(d.kept)]), 1e-6);
  }
}

TEST_F(Dedup, MemoryThreadsAndUnitsDoNotChangeTheResult) {
  fill();
  DedupOptions options;
  const DedupResult all = find(options, 1, 1000);
  EXPECT_GT(all.near, 20);
  for (const int64_t memory : {int64_t(1) << 12, int64_t(1) << 15, int64_t(1) << 20})
    for (const int threads : {1, 3}) {
      options.memory = memory;
      const DedupResult other = find(options, threads, 37);
      EXPECT_EQ(other.removed, all.removed) << memory << " " << threads;
      EXPECT_EQ(other.candidates, all.candidates);
      EXPECT_EQ(other.similarity, all.similarity);
    }
  EXPECT_FALSE(fs::exists(folder_ + "/work"));
}

TEST_F(Dedup, AMillionCopiesDoNotMakePairsByTheSquare) {
  const auto one = set(100, 1);
  for (uint64_t i = 0; i < 3000; ++i) add(set(100, i + 5, one, 0.97), i);
  DedupOptions options;
  const DedupResult result = find(options, 2, 500);
  EXPECT_LT(result.candidates, 3000 * 16 * 20);
  EXPECT_EQ(std::count(result.removed.begin(), result.removed.end(), false), 1);
}

TEST_F(Dedup, EachKindCanBeSwitchedOff) {
  fill();
  DedupOptions options;
  options.near.on = false;
  DedupResult result = find(options, 1, 100);
  EXPECT_EQ(result.near, 0);
  EXPECT_GT(result.exact, 0);
  options.exact = false;
  result = find(options, 1, 100);
  EXPECT_EQ(std::count(result.removed.begin(), result.removed.end(), true), 0);
}

TEST_F(Dedup, DamagedFingerprintsAreNoticed) {
  fill();
  find({}, 1, 1000);
  const std::string path = folder_ + "/unit0", good = read_file(path);
  for (size_t at = 0; at < good.size(); at += std::max<size_t>(1, good.size() / 60)) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ 4);
    write_file_atomic(path, bad);
    EXPECT_THROW(
        {
          const FingerprintFile file(path);
          (void)file.text();
          (void)file.shingles();
          for (int band = 0; band < file.bands(); ++band) (void)file.keys(band);
        },
        Error)
        << at;
  }
  write_file_atomic(path, good.substr(0, good.size() - 1));
  EXPECT_THROW(FingerprintFile{path}, Error);
}

TEST(TextHash, IsOfTheWords) {
  Words a, b, c;
  find_words("The  quick fox.", a);
  find_words("the quick\nFOX", b);
  find_words("the quick fix", c);
  EXPECT_EQ(hash_text(a), hash_text(b));
  EXPECT_NE(hash_text(a), hash_text(c));
  EXPECT_NE(hash_text("+"), hash_text("-"));
}

}  // namespace
}  // namespace cachalot
