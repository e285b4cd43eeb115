#include "data/pre_tokenizer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "data/json_fields.h"
#include "data/regex.h"

namespace cachalot {

namespace {

constexpr size_t kMaxStages = 32;  // each is a level of recursion; real tokenizers have up to six

// What ByteLevel with use_regex cuts by: English contractions, words, numbers, the rest, spaces.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// One stage as the file has it.
struct StageText {
  std::string path;  // of the pattern, for messages
  std::string pattern;
  enum class Kind { none, regex, literal } kind = Kind::none;
  bool add_prefix_space = false;
  bool operator==(const StageText& other) const {  // paths aside
    return pattern == other.pattern && kind == other.kind && add_prefix_space == other.add_prefix_space;
  }
};

StageText read_split(const JsonObject& json) {
  json.refuse_unknown({"type", "pattern", "behavior", "invert"});
  const std::string_view behavior = json.need_string("behavior");
  if (behavior != "Isolated")
    throw Error(fmt::format("{} is {}; cachalot supports only \"Isolated\"", json.path("behavior"),
                            in_quotes(behavior)));
  json.refuse_other("invert", "false");
  const JsonObject pattern(json.need("pattern"), json.path("pattern"));
  pattern.refuse_unknown({"Regex", "String"});
  if (pattern.find("Regex") && pattern.find("String"))
    throw Error(fmt::format("{} has both Regex and String", pattern.path()));
  const bool literal = pattern.find("String") != nullptr;
  const char* key = literal ? "String" : "Regex";
  return {.path = pattern.path(key),
          .pattern = std::string(pattern.need_string(key)),
          .kind = literal ? StageText::Kind::literal : StageText::Kind::regex};
}

StageText read_byte_level(const JsonObject& json) {
  json.refuse_unknown({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  (void)json.boolean("trim_offsets", true);  // moves offsets, which we do not report
  StageText stage{.path = json.path("use_regex"), .add_prefix_space = json.boolean("add_prefix_space", true)};
  if (json.boolean("use_regex", true)) stage.pattern = kGpt2Pattern, stage.kind = StageText::Kind::regex;
  return stage;
}

std::vector<StageText> read_stages(const Json& json, const std::string& path) {
  std::vector<StageText> stages;
  const JsonObject outer(json, path);
  std::vector<JsonObject> entries;
  if (outer.need_string("type") == "Sequence") {
    outer.refuse_unknown({"type", "pretokenizers"});
    const Json& array = outer.need("pretokenizers");
    const std::string name = outer.path("pretokenizers");
    if (!array.is_array()) throw_kind(name, array, "an array");
    if (array.size() > kMaxStages)
      throw Error(fmt::format("{} has {} entries; at most {} are supported", name, array.size(), kMaxStages));
    for (size_t i = 0; i < array.size(); ++i) entries.emplace_back(array[i], fmt::format("{}[{}]", name, i));
  } else {
    entries.push_back(outer);
  }
  bool byte_level = false;
  for (const JsonObject& entry : entries) {
    const std::string_view type = entry.need_string("type");
    if (byte_level)
      throw Error(fmt::format("{}: {} stands after ByteLevel, which must be the last", entry.path(),
                              in_quotes(type)));
    byte_level = type == "ByteLevel";
    if (!byte_level && type != "Split")
      throw Error(fmt::format("{} is {}; cachalot supports Split and ByteLevel", entry.path("type"),
                              in_quotes(type)));
    stages.push_back(byte_level ? read_byte_level(entry) : read_split(entry));
  }
  if (!byte_level)
    throw Error(fmt::format("{} does not end with ByteLevel", path)).hint("only byte-level BPE is read");
  return stages;
}

struct Stage {
  std::optional<Regex> regex;
  bool add_prefix_space = false;
};

Stage compile(const StageText& text) {
  Stage stage{.regex = {}, .add_prefix_space = text.add_prefix_space};
  if (text.kind == StageText::Kind::regex) stage.regex.emplace(text.pattern, text.path);
  if (text.kind == StageText::Kind::literal) stage.regex = Regex::literal(text.pattern, text.path);
  return stage;
}

}  // namespace

struct PreTokenizer::Stages {
  std::vector<Stage> list;  // the last is ByteLevel

  void cut(size_t level, std::string_view text, Regex::Scratch& scratch,
           const std::function<void(std::string_view)>& piece) const {
    if (level == list.size()) return piece(text);
    const Stage& stage = list[level];
    std::string with_space;
    if (stage.add_prefix_space && text.front() != ' ') {
      with_space.reserve(text.size() + 1);
      with_space += ' ';
      with_space += text;
      text = with_space;
    }
    if (!stage.regex) return cut(level + 1, text, scratch, piece);
    stage.regex->isolate(text, scratch, [&](size_t begin, size_t end) {
      cut(level + 1, text.substr(begin, end - begin), scratch, piece);
    });
  }
};

PreTokenizer::PreTokenizer(const Json& json, const std::string& path, PreTokenizerEngine engine) {
  const std::vector<StageText> texts = read_stages(json, path);
  static const std::vector<StageText> deepseek =
      read_stages(parse_json(kDeepSeekPreTokenizer, "built in"), "built in: pre_tokenizer");
  by_hand_ = engine == PreTokenizerEngine::automatic && texts == deepseek;
  if (by_hand_) return;
  auto stages = std::make_unique<Stages>();
  for (const StageText& text : texts) stages->list.push_back(compile(text));
  stages_ = std::move(stages);
}

PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::regex_pieces(std::string_view text,
                                const std::function<void(std::string_view)>& piece) const {
  Regex::Scratch scratch;
  size_t valid = 0;  // start of the stretch of valid UTF-8 that ends at `at`
  for (size_t at = 0; at <= text.size();) {
    const int length = at < text.size() ? utf8_length(text, at) : 0;
    if (length > 0) {
      at += length;
      continue;
    }
    if (at > valid) stages_->cut(0, text.substr(valid, at - valid), scratch, piece);
    if (at < text.size()) piece(text.substr(at, 1));
    valid = ++at;
  }
}

const std::string_view kDeepSeekPreTokenizer = R"json({
  "type": "Sequence",
  "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"},
     "behavior": "Isolated", "invert": false},
    {"type": "Split",
     "pattern": {"Regex": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
  ]
})json";

}  // namespace cachalot
