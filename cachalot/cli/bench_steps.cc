#include "cli/bench_steps.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <vector>

#include "base/rng.h"
#include "infer/engine.h"
#include "model/training_pass.h"
#include "train/trainer.h"

namespace cachalot::cli {

namespace {

constexpr uint64_t kSeed = 1, kTokenStream = 0x544F4B53, kRowStream = 0x524F5753;
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
          .memory = 0,
          .profile = {}};
}

// Codes of a uniform over the whole of E4M3's range, the same rows over and over, under one scale.
void draw_codes(Stream& s, const ParamSet& params, size_t i, const ModelConfig& config) {
  constexpr int64_t kDrawn = int64_t(1) << 22;
  const Tensor w = params.weight(i);
  const int64_t rows = std::clamp<int64_t>(kDrawn / w.cols, 1, w.rows);
  std::vector<e4m3> codes(size_t(rows * w.cols));
  for (size_t k = 0; k < codes.size(); ++k)
    codes[k] = e4m3(float(2 * e4m3::kMax * (random_uniform(kSeed, uint64_t(i), k) - 0.5)));
  for (int64_t r = 0; r < w.rows; r += rows)
    on(s).upload(codes.data(), w.slice_rows(r, std::min(rows, w.rows - r)));
  on(s).fill({.y = params.scales(i), .value = config.initializer_range * std::sqrt(3.0) / e4m3::kMax});
  transpose_weight(s, params, i);
}

// Random weights in a moment: of a large parameter the first rows are drawn and the others are copies of
// them.
void draw_weights(Stream& s, const ParamSet& params, const ModelConfig& config) {
  constexpr int64_t kDrawn = int64_t(1) << 22;
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    const Tensor w = params.weight(i);
    if (p.is_vector()) {
      on(s).fill({.y = w, .value = p.kind == ParamKind::norm ? 1.0 : 0.0});
      continue;
    }
    if (w.dtype == DType::e4m3) {
      draw_codes(s, params, i, config);
      continue;
    }
    const int64_t rows = std::clamp<int64_t>(kDrawn / w.cols, 1, w.rows);
    const double width = config.initializer_range * std::sqrt(12.0);  // of a uniform with that deviation
    const auto draw = [&]<class T>(T) {
      std::vector<T> values(size_t(rows * w.cols));
      for (size_t k = 0; k < values.size(); ++k)
        values[k] = T(float(width * (random_uniform(kSeed, uint64_t(i), k) - 0.5)));
      on(s).upload(values.data(), w.slice_rows(0, rows));
    };
    w.dtype == DType::f32 ? draw(float{}) : draw(bf16{});
    for (int64_t r = rows; r < w.rows; r += rows) {
      const int64_t n = std::min(rows, w.rows - r);
      on(s).cast({.x = w.slice_rows(0, n), .y = w.slice_rows(r, n)});
    }
  }
  on(s).synchronize();
}

std::vector<std::vector<int32_t>> random_sequences(const ModelConfig& model, const TrainSection& train) {
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t i = 0; i < train.batch; ++i)
    sequences.push_back(
        random_tokens(train.seq_len + 1, model.vocab_size, uint64_t(i * (train.seq_len + 1))));
  return sequences;
}

// A micro-batch through a model that has gradients but no optimizer.
class PassRun {
 public:
  PassRun(Device& device, const ModelConfig& config, const TrainSection& train, int64_t arena)
      : stream_(device),
        params_(device, config, Recipe::of(parse_precision(train.precision)), {.gradients = true}),
        model_(stream_, config, params_, train.seq_len),
        arena_(device, arena, "activations of a micro-batch"),
        scales_(LossScales::uniform(train.batch, train.seq_len, config.num_nextn_predict_layers,
                                    train.mtp_lambda, 0)),
        tokens_(random_sequences(config, train)) {
    for (const auto& t : tokens_) sequences_.emplace_back(t);
    draw_weights(stream_, params_, config);
  }
  void run(Pass pass) {
    arena_.clear();
    const TrainingBatch batch =
        make_training_batch(stream_, arena_, sequences_, model_.config().num_nextn_predict_layers);
    const Transformer::Options options{.caches = {}, .replay = {}};
    if (pass == Pass::forward) forward_losses(stream_, arena_, model_, batch, options);
    else forward_backward(stream_, arena_, model_, batch, scales_, options, Accumulate::overwrite);
    on(stream_).synchronize();
  }
  int64_t arena_high_water() const { return arena_.high_water(); }

 private:
  Stream stream_;
  ParamSet params_;
  Transformer model_;
  Arena arena_;
  LossScales scales_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<TokenSpan> sequences_;
};

// The last layer of a model on random rows; see bench_layer.
class LayerRun {
 public:
  LayerRun(Device& device, const ModelConfig& config, const TrainSection& train, int64_t ranks, int64_t arena)
      : stream_(device),
        held_(held(config, ranks)),
        params_(device, held_, Recipe::of(parse_precision(train.precision)), {.gradients = true}),
        model_(stream_, held_, params_, train.seq_len),
        block_(model_.blocks().back()),
        fixed_(device, fixed_bytes(config, train), "inputs of a layer"),
        arena_(device, arena, "activations of a micro-batch"),
        tokens_(random_sequences(config, train)) {
    for (const auto& t : tokens_) sequences_.emplace_back(t);
    draw_weights(stream_, params_, held_);
    const int64_t rows = train.tokens_per_step();
    x_ = draw(fixed_.take(params_.recipe().act, rows, config.hidden_size), 1);
    dy_ = draw(fixed_.take_like(x_), 2);
    if (block_.gate) hold_gate(config, rows);
    on(stream_).synchronize();
  }
  void run(LayerPass pass) {
    arena_.clear();
    const TokenBatch batch = make_training_batch(stream_, arena_, sequences_, 0).main;
    Block::State state = block_.forward_attention(stream_, arena_, batch, x_, {.cache = {}, .replay = {}});
    const Tensor chosen = state.routing.indices;
    if (local_) state.routing.indices = local_;
    block_.forward_dispatch(stream_, arena_, state);
    state.routing.indices = chosen;
    block_.forward_mlp(stream_, arena_, state);
    block_.forward_combine(stream_, arena_, state);
    if (pass != LayerPass::forward)
      block_.backward(stream_, arena_, batch, state, dy_, 0,
                      pass == LayerPass::adding ? Accumulate::add : Accumulate::overwrite);
    on(stream_).synchronize();
  }
  int64_t arena_high_water() const { return arena_.high_water(); }

 private:
  static ModelConfig held(ModelConfig c, int64_t ranks) {
    c.first_k_dense_replace = c.has_experts(c.num_hidden_layers - 1) ? 0 : 1;
    c.num_hidden_layers = 1, c.num_nextn_predict_layers = 0;
    c.vocab_size = 1;  // embedding and head are no part of a layer
    c.n_routed_experts /= ranks;
    return c;
  }
  static int64_t fixed_bytes(const ModelConfig& c, const TrainSection& train) {
    const int64_t rows = train.tokens_per_step(), experts = c.n_routed_experts;
    return 8 * (rows + experts) * c.hidden_size + 4 * experts + 4 * rows * c.num_experts_per_tok + 2048;
  }
  Tensor draw(Tensor t, uint64_t stream) {
    const auto as = [&]<class T>(T) {
      std::vector<T> values(size_t(t.size()));
      for (size_t k = 0; k < values.size(); ++k)
        values[k] = T(float(random_uniform(kSeed, kRowStream + stream, k) - 0.5));
      on(stream_).upload(values.data(), t);
    };
    t.dtype == DType::f32 ? as(float{}) : as(bf16{});
    return t;
  }
  // The router knows the experts of all ranks; who has a row here is drawn evenly, whatever it says.
  void hold_gate(const ModelConfig& c, int64_t rows) {
    const Gate& some = *model_.blocks().back().gate;
    Gate& gate = *block_.gate;
    const int64_t experts = c.n_routed_experts, choices = c.num_experts_per_tok;
    gate.w = fixed_.take(DType::f32, experts, c.hidden_size);
    gate.dw = fixed_.take_like(gate.w);
    gate.bias = fixed_.take_vector(DType::f32, experts);
    for (int64_t e = 0; e < experts; e += some.w.rows) {
      const int64_t n = std::min(some.w.rows, experts - e);
      std::vector<float> w(size_t(n * c.hidden_size));
      for (size_t k = 0; k < w.size(); ++k)
        w[k] = float(c.initializer_range * std::sqrt(12.0) * (random_uniform(kSeed, uint64_t(e), k) - 0.5));
      on(stream_).upload(w.data(), gate.w.slice_rows(e, n));
    }
    on(stream_).fill({.y = gate.bias, .value = 0});
    if (held_.n_routed_experts == experts) return;
    local_ = fixed_.take(DType::i32, rows, choices);
    std::vector<int32_t> local;
    for (int64_t i = 0; i < rows * choices; ++i) local.push_back(int32_t(i % held_.n_routed_experts));
    on(stream_).upload(local.data(), local_);
  }

  Stream stream_;
  ModelConfig held_;
  ParamSet params_;
  Transformer model_;
  Block block_;
  Arena fixed_, arena_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<TokenSpan> sequences_;
  Tensor x_, dy_, local_;
};

// What training takes apart from the model: random sequences and a step on them.
class TrainRun {
 public:
  TrainRun(Device& device, const ModelConfig& model, const TrainSection& train, int64_t arena)
      : stream_(device), trainer_(stream_, model, train, arena), tokens_(random_sequences(model, train)) {
    trainer_.init();
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
    draw_weights(stream_, params_, model);
    engine_ = std::make_unique<Engine>(device, model, params_,
                                       EngineOptions{.max_context = bench.context + bench.new_tokens + 1,
                                                     .max_sequences = bench.sequences,
                                                     .prefill_chunk = std::min<int64_t>(bench.context, 512),
                                                     .speculate = bench.speculate,
                                                     .cache = parse_cache_format(bench.cache),
                                                     .batch_invariant = bench.batch_invariant});
    for (int64_t i = 0; i < bench.sequences; ++i)
      requests_.push_back(
          {.prompt = random_tokens(bench.context, model.vocab_size, uint64_t(i * bench.context)),
           .sampling = bench.sampling});
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

// A step that make(device, bytes of its arena) prepares: planned, repeated, and once more with a profile.
template <class Make, class Step>
StepTime measure(Device& device, int64_t tokens, double seconds, const Make& make, const Step& step) {
  const auto plan = open_device("plan");
  const auto planned = make(*plan, int64_t(1) << 50);
  step(*planned);
  const int64_t arena = planned->arena_high_water();
  StepTime time;
  {
    const auto run = make(device, arena);
    time = repeat(seconds, tokens, [&] {
      const double begin = now();
      step(*run);
      return now() - begin;
    });
  }
  const auto profiled = open_profile_device(device, time.profile);
  const auto run = make(*profiled, arena);
  step(*run);
  time.profile.clear();
  step(*run);
  return time;
}

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
    time.memory = plan.total();
  }
  const auto profiled = open_profile_device(device, time.profile);
  TrainRun run(*profiled, model, train, plan.arena);
  run.step();
  time.profile.clear();
  run.step();
  return time;
}

StepTime bench_pass(Device& device, const ModelConfig& model, const TrainSection& train, Pass pass,
                    double seconds) {
  return measure(
      device, train.tokens_per_step(), seconds,
      [&](Device& d, int64_t arena) { return std::make_unique<PassRun>(d, model, train, arena); },
      [&](PassRun& run) { run.run(pass); });
}

StepTime bench_layer(Device& device, const ModelConfig& model, const TrainSection& train, int64_t ranks,
                     LayerPass pass, double seconds) {
  return measure(
      device, train.tokens_per_step(), seconds,
      [&](Device& d, int64_t arena) { return std::make_unique<LayerRun>(d, model, train, ranks, arena); },
      [&](LayerRun& run) { run.run(pass); });
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
