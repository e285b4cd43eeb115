#include "train/held_out.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "data/bpe_trainer.h"
#include "data/corpus.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

class HeldOutTest : public ::testing::Test {
 protected:
  HeldOutTest() {
    std::string text;
    for (int i = 0; i < 200; ++i) text += "line " + std::to_string(i * i) + " of a text\n";
    write_file_atomic(folder_ / "text.txt", text);
    bytes_ = int64_t(text.size() - training_bytes(text, 0.2));
    BpeTrainer trainer({.vocab_size = 280});
    trainer.add_text(text);
    save_tokenizer(trainer.train(), folder_.path());
  }
  Tokenizer tokenizer() const { return Tokenizer::load(folder_.path()); }
  std::vector<TokenStream> held_out_of(double share) const {
    return tokenize_files({folder_ / "text.txt"}, tokenizer(), share).held_out;
  }
  TemporaryFolder folder_;
  int64_t bytes_ = 0;
};

TEST_F(HeldOutTest, EveryHeldOutTokenIsATargetOnce) {
  const std::vector<TokenStream> kept = held_out_of(0.2);
  std::vector<int32_t> expected(size_t(kept[0].tokens()));
  kept[0].read(0, expected);
  for (const int64_t t : {1, 7, 32, 100000}) {
    const HeldOut held_out(kept, tokenizer(), t);
    std::vector<int32_t> targets;
    for (const TokenSpan& w : held_out.windows()) {
      ASSERT_GE(w.size(), 2u);
      ASSERT_LE(int64_t(w.size()), t + 1);
      EXPECT_EQ(w[0], targets.empty() ? 1 : targets.back());  // its context
      targets.insert(targets.end(), w.begin() + 1, w.end());
    }
    EXPECT_EQ(targets, expected) << "windows of " << t;
  }
}

TEST_F(HeldOutTest, AModelThatKnowsNothingPaysTheLogarithmOfTheVocabularyForEveryToken) {
  const std::vector<TokenStream> kept = held_out_of(0.2);
  ModelConfig model = tiny_model();
  model.vocab_size = 280;
  TrainSection train = tiny_training();
  const auto device = open_device("cpu", {.threads = 2});
  Stream s(*device);
  Trainer trainer(s, model, train, Trainer::plan(model, train).arena);
  trainer.init();
  on(s).fill({.y = trainer.params().weight("head"), .value = 0});  // all logits equal
  const HeldOut held_out(kept, tokenizer(), train.seq_len);
  const std::atomic<bool> go{false}, halt{true};
  const auto all = held_out.score(trainer, 0, go);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->tokens, kept[0].tokens());
  EXPECT_EQ(all->bytes, bytes_);
  EXPECT_NEAR(all->loss(), std::log(280.0), 1e-5);
  EXPECT_NEAR(all->bits_per_byte(), std::log2(280.0) * double(all->tokens) / double(bytes_), 1e-5);

  const auto some = held_out.score(trainer, 3, go);  // spread over the text
  ASSERT_TRUE(some);
  EXPECT_EQ(some->tokens, 3 * train.seq_len);
  EXPECT_LT(some->bytes, all->bytes);
  EXPECT_FALSE(held_out.score(trainer, 0, halt));
}

TEST_F(HeldOutTest, EverySetIsScoredAndTheTotalIsOfWhatThePartsHoldOut) {
  write_file_atomic(folder_ / "more.txt", "another text, of another kind: " + std::string(300, 'x'));
  const std::vector<TokenStream> kept = held_out_of(0.2),
                                 more = tokenize_files({folder_ / "more.txt"}, tokenizer(), 0).train;
  ModelConfig model = tiny_model();
  model.vocab_size = 280;
  TrainSection train = tiny_training();
  train.ema_decay = 0.9;
  const auto device = open_device("cpu", {.threads = 2});
  Stream s(*device);
  Trainer trainer(s, model, train, Trainer::plan(model, train).arena);
  trainer.init();
  const std::vector<TokenStream> books = {TokenStream("books", more[0].shards())};
  const HeldOut both(kept, tokenizer(), train.seq_len, books), one(kept, tokenizer(), train.seq_len),
      other({}, tokenizer(), train.seq_len, books);
  EXPECT_EQ(both.sets(), (std::vector<std::string>{kept[0].name(), "books"}));
  const std::atomic<bool> go{false};
  const auto all = both.score(trainer, 0, go), part = one.score(trainer, 0, go),
             set = other.score(trainer, 0, go);
  ASSERT_TRUE(all && part && set);
  EXPECT_EQ(all->nats, part->nats);
  EXPECT_EQ(all->bytes, part->bytes);
  ASSERT_EQ(all->sets.size(), 2u);
  EXPECT_EQ(all->sets[1].score.nats, set->nats) << "without parts the total is of the sets";
  EXPECT_EQ(all->sets[1].bytes, set->bytes);
  EXPECT_EQ(all->average_nats, all->nats) << "before the first step the average is the weights";
  ASSERT_EQ(all->depths.size(), 1u);
  const Json json = held_out_json(*all);
  EXPECT_EQ(json["sets"]["books"]["bits_per_byte"], set->bits_per_byte());
  EXPECT_TRUE(json["sets"]["books"]["mtp"][0].contains("acceptance"));
  EXPECT_FALSE(held_out_json(*part).contains("sets"));
  EXPECT_TRUE(contains(held_out_text(*all), "books"));
  EXPECT_TRUE(contains(held_out_text(*all), "MTP accepts"));
}

TEST_F(HeldOutTest, NothingHeldOutGivesNoScore) {
  EXPECT_TRUE(HeldOut(held_out_of(0), tokenizer(), 8).windows().empty());
}

}  // namespace
}  // namespace cachalot
