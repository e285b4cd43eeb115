#include "cli/prompt.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "data/bpe_trainer.h"

namespace cachalot::cli {
namespace {

using Ids = std::vector<int32_t>;

TEST(Prompt, BeginsWithWhatTheModelHasMetBeforeTexts) {
  BpeTrainer trainer({.vocab_size = 258});  // <begin>, <end>, bytes; add_bos_token is written
  trainer.add_text("a");
  const std::string folder = testing::TempDir() + "prompt-tokenizer";
  save_tokenizer(trainer.train(), folder);
  const Tokenizer tokenizer = Tokenizer::load(folder);
  ASSERT_TRUE(tokenizer.add_bos());
  ASSERT_EQ(tokenizer.bos_id(), 0);
  ModelConfig trained_here, published;
  trained_here.bos_token_id = 1;  // train/config.h: the end-of-text token
  published.bos_token_id = 0;
  const int32_t a = tokenizer.encode("a")[0];
  EXPECT_EQ(encode_prompt(tokenizer, trained_here, "a"), (Ids{1, a}));
  EXPECT_EQ(encode_prompt(tokenizer, published, "a"), (Ids{0, a}));
  EXPECT_EQ(encode_prompt(tokenizer, trained_here, ""), Ids{1});
  EXPECT_EQ(encode_prompt(tokenizer, published, "<｜begin▁of▁sentence｜>a"), (Ids{0, a})) << "not twice";
  std::filesystem::remove(folder + "/tokenizer_config.json");  // nobody asks for a begin
  const Tokenizer plain = Tokenizer::load(folder);
  EXPECT_EQ(encode_prompt(plain, trained_here, "a"), Ids{a});
  EXPECT_EQ(encode_prompt(plain, trained_here, ""), Ids{1});
}

}  // namespace
}  // namespace cachalot::cli
