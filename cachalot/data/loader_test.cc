#include "data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/shard_testing.h"

namespace cachalot {
namespace {

using ::cachalot::testing::random_shard;

std::vector<TokenStream> parts() {
  return {TokenStream("code", {random_shard("code", 9000, 300, 1)}),
          TokenStream("en", {random_shard("en", 20000, 500, 2), random_shard("en", 5000, 20, 3)}),
          TokenStream("zh", {random_shard("zh", 3000, 100, 4)})};
}

LoaderOptions options(Packing packing = Packing::concatenate) {
  return {.seq_len = 31, .batch = 16, .packing = packing, .seed = 9, .shares = {0.2, 0.5, 0.3}};
}

using Rows = std::vector<std::vector<int32_t>>;

void append(Rows& rows, const LoadedBatch& batch) {
  for (const auto& row : batch.rows) rows.emplace_back(row.begin(), row.end());
}

Rows read(Loader& loader, int64_t steps) {
  Rows rows;
  for (int64_t s = 0; s < steps; ++s) append(rows, loader.next());
  return rows;
}

TEST(Loader, TheOrderOfTokensIsTheSameForAnyNumberOfRanks) {
  for (const Packing packing : {Packing::concatenate, Packing::best_fit}) {
    Loader alone(parts(), options(packing));
    const Rows expected = read(alone, 150);  // several epochs of the smallest part
    for (const int ranks : {2, 4, 8}) {
      std::vector<std::unique_ptr<Loader>> loaders;
      for (int r = 0; r < ranks; ++r) {
        LoaderOptions o = options(packing);
        o.rank = r;
        o.ranks = ranks;
        o.prefetch = 1 + r;
        loaders.push_back(std::make_unique<Loader>(parts(), o));
      }
      Rows rows;
      for (int s = 0; s < 150; ++s)
        for (auto& loader : loaders) append(rows, loader->next());
      EXPECT_TRUE(rows == expected) << ranks;
      for (auto& loader : loaders) EXPECT_EQ(loader->cursor(), alone.cursor());
    }
  }
}

TEST(Loader, ContinuesWithTheNextTokenOnAnotherNumberOfRanks) {
  Loader alone(parts(), options());
  const Rows expected = read(alone, 40);
  Rows rows;
  DataCursor cursor = Loader(parts(), options()).cursor();
  EXPECT_EQ(cursor.next_row, 0);
  for (const int ranks : {4, 1, 8, 2, 16}) {  // eight steps each
    std::vector<std::unique_ptr<Loader>> loaders;
    for (int r = 0; r < ranks; ++r) {
      LoaderOptions o = options();
      o.rank = r;
      o.ranks = ranks;
      loaders.push_back(std::make_unique<Loader>(parts(), o));
      loaders.back()->seek(parse_cursor(parse_json(cursor_json(cursor).dump(), "c"), "c"));
    }
    for (int s = 0; s < 8; ++s)
      for (auto& loader : loaders) append(rows, loader->next());
    cursor = loaders.back()->cursor();
  }
  EXPECT_TRUE(rows == expected);
}

TEST(Loader, AnotherBatchSizeGoesOnInTheSameOrder) {
  LoaderOptions small = options(), large = options();
  small.batch = 4;
  Loader a(parts(), small), b(parts(), large);
  EXPECT_TRUE(read(a, 20) == read(b, 5));
  EXPECT_EQ(a.cursor(), b.cursor());
  b.seek(DataCursor{.next_row = 12, .data = a.cursor().data});
  a.seek(b.cursor());
  EXPECT_TRUE(read(a, 4) == read(b, 1));
}

TEST(Loader, ABatchThatGrowsTakesTheSameRowsAndGoesOnWhereItStood) {
  LoaderOptions growing = options();
  growing.batch_of_step = [](int64_t step) { return std::min<int64_t>(4 * step, 16); };  // 4, 8, 12, 16, 16, ...
  Loader a(parts(), growing), whole(parts(), options());
  const Rows expected = read(whole, 7);  // 112 rows
  Rows rows = read(a, 3);
  EXPECT_EQ(rows.size(), 24u);
  EXPECT_EQ(a.cursor().next_row, 24);
  Loader resumed(parts(), growing);
  resumed.seek(a.cursor(), 3);
  for (int s = 0; s < 5; ++s) append(rows, resumed.next());
  EXPECT_EQ(rows.size(), 24u + 80);
  EXPECT_TRUE(Rows(expected.begin(), expected.begin() + 104) == rows);
}

TEST(Loader, RowsAreWhatTheSamplersAndTheMixtureSay) {
  Loader loader(parts(), options());
  const Mixture mixture({0.2, 0.5, 0.3});
  std::vector<int64_t> counts(3, 0);
  for (int64_t s = 0; s < 20; ++s) {
    const LoadedBatch batch = loader.next();
    EXPECT_EQ(batch.first_row, 16 * s);
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      const Mixture::Place place = mixture.place(16 * s + int64_t(r));
      EXPECT_EQ(batch.parts[r], place.part);
      ++counts[size_t(place.part)];
      TokenRange storage;
      const auto pieces = loader.sampler(size_t(place.part)).row(place.row, storage);
      std::vector<int32_t> ids(32);
      loader.parts()[size_t(place.part)].read(pieces[0].first, ids);
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), batch.rows[r].begin(), batch.rows[r].end()));
    }
    EXPECT_EQ(loader.part_rows(loader.cursor().next_row), counts);  // the statistics need no state
  }
}

TEST(Loader, BestFitRowsHoldWholeDocuments) {
  LoaderOptions o = options(Packing::best_fit);
  o.seq_len = 600;  // every document fits
  Loader loader(parts(), o);
  for (int s = 0; s < 10; ++s)
    for (const auto& row : loader.next().rows) {
      EXPECT_LE(row.size(), 601u);
      EXPECT_EQ(row.back(), 1);
    }
}

TEST(Loader, RefusesTheCursorOfOtherData) {
  const DataCursor cursor = Loader(parts(), options()).cursor();
  const auto refuses = [&](std::vector<TokenStream> p, const LoaderOptions& o) {
    Loader other(std::move(p), o);
    try {
      other.seek(cursor);
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_FALSE(refuses(parts(), options()));
  LoaderOptions o = options();
  o.batch = 32;
  o.prefetch = 5;
  EXPECT_FALSE(refuses(parts(), o));
  o = options();
  o.seed = 10;
  EXPECT_TRUE(refuses(parts(), o));
  o = options();
  o.seq_len = 30;
  EXPECT_TRUE(refuses(parts(), o));
  o = options();
  o.shares = {0.2, 0.4, 0.4};
  EXPECT_TRUE(refuses(parts(), o));
  EXPECT_TRUE(refuses(parts(), options(Packing::best_fit)));
  auto changed = parts();
  changed[2] = TokenStream("zh", {random_shard("zh", 3000, 100, 5)});
  EXPECT_TRUE(refuses(changed, options()));
}

TEST(Loader, ADamagedShardIsAnErrorForWhoeverReadsIt) {
  ShardBuilder builder({.vocab_size = 300, .end_of_text = 1, .tokenizer = 42, .part = "p", .source = ""});
  for (int i = 0; i < 1000; ++i) builder.add(std::vector<int32_t>(50, 1), 0);
  std::string bytes = shard_bytes(std::move(builder));
  bytes[kShardHeaderBytes + 60000] ^= 1;
  Loader loader({TokenStream("p", {Shard::from_bytes(bytes, "p-00000.tok")})},
                {.seq_len = 100, .batch = 8, .seed = 1});
  std::string text;
  try {
    for (int s = 0; s < 100; ++s) loader.next();
  } catch (const Error& e) {
    text = e.what();
  }
  EXPECT_NE(text.find("p-00000.tok: tokens 28672 to 32767 are damaged"), std::string::npos) << text;
}

TEST(Loader, RefusesABatchThatRanksCannotShare) {
  LoaderOptions o = options();
  o.ranks = 3;
  EXPECT_THROW(Loader(parts(), o), Error);
}

TEST(Loader, DamagedCursorsAreRefused) {
  for (const char* text :
       {"{}", "[]", "null", R"({"next_row": -1, "data": "00"})", R"({"next_row": 1.5, "data": "00"})",
        R"({"next_row": 1})", R"({"next_row": 1, "data": 7})", R"({"next_row": 1, "data": "xyz"})",
        R"({"next_row": 1, "data": ""})", R"({"next_row": 1, "data": "00112233445566778899"})",
        R"({"next_row": 18446744073709551615, "data": "00"})"})
    EXPECT_THROW(parse_cursor(parse_json(text, "c"), "c"), Error) << text;
}

}  // namespace
}  // namespace cachalot
