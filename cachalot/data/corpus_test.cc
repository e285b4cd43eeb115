#include "data/corpus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "data/bpe_trainer.h"

namespace cachalot {
namespace {

class CorpusTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string file(const std::string& name, const std::string& text) const {
    const std::string path = (folder_ / name).string();
    write_file_atomic(path, text);
    return path;
  }
  static Tokenizer tokenizer() {
    const char* root = std::getenv("CACHALOT_SOURCE");
    return Tokenizer::load(std::string(root ? root : ".") + "/tests/data/tokenizer");
  }
  std::filesystem::path folder_ = std::filesystem::temp_directory_path() / "cachalot_corpus_test";
};

// The tokens of the only part.
std::vector<int32_t> all(const std::vector<TokenStream>& parts) {
  if (parts.empty()) return {};
  EXPECT_EQ(parts.size(), 1u);
  std::vector<int32_t> ids(size_t(parts[0].tokens()));
  parts[0].read(0, ids);
  return ids;
}

TEST_F(CorpusTest, DocumentsEndWithTheEndOfTextToken) {
  const Tokenizer t = tokenizer();
  const TokenData data = tokenize_files({file("a", "the king"), file("b", ""), file("c", "queen")}, t, 0);
  std::vector<int32_t> expected = t.encode("the king");
  expected.push_back(1);
  for (const int32_t id : t.encode("queen")) expected.push_back(id);
  expected.push_back(1);
  EXPECT_EQ(all(data.train), expected);
  EXPECT_EQ(data.train[0].documents(), 2);
  EXPECT_TRUE(data.held_out.empty());
}

TEST_F(CorpusTest, TheEndOfEveryDocumentIsHeldOutAndEveryByteIsInOnePart) {
  const Tokenizer t = tokenizer();
  std::string text;
  for (int i = 0; i < 200; ++i) text += "line " + std::to_string(i) + " of the play\n";
  const TokenData data = tokenize_files({file("a", text), file("b", text)}, t, 0.1);
  const std::string train = t.decode(all(data.train), {.skip_special = true});
  const std::string held_out = t.decode(all(data.held_out), {.skip_special = true});
  const size_t cut = training_bytes(text, 0.1);
  EXPECT_EQ(train, text.substr(0, cut) + text.substr(0, cut));
  EXPECT_EQ(held_out, text.substr(cut) + text.substr(cut));
  EXPECT_NEAR(double(held_out.size()), 0.2 * double(text.size()), 50);
  EXPECT_EQ(data.held_out[0].text_bytes(), int64_t(held_out.size()));
  EXPECT_EQ(data.train[0].text_bytes(), int64_t(train.size()));
}

TEST_F(CorpusTest, CutsAtALineEndOrElseAtACharacter) {
  EXPECT_EQ(training_bytes("0123456789", 0), 10u);
  EXPECT_EQ(training_bytes("0123456789", 0.2), 8u);
  EXPECT_EQ(training_bytes("", 0.5), 0u);
  EXPECT_EQ(training_bytes("abcd\nfghij", 0.6), 5u);               // on to the end of the line
  EXPECT_EQ(training_bytes("abcd\nfghij", 0.5), 5u);               // right after a line end: stays
  EXPECT_EQ(training_bytes("abcdefgh\nj", 0.6), 4u);               // that line ends too late
  EXPECT_EQ(training_bytes("abc的efghi", 0.6), 6u);                // 4.4 of 11 bytes is inside the character
  EXPECT_EQ(training_bytes("\x80\x80\x80\x80\x80\x80", 0.5), 3u);  // no characters: anywhere
}

TEST_F(CorpusTest, TextCannotSpellTheEndOfTextToken) {
  const Tokenizer t = tokenizer();
  const TokenData data = tokenize_files({file("a", "x" + std::string(kEosToken) + "y")}, t, 0);
  const std::vector<int32_t> ids = all(data.train);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 1);
}

TEST_F(CorpusTest, RefusesAnEmptyCorpusAndWhatCannotBe) {
  const Tokenizer t = tokenizer();
  EXPECT_THROW(tokenize_files({}, t, 0.1), Error);
  EXPECT_THROW(tokenize_files({file("a", ""), file("b", "")}, t, 0.1), Error);
  EXPECT_THROW(tokenize_files({(folder_ / "missing").string()}, t, 0.1), Error);
  EXPECT_THROW(tokenize_files({file("a", "x")}, t, 1.0), Error);
  EXPECT_THROW(tokenize_files({file("a", "x")}, t, -0.1), Error);
  BpeTrainer nameless({.vocab_size = 256, .special_tokens = {}});
  nameless.add_text("ab ab");
  EXPECT_THROW(tokenize_files({file("a", "x")}, Tokenizer::parse(nameless.train().tokenizer_json, "t"), 0.1),
               Error);
}

}  // namespace
}  // namespace cachalot
