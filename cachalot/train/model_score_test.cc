#include "train/model_score.h"

#include <gtest/gtest.h>

#include "base/thread_pool.h"
#include "train/pretrain_testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

class ModelScoreTest : public PretrainTest {
 protected:
  ModelScoreTest() {
    write_file_atomic(folder_ / "other.txt",
                      "another text, which nobody was trained on,\nof the 3th line with ümlauts\n");
    write_file_atomic(folder_ / "more.txt", "the 2th line rhymes with the line before\n");
    config_.train.eval_every = 10;
    config_.data.validation.of = {{"other", {folder_ / "other.txt", folder_ / "more.txt"}},
                                  {"more", {folder_ / "more.txt"}}};
    run("r");
  }
  ModelScoreOptions options() const {
    ModelScoreOptions o;
    o.texts = config_.data.validation;
    o.window = config_.train.seq_len;
    return o;
  }
  std::optional<ModelScore> score(const ModelScoreOptions& o) {
    const auto device = open_device("cpu", {.threads = 1});
    return score_model(*device, folder_ / "r", o, &pool_, stop_);
  }
  void expect_refused(const ModelScoreOptions& o, const std::string& says) {
    try {
      score(o);
      ADD_FAILURE() << "no error that says " << says;
    } catch (const Error& e) {
      EXPECT_TRUE(contains(e.what(), says)) << e.what();
    }
  }
  ThreadPool pool_{2};
};

TEST_F(ModelScoreTest, AFinishedModelHasTheScoresThatItsTrainingReported) {
  const Json reported = metrics("r").back()["held_out"]["sets"];
  const auto scored = score(options());
  ASSERT_TRUE(scored);
  ASSERT_EQ(scored->result.sets.size(), 2u);
  double nats = 0;
  for (const HeldOut::Set& set : scored->result.sets) {
    const Json& was = reported.at(set.name);
    EXPECT_EQ(set.score.targets, was["tokens"]) << set.name;
    EXPECT_EQ(set.bytes, was["bytes"]) << set.name;
    EXPECT_NEAR(set.bits_per_byte(), was["bits_per_byte"].get<double>(), 1e-6) << set.name;
    ASSERT_EQ(set.score.depths.size(), 1u);
    EXPECT_EQ(set.score.depths[0].acceptance(), was["mtp"][0]["acceptance"]) << set.name;
    nats += set.score.nats;
  }
  EXPECT_DOUBLE_EQ(scored->result.nats, nats);
  EXPECT_EQ(scored->result.sets[1].bytes,
            int64_t(std::string_view("another text, which nobody was trained "
                                     "on,\nof the 3th line with ümlauts\n"
                                     "the 2th line rhymes with the line before\n")
                        .size()));
}

TEST_F(ModelScoreTest, TheNumberOfWindowsInAPassChangesNothing) {
  ModelScoreOptions o = options();
  o.together = 1;
  const auto one = score(o);
  o.together = 7;
  const auto seven = score(o);
  ASSERT_TRUE(one && seven);
  EXPECT_NEAR(one->result.nats, seven->result.nats, 1e-9 * one->result.nats);
  EXPECT_EQ(held_out_json(one->result)["expert_load"], held_out_json(seven->result)["expert_load"]);
}

TEST_F(ModelScoreTest, WithoutDraftsTheMainModelScoresTheSame) {
  const auto with = score(options());
  ModelScoreOptions o = options();
  o.drafts = false;
  const auto without = score(o);
  ASSERT_TRUE(with && without);
  EXPECT_DOUBLE_EQ(with->result.nats, without->result.nats);
  EXPECT_TRUE(without->result.depths.empty());
  const std::string table = model_score_table(with->result), plain = model_score_table(without->result);
  EXPECT_TRUE(contains(table, "MTP 1 accepts") && contains(table, "\nall "));
  EXPECT_FALSE(contains(plain, "MTP"));
}

TEST_F(ModelScoreTest, ProgressEndsWithAllWindowsAndAStopEndsTheWork) {
  ModelScoreOptions o = options();
  int64_t last = 0, all = 0;
  o.progress = [&](int64_t done, int64_t of) {
    EXPECT_GT(done, last);
    last = done;
    all = of;
  };
  ASSERT_TRUE(score(o));
  EXPECT_GT(all, 2);
  EXPECT_EQ(last, all);
  stop_ = true;
  EXPECT_FALSE(score(o));
}

TEST_F(ModelScoreTest, WhatCannotBeScoredIsRefusedBeforeTheWeightsAreRead) {
  ModelScoreOptions o = options();
  o.loading = [](int64_t, int64_t) { ADD_FAILURE() << "weights were read"; };
  o.window = 1 << 20;
  expect_refused(o, "windows of 1048576 tokens; the model's context is ");
  o = options();
  o.texts.of = {{"none", {folder_ / "none.txt"}}};
  expect_refused(o, "none.txt");
  write_file_atomic(folder_ / "empty.txt", "");
  o.texts.of = {{"empty", {folder_ / "empty.txt"}}};
  expect_refused(o, "no text");
  std::filesystem::remove(folder_ / "r/checkpoints/step-00000010/model/tokenizer.json");
  expect_refused(options(), "holds no tokenizer.json");
}

}  // namespace
}  // namespace cachalot
