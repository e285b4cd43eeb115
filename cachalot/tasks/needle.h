// Needle in a haystack: one line with a number is hidden in a long text, and the text ends by asking for it
// (Kamradt, github.com/gkamradt/LLMTest_NeedleInAHaystack; V3 report, section 4.3, figure 8).
//
//   ... lines of the haystack ...
//   The secret number of Lisbon is 48213.
//   ... lines of the haystack ...
//   What is the secret number of Lisbon? The secret number of Lisbon is
//
// The answer is " 48213." and counts only when the model writes exactly that. Keys, numbers and the place
// where the haystack begins are functions of (seed, case).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace cachalot {

// Text as lines, each with its tokens.
class Haystack {
 public:
  // Blank lines are left out, long ones cut at spaces. Error: fewer than 8 lines.
  Haystack(std::string_view text, const Tokenizer& tokenizer);

  struct Line {
    std::string text;  // with its newline
    std::vector<int32_t> tokens;
  };
  const std::vector<Line>& lines() const { return lines_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  const Tokenizer* tokenizer_;
  std::vector<Line> lines_;
};

struct NeedleCase {
  int64_t tokens = 0;       // of prompt and answer together, at most
  double depth = 0;         // 0: the needle is the first line, 1: the last before the question
  int64_t distractors = 0;  // more needles, of other keys, spread evenly; nobody asks for them
  uint64_t seed = 0, number = 0;
};

struct NeedlePrompt {
  std::vector<int32_t> tokens;
  std::string answer;         // what has to come
  int64_t answer_tokens = 0;  // of the tokenizer
  int64_t needle_at = 0;      // the needle's first token
};

// Error: a length that leaves no room for a haystack.
NeedlePrompt make_needle_prompt(const Haystack& haystack, const NeedleCase& c);

// Text to learn the task from: a haystack with up to `needles` of them, so that it keeps the share `hay` of
// the length, and at its end question and answer for each. Error: a length that leaves no room for one.
std::string make_needle_document(const Haystack& haystack, const NeedleCase& c, int64_t needles,
                                 double hay = 0.5);

// Does the text begin with the answer?
bool found_needle(const NeedlePrompt& prompt, std::string_view generated);

}  // namespace cachalot
