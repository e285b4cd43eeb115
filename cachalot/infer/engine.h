// Generation: token ids in, token ids out. Knows nothing about text (infer/text_session.h) or files.
//
//   Engine engine(device, loaded.config, *loaded.params, {.max_context = 512, .speculate = 1});
//   Completion c = engine.generate({.prompt = ids, .max_new_tokens = 64, .end_tokens = {1}});
//
// Prompts run in pieces against the latent cache (keys and values expanded), decoding reads the latents as
// they are (absorbed). Several sequences decode together; a new one joins when another has ended. A step is queued
// before the tokens of the one before are known, where the device allows (Steps::looks_ahead). All memory is taken by
// the constructor: a run of the largest step on the device "plan" says how much a step needs.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "infer/steps.h"

namespace cachalot {

struct Request {
  std::vector<int32_t> prompt;
  int64_t max_new_tokens = 128;
  Sampling sampling = {};
  std::vector<int32_t> end_tokens = {};  // drawing one of them ends the sequence; empty: none does
};

enum class Finish : uint8_t {
  length,     // max_new_tokens, or the context is full
  end_token,  // the last token is one of end_tokens
  caller,     // OnTokens said so
};
const char* name_of(Finish finish);  // "length", "stop" (end token), "stop" (caller): what APIs call them

struct Completion {
  std::vector<int32_t> tokens;  // drawn ones, the end token included
  Finish finish = Finish::length;
};

// Called with the new tokens of request number `request` (an end token is not shown), and with none after
// each piece of a prompt. Returning false ends that sequence.
using OnTokens = std::function<bool(size_t request, std::span<const int32_t> tokens)>;

struct Statistics {
  int64_t prompt_tokens = 0, new_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;  // the callbacks' time too: the device works beside it
  int64_t steps = 0;                               // decoding steps of all sequences together
  int64_t decoded_tokens = 0;  // new tokens but the first of each sequence, which ends the prefill
  int64_t sequence_steps = 0;  // a step of three sequences counts three
  std::vector<int64_t> drafted, accepted;  // by MTP depth; depth 2 is accepted only with depth 1

  double prefill_tokens_per_second() const;
  double decode_tokens_per_second() const;
  double tokens_per_step() const;         // 1 without speculation
  double acceptance(size_t depth) const;  // 0, 1, ...: share of the drafts of depth 1, 2, ...
};

// What the engine refuses, for callers that want to know before they load a model.
// Error: a context beyond max_position_embeddings (0 asks for just that and is replaced), more speculation
// than MTP layers, sizes below 1.
EngineOptions checked(const ModelConfig& config, EngineOptions options);
// Error: a prompt that is empty, longer than the context or holds unknown ids; bad settings. `which` is its
// name in messages.
void check(const Request& request, const ModelConfig& config, const EngineOptions& options,
           const std::string& which);

class Engine {
 public:
  // Error: see checked(), or too little memory, naming the flag to change. `params` must outlive the engine.
  Engine(Device& device, const ModelConfig& config, const ParamSet& params, const EngineOptions& options);
  ~Engine();

  // Error, before anything runs, when check() refuses one of them.
  Completion generate(const Request& request, const OnTokens& on_tokens = {});
  std::vector<Completion> generate(std::span<const Request> requests, const OnTokens& on_tokens = {});

  const Statistics& statistics() const { return statistics_; }  // of the last generate()
  const EngineOptions& options() const { return options_; }
  std::string memory_plan() const;  // lines "KV pages  1.2 MiB  ..."

 private:
  struct Running;
  bool deliver(Running& running, std::span<const int32_t> tokens, const OnTokens& on_tokens);
  bool prefill(Running& running, const OnTokens& on_tokens);
  void decode(std::vector<std::unique_ptr<Running>>& running, const OnTokens& on_tokens);
  void collect(std::vector<std::unique_ptr<Running>>& running, const OnTokens& on_tokens);

  Device& device_;
  ModelConfig config_;
  EngineOptions options_;
  int64_t weight_bytes_ = 0;
  std::unique_ptr<Steps> steps_;
  Statistics statistics_;
};

}  // namespace cachalot
