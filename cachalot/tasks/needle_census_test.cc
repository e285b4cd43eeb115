#include "tasks/needle_census.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "data/bpe_trainer.h"
#include "tasks/needle.h"

namespace cachalot {
namespace {

class NeedleCensusTest : public ::testing::Test {
 protected:
  NeedleCensusTest() : tokenizer_(make_tokenizer()) {}
  static Tokenizer make_tokenizer() {
    BpeTrainer trainer({.vocab_size = 400});
    trainer.add_text("The secret number of Lisbon is 12345.\nWhat is it?\nSome hay, and more of the hay.\n");
    const std::string folder = ::testing::TempDir() + "/needle-census-tokenizer";
    std::filesystem::create_directories(folder);
    save_tokenizer(trainer.train(), folder);
    return Tokenizer::load(folder);
  }
  int64_t count(const std::string& text) const { return int64_t(tokenizer_.encode(text).size()); }
  std::vector<int64_t> contexts(const std::string& text) const {
    return lookup_contexts(tokenizer_, tokenizer_.encode(text));
  }
  TokenStream stream(const std::string& part, const std::vector<std::string>& documents) const {
    const int32_t end = int32_t(tokenizer_.vocab_size());
    ShardBuilder builder(
        {.vocab_size = end + 1, .end_of_text = end, .tokenizer = 7, .part = part, .source = ""});
    for (const std::string& text : documents) {
      std::vector<int32_t> ids = tokenizer_.encode(text);
      ids.push_back(end);
      builder.add(ids, int64_t(text.size()));
    }
    return TokenStream(part, {Shard::from_bytes(shard_bytes(std::move(builder)), part)});
  }
  Tokenizer tokenizer_;
};

TEST_F(NeedleCensusTest, AContextReachesFromTheDocumentsBeginningToTheNumbersEnd) {
  const std::string said = "The secret number of Lisbon is 48213", hay = ".\nSome hay.\n",
                    question = "What is the secret number of Lisbon? ";
  EXPECT_TRUE(contexts(said + hay).empty()) << "said once: nothing to look up";
  EXPECT_TRUE(contexts(said + hay + question).empty()) << "a question alone says no number";
  const std::string asked = said + hay + question + said;
  EXPECT_EQ(contexts(asked + ".\nAnd more."), std::vector<int64_t>{count(asked)});
  const std::string repeated = asked + hay + said;  // nobody asks, and yet it can be looked up
  EXPECT_EQ(contexts(repeated + hay), (std::vector<int64_t>{count(asked), count(repeated)}));
  EXPECT_TRUE(contexts(said + hay + "The secret number of Oslo is 48213.").empty()) << "another key";
}

TEST_F(NeedleCensusTest, MadeDocumentsAreReadBack) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "Some hay, and more of the hay.\n";
  const Haystack haystack(text, tokenizer_);
  for (uint64_t n = 0; n < 20; ++n) {
    const std::string document = make_needle_document(haystack, {.tokens = 700, .number = n}, 3);
    const std::vector<int64_t> found = contexts(document);
    ASSERT_EQ(found.size(), 3u);
    EXPECT_LT(found[0], found[1]);
    EXPECT_EQ(found[2], count(document.substr(0, document.rfind('.'))));
  }
}

TEST_F(NeedleCensusTest, NearIsAShareOfTheLengthOnBothSides) {
  EXPECT_TRUE(is_near(900, 1000, 0.1));
  EXPECT_TRUE(is_near(1100, 1000, 0.1));
  EXPECT_FALSE(is_near(899, 1000, 0.1));
  EXPECT_FALSE(is_near(1101, 1000, 0.1));
}

TEST_F(NeedleCensusTest, EveryLookupOfEveryPartIsCounted) {
  const std::string said = "The secret number of Lisbon is 48213.\n";
  const std::string twice = said + said, thrice = said + "Some hay.\n" + said + said;
  const std::vector<int64_t> of_twice = contexts(twice), of_thrice = contexts(thrice);
  ASSERT_EQ(of_twice.size(), 1u);
  ASSERT_EQ(of_thrice.size(), 2u);
  const std::vector<TokenStream> parts = {stream("plain", {"Some hay.\n", said}),
                                          stream("needles", {twice, "Some hay.\n", thrice})};
  const std::vector<int64_t> lengths = {of_thrice[1], 100000};
  const NeedleCensus census = take_needle_census(parts, tokenizer_, lengths, 0);
  ASSERT_EQ(census.parts.size(), 2u);
  EXPECT_EQ(census.parts[0].documents, 2);
  EXPECT_EQ(census.parts[0].lookups, 0);
  EXPECT_EQ(census.parts[1].name, "needles");
  EXPECT_EQ(census.parts[1].documents, 3);
  EXPECT_EQ(census.parts[1].lookups, 3);
  EXPECT_EQ(census.parts[1].shortest, of_twice[0]);
  EXPECT_EQ(census.parts[1].longest, of_thrice[1]);
  EXPECT_EQ(census.parts[1].near, (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(census.near(), 1);
  EXPECT_EQ(take_needle_census(parts, tokenizer_, std::vector<int64_t>{1000}, 0.99).near(), 3);
}

}  // namespace
}  // namespace cachalot
