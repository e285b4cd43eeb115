#include "infer/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_device.h"
#include "backend/fake/fake_device.h"
#include "base/json.h"
#include "infer/engine_testing.h"
#include "model/load.h"

namespace cachalot {
namespace {

using Tokens = std::vector<int32_t>;

// Everything on, every size small and odd; a vocabulary so small that an untrained drafter is right now and
// then.
ModelConfig tiny_config() {
  ModelConfig c;
  c.vocab_size = 5, c.hidden_size = 20, c.intermediate_size = 18, c.moe_intermediate_size = 9;
  c.num_hidden_layers = 3, c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 3;
  c.num_attention_heads = 3, c.q_lora_rank = 11, c.kv_lora_rank = 10;
  c.qk_nope_head_dim = 6, c.qk_rope_head_dim = 4, c.v_head_dim = 5;
  c.n_routed_experts = 8, c.n_shared_experts = 1, c.num_experts_per_tok = 3, c.n_group = 4, c.topk_group = 2;
  c.max_position_embeddings = 100, c.initializer_range = 0.4;
  c.validate("tiny");
  return c;
}

struct Model {
  std::unique_ptr<Device> device;
  Stream stream;
  ModelConfig config;
  std::unique_ptr<ParamSet> params;

  static Model tiny(std::unique_ptr<Device> device, Precision precision = Precision::f32) {
    Stream s(*device);
    const ModelConfig config = tiny_config();
    auto params = std::make_unique<ParamSet>(*device, config, Recipe::of(precision), ParamSet::Options{});
    initialize(s, *params, config, 3);
    on(s).synchronize();
    return {std::move(device), std::move(s), config, std::move(params)};
  }
  static Model load(const std::string& directory, std::unique_ptr<Device> device,
                    Precision precision = Precision::f32) {
    Stream s(*device);
    LoadedModel loaded = load_model(s, directory, precision, {});
    return {std::move(device), std::move(s), loaded.config, std::move(loaded.params)};
  }
  std::unique_ptr<Engine> engine(const EngineOptions& options) const {
    return std::make_unique<Engine>(*device, config, *params, options);
  }
};

// `positions`: of the tokens being drawn.
Tokens draw(Stream& s, Arena& arena, const Transformer& model, Tensor hidden, Tensor positions,
            const Sampling& r) {
  Tensor logits = arena.take(model.recipe().stat, hidden.rows, model.config().vocab_size);
  Tensor tokens = arena.take_vector(DType::i32, hidden.rows);
  model.head().logits(s, hidden, logits);
  on(s).sample({.logits = logits,
                .positions = positions,
                .tokens = tokens,
                .temperature = r.temperature,
                .top_p = r.top_p,
                .top_k = r.top_k,
                .seed = r.seed});
  Tokens host(size_t(hidden.rows));
  on(s).download(tokens, host.data());
  on(s).synchronize();
  return host;
}

// Row k, column i: what depth k (0: the trunk) draws at position i for position i + k + 1, computed without
// any cache.
std::vector<Tokens> predictions(Model& m, const Tokens& tokens, int64_t depths,
                                const Sampling& sampling = {}) {
  Stream& s = m.stream;
  const Transformer model(s, m.config, *m.params, m.config.max_position_embeddings);
  Arena arena(*m.device, 64 << 20, "test");
  std::vector<Tokens> result;
  Tensor hidden;
  for (int64_t k = 0; k <= depths && k < int64_t(tokens.size()); ++k) {
    const int64_t rows = int64_t(tokens.size()) - k;
    IndexPack pack;
    Tokens positions, drawn;
    for (int64_t i = 0; i < rows; ++i) {
      positions.push_back(int32_t(i));
      drawn.push_back(int32_t(i + k + 1));
    }
    const size_t d = pack.add(drawn);
    const size_t t = pack.add({tokens.begin() + k, tokens.end()}), p = pack.add(positions),
                 starts = pack.add({0, int32_t(rows)});
    pack.upload(s, arena);
    TokenBatch batch;
    batch.rows = rows, batch.sequences = 1;
    batch.tokens = pack.view(t), batch.positions = pack.view(p), batch.starts = pack.view(starts);
    hidden = k == 0 ? model.forward(s, arena, batch, {}).hidden
                    : model.forward_mtp(s, arena, batch, k, hidden.slice_rows(0, rows), {}).hidden;
    result.push_back(draw(s, arena, model, hidden, pack.view(d), sampling));
  }
  return result;
}

// The slow truth: the whole sequence again for every token.
Tokens recompute(Model& m, Tokens tokens, int64_t new_tokens) {
  const size_t prompt = tokens.size();
  for (int64_t i = 0; i < new_tokens; ++i) tokens.push_back(predictions(m, tokens, 0)[0].back());
  return {tokens.begin() + int64_t(prompt), tokens.end()};
}

// What speculation must do if every depth sees exactly the true tokens and hidden states.
struct Expected {
  int64_t steps = 0;
  std::vector<int64_t> drafted, accepted;
};
Expected expected_speculation(Model& m, const Tokens& prompt, const Tokens& continuation, int64_t depths,
                              const Sampling& sampling = {}) {
  Tokens t = prompt;
  t.insert(t.end(), continuation.begin(), continuation.end());
  const auto p = predictions(m, t, depths, sampling);
  Expected e{.steps = 0,
             .drafted = std::vector<int64_t>(size_t(depths)),
             .accepted = std::vector<int64_t>(size_t(depths))};
  size_t n = prompt.size() + 1;
  while (n < t.size()) {
    const int64_t drafts = std::min(depths, int64_t(t.size() - n) - 1);
    int64_t accepted = 0;
    // Depth k at position n-2 saw d_1 ... d_(k-1); as long as those were right they are the true tokens.
    while (accepted < drafts && p[size_t(accepted) + 1][n - 2] == t[n + size_t(accepted)]) ++accepted;
    for (int64_t k = 0; k < drafts; ++k) ++e.drafted[size_t(k)], e.accepted[size_t(k)] += k < accepted;
    n += size_t(accepted) + 1;
    ++e.steps;
  }
  return e;
}

// Cached, in chunks, absorbed, speculative: all must give `truth`.
void expect_all_ways(Model& m, const Tokens& prompt, const Tokens& truth) {
  for (int64_t speculate = 0; speculate <= m.config.num_nextn_predict_layers; ++speculate) {
    const Expected e = expected_speculation(m, prompt, truth, speculate);
    for (const int64_t chunk : {1, 3, 64}) {
      for (const int64_t page_size : {4, 64}) {
        SCOPED_TRACE(fmt::format("speculate {}, chunk {}, page {}", speculate, chunk, page_size));
        const auto engine = m.engine({.max_context = int64_t(prompt.size() + truth.size()),
                                      .prefill_chunk = chunk,
                                      .speculate = speculate,
                                      .page_size = page_size});
        const Completion c = engine->generate({.prompt = prompt, .max_new_tokens = int64_t(truth.size())});
        EXPECT_EQ(c.tokens, truth);
        EXPECT_EQ(c.finish, Finish::length);
        EXPECT_EQ(engine->statistics().steps, e.steps);
        EXPECT_EQ(engine->statistics().drafted, e.drafted);
        EXPECT_EQ(engine->statistics().accepted, e.accepted);
        EXPECT_EQ(engine->statistics().new_tokens, int64_t(truth.size()));
      }
    }
  }
}

TEST(Engine, EveryWayOfDecodingGivesTheTokensOfFullRecomputation) {
  for (auto& device : testing::cpu_and_gpu()) {
    SCOPED_TRACE(device->name());
    Model m = Model::tiny(std::move(device));
    for (const Tokens& prompt :
         {Tokens{2}, Tokens{1, 4}, Tokens{0, 3, 1}, Tokens{4, 4, 0, 1, 2, 3, 0, 1, 1, 2, 4}}) {
      SCOPED_TRACE(fmt::format("prompt of {}", prompt.size()));
      expect_all_ways(m, prompt, recompute(m, prompt, 40));
    }
  }
}

// The tests above compare with what they find; this one makes sure that they find something.
TEST(Engine, TheTinyModelAcceptsSomeDraftsOfEveryDepthAndRejectsSome) {
  Model m = Model::tiny(open_device("cpu", {.threads = 2}));
  const auto engine = m.engine({.max_context = 100, .speculate = 3});
  std::vector<int64_t> accepted(3), drafted(3);
  for (int32_t first = 0; first < 5; ++first) {
    engine->generate({.prompt = {first, 1}, .max_new_tokens = 90, .sampling = {.temperature = 1, .seed = 5}});
    for (size_t k = 0; k < 3; ++k) {
      accepted[k] += engine->statistics().accepted[k];
      drafted[k] += engine->statistics().drafted[k];
    }
  }
  for (size_t k = 0; k < 3; ++k) {
    EXPECT_GT(accepted[k], 0) << k;
    EXPECT_LT(accepted[k], drafted[k]) << k;
  }
}

TEST(Engine, SpeculationGivesThePlainTokensAtAnyTemperature) {
  Model m = Model::tiny(open_device("cpu", {.threads = 2}));
  const auto plain = m.engine({.max_context = 80});
  for (const int64_t depth : {1, 2, 3}) {
    const auto speculative = m.engine({.max_context = 80, .prefill_chunk = 2, .speculate = depth});
    for (const uint64_t seed : {1, 2, 3})
      for (const Sampling& sampling : {Sampling{.temperature = 1, .seed = seed},
                                       Sampling{.temperature = 0.7, .top_p = 0.8, .top_k = 4, .seed = seed},
                                       Sampling{.temperature = 3, .top_k = 2, .seed = seed}}) {
        const Request r{.prompt = {3, 0, 2}, .max_new_tokens = 70, .sampling = sampling};
        const Tokens truth = plain->generate(r).tokens;
        EXPECT_EQ(speculative->generate(r).tokens, truth);
        // Drafts are drawn by the same rule at the same position: the best guess at what the trunk will draw.
        EXPECT_EQ(speculative->statistics().accepted,
                  expected_speculation(m, r.prompt, truth, depth, sampling).accepted);
      }
  }
  // And the seed matters, so that equality above says something.
  const Request one{.prompt = {3}, .max_new_tokens = 30, .sampling = {.temperature = 1, .seed = 1}};
  Request two = one;
  two.sampling.seed = 2;
  EXPECT_NE(plain->generate(one).tokens, plain->generate(two).tokens);
}

TEST(Engine, SpeculationInFewBitsGivesThePlainTokensOfTheSamePrecision) {
  for (const Precision precision : {Precision::bf16, Precision::fp8})
    for (auto& device : testing::cpu_and_gpu()) {
      SCOPED_TRACE(device->name() + " " + name_of(precision));
      Model m = Model::tiny(std::move(device), precision);
      const Request r{.prompt = {3, 0, 2, 2, 1}, .max_new_tokens = 60};
      const Tokens plain = m.engine({.max_context = 80})->generate(r).tokens;
      EXPECT_EQ(plain.size(), 60u);
      for (const int64_t depth : {1, 2})
        EXPECT_EQ(m.engine({.max_context = 80, .speculate = depth})->generate(r).tokens, plain);
    }
}

TEST(Engine, SequencesDecodedTogetherDoNotSeeEachOther) {
  for (auto& device : testing::cpu_and_gpu()) {
    SCOPED_TRACE(device->name());
    Model m = Model::tiny(std::move(device));
    const std::vector<Request> requests{
        {.prompt = {1, 2, 3}, .max_new_tokens = 17},
        {.prompt = {4}, .max_new_tokens = 40, .sampling = {.temperature = 1, .seed = 8}},
        {.prompt = {0, 0, 1, 3, 2, 4, 1}, .max_new_tokens = 1},
        {.prompt = {2, 2}, .max_new_tokens = 0},
        {.prompt = {3, 1, 4, 1},
         .max_new_tokens = 33,
         .sampling = {.temperature = 0.5, .top_p = 0.9, .seed = 2}},
        {.prompt = {1, 2, 3}, .max_new_tokens = 25, .end_tokens = {2}},
    };
    for (const int64_t speculate : {0, 2}) {
      const auto alone = m.engine({.max_context = 50, .speculate = speculate, .page_size = 4});
      const auto together = m.engine({.max_context = 50,
                                      .max_sequences = 3,
                                      .prefill_chunk = 2,
                                      .speculate = speculate,
                                      .page_size = 4});
      std::vector<Tokens> streamed(requests.size());
      const auto completions = together->generate(requests, [&](size_t i, std::span<const int32_t> tokens) {
        streamed[i].insert(streamed[i].end(), tokens.begin(), tokens.end());
        return true;
      });
      const Statistics statistics = together->statistics();
      std::vector<int64_t> accepted(size_t(speculate), 0);
      for (size_t i = 0; i < requests.size(); ++i) {
        SCOPED_TRACE(i);
        const Completion c = alone->generate(requests[i]);
        for (size_t k = 0; k < accepted.size(); ++k) accepted[k] += alone->statistics().accepted[k];
        EXPECT_EQ(completions[i].tokens, c.tokens);
        EXPECT_EQ(completions[i].finish, c.finish);
        Tokens shown = c.tokens;
        if (c.finish == Finish::end_token) shown.pop_back();
        EXPECT_EQ(streamed[i], shown);
      }
      EXPECT_EQ(statistics.accepted, accepted);  // nor do their drafters
    }
  }
}

TEST(Engine, EndTokenEndsAndIsKeptButNotShown) {
  Model m = Model::tiny(open_device("cpu", {.threads = 1}));
  const Request free{.prompt = {1, 2, 3}, .max_new_tokens = 40};
  const Tokens all = m.engine({.max_context = 50})->generate(free).tokens;
  const int32_t end = all[5];
  const auto at = std::find(all.begin(), all.end(), end);
  for (const int64_t speculate : {0, 1, 2}) {
    Request r = free;
    r.end_tokens = {99, end};
    Tokens shown;
    const Completion c = m.engine({.max_context = 50, .speculate = speculate})
                             ->generate(r, [&](size_t, std::span<const int32_t> tokens) {
                               shown.insert(shown.end(), tokens.begin(), tokens.end());
                               return true;
                             });
    EXPECT_EQ(c.finish, Finish::end_token);
    EXPECT_EQ(c.tokens, Tokens(all.begin(), at + 1));
    EXPECT_EQ(shown, Tokens(all.begin(), at));
  }
}

TEST(Engine, TheContextIsAHardLimit) {
  Model m = Model::tiny(open_device("cpu", {.threads = 1}));
  for (const int64_t speculate : {0, 2, 3})
    for (int64_t context = 1; context <= 12; ++context) {
      const auto engine = m.engine({.max_context = context, .speculate = speculate, .page_size = 4});
      for (int64_t prompt = 1; prompt <= context; ++prompt) {
        const Completion c = engine->generate({.prompt = Tokens(size_t(prompt), 1), .max_new_tokens = 1000});
        EXPECT_EQ(int64_t(c.tokens.size()), context - prompt);
        EXPECT_EQ(c.finish, Finish::length);
      }
    }
}

TEST(Engine, TheCallerCanEndASequenceAlsoDuringItsPrompt) {
  Model m = Model::tiny(open_device("cpu", {.threads = 1}));
  const auto engine = m.engine({.max_context = 60, .prefill_chunk = 2});
  int64_t calls = 0;
  Completion c = engine->generate({.prompt = Tokens(11, 2), .max_new_tokens = 9},
                                  [&](size_t, std::span<const int32_t>) { return ++calls < 3; });
  EXPECT_EQ(c.finish, Finish::caller);
  EXPECT_TRUE(c.tokens.empty());
  EXPECT_EQ(engine->statistics().prompt_tokens, 6);
  Tokens shown;
  c = engine->generate({.prompt = {1}, .max_new_tokens = 9}, [&](size_t, std::span<const int32_t> tokens) {
    shown.insert(shown.end(), tokens.begin(), tokens.end());
    return shown.size() < 4;
  });
  EXPECT_EQ(c.finish, Finish::caller);
  EXPECT_EQ(c.tokens.size(), 4u);
}

// On `fake` nothing runs before synchronize() and memory cannot be read between: a hidden wait or a peek
// would show.
TEST(Engine, ADecodingStepWaitsOnceAndGivesTheSameTokensOnTheFakeDevice) {
  Model truth = Model::tiny(open_device("cpu", {.threads = 2}));
  auto owned = open_fake_device({.threads = 2});
  FakeDevice& fake = *owned;
  Model m = Model::tiny(std::move(owned));
  const Request r{
      .prompt = {3, 0, 2, 2, 1, 4, 0}, .max_new_tokens = 30, .sampling = {.temperature = 1, .seed = 4}};
  for (const int64_t speculate : {0, 1, 2}) {
    const EngineOptions options{.max_context = 60, .prefill_chunk = 3, .speculate = speculate};
    const auto engine = m.engine(options);
    on(m.stream).synchronize();
    const FakeCounters before = fake.counters();
    const Completion c = engine->generate(r);
    const FakeCounters after = fake.counters();
    EXPECT_EQ(after.synchronizes - before.synchronizes,
              1 + engine->statistics().steps);  // 1: the end of the prompt
    EXPECT_EQ(after.downloads - before.downloads, 1 + engine->statistics().steps);
    EXPECT_EQ(after.uploads - before.uploads, 3 + engine->statistics().steps);
    EXPECT_EQ(c.tokens, truth.engine(options)->generate(r).tokens);
  }
}

// Where a device has graphs, as `fake` has, a step is queued before the tokens of the one before are known. The same
// tokens come out whoever ends when, by length, by an end token or by the caller, and whoever joins; the host has the
// next step in the queue while it hands out tokens, which nobody can know ahead when drafts are tried.
TEST(Engine, StepsQueuedAheadGiveTheSameTokens) {
  Model truth = Model::tiny(open_device("cpu", {.threads = 1}));  // has none
  const std::vector<Request> requests{
      {.prompt = {1, 2, 3}, .max_new_tokens = 17},
      {.prompt = {4}, .max_new_tokens = 40, .sampling = {.temperature = 1, .seed = 8}, .end_tokens = {2}},
      {.prompt = {0, 0, 1, 3}, .max_new_tokens = 1},
      {.prompt = {3, 1, 4}, .max_new_tokens = 33, .sampling = {.temperature = 2, .top_k = 3, .seed = 2}},
      {.prompt = {1, 2, 3}, .max_new_tokens = 25, .end_tokens = {0, 2}},
      {.prompt = {2, 2}, .max_new_tokens = 2},
      {.prompt = {4, 1}, .max_new_tokens = 30, .sampling = {.temperature = 1, .seed = 3}, .end_tokens = {4}},
      {.prompt = Tokens(40, 3), .max_new_tokens = 9}};
  for (const int64_t speculate : {0, 1})
    for (const uint64_t seed : {1, 2, 3}) {
      const EngineOptions options{
          .max_context = 50, .max_sequences = 3, .prefill_chunk = 30, .speculate = speculate, .page_size = 4};
      std::vector<std::vector<Tokens>> shown(2, std::vector<Tokens>(requests.size()));
      const auto caller = [&](size_t device, const FakeDevice* fake, int64_t* ahead) {
        return [&shown, device, fake, ahead](size_t i, std::span<const int32_t> tokens) {
          if (fake && !tokens.empty()) *ahead += fake->counters().queued > 0;
          Tokens& mine = shown[device][i];
          mine.insert(mine.end(), tokens.begin(), tokens.end());
          return i != 7 && (i != 3 || mine.size() < 9);  // the last one during its prompt
        };
      };
      const auto expected = truth.engine(options)->generate(requests, caller(0, nullptr, nullptr));
      auto owned = open_fake_device({.threads = 1, .seed = seed});
      const FakeDevice& fake = *owned;
      Model m = Model::tiny(std::move(owned));
      on(m.stream).synchronize();
      const auto engine = m.engine(options);
      int64_t ahead = 0;
      const auto got = engine->generate(requests, caller(1, &fake, &ahead));
      EXPECT_EQ(shown[1], shown[0]);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(got[i].tokens, expected[i].tokens) << i;
        EXPECT_EQ(got[i].finish, expected[i].finish) << i;
      }
      EXPECT_EQ(got[1].finish, Finish::end_token);
      EXPECT_EQ(got[3].finish, Finish::caller);
      if (speculate == 0) EXPECT_GT(ahead, 0);
      else EXPECT_EQ(ahead, 0);
    }
}

// A caller's exception leaves a step in the queue; the next call does not meet its tokens.
TEST(Engine, ACallersExceptionLeavesNothingBehind) {
  Model m = Model::tiny(open_fake_device({.threads = 1}));
  const auto engine = m.engine({.max_context = 50});
  const Request r{.prompt = {1, 2, 3}, .max_new_tokens = 20};
  const Tokens tokens = engine->generate(r).tokens;
  size_t calls = 0;
  EXPECT_THROW(engine->generate(r,
                                [&](size_t, std::span<const int32_t>) -> bool {
                                  if (++calls == 7) throw Error("enough");
                                  return true;
                                }),
               Error);
  EXPECT_EQ(engine->generate(r).tokens, tokens);
}

// The same of a real queue: the driver is asked for nothing in a step, and waited for once.
TEST(Engine, ADecodingStepOnAGpuTakesNothingAndWaitsOnce) {
  const CudaStatus status = probe_cuda();
  if (status.devices.empty() || !status.devices[0].usable())
    GTEST_SKIP() << "runs on machines with a GPU, in the preset cuda: " << status.message;
  Model m = Model::tiny(open_device("cuda"));
  const Request r{.prompt = {3, 0, 2, 2, 1, 4, 0}, .max_new_tokens = 30};
  for (const int64_t speculate : {0, 2}) {
    const auto engine = m.engine({.max_context = 60, .prefill_chunk = 3, .speculate = speculate});
    on(m.stream).synchronize();
    const CudaCounters before = cuda_counters();
    engine->generate(r);
    const CudaCounters after = cuda_counters();
    EXPECT_EQ(after.allocations, before.allocations);
    EXPECT_EQ(after.waits - before.waits, 1 + engine->statistics().steps);  // 1: the end of the prompt
  }
}

TEST(Engine, MemoryIsTakenOnceAndGivenBack) {
  auto owned = open_fake_device({.threads = 1});
  FakeDevice& fake = *owned;
  Model m = Model::tiny(std::move(owned));
  const int64_t before = fake.blocks();
  {
    const auto engine = m.engine({.max_context = 60, .max_sequences = 2, .speculate = 2});
    const int64_t during = fake.blocks();
    engine->generate({.prompt = {3, 0, 2}, .max_new_tokens = 20});
    EXPECT_EQ(fake.blocks(), during);
  }
  EXPECT_EQ(fake.blocks(), before);
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "no Error";
}

bool holds(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* p : parts)
    if (text.find(p) == std::string::npos) {
      ADD_FAILURE() << "\"" << p << "\" is not in: " << text;
      return false;
    }
  return true;
}

TEST(Engine, RefusesWhatCannotWorkWithTheValues) {
  Model m = Model::tiny(open_device("cpu", {.threads = 1}));
  holds(message_of([&] { m.engine({.max_context = 101}); }),
        {"101", "100", "max_position_embeddings", "--max-context"});
  holds(message_of([&] { m.engine({.max_context = -1}); }), {"-1", "--max-context"});
  holds(message_of([&] { m.engine({.max_context = 50, .speculate = 4}); }),
        {"depth 4", "3 multi-token", "num_nextn_predict_layers", "--speculate"});
  holds(message_of([&] { m.engine({.max_context = 50, .prefill_chunk = 0}); }), {"--prefill-chunk"});
  const auto engine = m.engine({.max_context = 8});
  const auto refused = [&](const Request& r) { return message_of([&] { engine->generate(r); }); };
  holds(refused({.prompt = Tokens(9, 1)}), {"9 tokens", "holds 8", "--max-context"});
  holds(refused({.prompt = {}}), {"no tokens"});
  holds(refused({.prompt = {1, 5}}), {"token 5", "0 to 4"});
  holds(refused({.prompt = {-1}}), {"token -1"});
  holds(refused({.prompt = {1}, .sampling = {.temperature = -1}}), {"temperature is -1"});
  holds(refused({.prompt = {1}, .sampling = {.top_p = 0}}), {"top-p is 0"});
  holds(refused({.prompt = {1}, .sampling = {.top_k = -2}}), {"top-k is -2"});
  holds(refused({.prompt = {1}, .max_new_tokens = -3}), {"-3"});
  // One bad request of several: none runs.
  const std::vector<Request> two{{.prompt = {1}}, {.prompt = {7}}};
  bool called = false;
  holds(message_of(
            [&] { engine->generate(two, [&](size_t, std::span<const int32_t>) { return called = true; }); }),
        {"prompt 1", "token 7"});
  EXPECT_FALSE(called);
}

// A device that says it has little memory.
class SmallDevice : public Device {
 public:
  SmallDevice(std::unique_ptr<Device> inner, int64_t free) : inner_(std::move(inner)), free_(free) {}
  std::string name() const override { return "small"; }
  void* take(int64_t bytes) override {
    return bytes > free_ ? nullptr : (free_ -= bytes, inner_->take(bytes));
  }
  void give(void* data, int64_t bytes) noexcept override { free_ += bytes, inner_->give(data, bytes); }
  int64_t free_bytes() const override { return free_; }
  std::unique_ptr<Backend> open_backend() override { return inner_->open_backend(); }

 private:
  std::unique_ptr<Device> inner_;
  int64_t free_;
};

TEST(Engine, TooLittleMemoryNamesTheFlag) {
  auto owned = std::make_unique<SmallDevice>(open_device("cpu", {.threads = 1}), 1 << 20);
  Model m = Model::tiny(std::move(owned));
  const int64_t free = m.device->free_bytes();
  holds(message_of([&] { m.engine({.max_context = 100, .max_sequences = 1000}); }),
        {"--max-context", "free"});
  EXPECT_EQ(m.device->free_bytes(), free);
  const auto engine = m.engine({.max_context = 20, .prefill_chunk = 8});
  holds(engine->memory_plan(), {"weights", "KV pages", "activations", "together", "small"});
  EXPECT_EQ(engine->generate({.prompt = {1}, .max_new_tokens = 5}).tokens.size(), 5u);
}

// ---------------------------------------------------------------------------------------------------------
// Published format, another program's continuations (tests/golden/README.md).

struct Golden {
  const char* name;
  bool shipped;
};

class EngineGolden : public ::testing::TestWithParam<Golden> {};

TEST_P(EngineGolden, ContinuationsAreIdenticalInEveryWayOfDecoding) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  ASSERT_TRUE(root) << "CACHALOT_SOURCE must be the root of the repository (ctest sets it)";
  const std::string directory =
      std::string(root) + (GetParam().shipped ? "/tests/golden/" : "/../shared/golden/") + GetParam().name;
  if (!GetParam().shipped && !std::filesystem::exists(directory))
    GTEST_SKIP() << "runs on machines that have ../shared/golden/" << GetParam().name;
  const Json reference = read_json_file(directory + "/reference.json");
  for (auto& device : testing::cpu_and_gpu()) {
    SCOPED_TRACE(device->name());
    Model m = Model::load(directory + "/model", std::move(device));
    bool first = true;
    for (const auto& g : reference.at("greedy")) {
      const auto prompt = g.at("prompt").get<Tokens>(), truth = g.at("continuation").get<Tokens>();
      SCOPED_TRACE(fmt::format("prompt of {}", prompt.size()));
      if (first) {
        EXPECT_EQ(recompute(m, prompt, int64_t(truth.size())), truth);
      }
      first = false;
      expect_all_ways(m, prompt, truth);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, EngineGolden,
                         ::testing::Values(Golden{"nano", true}, Golden{"nano-yarn", true},
                                           Golden{"tiny-unaligned", false}, Golden{"tiny-v3-heads", false}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(EngineGoldenFp8, Fp8WeightsGiveTheSameTokensInEveryWayOfDecoding) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  ASSERT_TRUE(root) << "CACHALOT_SOURCE must be the root of the repository (ctest sets it)";
  Model m =
      Model::load(std::string(root) + "/tests/golden/nano/model_fp8", open_device("cpu", {.threads = 2}));
  const Tokens prompt{146, 113, 51, 122, 119};
  expect_all_ways(m, prompt, recompute(m, prompt, 16));
}

TEST(EngineGoldenFake, ContinuationsAreIdenticalOnTheFakeDevice) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  ASSERT_TRUE(root) << "CACHALOT_SOURCE must be the root of the repository (ctest sets it)";
  const std::string directory = std::string(root) + "/tests/golden/nano-yarn";
  const Json g = read_json_file(directory + "/reference.json").at("greedy")[1];
  Model m = Model::load(directory + "/model", open_device("fake", {.threads = 2}));
  const auto prompt = g.at("prompt").get<Tokens>(), truth = g.at("continuation").get<Tokens>();
  for (const int64_t speculate : {0, 2}) {
    const auto engine = m.engine({.max_context = 64, .prefill_chunk = 4, .speculate = speculate});
    EXPECT_EQ(engine->generate({.prompt = prompt, .max_new_tokens = 32}).tokens, truth);
  }
}

}  // namespace
}  // namespace cachalot
