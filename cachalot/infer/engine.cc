#include "infer/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/text.h"

namespace cachalot {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What the largest steps need, by running them where nothing is computed.
int64_t step_bytes(const ModelConfig& config, const ParamSet& params, EngineOptions o) {
  o.max_context = std::max(o.max_context, 4 * o.speculate + 2);  // room for the longest draft and its past
  const auto plan = open_device("plan");
  Steps steps(*plan, config, params, o, 1, int64_t{1} << 42);
  const auto depths = size_t(o.speculate) + 1;
  const int64_t chunk = std::min(o.prefill_chunk, o.max_context);
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<Sequence*> pointers;
  for (int64_t i = 0; i < o.max_sequences; ++i) {
    sequences.push_back(
        std::make_unique<Sequence>(Sequence{.tokens = std::vector<int32_t>(size_t(o.max_context), 0),
                                            .sampling = {},
                                            .pages = PageTable(steps.cache()),
                                            .window = i,
                                            .drafts = 0,
                                            .cached = std::vector<int64_t>(depths, o.max_context - chunk)}));
    CHECK(sequences.back()->pages.reserve(o.max_context));
    pointers.push_back(sequences.back().get());
  }
  Sequence& first = *pointers[0];
  first.tokens.resize(size_t(o.max_context + o.speculate));  // not the last piece: every depth is full
  steps.prefill(first, chunk);
  first.tokens.resize(size_t(o.max_context));  // the last piece: fewer rows for the depths, but a draw
  first.cached.assign(depths, o.max_context - chunk);
  steps.prefill(first, chunk);
  for (Sequence* q : pointers) {  // a step that fills the context, after one that accepted every draft
    q->drafts = o.speculate;
    const int64_t n = o.max_context - q->drafts;
    q->tokens.resize(size_t(n));
    q->cached[0] = n - 1;
    for (size_t k = 1; k < depths; ++k) q->cached[k] = n - int64_t(k) - o.speculate - 1;
  }
  steps.decode(pointers);
  return steps.arena().high_water();
}

}  // namespace

EngineOptions checked(const ModelConfig& config, EngineOptions o) {
  if (o.max_context == 0) o.max_context = config.max_position_embeddings;
  if (o.max_context < 1 || o.max_context > config.max_position_embeddings)
    throw Error(fmt::format("a context of {} tokens; the model was made for {} (max_position_embeddings)",
                            o.max_context, config.max_position_embeddings))
        .hint(fmt::format("--max-context between 1 and {}", config.max_position_embeddings));
  if (o.speculate < 0 || o.speculate > config.num_nextn_predict_layers)
    throw Error(fmt::format("speculation of depth {}; the model has {} multi-token prediction layers "
                            "(num_nextn_predict_layers)",
                            o.speculate, config.num_nextn_predict_layers))
        .hint(fmt::format("--speculate between 0 and {}", config.num_nextn_predict_layers));
  if (o.prefill_chunk < 1)
    throw Error(fmt::format("a prefill chunk of {} tokens", o.prefill_chunk))
        .hint("--prefill-chunk 1 or more");
  if (o.max_sequences < 1)
    throw Error(fmt::format("{} sequences at a time", o.max_sequences)).hint("1 or more");
  if (o.cache == CacheFormat::fp8 && config.kv_lora_rank % 4 != 0)
    throw Error(fmt::format("an FP8 cache of latents of {} numbers (kv_lora_rank)", config.kv_lora_rank))
        .hint("FP8 takes multiples of 4; --cache bf16 takes any");
  CHECK(o.page_size >= 1);
  return o;
}

void check(const Request& r, const ModelConfig& config, const EngineOptions& options,
           const std::string& which) {
  if (r.prompt.empty())
    throw Error(which + " has no tokens")
        .hint("give some text, or a tokenizer whose config says add_bos_token");
  if (int64_t(r.prompt.size()) > options.max_context)
    throw Error(
        fmt::format("{} has {} tokens; the context holds {}", which, r.prompt.size(), options.max_context))
        .hint(options.max_context < config.max_position_embeddings
                  ? fmt::format("raise --max-context (this model: up to {}), or shorten the prompt",
                                config.max_position_embeddings)
                  : "shorten the prompt: the model was made for no more (max_position_embeddings)");
  for (const int32_t id : r.prompt)
    if (id < 0 || id >= config.vocab_size)
      throw Error(fmt::format("{} holds token {}; the model knows 0 to {}", which, id, config.vocab_size - 1))
          .hint("the tokens come from another model's tokenizer");
  if (r.max_new_tokens < 0)
    throw Error(fmt::format("{} new tokens asked for", r.max_new_tokens)).hint("0 or more");
  const Sampling& s = r.sampling;
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature))
    throw Error(fmt::format("temperature is {}", s.temperature))
        .hint("0 (always the likeliest token) or more");
  if (!(s.top_p > 0 && s.top_p <= 1))
    throw Error(fmt::format("top-p is {}", s.top_p)).hint("above 0, at most 1");
  if (s.top_k < 0) throw Error(fmt::format("top-k is {}", s.top_k)).hint("0 (all tokens) or more");
}

const char* name_of(Finish finish) { return finish == Finish::length ? "length" : "stop"; }

double Statistics::prefill_tokens_per_second() const {
  return prefill_seconds > 0 ? double(prompt_tokens) / prefill_seconds : 0;
}
double Statistics::decode_tokens_per_second() const {
  return decode_seconds > 0 ? double(decoded_tokens) / decode_seconds : 0;
}
double Statistics::tokens_per_step() const {
  return sequence_steps > 0 ? double(decoded_tokens) / double(sequence_steps) : 0;
}
double Statistics::acceptance(size_t depth) const {
  return depth < drafted.size() && drafted[depth] > 0 ? double(accepted[depth]) / double(drafted[depth]) : 0;
}

struct Engine::Running {
  size_t index;  // of the request
  const Request& request;
  Sequence sequence;
  int64_t limit;  // tokens that the sequence may have
  Completion completion;
  bool done = false;

  int64_t remaining() const { return limit - sequence.known(); }
};

Engine::Engine(Device& device, const ModelConfig& config, const ParamSet& params,
               const EngineOptions& options)
    : device_(device),
      config_(config),
      options_(checked(config, options)),
      weight_bytes_(params.weight_bytes()) {
  const int64_t kv = Steps::cache_shape(config_, params.recipe(), options_).bytes();
  const int64_t activations = step_bytes(config_, params, options_);
  if (kv > device.free_bytes() - activations)
    throw Error(
        fmt::format("a context of {} tokens, {} at a time, needs {} of KV pages and {} of activations on {}; "
                    "free: {}",
                    options_.max_context, std::min(options_.prefill_chunk, options_.max_context),
                    human_bytes(double(kv)), human_bytes(double(activations)), device.name(),
                    human_bytes(double(device.free_bytes()))))
        .hint("lower --max-context, --prefill-chunk, or use --precision bf16");
  steps_ = std::make_unique<Steps>(device, config_, params, options_, options_.max_context, activations);
}

Engine::~Engine() = default;

std::string Engine::memory_plan() const {
  const int64_t kv = steps_->cache().shape().bytes(), windows = steps_->window_bytes(),
                activations = steps_->arena().capacity();
  const auto line = [](const char* what, int64_t bytes, const std::string& note) {
    return fmt::format("{:<12} {:>11}  {}\n", what, human_bytes(double(bytes)), note);
  };
  return line("weights", weight_bytes_, "") + line("KV pages", kv, steps_->cache().plan()) +
         line("activations", activations,
              fmt::format("of {} tokens in a context of {}",
                          std::min(options_.prefill_chunk, options_.max_context), options_.max_context)) +
         (windows > 0 ? line("speculation", windows, fmt::format("depth {}", options_.speculate)) : "") +
         line("together", weight_bytes_ + kv + windows + activations, "on " + device_.name());
}

// Keeps the new tokens up to the end of the sequence, whatever ends it; false when it has ended.
bool Engine::deliver(Running& r, std::span<const int32_t> tokens, const OnTokens& on_tokens) {
  size_t shown = 0;
  for (const int32_t token : tokens) {
    r.sequence.tokens.push_back(token);
    r.completion.tokens.push_back(token);
    const auto& ends = r.request.end_tokens;
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) {
      r.completion.finish = Finish::end_token;
      r.done = true;
      break;
    }
    ++shown;
    if (r.remaining() == 0) {
      r.completion.finish = Finish::length;
      r.done = true;
      break;
    }
  }
  if (on_tokens && (shown > 0 || tokens.empty()) && !on_tokens(r.index, tokens.first(shown)) && !r.done) {
    r.completion.finish = Finish::caller;
    r.done = true;
  }
  return !r.done;
}

// The whole prompt and the first new token; false when the sequence has ended.
bool Engine::prefill(Running& r, const OnTokens& on_tokens) {
  Sequence& q = r.sequence;
  const int64_t n = q.known();
  const double start = now();
  int64_t token = Steps::kNoToken;
  while (q.cached[0] < n) {
    token = steps_->prefill(q, std::min(options_.prefill_chunk, n - q.cached[0]));
    if (!deliver(r, {}, on_tokens)) break;
  }
  statistics_.prompt_tokens += q.cached[0];
  statistics_.prefill_seconds += now() - start;
  if (r.done) return false;
  const int32_t first = int32_t(token);
  ++statistics_.new_tokens;
  return deliver(r, {&first, 1}, on_tokens);
}

// A step, and where the device looks ahead the next one behind it, unless one of the sequences ends before that.
void Engine::decode(std::vector<std::unique_ptr<Running>>& running, const OnTokens& on_tokens) {
  const double start = now();
  std::vector<Sequence*> sequences;
  for (auto& r : running) {
    // With s drafts a step may give s + 1 tokens.
    r->sequence.drafts = std::min(options_.speculate, r->remaining() - 1);
    sequences.push_back(&r->sequence);
  }
  if (steps_->under_way() == 0) steps_->start(sequences);
  if (steps_->looks_ahead() && std::ranges::all_of(running, [](const auto& r) { return r->remaining() > 1; }))
    steps_->start(sequences);
  collect(running, on_tokens);
  // An end that was not foreseen: the step behind it still has that sequence, whose token nobody wants.
  if (steps_->under_way() > 0 && std::ranges::any_of(running, [](const auto& r) { return r->done; }))
    collect(running, on_tokens);
  statistics_.decode_seconds += now() - start;
}

// Waits for the oldest step under way and gives its tokens to the sequences that still run.
void Engine::collect(std::vector<std::unique_ptr<Running>>& running, const OnTokens& on_tokens) {
  const std::vector<Drawn> drawn = steps_->finish();
  ++statistics_.steps;
  for (size_t i = 0; i < running.size(); ++i) {
    Running& r = *running[i];
    if (r.done) continue;
    ++statistics_.sequence_steps;
    const Drawn& d = drawn[i];
    size_t accepted = 0;
    while (accepted < d.drafts.size() && d.drafts[accepted] == d.tokens[accepted]) ++accepted;
    for (size_t k = 0; k < d.drafts.size(); ++k) {
      ++statistics_.drafted[k];
      statistics_.accepted[k] += k < accepted;
    }
    r.sequence.cached[0] = r.sequence.known() + int64_t(accepted);
    const size_t before = r.completion.tokens.size();
    deliver(r, std::span(d.tokens).first(accepted + 1), on_tokens);
    const auto kept = int64_t(r.completion.tokens.size() - before);
    statistics_.new_tokens += kept;
    statistics_.decoded_tokens += kept;
  }
}

Completion Engine::generate(const Request& request, const OnTokens& on_tokens) {
  return std::move(generate({&request, 1}, on_tokens)[0]);
}

std::vector<Completion> Engine::generate(std::span<const Request> requests, const OnTokens& on_tokens) {
  for (size_t i = 0; i < requests.size(); ++i)
    check(requests[i], config_, options_, requests.size() == 1 ? "the prompt" : fmt::format("prompt {}", i));
  while (steps_->under_way() > 0) steps_->finish();  // of a call that a caller's exception ended
  statistics_ = {};
  statistics_.drafted.assign(size_t(options_.speculate), 0);
  statistics_.accepted = statistics_.drafted;

  std::vector<Completion> completions(requests.size());
  std::vector<std::unique_ptr<Running>> running;
  std::vector<int64_t> free_windows;
  for (int64_t i = options_.max_sequences; i-- > 0;) free_windows.push_back(i);
  const auto end = [&](Running& r) {
    completions[r.index] = std::move(r.completion);
    free_windows.push_back(r.sequence.window);
  };
  size_t next = 0;
  while (next < requests.size() || !running.empty()) {
    while (next < requests.size() && !free_windows.empty()) {
      const Request& request = requests[next];
      const int64_t length = int64_t(request.prompt.size());
      const int64_t limit = length + std::min(request.max_new_tokens, options_.max_context - length);
      const size_t index = next++;
      if (limit == length) continue;  // nothing to draw: Finish::length
      auto r = std::make_unique<Running>(
          Running{.index = index,
                  .request = request,
                  .sequence = {.tokens = request.prompt,
                               .sampling = request.sampling,
                               .pages = PageTable(steps_->cache()),
                               .window = free_windows.back(),
                               .drafts = 0,
                               .cached = std::vector<int64_t>(size_t(options_.speculate) + 1, 0)},
                  .limit = limit,
                  .completion = {}});
      CHECK(r->sequence.pages.reserve(limit));  // there are pages for max_sequences full contexts
      free_windows.pop_back();
      if (prefill(*r, on_tokens)) running.push_back(std::move(r));
      else end(*r);
    }
    if (running.empty()) continue;
    decode(running, on_tokens);
    for (auto& r : running)
      if (r->done) end(*r);
    std::erase_if(running, [](const auto& r) { return r->done; });
  }
  return completions;
}

}  // namespace cachalot
