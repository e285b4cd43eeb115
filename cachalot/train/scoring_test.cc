#include "train/scoring.h"

#include <gtest/gtest.h>

#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

struct OneRun {
  explicit OneRun(const TrainSection& train)
      : device(open_device("cpu", {.threads = 2})),
        s(*device),
        trainer(s, tiny_model(), train, Trainer::plan(tiny_model(), train).arena) {
    trainer.init();
  }
  std::unique_ptr<Device> device;
  Stream s;
  Trainer trainer;
};

const std::atomic<bool> go{false};

TEST(Scoring, TheNumbersDoNotDependOnHowWindowsRunTogether) {
  TrainSection train = tiny_training(), single = tiny_training();
  single.micro_batch = 1;
  OneRun a(train), b(single);
  RandomText text(tiny_model(), train);
  std::vector<TokenSpan> windows = text.batch(0);
  windows.push_back(windows[1].first(2));  // too short for the depth
  windows.push_back(windows[2].first(3));
  const TextScore x = *a.trainer.score_text(windows, Drafts::yes, go),
                  y = *b.trainer.score_text(windows, Drafts::yes, go);
  EXPECT_NEAR(x.nats, y.nats, 1e-6 * x.nats);
  EXPECT_EQ(x.targets, 4 * 9 + 1 + 2);
  ASSERT_EQ(x.depths.size(), 1u);
  EXPECT_EQ(x.depths[0].targets, 4 * 8 + 1);
  EXPECT_EQ(x.depths[0].accepted, y.depths[0].accepted);
  EXPECT_NEAR(x.depths[0].nats, y.depths[0].nats, 1e-6 * x.depths[0].nats);
  EXPECT_NEAR(x.nats, *a.trainer.score(windows, go), 1e-9 * x.nats);
  EXPECT_TRUE(a.trainer.score_text(windows, Drafts::no, go)->depths.empty());
  const std::atomic<bool> halt{true};
  EXPECT_FALSE(a.trainer.score_text(windows, Drafts::yes, halt));
}

// After training by heart, draft and model agree on that text; with another text's tokens they seldom do. The
// agreement is of the same token: a draft that is right one place later counts for nothing.
TEST(Scoring, DraftsAreAcceptedWhereTheModelWouldHaveChosenThem) {
  TrainSection train = tiny_training();
  train.seq_len = 24;
  train.batch = 2;
  OneRun run(train);
  RandomText text(tiny_model(), train);
  const std::vector<TokenSpan> rows = text.batch(0);
  const double before = run.trainer.score_text(rows, Drafts::yes, go)->depths[0].acceptance();
  for (int i = 0; i < 150; ++i) run.trainer.step(rows, 0.01);
  const TextScore learned = *run.trainer.score_text(rows, Drafts::yes, go);
  EXPECT_GT(learned.depths[0].acceptance(), 0.9);
  EXPECT_LT(before, 0.5);
}

// Constant logits: both always choose token 0.
TEST(Scoring, AModelThatAlwaysSaysTheSameAcceptsEverything) {
  TrainSection train = tiny_training();
  OneRun run(train);
  on(run.s).fill({.y = run.trainer.params().weight("head"), .value = 0});
  RandomText text(tiny_model(), train);
  EXPECT_EQ(run.trainer.score_text(text.batch(0), Drafts::yes, go)->depths[0].acceptance(), 1);
}

}  // namespace
}  // namespace cachalot
