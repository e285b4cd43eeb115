#include "cli/bench_steps.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "base/rng.h"
#include "infer/engine.h"
#include "train/trainer.h"

namespace cachalot::cli {

namespace {

constexpr uint64_t kSeed = 1, kTokenStream = 0x544F4B53;
constexpr double kLearningRate = 1e-4;

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t first) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(
        std::min(int32_t(double(vocab) * random_uniform(kSeed, kTokenStream, first + uint64_t(i))),
                 int32_t(vocab - 1)));
  return tokens;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Calls `run`, which returns the seconds of a step, for at least `seconds` in all and three times.
StepTime repeat(double seconds, int64_t tokens, const std::function<double()>& run) {
  run();  // page faults, caches, libraries that load at the first call
  std::vector<double> times;
  for (const double begin = now(); times.size() < 3 || now() - begin < seconds;) times.push_back(run());
  std::sort(times.begin(), times.end());
  return {.seconds = times[times.size() / 2],
          .least = times[0],
          .repeats = int64_t(times.size()),
          .tokens = tokens,
          .profile = {}};
}

// What training takes apart from the model: random sequences and a step on them.
class TrainRun {
 public:
  TrainRun(Device& device, const ModelConfig& model, const TrainSection& train, int64_t arena)
      : stream_(device), trainer_(stream_, model, train, arena) {
    trainer_.init();
    for (int64_t i = 0; i < train.batch; ++i)
      tokens_.push_back(
          random_tokens(train.seq_len + 1, model.vocab_size, uint64_t(i * (train.seq_len + 1))));
    for (const auto& t : tokens_) sequences_.emplace_back(t);
  }
  void step() { trainer_.step(sequences_, kLearningRate); }

 private:
  Stream stream_;
  Trainer trainer_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<TokenSpan> sequences_;
};

class GenerateRun {
 public:
  GenerateRun(Device& device, const ModelConfig& model, const GenerateBench& bench)
      : stream_(device),
        params_(device, model, Recipe::of(parse_precision(bench.precision)), {}),
        bench_(bench) {
    initialize(stream_, params_, model, kSeed);
    on(stream_).synchronize();
    engine_ = std::make_unique<Engine>(device, model, params_,
                                       EngineOptions{.max_context = bench.context + bench.new_tokens + 1,
                                                     .max_sequences = bench.sequences,
                                                     .prefill_chunk = std::min<int64_t>(bench.context, 512),
                                                     .speculate = bench.speculate});
    for (int64_t i = 0; i < bench.sequences; ++i)
      requests_.push_back({.prompt = random_tokens(bench.context, model.vocab_size,
                                                   uint64_t(i * bench.context))});
  }

  // `on_decode` is called when the prompts are done.
  const Statistics& run(int64_t new_tokens, const std::function<void()>& on_decode = {}) {
    for (Request& r : requests_) r.max_new_tokens = new_tokens;
    size_t started = 0;
    std::vector<char> seen(requests_.size(), 0);
    engine_->generate(requests_, [&](size_t request, std::span<const int32_t> tokens) {
      if (!tokens.empty() && !seen[request]) {
        seen[request] = 1;
        if (++started == requests_.size() && on_decode) on_decode();
      }
      return true;
    });
    return engine_->statistics();
  }

 private:
  Stream stream_;
  ParamSet params_;
  GenerateBench bench_;
  std::unique_ptr<Engine> engine_;
  std::vector<Request> requests_;
};

}  // namespace

StepTime bench_train(Device& device, const ModelConfig& model, const TrainSection& train, double seconds) {
  const MemoryPlan plan = Trainer::plan(model, train);
  plan.require_fit(device, train);
  StepTime time;
  {
    TrainRun run(device, model, train, plan.arena);
    time = repeat(seconds, train.tokens_per_step(), [&] {
      const double begin = now();
      run.step();
      return now() - begin;
    });
  }
  const auto profiled = open_profile_device(device, time.profile);
  TrainRun run(*profiled, model, train, plan.arena);
  run.step();
  time.profile.clear();
  run.step();
  return time;
}

StepTime bench_prefill(Device& device, const ModelConfig& model, const GenerateBench& bench, double seconds) {
  GenerateBench one = bench;
  one.sequences = 1;
  StepTime time;
  {
    GenerateRun run(device, model, one);
    time = repeat(seconds, one.context, [&] { return run.run(1).prefill_seconds; });
  }
  const auto profiled = open_profile_device(device, time.profile);
  GenerateRun run(*profiled, model, one);
  run.run(1);
  time.profile.clear();
  run.run(1);
  return time;
}

StepTime bench_decode(Device& device, const ModelConfig& model, const GenerateBench& bench, double seconds) {
  StepTime time;
  {
    GenerateRun run(device, model, bench);
    time = repeat(seconds, bench.sequences, [&] {
      const Statistics& s = run.run(bench.new_tokens);
      return s.decode_seconds / double(std::max<int64_t>(1, s.steps));
    });
  }
  const auto profiled = open_profile_device(device, time.profile);
  GenerateRun run(*profiled, model, bench);
  run.run(2);
  run.run(2, [&] { time.profile.clear(); });  // the first token ends the prompt, the second is the one step
  return time;
}

}  // namespace cachalot::cli
