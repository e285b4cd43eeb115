// For tests of whole runs: a run of a tiny model on a short text in a folder of its own.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "train/pretrain.h"
#include "train/testing.h"

namespace cachalot::testing {

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
    return {.config_path = "test.json", .run_dir = folder_ / run, .device = "cpu"};
  }
  PretrainResult run(const std::string& name) { return pretrain(config_, options(name), out_, stop_); }
  // Of metrics.jsonl: all lines, those of steps, and events of a kind.
  std::vector<Json> lines(const std::string& name) const {
    std::ifstream file(folder_ / (name + "/metrics.jsonl"));
    std::vector<Json> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(parse_json(line, "metrics.jsonl"));
    return lines;
  }
  std::vector<Json> metrics(const std::string& name) const {
    std::vector<Json> steps = lines(name);
    std::erase_if(steps, [](const Json& line) { return line.contains("event"); });
    return steps;
  }
  std::vector<Json> events(const std::string& name, const std::string& event) const {
    std::vector<Json> found = lines(name);
    std::erase_if(found, [&](const Json& line) { return !line.contains("event") || line["event"] != event; });
    return found;
  }
  std::string weights(const std::string& checkpoint) const {
    return read_file(checkpoint + "/model/model.safetensors");
  }
  static std::string optimizer(const std::string& checkpoint) {
    return read_file(checkpoint + "/optimizer/state-00001-of-00001.safetensors");
  }
  // Weights, masters, moments, router biases, data cursor.
  bool same_checkpoints(const std::string& a, const std::string& b) const {
    const Json x = read_json_file(a + "/state.json"), y = read_json_file(b + "/state.json");
    for (const char* key : {"step", "updates", "next_row", "data", "router_bias", "guard"})
      if (x[key] != y[key]) return false;
    return weights(a) == weights(b) && optimizer(a) == optimizer(b);
  }
  static std::vector<Json> without_times(std::vector<Json> lines) {
    for (Json& line : lines)
      for (const char* key :
           {"seconds", "tokens_per_second", "checkpoint_stall_seconds", "checkpoint_stall_after_seconds",
            "data_seconds", "average_wait_seconds", "mfu", "energy_joules", "tokens_per_joule", "cost"})
        line.erase(key);
    return lines;
  }

  TemporaryFolder folder_;
  RunConfig config_;
  std::ostringstream out_;
  std::atomic<bool> stop_{false};
};

}  // namespace cachalot::testing
