#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "data/bpe_trainer.h"
#include "data/byte_level.h"
#include "data/regex.h"

namespace cachalot {
namespace {

std::string source_path(const std::string& path) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  return std::string(root ? root : ".") + "/" + path;
}

const Tokenizer& small() {
  static const Tokenizer tokenizer = Tokenizer::load(source_path("tests/data/tokenizer"));
  return tokenizer;
}

// Checks {"text", "ids"} lines made by the Rust library.
void expect_golden(const Tokenizer& tokenizer, const std::string& path, int least) {
  std::ifstream in(path);
  ASSERT_TRUE(in) << path;
  int lines = 0;
  for (std::string line; std::getline(in, line); ++lines) {
    const Json json = parse_json(line, path);
    const std::string text = json["text"].get<std::string>();
    const auto ids = json["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text), ids) << path << ":" << lines + 1 << " " << text;
    EXPECT_EQ(tokenizer.decode(ids), text) << path << ":" << lines + 1;
  }
  EXPECT_GE(lines, least);
}

TEST(Tokenizer, ReproducesTheLibraryOnTheSmallTokenizer) {
  expect_golden(small(), source_path("tests/data/tokenizer/golden_encodings.jsonl"), 60);
}

TEST(Tokenizer, ReproducesAllGoldenEncodingsOfDeepSeekV3) {
  const std::string folder = source_path("../shared/data/deepseek_v3_tokenizer");
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "runs on machines that have ../shared/data/deepseek_v3_tokenizer";
  const auto start = std::chrono::steady_clock::now();
  const Tokenizer tokenizer = Tokenizer::load(folder);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  RecordProperty("load_ms", int(1000 * seconds.count()));
  expect_golden(tokenizer, folder + "/golden_encodings.jsonl", 205);
  EXPECT_EQ(tokenizer.vocab_size(), 128815);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_TRUE(tokenizer.add_bos());
  EXPECT_EQ(tokenizer.find("<｜User｜>"), 128803);
  EXPECT_FALSE(tokenizer.is_special(128803));  // as published; so skip_special keeps it
  EXPECT_TRUE(tokenizer.is_special(128805) && tokenizer.is_special(0) && !tokenizer.is_special(100));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("<｜User｜>hi<｜end▁of▁sentence｜>"), {.skip_special = true}),
            "<｜User｜>hi");
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer& t = small();
  EXPECT_EQ(t.vocab_size(), 1000);
  EXPECT_EQ(t.bos_id(), 0);
  EXPECT_EQ(t.eos_id(), 1);
  EXPECT_TRUE(t.is_special(0) && t.is_special(1) && !t.is_special(2) && !t.is_special(-1) &&
              !t.is_special(1000));
  EXPECT_EQ(t.token_bytes(0), kBosToken);
  EXPECT_EQ(t.token_bytes(*t.find("Ġthe")), " the");
  EXPECT_EQ(t.token_bytes(-1), "");
  EXPECT_EQ(t.token_bytes(1000), "");
  EXPECT_EQ(t.find("no such token"), std::nullopt);
  for (int byte = 0; byte < 256; ++byte) {
    const std::string one(1, char(byte));
    const auto id = t.find(write_bytes(one));
    ASSERT_TRUE(id) << byte;
    EXPECT_EQ(t.encode(one), std::vector<int32_t>{*id});
  }
}

TEST(Tokenizer, AnyBytesSurvive) {
  const Tokenizer& t = small();
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    const int64_t length = int64_t(random_below(seed, 1, 0, 60));
    std::string text;
    for (int64_t i = 0; i < length; ++i) {
      // Bytes of every kind, and whole and broken special tokens among them.
      const uint64_t kind = random_below(seed, 2, uint64_t(i), 8);
      if (kind == 0) text += kEosToken;
      else if (kind == 1)
        text += std::string(kBosToken.substr(0, random_below(seed, 3, uint64_t(i), kBosToken.size())));
      else if (kind < 5) text += char(random_below(seed, 4, uint64_t(i), 256));
      else text += char('a' + random_below(seed, 5, uint64_t(i), 6));
    }
    EXPECT_EQ(t.decode(t.encode(text)), text) << seed;
    EXPECT_EQ(t.decode(t.encode(text, {.parse_special = false})), text) << seed;
  }
}

TEST(Tokenizer, InvalidUtf8IsEncodedByteByByteAndDoesNotDisturbItsNeighbours) {
  const Tokenizer& t = small();
  const auto id = [&](char byte) { return *t.find(write_bytes(std::string(1, byte))); };
  std::vector<int32_t> expected = t.encode("the king");
  expected.push_back(id('\xFF'));
  expected.push_back(id('\xE7'));  // a cut-off character: its bytes alone
  expected.push_back(id('\x9A'));
  for (const int32_t token : t.encode("the king")) expected.push_back(token);
  EXPECT_EQ(t.encode("the king\xFF\xE7\x9Athe king"), expected);
}

TEST(Tokenizer, TextFromOutsideCannotForgeSpecialTokens) {
  const Tokenizer& t = small();
  const std::string text = "a" + std::string(kEosToken) + "b";
  EXPECT_EQ(t.encode(text), (std::vector<int32_t>{*t.find("a"), 1, *t.find("b")}));
  for (const int32_t id : t.encode(text, {.parse_special = false})) EXPECT_FALSE(t.is_special(id));
}

TEST(Tokenizer, UnknownIdsAreRefusedInDecoding) {
  const Tokenizer& t = small();
  EXPECT_THROW(t.decode(std::vector<int32_t>{5, 1000}), Error);
  EXPECT_THROW(t.decode(std::vector<int32_t>{-1}), Error);
}

TEST(Tokenizer, ManyThreadsMayEncodeAtOnce) {
  const Tokenizer& t = small();
  const std::string text = read_file(source_path("tests/data/text/many_scripts.txt"));
  const std::vector<int32_t> expected = t.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int k = 0; k < 20; ++k)
        wrong[size_t(i)] += t.encode(text) != expected || t.decode(expected) != text;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

TEST(Tokenizer, TheNumberOfThreadsDoesNotChangeTheIds) {
  const Tokenizer& t = small();
  // Long enough to be cut for the threads: scripts, special tokens, bytes that are not UTF-8, one word of 200
  // KB.
  const std::string scripts = read_file(source_path("tests/data/text/many_scripts.txt"));
  std::string text;
  for (int i = 0; text.size() < 1'500'000; ++i) {
    text += scripts;
    if (i % 3 == 0) text += kEosToken;
    if (i % 5 == 0) text += "\xFF\xE4\xB8";
    if (i == 20) text += std::string(200'000, 'k');
  }
  const std::vector<std::string_view> texts = {text, "", "the king", scripts,
                                               std::string_view(text).substr(7, 900'000)};
  for (const bool parse_special : {true, false}) {
    std::vector<std::vector<int32_t>> expected;
    for (const std::string_view one : texts)
      expected.push_back(t.encode(one, {.parse_special = parse_special}));
    EXPECT_EQ(t.encode_batch(texts, {.parse_special = parse_special}), expected);
    for (const int threads : {1, 2, 5}) {
      ThreadPool pool(threads);
      const EncodeOptions options{.parse_special = parse_special, .pool = &pool};
      EXPECT_EQ(t.encode(text, options), expected[0]) << threads;
      EXPECT_EQ(t.encode_batch(texts, options), expected) << threads;
    }
  }
}

// ---- A file made for the test, and changed in one place.
// ------------------------------------------------------

// ids 0-255: the bytes in the order of the alphabet's table; then the merges' results. A build without PCRE2
// cannot cut by GPT-2's pattern; then the text is one piece.
Json tiny() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[write_bytes(std::string(1, char(byte)))] = byte;
  Json merges = Json::array();
  int id = 256;
  for (const char* merge : {"a b", "b c", "ab c", "Ġ a"}) {
    std::string joined = merge;
    joined.erase(joined.find(' '), 1);
    if (!vocab.contains(joined)) vocab[joined] = id++;
    merges.push_back(merge);
  }
  return {{"version", "1.0"},
          {"added_tokens",
           Json::array({{{"id", 300}, {"content", "<x>"}, {"special", true}, {"normalized", false}},
                        {{"id", 301}, {"content", "<xy>"}, {"special", false}, {"normalized", false}},
                        {{"id", 302}, {"content", "<xy"}, {"special", false}, {"normalized", true}}})},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", Regex::available()}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

// The message for tiny() after `change`; "" when it is read.
std::string refusal(const std::function<void(Json&)>& change) {
  Json json = tiny();
  change(json);
  try {
    Tokenizer::parse(json.dump(), "t.json");
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(Tokenizer, MergesByRankThenLeftmost) {
  const Tokenizer t = Tokenizer::parse(tiny().dump(), "t.json");
  EXPECT_EQ(t.vocab_size(), 303);
  EXPECT_EQ(t.encode("abc"), (std::vector<int32_t>{258}));  // a b, then ab c
  EXPECT_EQ(t.encode("bc"), (std::vector<int32_t>{257}));
  EXPECT_EQ(t.encode("abbc"), (std::vector<int32_t>{256, 257}));
  EXPECT_EQ(t.encode(" ab"), (std::vector<int32_t>{' ', 256}));  // "a b" comes before "Ġ a"
  EXPECT_EQ(t.encode(" a"), (std::vector<int32_t>{259}));
  EXPECT_EQ(t.encode("b c"), (std::vector<int32_t>{'b', ' ', 'c'}));  // cut before the space
}

TEST(Tokenizer, LongestAddedTokenWinsAndNormalizedOnesComeSecond) {
  const Tokenizer t = Tokenizer::parse(tiny().dump(), "t.json");
  EXPECT_EQ(t.encode("<x><xy><xy"), (std::vector<int32_t>{300, 301, 302}));
  EXPECT_EQ(t.encode("<x"), (std::vector<int32_t>{'<', 'x'}));
  EXPECT_EQ(t.decode(t.encode("a<x>b<xy>"), {.skip_special = true}), "ab<xy>");
  EXPECT_THROW(t.decode(std::vector<int32_t>{280}), Error);  // no token has it
  EXPECT_EQ(t.token_bytes(280), "");
}

TEST(Tokenizer, ReadsMergesAsPairsToo) {
  Json json = tiny();
  json["model"]["merges"] = parse_json(R"([["a", "b"], ["b", "c"], ["ab", "c"], ["Ġ", "a"]])", "t");
  EXPECT_EQ(Tokenizer::parse(json.dump(), "t.json").encode("abc abbc a"),
            Tokenizer::parse(tiny().dump(), "t.json").encode("abc abbc a"));
}

TEST(Tokenizer, PutsASpaceBeforeWhenTheFileAsksForIt) {
  Json json = tiny();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer t = Tokenizer::parse(json.dump(), "t.json");
  EXPECT_EQ(t.encode("a"), (std::vector<int32_t>{259}));
  EXPECT_EQ(t.encode(" a"), (std::vector<int32_t>{259}));
  EXPECT_EQ(t.encode(""), (std::vector<int32_t>{}));
}

TEST(Tokenizer, NamesFileFieldAndValueOfWhatIsMalformed) {
  EXPECT_EQ(refusal([](Json&) {}), "");
  const auto set = [](const char* pointer, const char* value) {
    return [=](Json& j) { j[Json::json_pointer(pointer)] = parse_json(value, "test"); };
  };
  const auto expect = [](const std::function<void(Json&)>& change, const std::string& message) {
    EXPECT_EQ(refusal(change), message);
  };
  expect([](Json& j) { j.erase("model"); }, "t.json: model is missing");
  expect([](Json& j) { j["model"].erase("vocab"); }, "t.json: model.vocab is missing");
  expect([](Json& j) { j["model"].erase("merges"); }, "t.json: model.merges is missing");
  expect([](Json& j) { j["model"]["vocab"].erase("Ġ"); },
         "t.json: model.vocab lacks \"Ġ\", the token of byte 0x20");
  expect(set("/model", "3"), "t.json: model is 3; it must be an object");
  expect(set("/model/type", R"("WordPiece")"), "t.json: model.type is \"WordPiece\"; cachalot supports BPE");
  expect(set("/model/vocab", "[]"), "t.json: model.vocab is an array; it must be an object");
  expect(set("/model/vocab/q", "-3"),
         "t.json: model.vocab: the id of \"q\" is -3; ids must be in 0 to 1048575");
  expect(set("/model/vocab/q", "1048576"),
         "t.json: model.vocab: the id of \"q\" is 1048576; ids must be in 0 to 1048575");
  expect(set("/model/vocab/q", "18446744073709551615"),
         "t.json: model.vocab: the id of \"q\" is 18446744073709551615; ids must be in 0 to 1048575");
  expect(set("/model/vocab/q", "1.5"),
         "t.json: model.vocab: the id of \"q\" is 1.5; it must be a whole number");
  expect(set("/model/vocab/q", "\"7\""),
         "t.json: model.vocab: the id of \"q\" is \"7\"; it must be a whole number");
  expect(set("/model/vocab/q", "97"), "t.json: model.vocab: id 97 belongs to both \"a\" and \"q\"");
  expect(set("/model/merges", "{}"), "t.json: model.merges is an object; it must be an array");
  expect(set("/model/merges/1", "\"zz b\""), "t.json: model.merges[1]: no token \"zzb\" in model.vocab");
  expect(set("/model/merges/2", "[\"abc\", \"\"]"), "t.json: model.merges[2]: no token \"\" in model.vocab");
  expect(set("/model/merges/1", "\"bc\""),
         "t.json: model.merges[1] is \"bc\"; it must be two tokens with one space between");
  expect(set("/model/merges/1", "[\"b\"]"),
         "t.json: model.merges[1] is \"[\"b\"]\"; it must be \"left right\" or [\"left\", \"right\"]");
  expect(set("/model/merges/1", "\"a b\""), "t.json: model.merges[1] repeats the merge of \"a\" and \"b\"");
  expect(set("/added_tokens", "{}"), "t.json: added_tokens is an object; it must be an array");
  expect(set("/added_tokens/1/id", "300"),
         "t.json: added_tokens[1]: id 300 belongs to both \"<x>\" and \"<xy>\"");
  expect(set("/added_tokens/1/id", "null"), "t.json: added_tokens[1].id is missing");
  expect(set("/added_tokens/1/content", "\"<x>\""),
         "t.json: added_tokens[1]: \"<x>\" has id 301 here and id 300 before");
  expect(set("/added_tokens/1/content", "\"\""), "t.json: added_tokens[1]: id 301 is an empty token");
  expect(set("/added_tokens/1", R"({"id": 258, "content": "abc"})"), "");
  expect(set("/added_tokens/1", R"({"id": 32, "content": "Ġ"})"),
         "t.json: added_tokens[1]: \"Ġ\" is a token of model.vocab that stands for the bytes of \" \"");
  expect(set("/pre_tokenizer", "null"), "t.json: pre_tokenizer is missing");
  expect(set("/decoder", "null"), "t.json: decoder is missing");
}

TEST(Tokenizer, RefusesByNameWhatItDoesNotSupport) {
  const auto refused = [](const char* pointer, const char* value) {
    const std::string field = std::string(pointer).substr(std::string(pointer).rfind('/') + 1);
    const std::string message =
        refusal([=](Json& j) { j[Json::json_pointer(pointer)] = parse_json(value, "test"); });
    EXPECT_NE(message.find(field), std::string::npos) << pointer << " " << value << ": " << message;
  };
  refused("/version", "\"2.0\"");
  refused("/truncation", R"({"max_length": 512})");
  refused("/padding", R"({"strategy": "BatchLongest"})");
  refused("/normalizer", R"({"type": "NFC"})");
  refused("/normalizer", R"({"type": "Sequence", "normalizers": [{"type": "NFC"}]})");
  refused("/decoder", R"({"type": "WordPiece"})");
  refused("/model/dropout", "0.1");
  refused("/model/byte_fallback", "true");
  refused("/model/ignore_merges", "true");
  refused("/model/continuing_subword_prefix", "\"##\"");
  refused("/model/end_of_word_suffix", "\"</w>\"");
  refused("/model/surprise", "1");
  refused("/surprise", "1");
  refused("/added_tokens/0/lstrip", "true");
  refused("/added_tokens/0/rstrip", "true");
  refused("/added_tokens/0/single_word", "true");
  refused("/added_tokens/0/surprise", "true");
  refused("/pre_tokenizer/type", "\"Whitespace\"");
  refused("/pre_tokenizer/surprise", "true");
  refused("/pre_tokenizer/use_regex", "1");
  refused("/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": []})");
  const auto split = [](const char* fields) {
    return R"({"type": "Sequence", "pretokenizers": [{"type": "Split", )" + std::string(fields) +
           R"(}, {"type": "ByteLevel"}]})";
  };
  refused("/pre_tokenizer",
          split(R"("pattern": {"Regex": "a"}, "behavior": "Removed", "invert": false)").c_str());
  refused("/pre_tokenizer",
          split(R"("pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": true)").c_str());
  refused("/pre_tokenizer", split(R"("pattern": {"Regex": "\\w"}, "behavior": "Isolated")").c_str());
  refused("/pre_tokenizer", split(R"("pattern": {"Glob": "a"}, "behavior": "Isolated")").c_str());
  refused("/pre_tokenizer", split(R"("pattern": "a", "behavior": "Isolated")").c_str());
  refused("/pre_tokenizer",
          R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "ByteLevel"}]})");
}

TEST(Tokenizer, LoadNamesTheFileThatIsWrong) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "cachalot_tokenizer_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const auto message = [&](const std::filesystem::path& path) -> std::string {
    try {
      Tokenizer::load(path.string());
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  };
  EXPECT_NE(message(folder).find((folder / "tokenizer.json").string()), std::string::npos);
  write_file_atomic((folder / "tokenizer.json").string(), tiny().dump());
  EXPECT_EQ(message(folder), "");
  EXPECT_EQ(Tokenizer::load(folder.string()).bos_id(), std::nullopt);
  const auto config = (folder / "tokenizer_config.json").string();
  write_file_atomic(
      config,
      R"({"bos_token": "<x>", "eos_token": {"content": "<xy>"}, "add_bos_token": true, "more": [1]})");
  const Tokenizer t = Tokenizer::load((folder / "tokenizer.json").string());
  EXPECT_EQ(t.bos_id(), 300);
  EXPECT_EQ(t.eos_id(), 301);
  EXPECT_TRUE(t.add_bos());
  write_file_atomic(config, R"({"bos_token": "<y>"})");
  EXPECT_EQ(message(folder),
            config + ": bos_token is \"<y>\", which the tokenizer.json beside it does not have");
  write_file_atomic(config, R"({"eos_token": 1})");
  EXPECT_EQ(message(folder), config + ": eos_token is 1; it must be a string");
  std::filesystem::remove_all(folder);
}

TEST(Tokenizer, APieceOfTwoMegabytesTakesMomentsNotHours) {
  const Tokenizer& t = small();
  std::string text;
  while (text.size() < 2'000'000) text += "thekingandthequeen";  // one piece: letters only
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int32_t> ids = t.encode(text);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(t.decode(ids), text);
  EXPECT_LT(seconds.count(), 60);  // about 0.5 s; quadratic merging would take an hour
  EXPECT_EQ(t.decode(t.encode(std::string(2'000'000, ' '))), std::string(2'000'000, ' '));
}

}  // namespace
}  // namespace cachalot
