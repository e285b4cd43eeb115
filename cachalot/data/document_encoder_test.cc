#include "data/document_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>

#include "base/error.h"
#include "base/rng.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "data/bpe_trainer.h"

namespace cachalot {
namespace {

constexpr const char* kAlphabet[] = {"a",    "b",    "the",  " ",   " king", ".",  "\n", ");\n",
                                     "的",   "é",    "\r\n", "...", "\n\n",  "12", "\"", "<｜fim▁hole｜>",
                                     "🙂", "\xFF", "。"};

std::string random_text(uint64_t seed, uint64_t words) {
  std::string text;
  for (uint64_t i = 0; i < words; ++i) text += kAlphabet[random_below(seed, 77, i, std::size(kAlphabet))];
  return text;
}

Tokenizer make_tokenizer(bool with_fim) {
  BpeTrainOptions options{.vocab_size = 420};
  if (with_fim)
    for (const char* name : {"<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"})
      options.special_tokens.push_back(name);
  BpeTrainer trainer(options);
  for (uint64_t i = 0; i < 50; ++i) trainer.add_text(random_text(1000 + i, 200) + ".\n\n a.\n (b);\n");
  const TrainedBpe trained = trainer.train();
  const std::string folder = testing::TempDir() + "/cachalot-encoder-" + (with_fim ? "fim" : "plain");
  save_tokenizer(trained, folder);
  return Tokenizer::load(folder);
}

const Tokenizer& tokenizer() {
  static const Tokenizer t = make_tokenizer(true);
  return t;
}

std::string error_of(const auto& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "no error";
}

// The text of a document, whatever was done to it; `was_fim`: it was rearranged.
std::string restore(const std::vector<int32_t>& ids, bool* was_fim = nullptr) {
  const FimTokens fim = FimTokens::find(tokenizer()).value();
  EXPECT_EQ(ids.back(), tokenizer().eos_id());
  const auto begin = ids.begin(), end = ids.end() - 1;
  const auto text = [&](auto from, auto to) { return tokenizer().decode(std::vector<int32_t>(from, to)); };
  if (was_fim) *was_fim = *begin == fim.begin;
  if (begin == end || *begin != fim.begin) {
    for (const int32_t marker : {fim.begin, fim.hole, fim.end}) EXPECT_EQ(std::count(begin, end, marker), 0);
    return text(begin, end);
  }
  for (const int32_t marker : {fim.begin, fim.hole, fim.end}) EXPECT_EQ(std::count(begin, end, marker), 1);
  const auto hole = std::find(begin, end, fim.hole), third = std::find(begin, end, fim.end);
  EXPECT_LT(hole, third);
  return text(begin + 1, hole) + text(third + 1, end) + text(hole + 1, third);  // prefix, middle, suffix
}

TEST(DocumentEncoder, EveryByteOfADocumentIsThereOnceWhateverIsDoneToIt) {
  for (const EncodeRecipe recipe :
       {EncodeRecipe{.fim_rate = 0.5, .split_rate = 0.5, .seed = 3},
        EncodeRecipe{.fim_rate = 1, .split_rate = 1, .seed = 4}, EncodeRecipe{}}) {
    const DocumentEncoder encoder(tokenizer(), recipe);
    int rearranged = 0;
    for (uint64_t i = 0; i < 400; ++i) {
      const std::string text = random_text(i, random_below(9, 0, i, 60));
      bool was_fim = false;
      ASSERT_EQ(restore(encoder.encode(text), &was_fim), text) << i;
      rearranged += was_fim;
    }
    EXPECT_NEAR(rearranged, 400 * recipe.fim_rate, recipe.fim_rate == 0.5 ? 40 : 0);
  }
}

TEST(DocumentEncoder, PrefixThenSuffixThenMiddle) {
  const DocumentEncoder encoder(tokenizer(), {.fim_rate = 1, .seed = 1});
  const FimTokens fim = FimTokens::find(tokenizer()).value();
  const std::string text = "the king 12 的 the king";
  const auto cuts = fim_cuts(text, 1, 1, DocumentEncoder::identity(text)).value();
  std::vector<int32_t> expected;
  const auto add = [&](int32_t marker, const std::string& part) {
    expected.push_back(marker);
    for (const int32_t id : tokenizer().encode(part, {.parse_special = false})) expected.push_back(id);
  };
  add(fim.begin, text.substr(0, cuts.first));
  add(fim.hole, text.substr(cuts.second));
  add(fim.end, text.substr(cuts.first, cuts.second - cuts.first));
  expected.push_back(*tokenizer().eos_id());
  EXPECT_EQ(encoder.encode(text), expected);
}

TEST(DocumentEncoder, CutsFallEvenlyBetweenCharacters) {
  const std::string text = "a的b🙂c";  // cuts at byte 0 1 4 5 9 10
  std::map<size_t, int> seen;
  const int n = 12000;
  for (uint64_t i = 0; i < n; ++i) {
    const auto cuts = fim_cuts(text, 1, 7, i).value();
    EXPECT_LE(cuts.first, cuts.second);
    ++seen[cuts.first];
    ++seen[cuts.second];
  }
  ASSERT_EQ(seen.size(), 6u);
  for (const size_t at : {0, 1, 4, 5, 9, 10}) EXPECT_NEAR(seen[at], n / 3, 250) << at;
  EXPECT_EQ(fim_cuts("", 1, 7, 1), std::pair(size_t(0), size_t(0)));
}

TEST(DocumentEncoder, TheShareOfRearrangedDocumentsIsTheRate) {
  int n = 0;
  for (uint64_t i = 0; i < 100000; ++i) n += fim_cuts("", 0.1, 5, i).has_value();
  EXPECT_NEAR(n, 10000, 400);
}

TEST(DocumentEncoder, IsAPureFunctionOfSeedAndText) {
  ThreadPool pool(3);
  const EncodeRecipe recipe{.fim_rate = 0.5, .split_rate = 0.5, .seed = 11};
  const DocumentEncoder a(tokenizer(), recipe), b(tokenizer(), recipe);
  EncodeRecipe other = recipe;
  other.seed = 12;
  const DocumentEncoder c(tokenizer(), other);
  int changed = 0;
  for (uint64_t i = 0; i < 100; ++i) a.encode(random_text(i + 500, 20));  // what came before does not matter
  for (uint64_t i = 0; i < 100; ++i) {
    const std::string text = random_text(i, 40);
    EXPECT_EQ(a.encode(text, {.pool = &pool}), b.encode(text));
    changed += c.encode(text) != b.encode(text);
    EXPECT_EQ(a.encode(text, {.plain = true}),
              DocumentEncoder(tokenizer(), {}).encode(text));  // held-out text is plain
  }
  EXPECT_GT(changed, 60);
}

TEST(DocumentEncoder, SplitsTokensThatJoinPunctuationAndLineEndsAndNoOthers) {
  const NewlineSplitter splitter(tokenizer());
  ASSERT_GT(splitter.tokens(), 2);
  std::vector<int32_t> all;
  for (int32_t id = 5; id < tokenizer().vocab_size(); ++id) all.push_back(id);
  int64_t split = 0;
  for (const int32_t id : all) {
    std::vector<int32_t> parts{id};
    splitter.split(parts, 0, 1, 1);
    EXPECT_EQ(parts, std::vector<int32_t>{id});
    splitter.split(parts, 1, 1, 1);
    if (parts == std::vector<int32_t>{id}) continue;
    ++split;
    const std::string bytes(tokenizer().token_bytes(id));
    EXPECT_EQ(tokenizer().decode(parts), bytes);
    ASSERT_GE(parts.size(), 2u) << bytes;
    const std::string_view after = tokenizer().token_bytes(parts.back());
    EXPECT_EQ(after.find_first_not_of("\r\n"), std::string::npos) << bytes;
    const std::string before = bytes.substr(0, bytes.size() - after.size());
    EXPECT_EQ(before.find_first_of("\r\nabthekingé的"), std::string::npos) << bytes;
    EXPECT_NE(before, " ");
  }
  EXPECT_EQ(split, splitter.tokens());
}

TEST(DocumentEncoder, TheShareOfSplitTokensIsTheRate) {
  const NewlineSplitter splitter(tokenizer());
  const auto token = tokenizer().encode(".\n\n");
  ASSERT_EQ(token.size(), 1u);
  std::vector<int32_t> ids(20000, token[0]);
  splitter.split(ids, 0.1, 1, 99);
  EXPECT_NEAR(double(ids.size()), 22000, 200);
}

TEST(DocumentEncoder, RefusesWhatCannotBe) {
  for (const double rate : {-0.1, 1.5, std::nan("")}) {
    EXPECT_NE(error_of([&] { DocumentEncoder(tokenizer(), {.fim_rate = rate}); }).find("FIM rate"),
              std::string::npos);
    EXPECT_NE(error_of([&] { DocumentEncoder(tokenizer(), {.split_rate = rate}); }).find("split rate"),
              std::string::npos);
  }
  const Tokenizer plain = make_tokenizer(false);
  EXPECT_NE(error_of([&] { DocumentEncoder(plain, {.fim_rate = 0.1}); }).find("--fim-rate 0"),
            std::string::npos);
  DocumentEncoder(plain, {.split_rate = 0.1});
}

}  // namespace
}  // namespace cachalot
