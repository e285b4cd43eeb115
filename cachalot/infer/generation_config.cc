#include "infer/generation_config.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace cachalot {

namespace {

struct File {
  std::string path;
  Json json;

  [[noreturn]] void fail(const char* key, const char* expected) const {
    throw Error(fmt::format("{}: {} is {}", path, key, json.at(key).dump())).hint(expected);
  }
  bool has(const char* key) const { return json.contains(key) && !json.at(key).is_null(); }
  std::optional<double> number(const char* key, double low, double high, const char* expected) const {
    if (!has(key)) return std::nullopt;
    if (!json.at(key).is_number()) fail(key, expected);
    const double value = json.at(key).get<double>();
    if (!(value >= low && value <= high)) fail(key, expected);
    return value;
  }
  int32_t token(const char* key, const Json& value) const {
    if (!value.is_number_integer() || value < 0 || value > 0x7FFFFFFF)
      fail(key, "a token id, or a list of them, is expected");
    return value.get<int32_t>();
  }
};

}  // namespace

GenerationConfig load_generation_config(const std::string& model_directory, const ModelConfig& config) {
  GenerationConfig g;
  g.end_tokens = {int32_t(config.eos_token_id)};
  const std::string path = model_directory + "/generation_config.json";
  if (!std::filesystem::exists(path)) return g;
  const File file{path, read_json_file(path)};
  if (!file.json.is_object())
    throw Error(fmt::format("{} holds {}", path, json_kind(file.json))).hint("an object is expected");

  g.temperature = file.number("temperature", 0, 1e6, "a number of 0 or more is expected");
  g.top_p = file.number("top_p", 1e-300, 1, "a number above 0, at most 1, is expected");
  if (const auto k = file.number("top_k", 0, 0x7FFFFFFF, "a whole number of 0 or more is expected")) {
    if (*k != std::floor(*k)) file.fail("top_k", "a whole number of 0 or more is expected");
    g.top_k = int64_t(*k);
  }
  if (file.has("do_sample")) {
    if (!file.json.at("do_sample").is_boolean()) file.fail("do_sample", "true or false is expected");
    if (!file.json.at("do_sample").get<bool>()) g.temperature = 0;
    else if (!g.temperature) g.temperature = 1;  // what the file's inventors take
  }
  if (file.has("eos_token_id")) {
    const Json& eos = file.json.at("eos_token_id");
    g.end_tokens.clear();
    if (eos.is_array())
      for (const Json& id : eos) g.end_tokens.push_back(file.token("eos_token_id", id));
    else g.end_tokens.push_back(file.token("eos_token_id", eos));
  }
  return g;
}

}  // namespace cachalot
