// libFuzzer: any bytes as a tokenizer.json. They are refused with an Error, or give a tokenizer that brings
// every text back (unless it was told to put spaces before).
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "data/regex.h"
#include "data/tokenizer.h"

namespace {

void expect(bool holds) {
  if (!holds) std::abort();
}

constexpr std::string_view kText = "a\xFF <x>12 \n  3\xE7\x9A bc\u3000\u0301";
constexpr std::string_view kValidText = "aab AB 's 123\r\n\n  \u3000\u0301\u4e00.,k\u212A\U0001FA77 ";

void run_tokenizer(std::string_view json) {
  const cachalot::Tokenizer tokenizer = cachalot::Tokenizer::parse(json, "tokenizer.json");
  const bool adds_spaces = json.find("add_prefix_space") == std::string_view::npos ||
                           json.find("true") != std::string_view::npos ||
                           json.find('\\') != std::string_view::npos;
  // The file itself is as good a text as any: it spells the added tokens and holds invalid bytes at times.
  for (const std::string_view text : {json.substr(0, 4096), kText}) {
    for (const bool parse_special : {false, true}) {
      const auto ids = tokenizer.encode(text, {.parse_special = parse_special});
      for (const int32_t id : ids)
        expect(0 <= id && id < tokenizer.vocab_size() && !tokenizer.token_bytes(id).empty());
      expect(adds_spaces || tokenizer.decode(ids) == text);
    }
  }
}

void run_pattern(std::string_view pattern) {
  const cachalot::Regex regex(pattern, "pattern");
  cachalot::Regex::Scratch scratch;
  size_t done = 0;  // the pieces follow one another and leave nothing out
  regex.isolate(kValidText, scratch, [&](size_t begin, size_t end) {
    expect(begin == done && begin < end);
    done = end;
  });
  expect(done == kValidText.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    input.substr(0, 1) == "{" ? run_tokenizer(input) : run_pattern(input);
  } catch (const cachalot::Error&) {
  }
  return 0;
}
