#include "train/pretrain.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/bpe_trainer.h"
#include "data/corpus.h"
#include "data/tokenize.h"
#include "model/load.h"
#include "train/testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

class PretrainTest : public ::testing::Test {
 protected:
  PretrainTest() {
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "the " + std::to_string(i % 7) + "th line rhymes with the line before\n";
    write_file_atomic(folder_ / "text.txt", text);
    ModelConfig model = tiny_model();
    Json json = model_config_json(model, "float32");
    for (const char* key : {"vocab_size", "bos_token_id", "eos_token_id"})
      json.erase(key);  // the tokenizer's
    config_.model.json = json.dump();
    config_.tokenizer.vocab_size = 290;
    config_.data.files = {folder_ / "text.txt"};
    config_.train = tiny_training();
    config_.train.micro_batch = 2;
    config_.train.log_every = 1;
    config_.train.threads = 2;
  }
  PretrainOptions options(const std::string& run) const {
    return {.config_path = "test.json",
            .run_dir = folder_ / run,
            .overwrite = false,
            .device = "cpu",
            .style = {}};
  }
  PretrainResult run(const std::string& name) { return pretrain(config_, options(name), out_, stop_); }
  std::vector<Json> metrics(const std::string& name) const {
    std::ifstream file(folder_ / (name + "/metrics.jsonl"));
    std::vector<Json> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(parse_json(line, "metrics.jsonl"));
    return lines;
  }
  std::string weights(const std::string& checkpoint) const {
    return read_file(checkpoint + "/model/model.safetensors");
  }

  TemporaryFolder folder_;
  RunConfig config_;
  std::ostringstream out_;
  std::atomic<bool> stop_{false};
};

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
  for (const char* part :
       {"memory ", "step  1/10, loss ", "step 10/10", "bits per byte", "loss (nats a token)", "tok/s"})
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
  Tripwire buffer("step  4/10", stop_);
  std::ostream out(&buffer);
  const PretrainResult result = pretrain(config_, options("r"), out, stop_);
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.steps, 4);
  EXPECT_EQ(result.checkpoint, folder_ / "r/checkpoints/step-00000004");
  EXPECT_TRUE(fs::exists(result.checkpoint + "/COMPLETE"));
  EXPECT_EQ(metrics("r").size(), 4u);
  EXPECT_TRUE(contains(buffer.str(), "stopped at step 4 of 10; saved "));

  const PretrainResult at_once = pretrain(config_, options("s"), out, stop_);
  EXPECT_TRUE(at_once.stopped);
  EXPECT_EQ(at_once.steps, 0);
  EXPECT_FALSE(fs::exists(folder_ / "s"));
  EXPECT_TRUE(contains(buffer.str(), "nothing to save"));
}

TEST_F(PretrainTest, TenStepsWithoutAFiniteGradientEndTheRunWithTheWeightsSaved) {
  config_.train.steps = 30;
  config_.train.lr = 1e30;  // the first update throws the weights beyond all bounds
  config_.train.min_lr = 0;
  const std::string text = error_of([&] { run("r"); });
  EXPECT_TRUE(contains(text, "not finite in 10 steps in a row, 11 the last"));
  EXPECT_TRUE(contains(text, "--train.lr"));
  const std::vector<Json> lines = metrics("r");
  ASSERT_EQ(lines.size(), 11u);
  EXPECT_TRUE(lines[0]["updated"]);
  EXPECT_FALSE(lines[1]["updated"]);
  EXPECT_TRUE(lines[1]["grad_norm"].is_null());
  EXPECT_TRUE(fs::exists(folder_ / "r/checkpoints/step-00000011/COMPLETE"));
  EXPECT_TRUE(contains(out_.str(), "the step changed nothing"));
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
  const std::string text = error_of([&] { run("r"); });
  EXPECT_TRUE(contains(text, "already holds a run"));
  EXPECT_EQ(metrics("r").size(), 10u);
  config_.train.steps = 2;
  PretrainOptions o = options("r");
  o.overwrite = true;
  EXPECT_EQ(pretrain(config_, o, out_, stop_).steps, 2);
  EXPECT_EQ(metrics("r").size(), 2u);
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
  EXPECT_EQ(read_file(folder_ / "r/tokenizer.json"), read_file(folder_ / "tokenizer/tokenizer.json"));
  // And again, from what it wrote, to the same bits.
  config_ = load_run_config(folder_ / "r/config.json", {});
  EXPECT_TRUE(weights(run("again").checkpoint) == weights(result.checkpoint));
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
