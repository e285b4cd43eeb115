#include "eval/needle_grid.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/bpe_trainer.h"
#include "model/params.h"

namespace cachalot {
namespace {

class NeedleGridTest : public ::testing::Test {
 protected:
  NeedleGridTest()
      : tokenizer_(make_tokenizer()),
        haystack_(text(), tokenizer_),
        device_(open_device("cpu", {.threads = 2})),
        stream_(*device_),
        params_(*device_, model(), Recipe::of(Precision::f32), {}) {
    initialize(stream_, params_, model(), 1);
    on(stream_).synchronize();
  }
  static std::string text() {
    std::string text;
    for (int i = 0; i < 200; ++i) text += "Line " + std::to_string(i) + " of the hay.\n";
    return text;
  }
  static Tokenizer make_tokenizer() {
    BpeTrainer trainer({.vocab_size = 400});
    trainer.add_text(text() + "The secret number of Lisbon is 12345.\nWhat is it?");
    const std::string folder = ::testing::TempDir() + "/needle-grid-tokenizer";
    std::filesystem::create_directories(folder);
    save_tokenizer(trainer.train(), folder);
    return Tokenizer::load(folder);
  }
  static ModelConfig model() {
    ModelConfig c;
    c.vocab_size = 400;
    c.hidden_size = 24;
    c.intermediate_size = 40;
    c.num_hidden_layers = c.first_k_dense_replace = 2;
    c.num_nextn_predict_layers = 0;
    c.num_attention_heads = 2;
    c.q_lora_rank = 12;
    c.kv_lora_rank = 16;
    c.qk_nope_head_dim = 6;
    c.qk_rope_head_dim = 4;
    c.v_head_dim = 7;
    c.n_routed_experts = 0;
    c.max_position_embeddings = 256;
    c.initializer_range = 0.1;
    return c;
  }
  NeedleGrid run(int64_t together, const NeedleGridOptions& options) {
    Engine engine(*device_, model(), params_, {.max_context = 256, .max_sequences = together});
    return run_needle_grid(engine, haystack_, options, {}, stop_);
  }
  Tokenizer tokenizer_;
  Haystack haystack_;
  std::unique_ptr<Device> device_;
  Stream stream_;
  ParamSet params_;
  std::atomic<bool> stop_{false};
};

TEST_F(NeedleGridTest, EveryCellIsAskedAndAModelThatKnowsNothingFindsNothing) {
  const NeedleGridOptions options{
      .lengths = {128, 256}, .depths = NeedleGridOptions::even_depths(3), .cases = 2, .seed = 4};
  NeedleGrid grid = run(3, options);
  ASSERT_EQ(grid.cells.size(), 6u);
  for (const auto& cell : grid.cells) {
    EXPECT_EQ(cell.asked, 2);
    EXPECT_EQ(cell.found, 0);
  }
  EXPECT_EQ(grid.cells[4].length, 256);
  EXPECT_EQ(grid.cells[4].depth, 0.5);
  EXPECT_EQ(grid.share(), 0);
  stop_ = true;
  for (const auto& cell : run(3, options).cells) EXPECT_EQ(cell.asked, 0);
}

TEST_F(NeedleGridTest, TheTableAndTheFileSayWhatWasFound) {
  const NeedleGridOptions options{.lengths = {128, 512}, .depths = {0, 1}, .cases = 4};
  NeedleGrid grid;
  grid.cells = {{128, 0, 4, 4}, {128, 1, 4, 3}, {512, 0, 4, 0}, {512, 1, 4, 1}};
  grid.context = 256;
  EXPECT_EQ(grid.share(), 0.5);
  EXPECT_EQ(grid.share(128), 7.0 / 8);
  const std::string table = needle_table(grid);
  for (const char* part :
       {"128", "512*", "100%", " 75%", " 25%", "87.5%", "12.5%", "50.0 % of all", "context of 256"})
    EXPECT_NE(table.find(part), std::string::npos) << part << " in\n" << table;
  const Json json = needle_json(grid, options);
  EXPECT_EQ(json["cells"].size(), 4u);
  EXPECT_EQ(json["cells"][1]["found"], 3);
  EXPECT_EQ(json["by_length"]["128"], 7.0 / 8);
}

}  // namespace
}  // namespace cachalot
