#include "train/extend.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/bpe_trainer.h"
#include "model/load.h"
#include "train/init_from.h"
#include "train/pretrain.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

// A run of a few steps, and what `cachalot extend` makes of it.
class ExtendTest : public ::testing::Test {
 protected:
  ExtendTest() {
    std::string text;
    for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i) + " of a text\n";
    write_file_atomic(folder_ / "text.txt", text);
    ModelConfig model = tiny_model();
    model.max_position_embeddings = 16;
    Json json = model_config_json(model, "bfloat16");
    for (const char* key : {"vocab_size", "bos_token_id", "eos_token_id"}) json.erase(key);
    config_.model.json = json.dump();
    config_.tokenizer.vocab_size = 280;
    config_.data.files = {folder_ / "text.txt"};
    config_.train = tiny_training();
    config_.train.steps = 3;
    config_.train.seq_len = 16;
    config_.train.min_lr = 0.003;
    extend_.extend.factor = 4;
    extend_.extend.stages = {{.context = 32, .steps = 2, .batch = 2},
                             {.context = 64, .steps = 2, .batch = 1}};
    extend_.data = config_.data;
    extend_.train = config_.train;
  }
  PretrainResult train(const RunConfig& config, const std::string& run_dir) {
    config.validate("c.json");
    return pretrain(config, {.config_path = "c.json", .run_dir = run_dir}, out_, stop_);
  }
  std::string message(const std::string& model) {
    return error_of([&] { plan_extension(extend_, model, folder_ / "long", "e.json"); });
  }
  TemporaryFolder folder_;
  RunConfig config_;
  ExtendConfig extend_;
  std::ostringstream out_;
  const std::atomic<bool> stop_{false};
};

TEST_F(ExtendTest, StagesStretchTheContextAtTheLearningRateOfTheRunsEnd) {
  train(config_, folder_ / "short");
  const std::vector<RunConfig> runs = plan_extension(extend_, folder_ / "short", folder_ / "long", "e.json");
  ASSERT_EQ(runs.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(runs[i].train.schedule.lr[0].to, 0.003);
    train(runs[i], stage_directory(folder_ / "long", i));
    const ModelConfig model =
        load_model_config(resolve_model_directory(stage_directory(folder_ / "long", i)));
    ASSERT_TRUE(model.yarn);
    EXPECT_EQ(model.yarn->factor, 4);
    EXPECT_EQ(model.yarn->original_max_position_embeddings, 16);
    EXPECT_EQ(model.max_position_embeddings, i == 0 ? 32 : 64);
  }
  // A model that is stretched already keeps its original context.
  extend_.extend.stages = {{.context = 48, .steps = 1, .batch = 1}};
  const auto again = plan_extension(extend_, folder_ / "long/stage-1", folder_ / "more", "e.json");
  EXPECT_EQ(parse_json(again[0].model.json, "m")["rope_scaling"]["original_max_position_embeddings"], 16);
}

TEST_F(ExtendTest, WhatCannotBeExtendedIsRefusedByItsField) {
  train(config_, folder_ / "short");
  const std::string model = resolve_model_directory(folder_ / "short");
  EXPECT_TRUE(contains(message(model), "is no run"));
  const std::string resolved = folder_ / "short/config.json", before = read_file(resolved);
  Json changed = parse_json(before, resolved);
  changed["train"]["batch"] = 0;
  write_file_atomic(resolved, changed.dump());
  EXPECT_TRUE(contains(message(folder_ / "short"), "config.json: train.batch is 0"));
  write_file_atomic(resolved, before);
  EXPECT_EQ(message(folder_ / "short"), "no error");
  extend_.extend.lr = 1e-3;
  EXPECT_EQ(message(model), "no error");
  extend_.extend.stages[1].context = 65;
  EXPECT_TRUE(contains(message(model), "extend.stages[1].context is 65, but extend.factor 4 x 16 is 64"));
  extend_.extend.stages[1].context = 32;
  EXPECT_TRUE(contains(message(model), "not longer than the 32 before it"));
  extend_.extend.stages[0].context = 16;
  EXPECT_TRUE(contains(message(model), "extend.stages[0].context is 16"));
  extend_.extend.stages.clear();
  EXPECT_TRUE(contains(message(model), "extend.stages is empty"));
  EXPECT_TRUE(contains(message(folder_ / "nothing"), "is not a directory"));
}

TEST_F(ExtendTest, TrainingBeginsWithTheWeightsThatItIsGiven) {
  const std::string model =
      resolve_model_directory(train(config_, folder_ / "short").checkpoint.empty() ? "" : folder_ / "short");
  const ModelConfig shape = load_model_config(model);
  const auto device = open_device("cpu", {.threads = 1});
  Stream s(*device);
  for (const char* precision : {"f32", "bf16", "fp8"}) {
    TrainSection t = tiny_training();
    t.precision = precision;
    t.ema_decay = 0.9;
    Trainer trainer(s, shape, t, Trainer::plan(shape, t).arena);
    trainer.init();
    initialize_from(s, trainer, folder_ / "short");
    const LoadedModel loaded = load_model(s, model, Precision::f32, {});
    for (size_t i = 0; i < trainer.params().table().size(); ++i) {
      const Param& p = trainer.params().table()[i];
      const Tensor t2 = p.trained() ? trainer.optimizer().master(i) : trainer.params().weight(i);
      EXPECT_EQ(read(s, t2), read(s, loaded.params->weight(i))) << p.name;
    }
    EXPECT_EQ(trainer.updates(), 0);
  }
  ModelConfig other = shape;
  other.hidden_size = 32;
  other.n_routed_experts = 4;
  const std::string refused = error_of([&] { require_same_shapes(other, model); });
  EXPECT_TRUE(contains(refused, "hidden_size 32 (there 24)"));
  EXPECT_TRUE(contains(refused, "n_routed_experts 4 (there 6)"));
}

TEST_F(ExtendTest, WhatThePlanSetsIsRefusedWithWhatToGiveInstead) {
  write_file_atomic(folder_ / "e.json", R"({"extend": {}, "data": {}, "train": {"seed": 2}})");
  EXPECT_EQ(load_extend_config(folder_ / "e.json", {}).train.seed, 2);
  const std::pair<const char*, const char*> given[] = {
      {"train.lr", "1e-4"},        {"train.min_lr", "1e-4"},      {"train.warmup_steps", "3"},
      {"train.steps", "3"},        {"train.tokens", "300"},       {"train.seq_len", "32"},
      {"train.batch", "2"},        {"train.micro_batch", "1"},    {"train.init_from", "base"},
      {"train.schedule.lr", "[]"}, {"train.schedule.batch", "[]"}};
  for (const auto& [key, value] : given) {
    EXPECT_TRUE(is_planned_by_extend(key));
    EXPECT_TRUE(contains(error_of([&] { load_extend_config(folder_ / "e.json", {{key, value}}); }),
                         std::string(key) + " is not for the stages"));
  }
  EXPECT_FALSE(is_planned_by_extend("train.precision"));
}

TEST_F(ExtendTest, TextOnTheCommandLineReplacesTheShardsOfTheFile) {  // as in `cachalot pretrain`
  write_file_atomic(folder_ / "e.json", R"({"extend": {}, "data": {"shards": "made"}, "train": {}})");
  EXPECT_EQ(load_extend_config(folder_ / "e.json", {}).data.shards, std::vector<std::string>{"made"});
  const DataSection data = load_extend_config(folder_ / "e.json", {{"data.files", "text.txt"}}).data;
  EXPECT_EQ(data.files, std::vector<std::string>{"text.txt"});
  EXPECT_TRUE(data.shards.empty());
}

TEST_F(ExtendTest, ASlashBehindTheModelIsTheSameModel) {
  train(config_, folder_ / "short");
  EXPECT_EQ(plan_extension(extend_, folder_ / "short/", folder_ / "long", "e.json")[0].train.init_from,
            folder_ / "short");
}

}  // namespace
}  // namespace cachalot
