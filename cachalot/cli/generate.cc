// cachalot generate: text in, text out, from a model directory or a run.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/load_progress.h"
#include "cli/prompt.h"
#include "cli/terminal.h"
#include "data/tokenizer.h"
#include "infer/engine.h"
#include "infer/generation_config.h"
#include "infer/text_session.h"
#include "model/load.h"

namespace cachalot::cli {

namespace {

// What neither a flag nor the model says: a little below 1, as is usual for text.
constexpr double kTemperature = 0.8, kTopP = 0.95;

struct Options {
  std::string model, prompt_file, device = "cpu", precision = "f32", cache = "bf16";
  std::optional<std::string> prompt, tokens;
  int64_t max_new_tokens = 128;
  std::optional<double> temperature, top_p;
  std::optional<int64_t> top_k, max_context;
  uint64_t seed = 0;
  std::vector<std::string> stops;
  int64_t speculate = 0, prefill_chunk = 256;
  int threads = 0;
  bool ignore_eos = false, json = false, batch_invariant = false;
};

std::vector<int32_t> parse_tokens(const std::string& text) {
  std::vector<int32_t> ids;
  const char *at = text.data(), *end = at + text.size();
  while (true) {
    while (at < end && *at == ' ') ++at;
    int32_t id = 0;
    const auto [next, code] = std::from_chars(at, end, id);
    if (code != std::errc())
      throw Error(fmt::format("--tokens \"{}\": \"{}\" is no token id", text, std::string(at, end)))
          .hint("give ids like --tokens 5,17,3");
    ids.push_back(id);
    at = next;
    while (at < end && *at == ' ') ++at;
    if (at == end) return ids;
    if (*at++ != ',')
      throw Error(fmt::format("--tokens \"{}\": a comma is missing after {}", text, id))
          .hint("give ids like --tokens 5,17,3");
  }
}

Tokenizer load_tokenizer(const std::string& directory, const ModelConfig& config) {
  if (!std::filesystem::exists(directory + "/tokenizer.json"))
    throw Error(fmt::format("{} holds no tokenizer.json", directory))
        .hint("copy the model's tokenizer files there, or work with ids: --tokens 5,17,3");
  Tokenizer tokenizer = Tokenizer::load(directory);
  if (tokenizer.vocab_size() > config.vocab_size)
    throw Error(fmt::format("{}/tokenizer.json has ids up to {}; the model's vocab_size is {}", directory,
                            tokenizer.vocab_size() - 1, config.vocab_size))
        .hint("the tokenizer belongs to another model");
  return tokenizer;
}

Json statistics_json(const Statistics& s) {
  Json json{{"prefill_seconds", s.prefill_seconds},
            {"prefill_tokens_per_second", s.prefill_tokens_per_second()},
            {"decode_seconds", s.decode_seconds},
            {"decode_tokens_per_second", s.decode_tokens_per_second()},
            {"steps", s.steps},
            {"tokens_per_step", s.tokens_per_step()}};
  json["drafted"] = s.drafted;
  json["accepted"] = s.accepted;
  return json;
}

void print_summary(const Statistics& s, const std::string& finish) {
  fmt::print(stderr, "prompt     {:>6} tokens {:>9.3f} s {:>9.1f} tokens/s\n", s.prompt_tokens,
             s.prefill_seconds, s.prefill_tokens_per_second());
  fmt::print(stderr, "generated  {:>6} tokens {:>9.3f} s {:>9.1f} tokens/s, ended by {}\n", s.new_tokens,
             s.decode_seconds, s.decode_tokens_per_second(), finish);
  for (size_t k = 0; k < s.drafted.size(); ++k)
    fmt::print(stderr, "MTP depth {}: {} of {} drafts accepted ({:.0f} %)\n", k + 1, s.accepted[k],
               s.drafted[k], 100 * s.acceptance(k));
  if (!s.drafted.empty()) fmt::print(stderr, "{:.2f} tokens a step\n", s.tokens_per_step());
}

void run(const Options& o) {
  const std::string directory = resolve_model_directory(o.model);
  const ModelConfig config = load_model_config(directory);
  const GenerationConfig wishes = load_generation_config(directory, config);
  const Precision precision = parse_precision(o.precision);

  // Everything that can be refused is refused before the weights are read.
  std::optional<Tokenizer> tokenizer;
  Request request;
  if (o.tokens) {
    request.prompt = parse_tokens(*o.tokens);
  } else {
    tokenizer = load_tokenizer(directory, config);
    request.prompt = encode_prompt(*tokenizer, config,
                                   o.prompt                 ? *o.prompt
                                   : !o.prompt_file.empty() ? read_file(o.prompt_file)
                                                            : read_standard_input("the prompt"));
  }
  request.max_new_tokens = o.max_new_tokens;
  request.sampling = {.temperature = o.temperature.value_or(wishes.temperature.value_or(kTemperature)),
                      .top_p = o.top_p.value_or(wishes.top_p.value_or(wishes.temperature ? 1 : kTopP)),
                      .top_k = o.top_k.value_or(wishes.top_k.value_or(0)),
                      .seed = o.seed};
  if (!o.ignore_eos) request.end_tokens = wishes.end_tokens;
  TextSession text(o.stops);

  EngineOptions options{.prefill_chunk = o.prefill_chunk,
                        .speculate = o.speculate,
                        .cache = parse_cache_format(o.cache),
                        .batch_invariant = o.batch_invariant};
  const int64_t most = config.max_position_embeddings, prompt = int64_t(request.prompt.size());
  const int64_t wanted = prompt + std::clamp<int64_t>(o.max_new_tokens, 0, most);
  options.max_context = o.max_context.value_or(std::clamp<int64_t>(wanted, 1, most));
  options = checked(config, options);
  check(request, config, options, "the prompt");

  const auto device = open_device(o.device, {.threads = o.threads});
  Stream stream(*device);
  const LoadedModel model =
      load_model(stream, directory, precision, {.drop_mtp = o.speculate == 0, .progress = show_loading()});
  Engine engine(*device, model.config, *model.params, options);
  fmt::print(stderr, "{}", engine.memory_plan());

  const std::atomic<bool>& stop_requested = stop_on_signals("");  // the text ends, with its summary
  std::string shown;                                              // of --json
  bool ends_in_newline = true;
  const auto show = [&](const std::string& piece) {
    if (o.json) shown += piece;
    else if (!piece.empty()) write_out(piece);
    if (!piece.empty()) ends_in_newline = piece.back() == '\n';
  };
  bool first = true;
  const Completion completion = engine.generate(request, [&](size_t, std::span<const int32_t> tokens) {
    for (const int32_t id : tokens) {
      if (tokenizer) show(text.push(tokenizer->token_bytes(id)));
      else if (!o.json) show(fmt::format("{}{}", std::exchange(first, false) ? "" : ",", id));
      if (text.stopped()) break;
    }
    return !stop_requested && !text.stopped();
  });
  show(text.finish());
  if (!o.json && !ends_in_newline) write_out("\n");

  const char* finish = text.stopped()                        ? "stop"
                       : completion.finish == Finish::caller ? "interrupt"
                                                             : name_of(completion.finish);
  if (o.json) {
    Json json{{"prompt_tokens", prompt}, {"tokens", completion.tokens}};
    if (tokenizer) json["text"] = utf8_lossy(shown);
    json["finish_reason"] = finish;
    json["statistics"] = statistics_json(engine.statistics());
    write_out(json.dump() + "\n");
  }
  const bool full =
      completion.finish == Finish::length && int64_t(completion.tokens.size()) < o.max_new_tokens;
  print_summary(engine.statistics(),
                full ? fmt::format("length: the context of {} tokens is full", options.max_context) : finish);
}

}  // namespace

void add_generate(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("generate", "continue a text with a model");
  c->add_option("--model", o->model, "model directory or run directory")->required();
  auto* input = c->add_option_group("prompt", "one of these, or standard input")->require_option(0, 1);
  input->add_option("--prompt", o->prompt, "text to continue");
  input->add_option("--prompt-file", o->prompt_file, "file with the text to continue");
  auto* tokens = input->add_option("--tokens", o->tokens, "token ids to continue, like 5,17,3; prints ids");
  c->add_option("--max-new-tokens", o->max_new_tokens, "end after so many")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--temperature", o->temperature,
                fmt::format("0: always the likeliest token [generation_config.json, else {}]", kTemperature))
      ->check(at_least(0));
  c->add_option(
       "--top-p", o->top_p,
       fmt::format("only the likeliest tokens that together reach this [generation_config.json, else {}]",
                   kTopP))
      ->check(in_range(0, 1));
  c->add_option("--top-k", o->top_k, "only the k likeliest tokens; 0: all [generation_config.json, else 0]")
      ->check(at_least(0));
  c->add_option("--seed", o->seed, "the same seed gives the same text")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--stop", o->stops, "end before this text; may be repeated")
      ->allow_extra_args(false)
      ->excludes(tokens);
  c->add_flag("--ignore-eos", o->ignore_eos, "go on after the end-of-text token");
  c->add_option("--speculate", o->speculate, "MTP depths that draft tokens: faster, the same text")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--precision", o->precision, kPrecisions)->capture_default_str();
  add_device(*c, o->device);
  add_threads(*c, o->threads);
  c->add_option("--max-context", o->max_context,
                "tokens of prompt and text together; 0: all that the model allows [as many as asked for]")
      ->check(at_least(0));
  c->add_option("--prefill-chunk", o->prefill_chunk, "tokens of the prompt that run together")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--cache", o->cache,
                "the latents of earlier tokens: bf16 (f32 in precision f32) or fp8, 0.57 of the memory")
      ->capture_default_str();
  c->add_flag("--batch-invariant", o->batch_invariant,
              "the same bits whatever else runs in the batch; slower on a GPU");
  c->add_flag("--json", o->json, "print one JSON object: text, tokens, statistics");
  c->callback([o] { run(*o); });
}

}  // namespace cachalot::cli
