#include "train/model_score.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "model/load.h"
#include "train/scoring.h"
#include "train/training_data.h"

namespace cachalot {

namespace {

constexpr int64_t kWindow = 2048;

std::optional<TextScore> score(Stream& s, Arena& arena, const Transformer& model,
                               std::span<const TokenSpan> windows, const ModelScoreOptions& o,
                               const std::atomic<bool>& stop) {
  return score_text(s, arena, model, windows, o.together, o.drafts ? Drafts::yes : Drafts::no, stop);
}

// What a pass over the longest windows takes, found on a device that computes nothing.
int64_t arena_bytes(const ModelConfig& config, const ModelScoreOptions& o, int64_t window) {
  const auto device = open_device("plan");
  Stream s(*device);
  const ParamSet params(*device, config, Recipe::of(o.precision), {});
  const Transformer model(s, config, params, window);
  Arena arena(*device, int64_t{1} << 42, "plan");
  const std::vector<int32_t> tokens(size_t(window) + 1, 0);
  score(s, arena, model, std::vector<TokenSpan>(size_t(o.together), tokens), o, false);
  return arena.high_water();
}

std::string row(const std::string& name, int64_t tokens, int64_t bytes, double bits, double loss,
                const std::vector<TextScore::Depth>& depths) {
  std::string line = fmt::format("{:<20} {:>11} {:>12} {:>14.4f} {:>8.4f}", name, tokens, bytes, bits, loss);
  for (const TextScore::Depth& d : depths)
    line += d.targets ? fmt::format(" {:>11.1f} %", 100 * d.acceptance()) : fmt::format(" {:>13}", "-");
  return line + "\n";
}

}  // namespace

std::optional<ModelScore> score_model(Device& device, const std::string& model,
                                      const ModelScoreOptions& options, ThreadPool* pool,
                                      const std::atomic<bool>& stop) {
  // Everything that can be refused is refused before the weights are read.
  const std::string directory = resolve_model_directory(model);
  ModelConfig config = load_model_config(directory);
  const int64_t context = config.max_position_embeddings;
  const int64_t window = options.window ? options.window : std::min(context, kWindow);
  if (window > context)
    throw Error(fmt::format("windows of {} tokens; the model's context is {}", window, context))
        .hint(fmt::format("--window {} or less", context));
  if (!std::filesystem::exists(directory + "/tokenizer.json"))
    throw Error(fmt::format("{} holds no tokenizer.json", directory))
        .hint("copy the model's tokenizer files there");
  const Tokenizer tokenizer = Tokenizer::load(directory);
  if (tokenizer.vocab_size() > config.vocab_size)
    throw Error(fmt::format("{}/tokenizer.json has ids up to {}; the model's vocab_size is {}", directory,
                            tokenizer.vocab_size() - 1, config.vocab_size))
        .hint("the tokenizer belongs to another model");
  DataSection data;
  data.validation = options.texts;
  const HeldOut texts({}, tokenizer, window, load_validation(data, {}, tokenizer, directory, pool),
                      int32_t(config.bos_token_id));

  Stream s(device);
  const LoadedModel loaded =
      load_model(s, directory, options.precision, {.drop_mtp = !options.drafts, .progress = options.loading});
  Arena arena(device, arena_bytes(loaded.config, options, window), "activations of the windows in one pass");
  const Transformer transformer(s, loaded.config, *loaded.params, window);
  const int64_t all = int64_t(texts.windows().size());
  int64_t done = 0;
  const auto scorer = [&](std::span<const TokenSpan> windows) -> std::optional<TextScore> {
    TextScore sum;
    for (size_t first = 0; first < windows.size(); first += size_t(options.together)) {
      const auto some = windows.subspan(first, std::min(size_t(options.together), windows.size() - first));
      const auto part = score(s, arena, transformer, some, options, stop);
      if (!part) return std::nullopt;
      sum += *part;
      done += int64_t(some.size());
      if (options.progress) options.progress(done, all);
    }
    return sum;
  };
  auto result = texts.score(scorer, 0);
  if (!result) return std::nullopt;
  return ModelScore{.result = std::move(*result), .window = window};
}

std::string model_score_table(const HeldOut::Result& r) {
  std::string table =
      fmt::format("{:<20} {:>11} {:>12} {:>14} {:>8}", "text", "tokens", "bytes", "bits per byte", "loss");
  for (size_t k = 0; k < r.depths.size(); ++k)
    table += fmt::format(" {:>13}", fmt::format("MTP {} accepts", k + 1));
  table += "\n";
  for (const HeldOut::Set& set : r.sets)
    table += row(set.name, set.score.targets, set.bytes, set.bits_per_byte(), set.loss(), set.score.depths);
  if (r.sets.size() > 1) table += row("all", r.tokens, r.bytes, r.bits_per_byte(), r.loss(), r.depths);
  return table;
}

}  // namespace cachalot
