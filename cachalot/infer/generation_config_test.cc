#include "infer/generation_config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace cachalot {
namespace {

class GenerationConfigTest : public ::testing::Test {
 protected:
  GenerationConfigTest() {
    std::string name = (std::filesystem::temp_directory_path() / "generation_config_XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("no temporary directory");
    directory_ = name;
    model_.eos_token_id = 7;
  }
  ~GenerationConfigTest() override { std::filesystem::remove_all(directory_); }
  GenerationConfig load(const std::string& text) {
    std::ofstream(directory_ + "/generation_config.json") << text;
    return load_generation_config(directory_, model_);
  }
  std::string refusal(const std::string& text) {
    try {
      load(text);
    } catch (const Error& e) {
      return e.what();
    }
    return "no Error";
  }
  std::string directory_;
  ModelConfig model_;
};

TEST_F(GenerationConfigTest, WithoutAFileOnlyTheModelsEndTokenIsKnown) {
  const GenerationConfig g = load_generation_config(directory_, model_);
  EXPECT_FALSE(g.temperature || g.top_p || g.top_k);
  EXPECT_EQ(g.end_tokens, std::vector<int32_t>{7});
}

TEST_F(GenerationConfigTest, ReadsWhatIsThere) {
  const GenerationConfig g = load(
      R"({"_from_model_config": true, "bos_token_id": 0, "eos_token_id": [1, 9], "do_sample": true,
          "temperature": 0.6, "top_p": 0.95, "top_k": 20, "transformers_version": "4.46.3"})");
  EXPECT_EQ(g.temperature, 0.6);
  EXPECT_EQ(g.top_p, 0.95);
  EXPECT_EQ(g.top_k, 20);
  EXPECT_EQ(g.end_tokens, (std::vector<int32_t>{1, 9}));
}

TEST_F(GenerationConfigTest, DoSampleDecidesAboutTheTemperature) {
  EXPECT_EQ(load(R"({"do_sample": false, "temperature": 0.6})").temperature, 0);
  EXPECT_EQ(load(R"({"do_sample": true})").temperature, 1);
  EXPECT_FALSE(load(R"({"temperature": null})").temperature);
  EXPECT_EQ(load(R"({"eos_token_id": 3})").end_tokens, std::vector<int32_t>{3});
}

TEST_F(GenerationConfigTest, RefusesWhatIsMalformedNamingFileFieldAndValue) {
  for (const auto& [text, parts] : std::vector<std::pair<std::string, std::string>>{
           {R"({"temperature": "hot"})", "temperature is \"hot\""},
           {R"({"temperature": -0.5})", "temperature is -0.5"},
           {R"({"top_p": 0})", "top_p is 0"},
           {R"({"top_p": 1.5})", "top_p is 1.5"},
           {R"({"top_k": 2.5})", "top_k is 2.5"},
           {R"({"top_k": 1e300})", "top_k is 1e+300"},
           {R"({"do_sample": 1})", "do_sample is 1"},
           {R"({"eos_token_id": "x"})", "eos_token_id is \"x\""},
           {R"({"eos_token_id": [1, -2]})", "eos_token_id is [1,-2]"},
           {R"({"eos_token_id": 3000000000})", "eos_token_id is 3000000000"},
           {R"([1])", "array"},
           {R"({"top_p": 1)", "generation_config.json"}})
    EXPECT_NE(refusal(text).find(parts), std::string::npos) << text << ": " << refusal(text);
  EXPECT_NE(refusal(R"({"top_k": -1})").find("/generation_config.json"), std::string::npos);
}

}  // namespace
}  // namespace cachalot
