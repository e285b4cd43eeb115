#include "train/training_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "data/corpus.h"
#include "train/step_plan.h"

namespace cachalot {

namespace fs = std::filesystem;

std::string tokenizer_of_shards(const std::vector<std::string>& shards) {
  for (const std::string& path : shards) {
    const fs::path folder = fs::is_directory(path) ? fs::path(path) : fs::path(path).parent_path();
    if (fs::exists(folder / "tokenizer.json")) return folder.string();
  }
  throw Error(fmt::format("there is no tokenizer.json beside the shards in {}", fmt::join(shards, ", ")))
      .hint("name the tokenizer that made them: --tokenizer.path");
}

TokenData load_training_data(const DataSection& data, const Tokenizer& tokenizer,
                             const std::string& tokenizer_path, ThreadPool* pool) {
  if (data.shards.empty()) return tokenize_files(data.files, tokenizer, data.held_out, pool);
  TokenData streams = open_token_data(data.shards);
  if (streams.train.empty())
    throw Error(fmt::format("{} holds only held-out text", fmt::join(data.shards, ", ")))
        .hint("tokenise more text, or with a smaller --held-out");
  streams.train[0].shards()[0].require_tokenizer(tokenizer, tokenizer_path);  // all shards agree
  return streams;
}

std::vector<TokenStream> load_validation(const DataSection& data, const TokenData& parts,
                                         const Tokenizer& tokenizer, const std::string& tokenizer_path,
                                         ThreadPool* pool) {
  std::vector<TokenStream> sets;
  for (const auto& [name, paths] : data.validation.of) {
    for (const TokenStream& part : parts.held_out)
      if (part.name() == name)
        throw Error(
            fmt::format("data.validation has \"{}\", which is a part of the data that holds some out", name))
            .hint("give it another name");
    std::vector<std::string> texts, folders;
    for (const std::string& path : paths)
      (fs::is_directory(path) || path.ends_with(".tok") ? folders : texts).push_back(path);
    if (!texts.empty() && !folders.empty())
      throw Error(fmt::format("data.validation.{} names {} text files and {} folders of shards", name,
                              texts.size(), folders.size()))
          .hint("make two sets of them");
    TokenData streams =
        folders.empty() ? tokenize_files(texts, tokenizer, 0, pool) : open_token_data(folders);
    std::vector<Shard> shards;
    for (const auto* list : {&streams.train, &streams.held_out})
      for (const TokenStream& stream : *list)
        shards.insert(shards.end(), stream.shards().begin(), stream.shards().end());
    if (!folders.empty()) {
      try {
        shards[0].require_tokenizer(tokenizer, tokenizer_path);
      } catch (const Error& e) {
        if (fs::exists(tokenizer_path)) throw;  // else it is learned from the text, and nowhere yet
        throw Error(e.what()).hint(fmt::format(
            "train with the tokenizer of the shards (--tokenizer.path, --tokenizer.vocab_size 0), or "
            "give data.validation.{} text",
            name));
      }
    }
    sets.emplace_back(name, std::move(shards));
  }
  return sets;
}

PlannedData plan_data(const TokenData& data, const DataSection& section, const TrainSection& train,
                      int64_t depths) {
  const bool by_size = section.weights.of.empty() && section.epochs.of.empty();
  std::vector<std::string> names;
  for (const TokenStream& part : data.train) names.push_back(part.name());
  for (const auto& [key, numbers] :
       {std::pair("weights", &section.weights), std::pair("epochs", &section.epochs)})
    for (const auto& [part, number] : numbers->of)
      if (std::find(names.begin(), names.end(), part) == names.end()) {
        const std::string close = nearest(part, names);
        throw Error(
            fmt::format("data.{} has \"{}\", but the data's parts are {}", key, part, fmt::join(names, ", ")))
            .hint(close.empty() ? "name one of them" : fmt::format("did you mean {}?", close));
      }

  const StepPlan steps(train);
  LoaderOptions options{.seq_len = train.seq_len,
                        .batch = train.schedule.batch.empty() ? train.batch : steps.largest_batch(),
                        .batch_of_step = {},
                        .packing = section.packing == "best_fit" ? Packing::best_fit : Packing::concatenate,
                        .shortest = depths + 2,
                        .seed = uint64_t(train.seed),
                        .shares = {}};
  std::vector<TokenStream> used;
  std::vector<MixturePart> parts;
  for (const TokenStream& stream : data.train) {
    const auto number = [&](const PartNumbers& numbers) {
      const auto it = numbers.of.find(stream.name());
      return it == numbers.of.end() ? std::optional<double>() : it->second;
    };
    const auto weight = number(section.weights), epochs = number(section.epochs);
    if (!by_size && !weight && !epochs)
      throw Error(
          fmt::format("part \"{}\" has {} tokens, but neither a weight nor epochs, while other parts have",
                      stream.name(), human_count(double(stream.tokens()))))
          .hint(fmt::format("give it a weight in data.weights, or leave it out: \"{}\": 0", stream.name()));
    if (!by_size && weight.value_or(0) == 0 && epochs.value_or(0) == 0) continue;  // left out
    const RowSampler sampler(stream, options.seq_len, options.packing, options.seed, options.shortest);
    parts.push_back({.name = stream.name(),
                     .rows = sampler.rows_per_epoch(),
                     .weight = weight.value_or(0),
                     .epochs = epochs.value_or(0)});
    used.push_back(stream);
  }
  if (used.empty())
    throw Error("every part of the data has weight 0").hint("give one a weight in data.weights");
  PlannedData planned{.mixture = plan_mixture(std::move(parts), {.rows = steps.rows(),
                                                                 .row_tokens = train.seq_len,
                                                                 .max_epochs = section.max_epochs}),
                      .loader = nullptr};
  options.shares = planned.mixture.shares();
  if (!train.schedule.batch.empty())
    options.batch_of_step = [steps](int64_t step) { return steps.batch(step); };
  planned.loader = std::make_unique<Loader>(std::move(used), std::move(options));
  return planned;
}

}  // namespace cachalot
