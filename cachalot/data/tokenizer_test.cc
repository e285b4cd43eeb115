#include "data/tokenizer.h"
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <cstdlib>
#include <chrono>
#include <fstream>
#include "base/json.h"
#include "base/files.h"
namespace cachalot { namespace {
TEST(Golden, All) {
  std::string dir = std::string(getenv("CACHALOT_SOURCE")) + "/../shared/data/deepseek_v3_tokenizer";
  auto t0 = std::chrono::steady_clock::now();
  Tokenizer t = Tokenizer::load(dir);
  std::printf("load %.3f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count());
  std::ifstream in(dir + "/golden_encodings.jsonl");
  int n = 0;
  for (std::string line; std::getline(in, line);++n) {
    Json j = parse_json(line, "golden");
    auto text = j["text"].get<std::string>();
    auto ids = j["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(t.encode(text), ids) << text;
    EXPECT_EQ(t.decode(ids), text);
  }
  EXPECT_EQ(n, 205);
  for (auto f : {"/tmp/en.txt","/tmp/zh.txt","/tmp/mix.txt"}) {
    auto s = read_file(f);
    t0 = std::chrono::steady_clock::now();
    auto ids = t.encode(s);
    auto d = std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
    std::printf("%s %.1f MB/s %zu ids %.2f bytes/token\n", f, s.size()/d/1e6, ids.size(), double(s.size())/ids.size());
    EXPECT_EQ(t.decode(ids), s);
  }
}
}}
