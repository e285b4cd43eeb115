#include "train/export.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "model/hf_checkpoint.h"
#include "model/load.h"
#include "train/ema.h"
#include "train/pretrain.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

class ExportTest : public ::testing::Test {
 protected:
  // A run of a few steps with and without an average of its weights.
  std::string run(const std::string& name, double ema_decay, const char* precision) {
    std::string text;
    for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i) + " of a text\n";
    write_file_atomic(folder_ / "text.txt", text);
    RunConfig config;
    Json json = model_config_json(tiny_model(), "bfloat16");
    for (const char* key : {"vocab_size", "bos_token_id", "eos_token_id"}) json.erase(key);
    config.model.json = json.dump();
    config.tokenizer.vocab_size = 280;
    config.data.files = {folder_ / "text.txt"};
    config.train = tiny_training();
    config.train.steps = 3;
    config.train.save_every = 2;
    config.train.ema_decay = ema_decay;
    config.train.precision = precision;
    std::ostringstream out;
    const std::atomic<bool> go{false};
    pretrain(config, {.config_path = "c.json", .run_dir = folder_ / name}, out, go);
    return folder_ / name;
  }
  std::vector<float> weight(const std::string& directory, const std::string& name) {
    const HfCheckpoint checkpoint(directory, {});
    for (const Param& p : checkpoint.table())
      if (p.name == name) {
        std::vector<float> values(size_t(p.size()));
        checkpoint.read_f32(p, values.data());
        return values;
      }
    return {};
  }
  TemporaryFolder folder_;
};

TEST_F(ExportTest, TheAverageAndTheMastersAreWhatTheCheckpointHolds) {
  const std::string from = run("run", 0.9, "bf16");
  export_weights({.from = from, .to = folder_ / "ema", .storage = DType::f32});
  export_weights({.from = checkpoint_of(from),
                  .to = folder_ / "masters",
                  .weights = ExportWeights::masters,
                  .storage = DType::f32});
  std::map<std::string, std::vector<float>> state;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint_of(from) + "/optimizer")) {
    const SafetensorsFile file = SafetensorsFile::open(entry.path().string());
    for (const StoredTensor& t : file.tensors())
      if (t.type == StoredType::f32) {
        std::vector<float>& values = state[t.name];
        values.resize(size_t(t.size()));
        std::memcpy(values.data(), t.data, size_t(t.bytes()));
      }
  }
  const std::string model = checkpoint_of(from) + "/model";
  for (const char* name : {"embed", "layers.0.mlp.down", "layers.1.mlp.experts.gate_up", "norm"}) {
    EXPECT_EQ(weight(folder_ / "ema", name), state[std::string(kAveragePrefix) + name]) << name;
    EXPECT_EQ(weight(folder_ / "masters", name), state[std::string(kMasterPrefix) + name]) << name;
    EXPECT_NE(weight(folder_ / "ema", name), weight(folder_ / "masters", name)) << name;
  }
  EXPECT_EQ(weight(folder_ / "ema", "layers.1.mlp.gate_bias"), weight(model, "layers.1.mlp.gate_bias"));
  // Any program loads it: in bf16, and in fp8.
  for (const DType storage : {DType::bf16, DType::e4m3}) {
    export_weights({.from = from, .to = folder_ / "stored", .storage = storage, .overwrite = true});
    const auto device = open_device("cpu", {.threads = 1});
    Stream s(*device);
    EXPECT_EQ(load_model(s, folder_ / "stored", Precision::f32, {}).config.fp8, storage == DType::e4m3);
    EXPECT_TRUE(std::filesystem::exists(folder_ / "stored/tokenizer.json"));
  }
}

TEST_F(ExportTest, AResumedRunHasTheAverageOfOneThatWasNeverStopped) {
  for (const char* precision : {"f32", "bf16"}) {
    const std::string last = "/checkpoints/step-00000003", from = run(precision, 0.9, precision);
    const auto bits = [&] {
      std::map<std::string, std::string> files;
      for (const auto& entry : std::filesystem::directory_iterator(from + last + "/optimizer"))
        files[entry.path().filename().string()] = read_file(entry.path().string());
      return files;
    };
    const auto expected = bits();
    ASSERT_FALSE(expected.empty());
    std::filesystem::remove_all(from + last);  // as if it had been killed before
    EXPECT_EQ(run(precision, 0.9, precision), from);
    EXPECT_TRUE(bits() == expected) << precision;
  }
}

TEST_F(ExportTest, WhatCannotBeExportedIsRefused) {
  const std::string from = run("plain", 0, "f32");
  const auto message = [&](const ExportOptions& o) { return error_of([&] { export_weights(o); }); };
  EXPECT_TRUE(contains(message({.from = from, .to = folder_ / "x"}), "holds no average"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x"));
  EXPECT_TRUE(contains(message({.from = folder_.path(), .to = folder_ / "x"}),
                       "neither config.json nor checkpoints"));
  EXPECT_TRUE(contains(message({.from = from, .to = from, .overwrite = true}), "no model directory"));
  ExportOptions good{.from = from, .to = folder_ / "y", .weights = ExportWeights::masters};
  export_weights(good);
  EXPECT_TRUE(contains(message(good), "is not empty"));
  EXPECT_TRUE(contains(message({.from = good.to, .to = folder_ / "x"}), "neither a run nor"));
  good.overwrite = true;
  EXPECT_EQ(message(good), "no error");
  good.to = from + "/model";
  EXPECT_TRUE(contains(message(good), "belongs to a checkpoint"));
  const std::atomic<bool> stop{true};
  good.to = folder_ / "z";
  good.stop = &stop;
  EXPECT_TRUE(contains(message(good), "stopped"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "z") || std::filesystem::exists(folder_ / "z.tmp"));
}

}  // namespace
}  // namespace cachalot
