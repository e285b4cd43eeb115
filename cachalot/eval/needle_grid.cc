#include "eval/needle_grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cachalot {

std::vector<double> NeedleGridOptions::even_depths(int64_t n) {
  std::vector<double> depths;
  for (int64_t i = 0; i < n; ++i) depths.push_back(n == 1 ? 0.5 : double(i) / double(n - 1));
  return depths;
}

double NeedleGrid::share() const {
  int64_t asked = 0, found = 0;
  for (const Cell& c : cells) asked += c.asked, found += c.found;
  return asked ? double(found) / double(asked) : 0;
}

double NeedleGrid::share(int64_t length) const {
  int64_t asked = 0, found = 0;
  for (const Cell& c : cells)
    if (c.length == length) asked += c.asked, found += c.found;
  return asked ? double(found) / double(asked) : 0;
}

NeedleGrid run_needle_grid(Engine& engine, const Haystack& haystack, const NeedleGridOptions& options,
                           const std::function<void(int64_t done, int64_t of)>& done,
                           const std::atomic<bool>& stop) {
  NeedleGrid grid;
  struct Asked {
    size_t cell = 0;
    NeedlePrompt prompt;
  };
  std::vector<Asked> all;
  for (const int64_t length : options.lengths)
    for (size_t d = 0; d < options.depths.size(); ++d) {
      grid.cells.push_back({.length = length, .depth = options.depths[d]});
      for (int64_t i = 0; i < options.cases; ++i)
        all.push_back(
            {grid.cells.size() - 1, make_needle_prompt(haystack, {.tokens = length,
                                                                  .depth = options.depths[d],
                                                                  .distractors = options.distractors,
                                                                  .seed = options.seed,
                                                                  .number = uint64_t(all.size())})});
    }
  const auto together = size_t(engine.options().max_sequences);
  for (size_t first = 0; first < all.size() && !stop; first += together) {
    const size_t n = std::min(together, all.size() - first);
    std::vector<Request> requests;
    for (size_t i = 0; i < n; ++i) {
      const NeedlePrompt& prompt = all[first + i].prompt;
      requests.push_back({.prompt = prompt.tokens, .max_new_tokens = prompt.answer_tokens, .sampling = {}});
    }
    const std::vector<Completion> answers =
        engine.generate(requests, [&](size_t, std::span<const int32_t>) { return !stop; });
    if (stop) break;  // answers that were cut
    for (size_t i = 0; i < n; ++i) {
      NeedleGrid::Cell& cell = grid.cells[all[first + i].cell];
      ++cell.asked;
      std::string text;  // rows of the model beyond the tokenizer's ids stand for nothing
      for (const int32_t id : answers[i].tokens) text += haystack.tokenizer().token_bytes(id);
      cell.found += found_needle(all[first + i].prompt, text);
    }
    if (done) done(int64_t(first + n), int64_t(all.size()));
  }
  return grid;
}

std::string needle_table(const NeedleGrid& grid) {
  std::vector<int64_t> lengths;
  std::vector<double> depths;
  for (const NeedleGrid::Cell& c : grid.cells) {
    if (std::find(lengths.begin(), lengths.end(), c.length) == lengths.end()) lengths.push_back(c.length);
    if (std::find(depths.begin(), depths.end(), c.depth) == depths.end()) depths.push_back(c.depth);
  }
  constexpr const char* kShades[] = {"  ", "░░", "▒▒", "▓▓", "██"};  // below 1/8, 3/8, 5/8, 7/8, above
  std::string text = "  depth |";
  for (const int64_t length : lengths)
    text += fmt::format("{:>9}{}", length, length > grid.context ? "*" : " ");
  text += "\n";
  for (const double depth : depths) {
    text += fmt::format("{:6.0f}% |", 100 * depth);
    for (const NeedleGrid::Cell& c : grid.cells)
      if (c.depth == depth)
        text += c.asked ? fmt::format("  {} {:3.0f}% ", kShades[std::min(4, int(c.share() * 4 + 0.5))],
                                      100 * c.share())
                        : "         -";
    text += "\n";
  }
  text += "    all |";
  for (const int64_t length : lengths) text += fmt::format("{:8.1f}% ", 100 * grid.share(length));
  text += fmt::format("\n{:.1f} % of all needles found", 100 * grid.share());
  if (std::any_of(lengths.begin(), lengths.end(), [&](int64_t l) { return l > grid.context; }))
    text += fmt::format("; *: beyond the model's context of {}", grid.context);
  return text + "\n";
}

Json needle_json(const NeedleGrid& grid, const NeedleGridOptions& options) {
  Json json{{"task", "needle"},
            {"context", grid.context},
            {"seed", options.seed},
            {"cases", options.cases},
            {"distractors", options.distractors},
            {"found", grid.share()},
            {"cells", Json::array()}};
  for (const NeedleGrid::Cell& c : grid.cells)
    json["cells"].push_back(
        {{"length", c.length}, {"depth", c.depth}, {"asked", c.asked}, {"found", c.found}});
  for (const int64_t length : options.lengths) json["by_length"][std::to_string(length)] = grid.share(length);
  return json;
}

}  // namespace cachalot
