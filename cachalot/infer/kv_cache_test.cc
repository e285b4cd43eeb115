#include "infer/kv_cache.h"

#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "infer/cache_batch.h"

namespace cachalot {
namespace {

KvShape shape(int64_t pages) {
  return {.layers = 3, .pages = pages, .page_size = 4, .width = 10, .dtype = DType::bf16};
}

TEST(KvCache, LayersAreSeparateAndTogetherFillTheBuffer) {
  const auto device = open_device("cpu", {.threads = 1});
  KvCache cache(*device, shape(5));
  ASSERT_EQ(cache.layers().size(), 3u);
  EXPECT_EQ(cache.shape().bytes(), 3 * 5 * 4 * 10 * 2);
  for (size_t l = 0; l < 3; ++l) {
    EXPECT_EQ(cache.layers()[l].rows, 20);
    EXPECT_EQ(cache.layers()[l].cols, 10);
    EXPECT_EQ(static_cast<char*>(cache.layers()[l].data) - static_cast<char*>(cache.layers()[0].data),
              int64_t(l) * 400);
  }
}

TEST(KvCache, NoSlotBelongsToTwoSequencesAndPagesComeBack) {
  const auto device = open_device("cpu", {.threads = 1});
  KvCache cache(*device, shape(5));
  PageTable a(cache);
  {
    PageTable b(cache);
    ASSERT_TRUE(a.reserve(3));
    ASSERT_TRUE(b.reserve(5));
    ASSERT_TRUE(a.reserve(7));  // grows behind b
    EXPECT_TRUE(a.reserve(2));  // never shrinks
    EXPECT_EQ(a.pages().size(), 2u);
    std::set<int64_t> slots;
    for (int64_t p = 0; p < 8; ++p)
      EXPECT_TRUE(slots.insert(a.slot(p)).second && slots.insert(b.slot(p)).second);
    EXPECT_GE(*slots.begin(), 0);
    EXPECT_LT(*slots.rbegin(), 20);
    EXPECT_EQ(cache.free_pages(), 1);
    EXPECT_FALSE(b.reserve(13));  // two more
    EXPECT_EQ(b.pages().size(), 2u);
    EXPECT_EQ(cache.free_pages(), 1);
    PageTable moved(std::move(b));
    EXPECT_TRUE(moved.reserve(12));
    EXPECT_EQ(cache.free_pages(), 0);
  }
  EXPECT_EQ(cache.free_pages(), 3);
  EXPECT_TRUE(a.reserve(20));
}

TEST(KvCache, TooLargeIsAnErrorThatNamesTheFlag) {
  const auto device = open_device("cpu", {.threads = 1});
  for (const int64_t pages : {int64_t{1} << 29, int64_t{1} << 40, (int64_t{1} << 31) / 4 - 1}) {
    KvShape s = shape(pages);
    s.layers = 1000, s.width = 576;
    try {
      KvCache cache(*device, s);
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(e.hint().find("--max-context"), std::string::npos) << e.what();
    }
  }
}

std::vector<int32_t> host(Stream& s, const Tensor& t) {
  std::vector<int32_t> values(size_t(t.size()));
  on(s).download(t, values.data());
  on(s).synchronize();
  return values;
}

TEST(CacheBatch, SeveralSequencesInBothForms) {
  const auto device = open_device("cpu", {.threads = 1});
  Stream s(*device);
  Arena arena(*device, 1 << 16, "test");
  KvCache cache(*device, shape(8));
  PageTable a(cache), b(cache);
  ASSERT_TRUE(a.reserve(4) && b.reserve(3) && a.reserve(6));  // a: pages 0, 2; b: page 1
  const std::vector<CacheRows> rows{{.first = 3, .tokens = {7, 8, -1}, .pages = &a},
                                    {.first = 0, .tokens = {9}, .pages = &b}};
  IndexPack pack;
  const CacheBatch expand(pack, Attend::expand, rows), absorb(pack, Attend::absorb, rows);
  pack.upload(s, arena);
  for (const CacheBatch* batch : {&expand, &absorb}) {
    const TokenBatch t = batch->view(pack);
    EXPECT_EQ(t.rows, 4);
    EXPECT_EQ(t.sequences, 2);
    EXPECT_EQ(host(s, t.tokens), (std::vector<int32_t>{7, 8, -1, 9}));
    EXPECT_EQ(host(s, t.positions), (std::vector<int32_t>{3, 4, 5, 0}));
    EXPECT_EQ(host(s, t.starts), (std::vector<int32_t>{0, 3, 4}));
    EXPECT_EQ(host(s, t.slots), (std::vector<int32_t>{3, 8, 9, 4}));
  }
  const TokenBatch e = expand.view(pack), d = absorb.view(pack);
  EXPECT_EQ(e.attend, Attend::expand);
  EXPECT_EQ(e.key_rows, 7);
  EXPECT_EQ(host(s, e.key_slots), (std::vector<int32_t>{0, 1, 2, 3, 8, 9, 4}));
  EXPECT_EQ(host(s, e.key_starts), (std::vector<int32_t>{0, 6, 7}));
  EXPECT_EQ(d.attend, Attend::absorb);
  EXPECT_EQ(d.page_size, 4);
  EXPECT_EQ(host(s, d.kv_lens), (std::vector<int32_t>{6, 1}));
  EXPECT_EQ(host(s, d.page_table), (std::vector<int32_t>{0, 2, 1, -1}));
  EXPECT_EQ(d.page_table.rows, 2);
}

}  // namespace
}  // namespace cachalot
