#include "train/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "config/fields.h"
#include "train/extend.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using ::cachalot::testing::contains;
using ::cachalot::testing::error_of;
using ::cachalot::testing::TemporaryFolder;

constexpr const char* kConfig = R"({
  "model": {
    "hidden_size": 24, "intermediate_size": 40, "moe_intermediate_size": 12, "num_hidden_layers": 3,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "num_attention_heads": 2, "q_lora_rank": null,
    "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 7, "n_routed_experts": 6,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "max_position_embeddings": 64
  },
  "tokenizer": {"vocab_size": 300},
  "data": {"files": ["a.txt"]},
  "train": {"tokens": 10000, "seq_len": 32, "batch": 4, "warmup_steps": 3}
})";

class RunConfigTest : public ::testing::Test {
 protected:
  RunConfigTest() { write_file_atomic(path_, kConfig); }
  RunConfig load(const Overrides& overrides = {}) const { return load_run_config(path_, overrides); }
  std::string error(const Overrides& overrides) const {
    return error_of([&] { load(overrides); });
  }
  TemporaryFolder folder_;
  std::string path_ = folder_ / "c.json";
};

TEST_F(RunConfigTest, ReadsTheFileKeepsDefaultsAndTakesOverrides) {
  const RunConfig c = load({{"train.lr", "3e-3"},
                            {"model.hidden_size", "48"},
                            {"data.files", "[\"x\",\"y\"]"},
                            {"train.precision", "bf16"}});
  EXPECT_EQ(c.train.lr, 3e-3);
  EXPECT_EQ(c.train.precision, "bf16");
  EXPECT_EQ(c.train.beta2, 0.95);
  EXPECT_EQ(c.train.seq_len, 32);
  EXPECT_EQ(c.train.total_steps(), (10000 + 127) / 128);
  EXPECT_EQ(c.data.files, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(resolve_model(c, 300, 1, "f").hidden_size, 48);
  EXPECT_EQ(load({{"data.files", "one.txt"}}).data.files, std::vector<std::string>{"one.txt"});
}

TEST_F(RunConfigTest, ShardsOnTheCommandLineReplaceTheTextAndTheTokenizerOfTheFile) {
  const RunConfig c = load({{"data.shards", "tokens"}, {"data.weights", "{\"en\": 0.7, \"code\": 3}"}});
  EXPECT_EQ(c.data.shards, std::vector<std::string>{"tokens"});
  EXPECT_TRUE(c.data.files.empty());
  EXPECT_EQ(c.tokenizer.vocab_size, 0);
  EXPECT_EQ(c.data.weights.of, (std::map<std::string, double>{{"code", 3}, {"en", 0.7}}));
  write_file_atomic(folder_ / "resolved.json", write_fields(c).dump());
  EXPECT_EQ(write_fields(load_run_config(folder_ / "resolved.json", {})).dump(), write_fields(c).dump());
}

TEST_F(RunConfigTest, ABudgetOnTheCommandLineReplacesTheOneInTheFile) {
  EXPECT_EQ(load({{"train.steps", "7"}}).train.total_steps(), 7);
  EXPECT_TRUE(contains(error({{"train.steps", "7"}, {"train.tokens", "9000"}}),
                       "train.tokens is 9000 and train.steps 7"));
}

TEST_F(RunConfigTest, ABudgetIsSpelledAsASchedulesPointsAre) {
  EXPECT_EQ(load({{"train.tokens", "5M"}}).train.tokens, 5'000'000);
  EXPECT_EQ(load({{"train.tokens", "1.5K tokens"}}).train.tokens, 1500);
  EXPECT_EQ(load({{"train.tokens", "1500"}}).train.tokens, 1500);
  EXPECT_TRUE(contains(error({{"train.tokens", "5 apples"}}), "train.tokens is \"5 apples\""));
  EXPECT_TRUE(contains(error({{"train.tokens", "50 steps"}}), "--train.steps 50"));
}

TEST_F(RunConfigTest, UnknownKeysNameTheNearestKnownOne) {
  EXPECT_TRUE(contains(error({{"train.warmup", "3"}}), "train.warmup is not a known key"));
  EXPECT_TRUE(contains(error({{"train.weight_decy", "3"}}), "did you mean"));
  EXPECT_TRUE(contains(error({{"train.weight_decy", "3"}}), "train.weight_decay?"));
  EXPECT_TRUE(contains(error({{"model.hiden_size", "3"}}), "model.hidden_size?"));
  EXPECT_TRUE(contains(error({{"trian.lr", "3"}}), "train?"));
  EXPECT_TRUE(contains(error({{"train.lr", "fast"}}), "train.lr is \"fast\" (string), not a number"));
}

TEST_F(RunConfigTest, EveryRefusalNamesTheKeyTheValuesAndAWayOut) {
  const struct {
    Overrides overrides;
    const char *message, *hint;
  } cases[] = {
      {{{"train.micro_batch", "3"}},
       "train.batch is 4, which train.micro_batch 3 does not divide",
       "--train.micro_batch 2"},
      {{{"train.micro_batch", "8"}},
       "train.batch is 4, which train.micro_batch 8 does not divide",
       "--train.micro_batch 4"},
      {{{"train.lr", "-1"}}, "train.lr is -1", "above 0"},
      {{{"train.lr", "1e-5"}}, "train.min_lr is 2.2e-05, above train.lr 1e-05", "falls"},
      {{{"train.beta2", "0.999"}}, "train.beta2 is 0.999", "below 0.998"},
      {{{"train.beta1", "1"}}, "train.beta1 is 1", "below 1"},
      {{{"train.tokens", "0"}}, "neither train.tokens nor train.steps", "one of the two"},
      {{{"train.tokens", "0"}, {"train.steps", "1000000000000000"}},
       "train.steps is 1000000000000000, of up to 4 sequences of",
       "together may have up to 1125899906842624 tokens"},
      {{{"train.micro_batch", "1000000000000"}}, "train.micro_batch is 1000000000000", "at most"},
      {{{"train.warmup_steps", "100"}},
       "train.warmup_steps is 100, but the run has 79 steps",
       "--train.warmup_steps 7"},
      {{{"train.seq_len", "0"}}, "train.seq_len is 0", "1 or more"},
      {{{"train.seq_len", "9000000"}, {"train.batch", "1000"}},
       "are 9000000000 in one micro-batch, more than 262144",
       "lower train.micro_batch"},
      {{{"train.precision", "fp4"}}, "train.precision \"fp4\" is not known", "f32, bf16 or fp8"},
      {{{"train.clip", "-0.5"}}, "train.clip is -0.5", "0 or more"},
      {{{"train.log_every", "0"}}, "train.log_every is 0", "1 or more"},
      {{{"data.held_out", "1"}}, "data.held_out is 1", "below 1"},
      {{{"data.files", "[]"}}, "data.files names no file", "files"},
      {{{"data.files", "[\"a\"]"}, {"data.shards", "[\"b\"]"}},
       "data.files names 1 files and data.shards 1 folders",
       "leave out one"},
      {{{"data.shards", "s"}, {"tokenizer.vocab_size", "300"}},
       "data.shards are given and tokenizer.vocab_size 300",
       "leave vocab_size out"},
      {{{"guard.window", "31"}}, "guard.window is 31", "32 or more"},
      {{{"data.packing", "worst_fit"}}, "data.packing \"worst_fit\" is not known", "concatenate or best_fit"},
      {{{"data.weights", "{\"en\": -1}"}}, "data.weights.en is -1", "0 or more"},
      {{{"data.weights", "{\"en\": \"x\"}"}}, "data.weights.en is \"x\" (string), not a number", ""},
      {{{"data.epochs", "3"}}, "data.epochs is 3", "an object"},
      {{{"data.max_epochs", "-4"}}, "data.max_epochs is -4", "0 or more"},
      {{{"tokenizer.vocab_size", "0"}}, "neither path nor vocab_size", "--tokenizer.vocab_size"},
      {{{"tokenizer.vocab_size", "100"}}, "tokenizer.vocab_size is 100", "258 or more"},
      {{{"tokenizer.vocab_size", "100"}, {"train.init_from", "m"}}, "tokenizer.vocab_size is 100", "258"},
      {{{"tokenizer.path", "t.json"}},
       "tokenizer.path is \"t.json\" and tokenizer.vocab_size 300",
       "leave out"},
      {{{"model.quantization_config", "{}"}}, "model.quantization_config is given", "leave the key out"},
  };
  for (const auto& c : cases) {
    const std::string text = error(c.overrides);
    EXPECT_TRUE(contains(text, c.message));
    EXPECT_TRUE(contains(text, c.hint));
    EXPECT_TRUE(contains(text, "c.json")) << "the file is not named";
  }
}

TEST_F(RunConfigTest, TheModelGetsItsVocabularyFromTheTokenizerAndIsCheckedAgainstTheTraining) {
  const ModelConfig m = resolve_model(load(), 299, 7, "f");
  EXPECT_EQ(m.vocab_size, 299);
  EXPECT_EQ(m.bos_token_id, 7);
  EXPECT_EQ(m.eos_token_id, 7);
  EXPECT_EQ(m.q_lora_rank, 0);
  EXPECT_EQ(resolve_model(load({{"model.vocab_size", "320"}}), 299, 7, "f").vocab_size,
            320);  // padding rows are fine

  const auto message = [&](const Overrides& o) {
    return error_of([&] { resolve_model(load(o), 299, 7, "f"); });
  };
  EXPECT_TRUE(contains(message({{"model.vocab_size", "256"}}),
                       "model.vocab_size is 256, but the tokenizer has 299 tokens"));
  EXPECT_TRUE(contains(message({{"train.seq_len", "65"}}),
                       "train.seq_len is 65, but model.max_position_embeddings 64"));
  EXPECT_TRUE(
      contains(message({{"train.seq_len", "2"}, {"model.num_nextn_predict_layers", "2"}}), "2 depths"));
  EXPECT_TRUE(contains(message({{"model.qk_rope_head_dim", "5"}}), "qk_rope_head_dim is 5"));
  EXPECT_TRUE(contains(message({{"model.tie_word_embeddings", "true"}}), "tie_word_embeddings"));
}

TEST_F(RunConfigTest, WhatIsWrittenReadsBackAsTheSame) {
  RunConfig c = load({{"train.lr", "0.0017"}});
  c.model.json = model_config_json(resolve_model(c, 299, 7, "f"), "float32").dump();
  const std::string text = write_fields(c).dump();
  write_file_atomic(folder_ / "resolved.json", text);
  const RunConfig again = load_run_config(folder_ / "resolved.json", {});
  EXPECT_EQ(write_fields(again).dump(), text);
  EXPECT_EQ(resolve_model(again, 299, 7, "f"), resolve_model(c, 299, 7, "f"));
}

TEST_F(RunConfigTest, HelpListsEveryKeyOnce) {
  std::vector<std::string> keys;
  for (const fields::Line& line : list_run_config()) {
    EXPECT_FALSE(line.meaning.empty()) << line.key;
    keys.push_back(line.key);
  }
  for (const char* key :
       {"model.hidden_size", "model.rope_scaling", "tokenizer.path", "data.files", "train.lr"})
    EXPECT_EQ(std::count(keys.begin(), keys.end(), key), 1) << key;
  std::sort(keys.begin(), keys.end());
  EXPECT_EQ(std::unique(keys.begin(), keys.end()), keys.end());
}

TEST(RunConfigFiles, MissingOrMalformedOnesAreNamed) {
  TemporaryFolder folder;
  EXPECT_TRUE(contains(error_of([&] { load_run_config(folder / "none.json", {}); }), "none.json"));
  EXPECT_TRUE(contains(error_of([&] { load_run_config(folder.path(), {}); }), "is a directory"));
  write_file_atomic(folder / "list.json", "[]");
  EXPECT_TRUE(contains(error_of([&] { load_run_config(folder / "list.json", {}); }), "not an object"));
}

// The configurations that ship are right.
TEST(RunConfigFiles, ShippedConfigurationsLoad) {
  const char* source = std::getenv("CACHALOT_SOURCE");
  ASSERT_NE(source, nullptr) << "run by ctest, or set CACHALOT_SOURCE to the repository";
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(source) + "/configs")) {
    if (entry.path().string().ends_with("-extend.json")) {
      EXPECT_FALSE(load_extend_config(entry.path().string(), {}).extend.stages.empty());
      continue;
    }
    const RunConfig c = load_run_config(entry.path().string(), {});
    const int64_t of_shards = 4096;  // their tokenizer's, which is not there
    const int64_t vocab = !c.data.shards.empty()     ? of_shards
                          : c.tokenizer.path.empty() ? c.tokenizer.vocab_size
                                                     : 0;
    resolve_model(c, vocab, 1, entry.path().string());
    ++found;
  }
  EXPECT_GE(found, 1);
}

}  // namespace
}  // namespace cachalot
