#include "train/pretrain.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/bpe_trainer.h"
#include "data/corpus.h"
#include "data/tokenize.h"
#include "model/load.h"
#include "train/pretrain_testing.h"
#include "train/report.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

TEST_F(PretrainTest, ARunLeavesItsConfigurationMetricsTokenizerAndTheLastTwoCheckpoints) {
  config_.train.save_every = 3;
  config_.train.eval_every = 5;
  config_.train.eval_sequences = 4;
  const PretrainResult result = run("r");
  EXPECT_EQ(result.steps, 10);
  EXPECT_FALSE(result.stopped);
  EXPECT_EQ(result.checkpoint, folder_ / "r/checkpoints/step-00000010");
  EXPECT_FALSE(fs::exists(folder_ / "r/checkpoints/step-00000006"));
  EXPECT_TRUE(fs::exists(folder_ / "r/checkpoints/step-00000009/COMPLETE"));
  EXPECT_TRUE(fs::exists(folder_ / "r/model/tokenizer_config.json"));
  ASSERT_TRUE(result.held_out);

  const std::vector<Json> lines = metrics("r");
  ASSERT_EQ(lines.size(), 10u);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["step"], i + 1);
    EXPECT_EQ(lines[i]["tokens"], (i + 1) * 36);
    EXPECT_EQ(lines[i]["max_vio"].size(), 3u);
    EXPECT_EQ(lines[i]["mtp_loss"].size(), 1u);
    EXPECT_TRUE(lines[i]["updated"]);
    EXPECT_EQ(lines[i].contains("held_out"), i == 4 || i == 9);
  }
  EXPECT_EQ(lines[9]["loss"], result.last_loss);
  EXPECT_LT(lines[9]["loss"], lines[0]["loss"]);
  EXPECT_EQ(lines[9]["held_out"]["bits_per_byte"], result.held_out->bits_per_byte());
  EXPECT_LT(lines[4]["held_out"]["tokens"], lines[9]["held_out"]["tokens"]);

  // The checkpoint holds what was trained: read back, it has the held-out score that was reported.
  const auto device = open_device("cpu", {.threads = 1});
  Stream s(*device);
  const LoadedModel loaded = load_model(s, folder_ / "r", Precision::f32, {});
  const Tokenizer tokenizer = Tokenizer::load(folder_ / "r/model");
  EXPECT_EQ(loaded.config.vocab_size, tokenizer.vocab_size());
  const HeldOut held_out(tokenize_files(config_.data.files, tokenizer, 0.1).held_out, tokenizer, 9);
  const Transformer model(s, loaded.config, *loaded.params, 9);
  Arena arena(*device, int64_t{64} << 20, "test");
  const TrainingBatch batch = make_training_batch(s, arena, held_out.windows(), 0);
  double nats = 0;
  for (const double x : read(s, forward_losses(s, arena, model, batch, {}).losses)) nats += x;
  EXPECT_NEAR(nats, result.held_out->nats, 1e-6 * nats);

  const std::string text = out_.str();
  for (const char* part : {"memory ", " 1/10 ", "10/10 ", "bits per byte", "loss (nats a token)", "tok/s"})
    EXPECT_TRUE(contains(text, part));
}

TEST_F(PretrainTest, TheResolvedConfigurationRunsAgainToTheSameBits) {
  const PretrainResult first = run("a");
  config_ = load_run_config(folder_ / "a/config.json", {});
  EXPECT_EQ(config_.train.micro_batch, 2);
  const PretrainResult second = run("b");
  EXPECT_TRUE(weights(first.checkpoint) == weights(second.checkpoint));
  EXPECT_EQ(read_file(folder_ / "a/config.json"), read_file(folder_ / "b/config.json"));
  config_.train.seed = 2;
  EXPECT_FALSE(weights(run("c").checkpoint) == weights(first.checkpoint));
  config_.train.seed = 1;
  config_.tokenizer = {.path = folder_ / "a/tokenizer.json", .vocab_size = 0};  // given instead of trained
  EXPECT_TRUE(weights(run("d").checkpoint) == weights(first.checkpoint));
  EXPECT_EQ(read_file(folder_ / "d/tokenizer_config.json"), read_file(folder_ / "a/tokenizer_config.json"));
}

// A stream that sets a flag once a text has gone through it.
class Tripwire : public std::stringbuf {
 public:
  Tripwire(std::string text, std::atomic<bool>& flag) : text_(std::move(text)), flag_(flag) {}
  int sync() override {
    if (str().find(text_) != std::string::npos) flag_ = true;
    return 0;
  }

 private:
  std::string text_;
  std::atomic<bool>& flag_;
};

TEST_F(PretrainTest, StoppingFinishesTheStepAndSaves) {
  Tripwire buffer(" 4/10", stop_);
  std::ostream out(&buffer);
  const PretrainResult result = pretrain(config_, options("r"), out, stop_);
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.steps, 4);
  EXPECT_EQ(result.checkpoint, folder_ / "r/checkpoints/step-00000004");
  EXPECT_TRUE(fs::exists(result.checkpoint + "/COMPLETE"));
  EXPECT_EQ(metrics("r").size(), 4u);
  EXPECT_TRUE(contains(buffer.str(), "stopped at step 4 of 10; saved "));

  // The same again goes on, and ends where a run that nobody stopped ends.
  stop_ = false;
  const PretrainResult rest = run("r");
  EXPECT_EQ(rest.resumed_from, 4);
  EXPECT_EQ(rest.steps, 10);
  const PretrainResult whole = run("whole");
  EXPECT_TRUE(same_checkpoints(rest.checkpoint, whole.checkpoint));
  EXPECT_EQ(without_times(lines("r")), without_times(lines("whole")));
  EXPECT_EQ(rest.held_out->nats, whole.held_out->nats);
  stop_ = true;

  const PretrainResult at_once = pretrain(config_, options("s"), out, stop_);
  EXPECT_TRUE(at_once.stopped);
  EXPECT_EQ(at_once.steps, 0);
  EXPECT_FALSE(fs::exists(folder_ / "s"));
  EXPECT_TRUE(contains(buffer.str(), "nothing to save"));
}

// Stopping does not wait for the evaluation that follows the step; whoever goes on makes up for it.
TEST_F(PretrainTest, AnEvaluationThatAStopCutShortIsMadeWhenTheRunGoesOn) {
  config_.train.eval_every = 4;
  config_.train.eval_sequences = 4;
  Tripwire buffer(" 4/10", stop_);
  std::ostream out(&buffer);
  EXPECT_EQ(pretrain(config_, options("r"), out, stop_).steps, 4);
  EXPECT_FALSE(metrics("r").back().contains("held_out"));
  stop_ = false;
  run("r");
  EXPECT_TRUE(metrics("r")[3].contains("held_out"));
  run("whole");
  EXPECT_EQ(without_times(lines("r")), without_times(lines("whole")));
}

TEST_F(PretrainTest, TenStepsWithoutAFiniteGradientEndTheRunWithTheWeightsSaved) {
  config_.train.steps = 30;
  config_.train.lr = 1e30;  // the first update throws the weights beyond all bounds
  config_.train.min_lr = 0;
  const std::string text = error_of([&] { run("r"); });
  EXPECT_TRUE(contains(text, "10 steps in a row changed nothing, 11 the last: the loss is"));
  EXPECT_TRUE(contains(text, "--train.lr"));
  const std::vector<Json> lines = metrics("r");
  ASSERT_EQ(lines.size(), 11u);
  EXPECT_TRUE(lines[0]["updated"]);
  EXPECT_FALSE(lines[1]["updated"]);
  EXPECT_TRUE(lines[1]["grad_norm"].is_null());
  EXPECT_TRUE(fs::exists(folder_ / "r/checkpoints/step-00000011/COMPLETE"));
  EXPECT_TRUE(contains(out_.str(), "the norm of the gradient nan; its update is left out"));
}

TEST_F(PretrainTest, ARunThatDoesNotComeAboutLeavesNothing) {
  const auto left = [&] {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator{});
  };
  const auto before = left();
  const auto message = [&] { return error_of([&] { run("r"); }); };
  config_.train.seq_len = 60;  // longer than the text has tokens after the next line
  write_file_atomic(folder_ / "text.txt", "short");
  EXPECT_TRUE(contains(message(), "the training text has"));
  write_file_atomic(folder_ / "text.txt", "");
  EXPECT_TRUE(contains(message(), "text"));
  config_.data.files = {folder_ / "absent.txt"};
  EXPECT_TRUE(contains(message(), "absent.txt"));
  config_.data.files = {folder_ / "text.txt"};
  config_.tokenizer = {.path = folder_ / "absent.json", .vocab_size = 0};
  EXPECT_TRUE(contains(message(), "absent.json"));
  config_.tokenizer = {.path = "", .vocab_size = 290};
  Json model = parse_json(config_.model.json, "model");
  model["hidden_size"] = 0;
  config_.model.json = model.dump();
  EXPECT_TRUE(contains(message(), "hidden_size is 0"));
  EXPECT_EQ(left(), before);
}

TEST_F(PretrainTest, ARunIsNotOverwrittenUnlessAskedFor) {
  run("r");
  const PretrainResult again = run("r");
  EXPECT_EQ(again.resumed_from, 10);
  EXPECT_EQ(again.steps, 10);
  EXPECT_TRUE(contains(out_.str(), "all 10 steps were done before"));
  EXPECT_EQ(metrics("r").size(), 10u);
  config_.train.lr = 0.02;
  const std::string text = error_of([&] { run("r"); });
  EXPECT_TRUE(contains(text, "cannot go on with other values of: train.lr 0.01 -> 0.02 | "));
  EXPECT_TRUE(contains(text, "--overwrite"));
  EXPECT_TRUE(contains(text, "A run may change train.steps"));
  EXPECT_EQ(metrics("r").size(), 10u);
  config_.train.steps = 2;
  PretrainOptions o = options("r");
  o.overwrite = true;
  EXPECT_EQ(pretrain(config_, o, out_, stop_).steps, 2);
  EXPECT_EQ(metrics("r").size(), 2u);
}

TEST_F(PretrainTest, OverwritingKeepsWhatTheNewRunBeginsWith) {
  const PretrainResult done = run("r");
  const std::string before = weights(done.checkpoint);
  PretrainOptions o = options("r");
  o.overwrite = true;
  for (const std::string& from : {folder_ / "r", folder_ / "r/model", done.checkpoint}) {
    config_.train.init_from = from;
    const std::string text = error_of([&] { pretrain(config_, o, out_, stop_); });
    EXPECT_TRUE(contains(text, "the weights in " + (folder_ / "r") + " are to be used by the run")) << text;
  }
  config_.train.init_from.clear();
  config_.tokenizer = {.path = folder_ / "r/tokenizer.json", .vocab_size = 0};
  EXPECT_TRUE(contains(error_of([&] { pretrain(config_, o, out_, stop_); }), "the tokens in "));
  EXPECT_EQ(weights(done.checkpoint), before);
  EXPECT_EQ(metrics("r").size(), 10u);
}

TEST_F(PretrainTest, OtherTextIsRefusedBeforeAnythingOfTheRunIsWritten) {
  run("r");
  const std::string config = read_file(folder_ / "r/config.json"),
                    metrics = read_file(folder_ / "r/metrics.jsonl");
  write_file_atomic(folder_ / "text.txt", read_file(folder_ / "text.txt") + "one line more\n");
  config_.train.steps = 20;
  EXPECT_TRUE(contains(error_of([&] { run("r"); }), "was trained on data"));
  EXPECT_EQ(read_file(folder_ / "r/config.json"), config);
  EXPECT_EQ(read_file(folder_ / "r/metrics.jsonl"), metrics);
}

TEST_F(PretrainTest, OtherArithmeticIsRefusedBeforeAnythingOfTheRunIsWrittenUnlessAskedFor) {
  run("r");
  const std::string config = read_file(folder_ / "r/config.json");
  config_.train.steps = 12;
  PretrainOptions o = options("r");
  o.device = "ref";  // doubles
  const std::string text = error_of([&] { pretrain(config_, o, out_, stop_); });
  EXPECT_TRUE(contains(text, "the checkpoint was computed by "));
  EXPECT_TRUE(contains(text, "--allow-different-bits"));
  EXPECT_EQ(read_file(folder_ / "r/config.json"), config);
  o.allow_different_bits = true;
  const PretrainResult rest = pretrain(config_, o, out_, stop_);
  EXPECT_EQ(rest.resumed_from, 10);
  EXPECT_EQ(rest.steps, 12);
}

TEST_F(PretrainTest, WhatARunLacksIsSaidWithWhereToFindIt) {
  run("r");
  fs::resize_file(folder_ / "r/metrics.jsonl", 1500);
  run("r");
  EXPECT_TRUE(contains(out_.str(), "metrics.jsonl ends with step "));
  EXPECT_TRUE(contains(out_.str(), ", the checkpoint is of step 10: the lines between are lost"));
  fs::rename(folder_ / "r/tokenizer.json", folder_ / "t.json");
  EXPECT_TRUE(contains(error_of([&] { run("r"); }), "/checkpoints/step-.../model/tokenizer.json"));
  fs::rename(folder_ / "t.json", folder_ / "r/tokenizer.json");
  fs::resize_file(folder_ / "r/config.json", 100);
  EXPECT_TRUE(contains(error_of([&] { run("r"); }), "/checkpoints/step-.../config.json"));
}

TEST_F(PretrainTest, ADryRunTellsWhatItTakesAndTouchesNothing) {
  const auto left = [&] {
    return std::distance(fs::recursive_directory_iterator(folder_.path()),
                         fs::recursive_directory_iterator{});
  };
  const auto before = left();
  ::setenv("TMPDIR", folder_.path().c_str(), 1);  // the tokenizer that it learns leaves nothing there
  for (const char* place : {"r", "new/r", "text.txt/r"}) {  // the last is one where nothing can be written
    PretrainOptions o = options(place);
    o.dry_run = true;
    EXPECT_EQ(pretrain(config_, o, out_, stop_).steps, 0);
    EXPECT_EQ(left(), before);
  }
  ::unsetenv("TMPDIR");
  for (const char* part : {"memory ", "for 1 checkpoint of ", "time ", "dry run: nothing was written"})
    EXPECT_TRUE(contains(out_.str(), part));
  EXPECT_TRUE(contains(error_of([&] { run("text.txt/r"); }), "--run-dir for another place"));
}

TEST_F(PretrainTest, ADryRunOfARunThatIsThereTellsWhatIsLeft) {
  run("r");
  PretrainOptions o = options("r");
  o.dry_run = true;
  for (const auto& [steps, told] : {std::pair{14, " for 4 steps that are left of 14, by steps of "},
                                    {10, "nothing was written; all 10 steps are done"}}) {
    out_.str("");
    config_.train.steps = steps;
    pretrain(config_, o, out_, stop_);
    EXPECT_TRUE(contains(out_.str(), told));
  }
  EXPECT_EQ(metrics("r").size(), 10u);
}

TEST_F(PretrainTest, EveryCheckpointThatTrainingWaitedForIsInTheMetrics) {
  run("end");
  EXPECT_TRUE(contains(out_.str(), "saving     at the end only (--train.save_every N"));
  config_.train.save_every = 3;
  run("r");
  EXPECT_TRUE(contains(out_.str(), "saving     every 3 steps, "));
  EXPECT_TRUE(contains(out_.str(), "saving     4 checkpoints; "));
  const std::vector<Json> steps = metrics("r");
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].contains("checkpoint_stall_seconds"), i == 3 || i == 6 || i == 9) << i;
    EXPECT_EQ(steps[i].contains("checkpoint_stall_after_seconds"), i == 9) << i;
  }
  const std::string page = report_html({.title = "r", .log = read_run_log(folder_ / "r/metrics.jsonl")});
  EXPECT_TRUE(contains(page, " for 4 checkpoints, "));
}

// Weights are worth nothing with other tokens under the same ids.
TEST_F(PretrainTest, TrainingThatBeginsWithWeightsUsesTheirTokenizer) {
  const PretrainResult base = run("base");
  std::string text;
  for (int i = 0; i < 400; ++i) text += fmt::format("int f{}(int x) {{ return x + {}; }}\n", i, i * i);
  write_file_atomic(folder_ / "text.txt", text);
  config_.train.init_from = folder_ / "base";
  const PretrainResult next = run("next");  // though tokenizer.vocab_size asks for a new one
  EXPECT_EQ(next.steps, 10);
  EXPECT_EQ(read_file(folder_ / "next/tokenizer.json"), read_file(folder_ / "base/tokenizer.json"));
  EXPECT_TRUE(contains(out_.str(), " tokens, the one of " + (folder_ / "base")));
  EXPECT_EQ(run("next").resumed_from, 10);
  config_.train.init_from = base.checkpoint;  // a checkpoint by its name
  EXPECT_EQ(run("again").steps, 10);
  EXPECT_TRUE(weights(next.checkpoint) == weights(folder_ / "again/checkpoints/step-00000010"));
  config_.tokenizer.vocab_size = 0;  // need not be said
  config_.validate("test.json");
  EXPECT_EQ(run("brief").steps, 10);
  fs::remove(folder_ / "base/model/tokenizer.json");
  EXPECT_TRUE(contains(error_of([&] { run("none"); }), " has no tokenizer, and tokenizer gives neither "));
  config_.train.init_from = folder_ / "next";
  BpeTrainer trainer({.vocab_size = 290});
  trainer.add_text(text);
  save_tokenizer(trainer.train(), folder_ / "other");
  config_.tokenizer = {.path = folder_ / "other", .vocab_size = 0};
  const std::string refused = error_of([&] { run("refused"); });
  EXPECT_TRUE(contains(refused, "training cannot begin with the weights in "));
  EXPECT_TRUE(contains(refused, "in the tokenizer of this run | "));
  EXPECT_FALSE(fs::exists(folder_ / "refused"));
}

// The shards of a folder, and the parts that they belong to, instead of text.
class PretrainShardsTest : public PretrainTest {
 protected:
  PretrainShardsTest() {
    BpeTrainer trainer({.vocab_size = 290});
    for (const char* part : {"code", "en"}) {
      std::string lines;
      for (int i = 0; i < 300; ++i)
        lines += Json{{"text", fmt::format("{} text {} of the part\n", part, i * i)}}.dump() + "\n";
      trainer.add_text(lines);
      fs::create_directory(folder_ / "in");
      write_file_atomic(folder_ / ("in/" + std::string(part) + ".jsonl"), lines);
    }
    save_tokenizer(trainer.train(), folder_ / "tokenizer");
    tokenize(
        Tokenizer::load(folder_ / "tokenizer"),
        {.inputs = find_inputs({folder_ / "in/code.jsonl", folder_ / "in/en.jsonl"}),
         .reading = {},
         .recipe = {},
         .held_out = 0.1,
         .shard_tokens = 1000,
         .tokenizer_path = folder_ / "tokenizer",
         .out = folder_ / "shards",
         .command = "cachalot data tokenize"},
        [](const TokenizeProgress&) {}, std::atomic<bool>(false));
    config_.data = {};
    config_.data.shards = {folder_ / "shards"};
    config_.tokenizer = {};
  }
  std::string message() {
    return error_of([&] { run("refused"); });
  }
};

TEST_F(PretrainShardsTest, TrainsOnAMixtureAndKeepsCountOfItsParts) {
  config_.data.weights.of = {{"code", 1}, {"en", 3}};
  const PretrainResult result = run("r");
  EXPECT_EQ(result.steps, 10);
  ASSERT_TRUE(result.held_out);
  EXPECT_GT(result.held_out->tokens, 100);
  const std::vector<Json> lines = metrics("r");
  for (size_t i = 0; i < lines.size(); ++i) {
    const Json& parts = lines[i]["parts"];
    EXPECT_EQ(parts["code"].get<int64_t>(), (i + 1) * 36 / 4);
    EXPECT_EQ(parts["en"].get<int64_t>(), (i + 1) * 36 * 3 / 4);
  }
  EXPECT_TRUE(contains(out_.str(), "75.0 % of the run"));
  EXPECT_TRUE(contains(out_.str(), "2 sets, each scored: code, en"));
  EXPECT_EQ(read_file(folder_ / "r/tokenizer.json"), read_file(folder_ / "tokenizer/tokenizer.json"));
  // And again, from what it wrote, to the same bits.
  config_ = load_run_config(folder_ / "r/config.json", {});
  EXPECT_TRUE(weights(run("again").checkpoint) == weights(result.checkpoint));
}

TEST_F(PretrainShardsTest, AMixtureWithAGrowingBatchAndAnAverageOfTheWeightsResumesToTheSameBits) {
  config_.data.weights.of = {{"code", 1}, {"en", 3}};
  config_.data.packing = "best_fit";
  config_.train.ema_decay = 0.9;
  config_.train.schedule.batch = {{.until = TrainingPoint{.tokens = 5 * 2 * 9}, .from = {}, .to = 2},
                                  {.until = {}, .from = {}, .to = 6}};
  const PretrainResult whole = run("whole");
  Tripwire buffer(" 4/", stop_);
  std::ostream out(&buffer);
  EXPECT_EQ(pretrain(config_, options("r"), out, stop_).steps, 4);
  stop_ = false;
  const PretrainResult rest = run("r");
  EXPECT_EQ(rest.resumed_from, 4);
  EXPECT_TRUE(same_checkpoints(rest.checkpoint, whole.checkpoint));
  EXPECT_EQ(without_times(lines("r")), without_times(lines("whole")));
  config_.data.weights.of = {{"code", 3}, {"en", 1}};
  EXPECT_TRUE(contains(error_of([&] { run("r"); }), "data.weights.code 1.0 -> 3.0"));
}

TEST_F(PretrainShardsTest, RowsOfWholeDocumentsTrainTheSameModelToOtherBits) {
  config_.data.epochs.of = {{"code", 0}, {"en", 0.1}};
  config_.data.weights.of = {{"code", 1}};
  const std::string cut = weights(run("cut").checkpoint);
  config_.data.packing = "best_fit";
  const PretrainResult whole = run("whole");
  EXPECT_EQ(whole.steps, 10);
  EXPECT_TRUE(contains(out_.str(), "(best fit)"));
  EXPECT_FALSE(weights(whole.checkpoint) == cut);
}

TEST_F(PretrainShardsTest, MixturesThatCannotBeAndForeignShardsAreRefused) {
  config_.data.weights.of = {{"cod", 1}, {"en", 3}};
  EXPECT_TRUE(contains(message(),
                       "data.weights has \"cod\", but the data's parts are code, en | did you mean code?"));
  config_.data.weights.of = {{"en", 3}};
  EXPECT_TRUE(contains(message(), "part \"code\" has"));
  EXPECT_TRUE(contains(message(), "\"code\": 0"));
  config_.data.weights.of = {{"code", 0}, {"en", 0}};
  EXPECT_TRUE(contains(message(), "every part of the data has weight 0"));
  config_.data.weights.of = {{"code", 0.5}, {"en", 0.5}};
  config_.data.max_epochs = 0.001;
  EXPECT_TRUE(contains(message(), "data.max_epochs is 0.001"));
  config_.data.max_epochs = 0;
  BpeTrainer trainer({.vocab_size = 280});
  trainer.add_text("another text for another tokenizer another text");
  save_tokenizer(trainer.train(), folder_ / "other");
  config_.tokenizer.path = folder_ / "other";
  EXPECT_TRUE(contains(message(), "holds tokens of tokenizer"));
  EXPECT_TRUE(contains(message(), "make them anew with --tokenizer " + (folder_ / "other")));
  config_.tokenizer.path = "";
  {  // learned from the text, it is nowhere that shards could be made with it
    RunConfig text = config_;
    text.data = {.files = {folder_ / "text.txt"}, .validation = {.of = {{"old", {folder_ / "shards"}}}}};
    text.tokenizer.vocab_size = 290;
    const std::string refused = error_of([&] { pretrain(text, options("refused"), out_, stop_); });
    EXPECT_TRUE(contains(refused, "holds tokens of tokenizer"));
    EXPECT_TRUE(contains(refused, "train with the tokenizer of the shards (--tokenizer.path"));
  }
  fs::remove(folder_ / "shards/tokenizer.json");
  EXPECT_TRUE(contains(message(), "there is no tokenizer.json beside the shards"));
  config_.tokenizer.path = folder_ / "tokenizer";
  fs::remove(folder_ / "shards/en-00000.tok");
  EXPECT_TRUE(contains(message(), "en-00000.tok is missing"));
  EXPECT_FALSE(fs::exists(folder_ / "refused"));
}

TEST_F(PretrainTest, WithNothingHeldOutThereIsNoScore) {
  config_.data.held_out = 0;
  const PretrainResult result = run("r");
  EXPECT_FALSE(result.held_out);
  EXPECT_FALSE(metrics("r").back().contains("held_out"));
}

}  // namespace
}  // namespace cachalot
