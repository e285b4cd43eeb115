#include "tasks/needle.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <span>

#include "base/error.h"
#include "data/bpe_trainer.h"

namespace cachalot {
namespace {

class NeedleTest : public ::testing::Test {
 protected:
  NeedleTest() : tokenizer_(make_tokenizer()), haystack_(text(), tokenizer_) {}
  static std::string text() {
    std::string text;
    for (int i = 0; i < 300; ++i) text += "Line " + std::to_string(i) + " of the hay, which says little.\n\n";
    return text;
  }
  static Tokenizer make_tokenizer() {
    BpeTrainer trainer({.vocab_size = 400});
    trainer.add_text(text() + "The secret number of Lisbon is 12345.\nWhat is it?");
    const std::string folder = ::testing::TempDir() + "/needle-tokenizer";
    std::filesystem::create_directories(folder);
    save_tokenizer(trainer.train(), folder);
    return Tokenizer::load(folder);
  }
  Tokenizer tokenizer_;
  Haystack haystack_;
};

TEST_F(NeedleTest, APromptFillsItsLengthAndItsAnswerStandsInItOnce) {
  for (const int64_t length : {128, 500, 2000})
    for (uint64_t number = 0; number < 20; ++number) {
      const NeedlePrompt p =
          make_needle_prompt(haystack_, {.tokens = length, .depth = 0.5, .seed = 3, .number = number});
      const int64_t used = int64_t(p.tokens.size()) + p.answer_tokens;
      EXPECT_LE(used, length);
      EXPECT_GT(used, length - 30) << "less than a line is missing";
      const std::string decoded = tokenizer_.decode(p.tokens);
      const size_t at = decoded.find(p.answer);
      ASSERT_NE(at, std::string::npos);
      EXPECT_EQ(decoded.find(p.answer, at + 1), std::string::npos);
      EXPECT_TRUE(decoded.ends_with(" is"));
      EXPECT_TRUE(found_needle(p, p.answer + " and more"));
      EXPECT_FALSE(found_needle(p, p.answer.substr(0, p.answer.size() - 1)));
      EXPECT_FALSE(found_needle(p, "x" + p.answer));
    }
}

TEST_F(NeedleTest, TheNeedleIsAtItsDepth) {
  for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
    const NeedlePrompt p = make_needle_prompt(haystack_, {.tokens = 2000, .depth = depth, .seed = 1});
    const std::span<const int32_t> tokens(p.tokens);
    const std::string before = tokenizer_.decode(tokens.first(size_t(p.needle_at))),
                      after = tokenizer_.decode(tokens.subspan(size_t(p.needle_at)));
    EXPECT_TRUE(after.starts_with("The secret number of"));
    const size_t needle = after.find('\n') + 1, question = after.rfind('\n') + 1;
    const auto count = [&](const std::string& text) { return double(tokenizer_.encode(text).size()); };
    const double hay_before = count(before),
                 hay = hay_before + count(after.substr(needle, question - needle));
    EXPECT_NEAR(hay_before / hay, depth, 10 / hay) << "to half a line";
  }
}

TEST_F(NeedleTest, ACaseIsAFunctionOfItsSeedAndNumber) {
  const NeedleCase c{.tokens = 300, .depth = 0.3, .seed = 7, .number = 11};
  EXPECT_EQ(make_needle_prompt(haystack_, c).tokens, make_needle_prompt(haystack_, c).tokens);
  std::set<std::string> answers;
  for (uint64_t n = 0; n < 50; ++n)
    answers.insert(make_needle_prompt(haystack_, {.tokens = 300, .seed = 7, .number = n}).answer);
  EXPECT_GT(answers.size(), 48u);
}

TEST_F(NeedleTest, DistractorsHaveOtherKeys) {
  const NeedlePrompt p =
      make_needle_prompt(haystack_, {.tokens = 1000, .depth = 0.5, .distractors = 9, .seed = 2, .number = 4});
  const std::string decoded = tokenizer_.decode(p.tokens);
  std::set<std::string> keys;
  const std::string begin = "The secret number of ";
  for (size_t at = decoded.find(begin); at != std::string::npos; at = decoded.find(begin, at + 1)) {
    const size_t from = at + begin.size();
    keys.insert(decoded.substr(from, decoded.find(" is", from) - from));
  }
  EXPECT_EQ(keys.size(), 10u);
}

TEST_F(NeedleTest, ADocumentAnswersEveryQuestion) {
  const std::string document = make_needle_document(haystack_, {.tokens = 600, .seed = 5, .number = 1}, 3);
  size_t questions = 0;
  for (size_t at = document.find("What is"); at != std::string::npos; at = document.find("What is", at + 1)) {
    ++questions;
    const size_t from = document.find("The secret", at), end = document.find('\n', at) + 1;
    const std::string answered = document.substr(from, end - from);
    EXPECT_LT(document.find(answered), at) << "the needle itself, word by word";
  }
  EXPECT_EQ(questions, 3u);
  EXPECT_LE(tokenizer_.encode(document).size(), 600u);
  EXPECT_GT(tokenizer_.encode(document).size(), 550u);
  // Where three do not leave half of the room to the hay, there are fewer.
  const std::string crowded = make_needle_document(haystack_, {.tokens = 250, .seed = 5, .number = 1}, 3);
  EXPECT_LE(tokenizer_.encode(crowded).size(), 250u);
  EXPECT_EQ(crowded.find("What is"), crowded.rfind("What is"));
  // Less hay leaves room for more.
  const auto questions_in = [](const std::string& text) {
    size_t n = 0;
    for (size_t at = text.find("What is"); at != std::string::npos; at = text.find("What is", at + 1)) ++n;
    return n;
  };
  const NeedleCase c{.tokens = 600, .seed = 5, .number = 1};
  EXPECT_GT(questions_in(make_needle_document(haystack_, c, 50, 0.1)),
            questions_in(make_needle_document(haystack_, c, 50, 0.5)));
  EXPECT_THROW(make_needle_document(haystack_, {.tokens = 60}, 1), Error);
}

TEST_F(NeedleTest, WhatLeavesNoRoomIsRefused) {
  EXPECT_THROW(make_needle_prompt(haystack_, {.tokens = 30}), Error);
  EXPECT_THROW(Haystack("one line\n", tokenizer_), Error);
}

}  // namespace
}  // namespace cachalot
