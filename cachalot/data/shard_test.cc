#include "data/shard.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "base/rng.h"
#include "data/bpe_trainer.h"
#include "data/checksum.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

ShardHeader header_of(int64_t vocab) {
  return {.vocab_size = vocab,
          .end_of_text = 1,
          .tokenizer = 0x9f2c41d003be77aa,
          .part = "en",
          .source = "cachalot data tokenize corpus"};
}

struct Documents {
  std::vector<std::vector<int32_t>> ids;
  std::vector<int32_t> all;
};

Documents random_documents(int64_t vocab, int64_t count, int64_t longest, uint64_t seed) {
  Documents d;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t> ids(1 + random_below(seed, 1, uint64_t(i), uint64_t(longest)));
    for (size_t k = 0; k < ids.size(); ++k)
      ids[k] = int32_t(random_below(seed, 2 + uint64_t(i), k, uint64_t(vocab)));
    d.all.insert(d.all.end(), ids.begin(), ids.end());
    d.ids.push_back(std::move(ids));
  }
  return d;
}

std::string build(const Documents& d, int64_t vocab) {
  ShardBuilder builder(header_of(vocab));
  for (const auto& ids : d.ids) builder.add(ids, 3 * int64_t(ids.size()));
  return shard_bytes(std::move(builder));
}

std::string error_of(const auto& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "no error";
}

testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "\"" << part << "\" is not in: " << text;
}

class ShardTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cachalot-shard-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string at(const std::string& name) const { return folder_ + "/" + name; }
  size_t entries() const {
    return size_t(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  std::string folder_;
};

TEST_F(ShardTest, GivesBackEveryTokenAndWhereDocumentsEnd) {
  for (const int64_t vocab : {int64_t{300}, int64_t{65536}, int64_t{65537}, int64_t{129280}}) {
    for (const int64_t count : {0, 1, 40}) {
      const Documents d = random_documents(vocab, count, 1500, uint64_t(vocab));
      const Shard shard = Shard::from_bytes(build(d, vocab), "s");
      EXPECT_EQ(shard.header().token_bytes(), vocab <= 65536 ? 2 : 4);
      EXPECT_EQ(shard.header().part, "en");
      EXPECT_EQ(shard.header().text_bytes, 3 * int64_t(d.all.size()));
      ASSERT_EQ(shard.tokens(), int64_t(d.all.size()));
      ASSERT_EQ(shard.documents(), count);
      std::vector<int32_t> all(d.all.size());
      shard.read(0, all);
      EXPECT_EQ(all, d.all);
      shard.verify();
      int64_t begin = 0;
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(shard.document_begin(i), begin);
        begin += int64_t(d.ids[size_t(i)].size());
        EXPECT_EQ(shard.document_end(i), begin);
      }
      for (uint64_t i = 0; i < 50 && count; ++i) {  // any window
        const int64_t first = int64_t(random_below(3, 0, i, d.all.size()));
        std::vector<int32_t> window(random_below(3, 1, i, uint64_t(shard.tokens() - first + 1)));
        shard.read(first, window);
        EXPECT_TRUE(std::equal(window.begin(), window.end(), d.all.begin() + first));
      }
    }
  }
}

TEST_F(ShardTest, AFileGrowsToTheSameBytes) {
  const Documents d = random_documents(129280, 300, 5000, 4);  // 3 MB: taken in parts
  {
    ShardWriter writer(at("s.tok"), header_of(129280));
    for (const auto& ids : d.ids) writer.add(ids, 3 * int64_t(ids.size()));
    EXPECT_FALSE(fs::exists(at("s.tok")));
    writer.finish();
  }
  EXPECT_TRUE(read_file(at("s.tok")) == build(d, 129280));
  EXPECT_EQ(entries(), 1u);
  Shard::open(at("s.tok")).verify();
}

TEST_F(ShardTest, AWriterThatIsGivenUpLeavesNothing) {
  const Documents d = random_documents(129280, 100, 5000, 5);
  {
    ShardWriter writer(at("s.tok"), header_of(129280));
    for (const auto& ids : d.ids) writer.add(ids, 0);
  }
  EXPECT_EQ(entries(), 0u);
}

// A file size limit stands for the full disk: write() fails in the same place.
TEST_F(ShardTest, AFullDiskIsToldAndLeavesNothing) {
  const Documents d = random_documents(129280, 300, 5000, 6);
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{2 << 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const std::string text = error_of([&] {
    ShardWriter writer(at("s.tok"), header_of(129280));
    for (const auto& ids : d.ids) writer.add(ids, 0);
    writer.finish();
  });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(contains(text, "s.tok")) << text;
  EXPECT_TRUE(contains(text, "free some space")) << text;
  EXPECT_EQ(entries(), 0u);
}

TEST_F(ShardTest, NoFlippedBitGoesUnnoticed) {
  const std::string good = build(random_documents(300, 5, 30, 7), 300);
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bytes = good;
    bytes[bit / 8] = char(bytes[bit / 8] ^ 1 << bit % 8);
    EXPECT_THROW(Shard::from_bytes(bytes, "s").verify(), Error) << bit;
  }
}

TEST_F(ShardTest, AFileCutAnywhereOrWithMoreBytesIsRefused) {
  const std::string good = build(random_documents(300, 5, 30, 8), 300);
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_THROW(Shard::from_bytes(good.substr(0, n), "s"), Error) << n;
  EXPECT_THROW(Shard::from_bytes(good + '\0', "s"), Error);
  write_file_atomic(at("cut.tok"), good.substr(0, good.size() - 1));
  const std::string text = error_of([&] { Shard::open(at("cut.tok")); });
  EXPECT_TRUE(contains(text, "cut.tok: the file has"));
  EXPECT_TRUE(contains(text, "remove " + at("cut.tok") + " and make it anew: cachalot data tokenize corpus"));
}

TEST_F(ShardTest, OtherFilesAndOtherVersionsAreNamed) {
  EXPECT_TRUE(contains(error_of([] { Shard::from_bytes("{\"text\": 1}", "a.jsonl"); }),
                       "a.jsonl is not a token shard"));
  EXPECT_TRUE(contains(error_of([] { Shard::from_bytes("", "empty"); }), "empty is not a token shard"));
  std::string bytes = build(random_documents(300, 5, 30, 9), 300);
  bytes[8] = 2;
  EXPECT_TRUE(
      contains(error_of([&] { Shard::from_bytes(bytes, "s"); }), "version 2; this program reads version 1"));
  EXPECT_TRUE(contains(error_of([&] { Shard::open(at("gone.tok")); }), "gone.tok"));
}

// Headers that lie but carry the right checksum: nothing is sized by what they say.
TEST_F(ShardTest, HeadersThatLieAreRefusedWithTheirNumbers) {
  const std::string good = build(random_documents(300, 5, 30, 10), 300);
  const auto with = [&](size_t offset, uint64_t value, size_t bytes = 8) {
    std::string s = good;
    std::memcpy(s.data() + offset, &value, bytes);
    const uint64_t checksum = checksum64(std::string_view(s).substr(0, kShardHeaderBytes - 8));
    std::memcpy(s.data() + kShardHeaderBytes - 8, &checksum, 8);
    return error_of([&] { Shard::from_bytes(s, "s"); });
  };
  constexpr size_t kTokenBytes = 12, kTokens = 16, kDocuments = 24, kVocab = 40, kEnd = 48, kBlock = 68;
  EXPECT_EQ(with(kTokenBytes, 2, 4), "no error");
  for (const uint64_t huge : {uint64_t(1) << 49, ~uint64_t(0), uint64_t(1) << 63})
    for (const size_t field : {kTokens, kDocuments, kVocab, kEnd})
      EXPECT_TRUE(contains(with(field, huge), "contradicts itself")) << field;
  EXPECT_TRUE(contains(with(kTokens, uint64_t(1) << 40), "the file has"));
  EXPECT_TRUE(contains(with(kTokens, 0), "contradicts itself"));
  EXPECT_TRUE(contains(with(kDocuments, 4), "take"));
  EXPECT_TRUE(contains(with(kTokenBytes, 4, 4), "tokens of 4 bytes for a vocabulary of 300"));
  EXPECT_TRUE(contains(with(kBlock, 8192, 4), "blocks of 8192"));
  // A vocabulary that is too small for the tokens that are there shows when they are read.
  std::string s = good;
  const uint64_t small = 20;
  std::memcpy(s.data() + kVocab, &small, 8);
  const uint64_t checksum = checksum64(std::string_view(s).substr(0, kShardHeaderBytes - 8));
  std::memcpy(s.data() + kShardHeaderBytes - 8, &checksum, 8);
  EXPECT_TRUE(contains(error_of([&] { Shard::from_bytes(s, "s").verify(); }), "beyond the vocabulary of 20"));
}

TEST_F(ShardTest, ADamagedBlockIsFoundByWhoeverReadsItAndByNobodyElse) {
  const Documents d = random_documents(300, 20, 3000, 11);
  std::string bytes = build(d, 300);
  bytes[kShardHeaderBytes + 2 * (kShardBlock + 5)] ^= 4;  // in the second block
  const Shard shard = Shard::from_bytes(bytes, "s");
  std::vector<int32_t> ids(100);
  shard.read(kShardBlock - 100, ids);
  shard.read(2 * kShardBlock, ids);
  EXPECT_TRUE(
      contains(error_of([&] { shard.read(kShardBlock - 99, ids); }), "tokens 4096 to 8191 are damaged"));
  EXPECT_THROW(shard.verify(), Error);
}

TEST_F(ShardTest, AnotherTokenizerIsToldApartAndARewrittenFileIsNot) {
  const auto train = [](const char* text, int64_t vocab) {
    BpeTrainer trainer({.vocab_size = vocab});
    trainer.add_text(text);
    return trainer.train();
  };
  const TrainedBpe one = train("the king and the queen and the king", 262);
  save_tokenizer(one, at("one"));
  const TrainedBpe two = train("a prince or a jester or a prince", 262);
  save_tokenizer(two, at("two"));
  save_tokenizer({parse_json(one.tokenizer_json, "t").dump(), one.tokenizer_config_json, 0}, at("again"));
  const Tokenizer t1 = Tokenizer::load(at("one")), t2 = Tokenizer::load(at("two")),
                  again = Tokenizer::load(at("again"));
  EXPECT_EQ(tokenizer_id(t1), tokenizer_id(again));
  EXPECT_NE(tokenizer_id(t1), tokenizer_id(t2));
  ShardHeader header = header_of(t1.vocab_size());
  header.tokenizer = tokenizer_id(t1);
  ShardBuilder builder(header);
  builder.add(std::vector<int32_t>{5, 1}, 1);
  const Shard shard = Shard::from_bytes(shard_bytes(std::move(builder)), "web-00007.tok");
  shard.require_tokenizer(again, "again");
  const std::string text = error_of([&] { shard.require_tokenizer(t2, "runs/two"); });
  EXPECT_TRUE(
      contains(text, "web-00007.tok holds tokens of tokenizer " + tokenizer_id_text(tokenizer_id(t1))));
  EXPECT_TRUE(contains(text, "runs/two is " + tokenizer_id_text(tokenizer_id(t2))));
  EXPECT_TRUE(contains(text, "make them anew with --tokenizer runs/two: cachalot data tokenize corpus"));
}

}  // namespace
}  // namespace cachalot
