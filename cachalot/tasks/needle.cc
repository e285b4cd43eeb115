#include "tasks/needle.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/rng.h"
#include "base/text.h"

namespace cachalot {

namespace {

constexpr size_t kLineBytes = 160, kFewestLines = 8;

constexpr std::array kKeys = {
    "Lisbon", "Oslo",    "Cairo",  "Lima",     "Dakar",  "Hanoi",  "Quito",  "Riga",   "Seoul",
    "Tunis",  "Vienna",  "Warsaw", "Zagreb",   "Athens", "Berlin", "Bogota", "Dublin", "Geneva",
    "Havana", "Jakarta", "Kyiv",   "London",   "Madrid", "Manila", "Moscow", "Muscat", "Nairobi",
    "Ottawa", "Paris",   "Prague", "Rabat",    "Rome",   "Sofia",  "Sydney", "Taipei", "Tehran",
    "Tokyo",  "Toronto", "Turin",  "Valencia", "Boston", "Denver", "Dallas", "Perth",  "Osaka",
    "Kyoto",  "Lagos",   "Accra",  "Bern",     "Doha",   "Delhi",  "Minsk",  "Monaco", "Porto"};

// Streams of random numbers, one for each thing that is drawn.
enum Stream : uint64_t { kStart = 1, kFirstKey = 2, kKeyStep = 3, kNumber = 4, kPlace = 5 };

// Needle i of a case: keys of one case differ.
struct Needle {
  Needle(const NeedleCase& c, int64_t i) {
    constexpr uint64_t keys = kKeys.size();  // 54 = 2 3 3 3: steps prime to it visit every key
    constexpr std::array<uint64_t, 6> steps = {1, 5, 7, 11, 13, 17};
    const uint64_t first = random_below(c.seed, kFirstKey, c.number, keys),
                   step = steps[random_below(c.seed, kKeyStep, c.number, steps.size())];
    key = kKeys[(first + uint64_t(i) * step) % keys];
    number = 10000 + random_below(c.seed, kNumber, c.number * 64 + uint64_t(i), 90000);
  }
  std::string sentence() const { return fmt::format("The secret number of {} is {}.\n", key, number); }
  std::string question() const {
    return fmt::format("What is the secret number of {}? The secret number of {} is", key, key);
  }
  std::string answer() const { return fmt::format(" {}.", number); }
  std::string key;
  uint64_t number = 0;
};

// Lines that together have at most `budget` tokens, from a random one on and around the end.
std::vector<const Haystack::Line*> draw_lines(const Haystack& haystack, const NeedleCase& c, int64_t budget) {
  const auto& lines = haystack.lines();
  std::vector<const Haystack::Line*> drawn;
  size_t at = random_below(c.seed, kStart, c.number, lines.size());
  for (int64_t used = 0;; at = (at + 1) % lines.size()) {
    used += int64_t(lines[at].tokens.size());
    if (used > budget) return drawn;
    drawn.push_back(&lines[at]);
  }
}

// How many of the lines stand before a needle at `depth`, by their tokens.
size_t place(const std::vector<const Haystack::Line*>& lines, double depth) {
  double total = 0, before = 0;
  for (const auto* line : lines) total += double(line->tokens.size());
  size_t n = 0;
  while (n < lines.size() && before + double(lines[n]->tokens.size()) / 2 <= depth * total)
    before += double(lines[n++]->tokens.size());
  return n;
}

}  // namespace

Haystack::Haystack(std::string_view text, const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    while (!line.empty()) {
      const size_t begin = line.find_first_not_of(" \t\r");
      if (begin == std::string_view::npos) break;
      line.remove_prefix(begin);
      size_t cut = line.size();
      if (cut > kLineBytes) {
        const size_t space = line.rfind(' ', kLineBytes);
        cut = space != std::string_view::npos ? space : utf8_complete_prefix(line.substr(0, kLineBytes));
      }
      std::string piece(line.substr(0, cut));
      while (!piece.empty() && (piece.back() == ' ' || piece.back() == '\t' || piece.back() == '\r'))
        piece.pop_back();
      pieces.push_back(piece + "\n");
      line.remove_prefix(cut);
    }
  }
  if (pieces.size() < kFewestLines)
    throw Error(fmt::format("the haystack has {} lines", pieces.size()))
        .hint(fmt::format("give a text of {} lines or more; a book is better", kFewestLines));
  const std::vector<std::string_view> views(pieces.begin(), pieces.end());
  std::vector<std::vector<int32_t>> tokens = tokenizer.encode_batch(views, {.parse_special = false});
  for (size_t i = 0; i < pieces.size(); ++i)
    if (!tokens[i].empty()) lines_.push_back({std::move(pieces[i]), std::move(tokens[i])});
}

NeedlePrompt make_needle_prompt(const Haystack& haystack, const NeedleCase& c) {
  CHECK(c.depth >= 0 && c.depth <= 1 && c.distractors >= 0 && c.distractors < int64_t(kKeys.size()));
  const Tokenizer& tokenizer = haystack.tokenizer();
  const auto encode = [&](const std::string& text) {
    return tokenizer.encode(text, {.parse_special = false});
  };
  std::vector<std::vector<int32_t>> needles;
  int64_t needed = 0;
  for (int64_t i = 0; i <= c.distractors; ++i) {
    needles.push_back(encode(Needle(c, i).sentence()));
    needed += int64_t(needles.back().size());
  }
  const Needle asked(c, 0);
  const std::vector<int32_t> question = encode(asked.question());
  NeedlePrompt prompt{
      .tokens = {}, .answer = asked.answer(), .answer_tokens = int64_t(encode(asked.answer()).size())};
  if (const auto bos = tokenizer.bos_id(); tokenizer.add_bos() && bos) prompt.tokens.push_back(*bos);
  needed += int64_t(prompt.tokens.size() + question.size()) + prompt.answer_tokens;
  const std::vector<const Haystack::Line*> lines = draw_lines(haystack, c, c.tokens - needed);
  if (lines.empty())
    throw Error(fmt::format("a needle and its question take {} tokens; there is no room for a haystack in {}",
                            needed, c.tokens))
        .hint(fmt::format("ask for lengths of {} and more", needed + 64));

  std::vector<std::pair<size_t, size_t>> places;  // lines before it, which needle
  places.emplace_back(place(lines, c.depth), 0);
  for (int64_t i = 1; i <= c.distractors; ++i)
    places.emplace_back(place(lines, double(i) / double(c.distractors + 1)), size_t(i));
  std::sort(places.begin(), places.end());
  size_t next = 0;
  for (size_t l = 0; l <= lines.size(); ++l) {
    for (; next < places.size() && places[next].first == l; ++next) {
      if (places[next].second == 0) prompt.needle_at = int64_t(prompt.tokens.size());
      const auto& needle = needles[places[next].second];
      prompt.tokens.insert(prompt.tokens.end(), needle.begin(), needle.end());
    }
    if (l < lines.size())
      prompt.tokens.insert(prompt.tokens.end(), lines[l]->tokens.begin(), lines[l]->tokens.end());
  }
  prompt.tokens.insert(prompt.tokens.end(), question.begin(), question.end());
  return prompt;
}

std::string make_needle_document(const Haystack& haystack, const NeedleCase& given, int64_t needles,
                                 double hay) {
  NeedleCase c = given;  // never the keys, numbers and lines of a question with the same seed
  c.number += uint64_t{1} << 40;
  CHECK(needles >= 1 && needles <= int64_t(kKeys.size()) && hay >= 0 && hay < 1);
  const Tokenizer& tokenizer = haystack.tokenizer();
  const auto tokens = [&](const std::string& text) {
    return int64_t(tokenizer.encode(text, {.parse_special = false}).size());
  };
  std::string questions;
  std::vector<std::string> sentences;
  int64_t needed = 0;
  for (int64_t i = 0; i < needles; ++i) {
    const Needle needle(c, i);
    const std::string question = needle.question() + needle.answer() + "\n";
    const int64_t more = tokens(needle.sentence()) + tokens(question);
    if (i > 0 && double(needed + more) > (1 - hay) * double(c.tokens)) break;
    needed += more;
    sentences.push_back(needle.sentence());
    questions += question;
  }
  const std::vector<const Haystack::Line*> lines = draw_lines(haystack, c, c.tokens - needed);
  if (lines.empty())
    throw Error(fmt::format("a needle and its question take {} tokens; there is no room for a haystack in {}",
                            needed, c.tokens))
        .hint(fmt::format("make documents of {} tokens and more", needed + 64));
  std::vector<std::pair<size_t, size_t>> places;
  for (size_t i = 0; i < sentences.size(); ++i)
    places.emplace_back(random_below(c.seed, kPlace, c.number * 64 + i, lines.size() + 1), i);
  std::sort(places.begin(), places.end());
  std::string text;
  size_t next = 0;
  for (size_t l = 0; l <= lines.size(); ++l) {
    for (; next < places.size() && places[next].first == l; ++next) text += sentences[places[next].second];
    if (l < lines.size()) text += lines[l]->text;
  }
  return text + questions;
}

bool found_needle(const NeedlePrompt& prompt, std::string_view generated) {
  return generated.starts_with(prompt.answer);
}

}  // namespace cachalot
