#include "data/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "data/byte_level.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer.h"

namespace cachalot {
namespace {

std::string test_text(const std::string& name) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  return read_file(std::string(root ? root : ".") + "/tests/data/text/" + name);
}

Json train(const std::vector<std::string>& texts, BpeTrainOptions options) {
  BpeTrainer trainer(std::move(options));
  for (const std::string& text : texts) trainer.add_text(text);
  return parse_json(trainer.train().tokenizer_json, "trained");
}

std::vector<std::string> merges_of(const Json& json) {
  return json["model"]["merges"].get<std::vector<std::string>>();
}

// The same by the definition: count all pairs anew for every merge.
std::vector<std::string> merges_by_definition(const std::string& text, size_t count, int64_t min_count) {
  const PreTokenizer pre_tokenizer(parse_json(kDeepSeekPreTokenizer, "t"), "t");
  std::vector<std::string> tokens;  // by id, after the 256 bytes in the order of their characters
  std::map<uint32_t, int> order;
  for (int byte = 0; byte < 256; ++byte) order[byte_alphabet()[byte]] = byte;
  std::map<std::string, int> ids;
  for (const auto& [character, byte] : order) {
    ids[std::string(1, char(byte))] = int(tokens.size());
    tokens.push_back(std::string(1, char(byte)));
  }
  std::vector<std::vector<int>> pieces;
  pre_tokenizer.pieces(text, [&](std::string_view piece) {
    pieces.emplace_back();
    for (const char byte : piece) pieces.back().push_back(ids[std::string(1, byte)]);
  });
  std::vector<std::string> merges;
  while (merges.size() < count) {
    std::map<std::pair<int, int>, int64_t> counts;
    for (const auto& p : pieces)
      for (size_t i = 0; i + 1 < p.size(); ++i) ++counts[{p[i], p[i + 1]}];
    auto best = counts.end();
    for (auto at = counts.begin(); at != counts.end(); ++at)
      if (best == counts.end() || at->second > best->second)
        best = at;  // the map is sorted by ids: ties to the smaller
    if (best == counts.end() || best->second < min_count) break;
    const auto [left, right] = best->first;
    merges.push_back(write_bytes(tokens[size_t(left)]) + " " + write_bytes(tokens[size_t(right)]));
    const std::string joined = tokens[size_t(left)] + tokens[size_t(right)];
    const auto [at, is_new] = ids.emplace(joined, int(tokens.size()));
    if (is_new) tokens.push_back(joined);
    for (auto& p : pieces) {
      std::vector<int> merged;
      for (size_t i = 0; i < p.size(); ++i) {
        const bool here = i + 1 < p.size() && p[i] == left && p[i + 1] == right;
        merged.push_back(here ? at->second : p[i]);
        i += here;
      }
      p = merged;
    }
  }
  return merges;
}

TEST(BpeTrainer, IncrementalCountsEqualCountingAnew) {
  for (const std::string& text : {test_text("many_scripts.txt"), test_text("shakespeare.txt").substr(0, 3000),
                                  std::string("aaaaaaa aaaa aaa aa a bababab abab abba baab"),
                                  std::string("mississippi is missing; sissi is kissing")}) {
    const std::vector<std::string> expected = merges_by_definition(text, 300, 2);
    const Json json = train({text}, {.vocab_size = 2000});
    std::vector<std::string> merges = merges_of(json);
    merges.resize(std::min(merges.size(), expected.size()));
    EXPECT_EQ(merges, expected);
  }
}

TEST(BpeTrainer, OrdersSpecialTokensThenBytesThenMerges) {
  const Json json = train({"hug hug hug pug pun bun hugs"}, {.vocab_size = 262});
  const auto& vocab = json["model"]["vocab"];
  EXPECT_EQ(vocab[std::string(kBosToken)], 0);
  EXPECT_EQ(vocab[std::string(kEosToken)], 1);
  EXPECT_EQ(vocab["!"], 2);  // the first printable byte
  EXPECT_EQ(vocab["Ġ"], 2 + 188 + 32);
  // u g: 5. Then h ug 4, " " hug 3, and of the pairs that occur twice (p u, u n) the smaller ids: p.
  EXPECT_EQ(merges_of(json), (std::vector<std::string>{"u g", "h ug", "Ġ hug", "u n"}));
  EXPECT_EQ(vocab["ug"], 258);
  EXPECT_EQ(vocab.size(), 262u);
}

TEST(BpeTrainer, DoesNotDependOnTheOrderOfTexts) {
  const std::string a = test_text("many_scripts.txt"), b = test_text("shakespeare.txt");
  EXPECT_EQ(train({a, b}, {.vocab_size = 600}), train({b, a}, {.vocab_size = 600}));
}

TEST(BpeTrainer, TheNumberOfThreadsDoesNotChangeTheResult) {
  std::string text;
  while (text.size() < 3'000'000) text += test_text("many_scripts.txt") + test_text("shakespeare.txt");
  const Json expected = train({text}, {.vocab_size = 700});
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(train({text}, {.vocab_size = 700, .pool = &pool}), expected) << threads;
  }
}

TEST(BpeTrainer, TellsHowFarItIs) {
  std::vector<int64_t> told;
  BpeTrainer trainer({.vocab_size = 900, .progress = [&](int64_t tokens, int64_t of) {
                        EXPECT_EQ(of, 900);
                        told.push_back(tokens);
                      }});
  trainer.add_text(test_text("shakespeare.txt"));
  const int64_t size = trainer.train().vocab_size;
  EXPECT_GT(told.size(), 2u);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), size);
}

TEST(BpeTrainer, StopsWhenNothingOccursOftenEnough) {
  BpeTrainer trainer({.vocab_size = 5000});
  trainer.add_text("abc abd");
  const TrainedBpe trained = trainer.train();
  EXPECT_EQ(trained.vocab_size, 2 + 256 + 1);  // only "a b" occurs twice
  BpeTrainer once({.vocab_size = 5000, .min_count = 1});
  once.add_text("abc abd");
  EXPECT_GT(once.train().vocab_size, trained.vocab_size);
}

TEST(BpeTrainer, OrdinaryTextNeverBecomesASpecialToken) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "<s> ";
  BpeTrainer trainer({.vocab_size = 300, .special_tokens = {"<s>", "</s>"}, .min_count = 2});
  trainer.add_text(text);
  const Tokenizer t = Tokenizer::parse(trainer.train().tokenizer_json, "trained");
  for (const int32_t id : t.encode("<s> <s>", {.parse_special = false})) EXPECT_GE(id, 2);
  EXPECT_EQ(t.encode("<s>"), (std::vector<int32_t>{0}));
}

TEST(BpeTrainer, TrainedTokenizerRoundTripsAndCompresses) {
  const std::string text = test_text("shakespeare.txt");
  BpeTrainer trainer({.vocab_size = 1000});
  trainer.add_text(text);
  const Tokenizer t = Tokenizer::parse(trainer.train().tokenizer_json, "trained");
  const std::vector<int32_t> ids = t.encode(text);
  EXPECT_EQ(t.decode(ids), text);
  EXPECT_LT(ids.size(), text.size() / 2);
}

TEST(BpeTrainer, InvalidUtf8IsPassedOver) {
  EXPECT_EQ(train({"hug hug", "\xFF\xFE\xFF\xFE"}, {.vocab_size = 300}),
            train({"hug hug"}, {.vocab_size = 300}));
}

TEST(BpeTrainer, ATextWithoutBreaksIsNotQuadratic) {
  std::string text;
  for (int i = 0; text.size() < 1'000'000; ++i) text += std::to_string(i * 7919) + "的";
  for (char& c : text)
    if ('0' <= c && c <= '9') c = char('a' + (c - '0'));
  const Json json = train({text}, {.vocab_size = 1000});
  EXPECT_EQ(json["model"]["vocab"].size(), 1000u);
}

TEST(BpeTrainer, RefusesWhatCannotBe) {
  EXPECT_THROW(BpeTrainer({.vocab_size = 257}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = -1}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = int64_t(1) << 40}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {"<s>", "<s>"}}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {"a"}}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {""}}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {"\xFFz"}}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .special_tokens = {"Ġthe"}}),
               Error);  // would be read as " the"
  EXPECT_THROW(BpeTrainer({.vocab_size = 300, .min_count = 0}), Error);
  EXPECT_THROW(BpeTrainer({.vocab_size = 300}).train(), Error);  // no text
}

TEST(BpeTrainer, SavesADirectoryOrAFile) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "cachalot_bpe_trainer_test";
  std::filesystem::remove_all(folder);
  BpeTrainer trainer({.vocab_size = 260});
  trainer.add_text("hug hug");
  const TrainedBpe trained = trainer.train();
  const std::string path = save_tokenizer(trained, (folder / "deep" / "er").string());
  EXPECT_EQ(path, (folder / "deep" / "er" / "tokenizer.json").string());
  const Tokenizer t = Tokenizer::load((folder / "deep" / "er").string());
  EXPECT_EQ(t.bos_id(), 0);
  EXPECT_EQ(t.eos_id(), 1);
  EXPECT_EQ(save_tokenizer(trained, (folder / "mine.json").string()), (folder / "mine.json").string());
  EXPECT_EQ(Tokenizer::load((folder / "mine.json").string()).eos_id(), 1);
  write_file_atomic((folder / "file").string(), "x");
  EXPECT_THROW(save_tokenizer(trained, (folder / "file" / "x").string()), Error);
  std::filesystem::remove_all(folder);
}

TEST(BpeTrainer, PreTokenizerIsDeepSeeks) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  const std::string path =
      std::string(root ? root : ".") + "/../shared/data/deepseek_v3_tokenizer/tokenizer.json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "runs on machines that have ../shared/data/deepseek_v3_tokenizer";
  EXPECT_EQ(read_json_file(path)["pre_tokenizer"], parse_json(kDeepSeekPreTokenizer, "built in"));
}

}  // namespace
}  // namespace cachalot
