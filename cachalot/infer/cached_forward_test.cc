// The model over its cache, one forward at a time: hidden states, not tokens. What a prompt in pieces, the
// format of the cache and the neighbours in a batch do to them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "backend/testing.h"
#include "infer/cache_batch.h"
#include "infer/engine_testing.h"
#include "infer/steps.h"
#include "model/load.h"

namespace cachalot {
namespace {

using Tokens = std::vector<int32_t>;
using testing::HostTensor;

ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 40, c.hidden_size = 64, c.intermediate_size = 96, c.moe_intermediate_size = 64;
  c.num_hidden_layers = 3, c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 0;
  c.num_attention_heads = 4, c.q_lora_rank = 32, c.kv_lora_rank = 64;
  c.qk_nope_head_dim = 16, c.qk_rope_head_dim = 8, c.v_head_dim = 16;
  c.n_routed_experts = 8, c.n_shared_experts = 1, c.num_experts_per_tok = 2, c.n_group = 4, c.topk_group = 2;
  c.max_position_embeddings = 400, c.initializer_range = 0.1;
  c.validate("small");
  return c;
}

// V3's head sizes, whose attention has kernels of its own on a GPU.
ModelConfig wide_config() {
  ModelConfig c = small_config();
  c.hidden_size = 256, c.num_attention_heads = 8, c.q_lora_rank = 128, c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128, c.qk_rope_head_dim = 64, c.v_head_dim = 128;
  c.num_hidden_layers = 2, c.initializer_range = 0.04;
  c.validate("wide");
  return c;
}

Tokens some_tokens(const ModelConfig& config, int64_t count, int32_t first) {
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(int32_t((first + 7 * i + i * i % 11) % config.vocab_size));
  return tokens;
}

struct Cached {
  Cached(Device& device, const ModelConfig& config, Precision precision, CacheFormat format,
         int64_t sequences = 1)
      : stream(device), config(config) {
    loaded.params = std::make_unique<ParamSet>(device, config, Recipe::of(precision), ParamSet::Options{});
    initialize(stream, *loaded.params, config, 3);
    open(device, format, sequences);
  }
  Cached(Device& device, const std::string& directory, CacheFormat format)
      : stream(device), loaded(load_model(stream, directory, Precision::bf16, {.drop_mtp = true})) {
    config = loaded.config;
    open(device, format, 1);
  }
  void open(Device& device, CacheFormat format, int64_t sequences) {
    const ParamSet& p = *loaded.params;
    cache = std::make_unique<KvCache>(
        device, Steps::cache_shape(config, p.recipe(),
                                   {.max_context = 320, .max_sequences = sequences, .cache = format}));
    model = std::make_unique<Transformer>(stream, config, p, 320);
    arena = Arena(device, int64_t{96} << 20, "test");
    for (int64_t i = 0; i < sequences; ++i) {
      tables.push_back(std::make_unique<PageTable>(*cache));
      CHECK(tables.back()->reserve(320));
    }
  }

  // The hidden states of these rows; with a piece as with batch_invariant.
  HostTensor forward(Attend attend, std::span<const CacheRows> rows, int64_t piece = 0) {
    arena.clear();
    IndexPack pack;
    const CacheBatch batch(pack, attend, rows, 5);
    pack.upload(stream, arena);
    TokenBatch view = batch.view(pack);
    on(stream).fix_rows(piece > 0);
    view.piece = piece;
    const Tensor hidden =
        model->forward(stream, arena, view, {.caches = cache->layers(), .replay = {}, .keep_states = false})
            .hidden;
    on(stream).fix_rows(false);
    return testing::download(stream, hidden);
  }
  // A prompt in pieces, then the rest of the tokens one at a time; the hidden states of the last `decoded` +
  // 1.
  std::vector<double> run(const Tokens& tokens, int64_t decoded, int64_t chunk) {
    const int64_t prompt = int64_t(tokens.size()) - decoded;
    std::vector<double> states;
    const auto keep = [&](const HostTensor& h) {
      for (int64_t c = 0; c < h.tensor().cols; ++c) states.push_back(h(h.tensor().rows - 1, c));
    };
    for (int64_t first = 0; first < prompt; first += chunk) {
      const int64_t end = std::min(prompt, first + chunk);
      const CacheRows rows{
          .first = first, .tokens = {tokens.begin() + first, tokens.begin() + end}, .pages = tables[0].get()};
      const HostTensor h = forward(Attend::expand, {&rows, 1});
      if (end == prompt) keep(h);
    }
    for (int64_t at = prompt; at < int64_t(tokens.size()); ++at) {
      const CacheRows rows{.first = at, .tokens = {tokens[size_t(at)]}, .pages = tables[0].get()};
      keep(forward(Attend::absorb, {&rows, 1}));
    }
    return states;
  }

  Stream stream;
  ModelConfig config;
  LoadedModel loaded;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Transformer> model;
  Arena arena;
  std::vector<std::unique_ptr<PageTable>> tables;
};

double metric(const std::vector<double>& x, const std::vector<double>& y) {
  double different = 0, sizes = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    different += (x[i] - y[i]) * (x[i] - y[i]);
    sizes += x[i] * x[i] + y[i] * y[i];
  }
  return x.size() == y.size() ? different / sizes : 1;
}

// However a prompt is cut, the cache holds what it holds when the prompt runs at once.
TEST(CachedForward, APromptInPiecesEqualsThePromptAtOnce) {
  for (auto& device : testing::cpu_and_gpu())
    for (const bool wide : {false, true})
      for (const auto& [precision, format, bound] : {std::tuple(Precision::f32, CacheFormat::act, 1e-11),
                                                     std::tuple(Precision::bf16, CacheFormat::act, 3e-4),
                                                     std::tuple(Precision::bf16, CacheFormat::fp8, 3e-3)}) {
        const ModelConfig config = wide ? wide_config() : small_config();
        const Tokens tokens = some_tokens(config, 150, 1);
        Cached once(*device, config, precision, format);
        const std::vector<double> truth = once.run(tokens, 3, 400);
        for (const int64_t chunk : {64, 41}) {
          Cached pieces(*device, config, precision, format);
          EXPECT_LT(metric(pieces.run(tokens, 3, chunk), truth), bound)
              << fmt::format("{}, pieces of {}, {} wide", device->name(), chunk, config.hidden_size);
        }
      }
}

// The FP8 cache changes the model by little, and by something.
TEST(CachedForward, AnFp8CacheMovesHiddenStatesByLittle) {
  for (auto& device : testing::cpu_and_gpu()) {
    const ModelConfig config = wide_config();
    const Tokens tokens = some_tokens(config, 150, 1);
    Cached act(*device, config, Precision::bf16, CacheFormat::act),
        codes(*device, config, Precision::bf16, CacheFormat::fp8);
    const double moved = metric(codes.run(tokens, 20, 64), act.run(tokens, 20, 64));
    EXPECT_LT(moved, 1e-2) << device->name();
    EXPECT_GT(moved, 1e-8) << device->name();
  }
}

TEST(CachedForward, AnFp8CacheOnTheGoldens) {
  const char* root = std::getenv("CACHALOT_SOURCE");
  ASSERT_TRUE(root) << "CACHALOT_SOURCE must be the root of the repository (ctest sets it)";
  for (const char* name :
       {"/tests/golden/nano", "/tests/golden/nano-yarn", "/../shared/golden/tiny-v3-heads"}) {
    const std::string directory = std::string(root) + name + "/model";
    if (!std::filesystem::exists(directory)) continue;
    const auto device = open_device("cpu", {.threads = 2});
    Cached act(*device, directory, CacheFormat::act), codes(*device, directory, CacheFormat::fp8);
    const Tokens tokens = some_tokens(act.config, 60, 3);
    const double moved = metric(codes.run(tokens, 20, 16), act.run(tokens, 20, 16));
    EXPECT_LT(moved, 3e-2) << name;
    RecordProperty(std::string("moved") + name, fmt::format("{:.2e}", moved));
    fmt::print("[          ] {}: hidden states {:.2e} away\n", name, moved);
  }
}

// The same request alone and beside others, few and many: with fixed rows and pieces, bit for bit.
TEST(CachedForward, FixedRowsGiveTheSameBitsAloneAndInABatch) {
  for (auto& device : testing::cpu_and_gpu())
    for (const bool wide : {false, true})
      for (const CacheFormat format : {CacheFormat::act, CacheFormat::fp8})
        for (const Precision precision : {Precision::bf16, Precision::f32}) {
          const ModelConfig config = wide ? wide_config() : small_config();
          const bool gpu = device->name().starts_with("cuda");
          // More than the kernels for few rows take, two rows of each; in bf16 on a GPU one row of more of them.
          const int64_t many = gpu && precision == Precision::bf16 ? 128 : 19, each = many > 19 ? 1 : 2;
          Cached run(*device, config, precision, format, many);
          std::vector<CacheRows> rows;
          for (int64_t i = 0; i < many; ++i) {
            const Tokens prompt = some_tokens(config, 3 + 16 * (i % 19), int32_t(i));
            const CacheRows all{.first = 0, .tokens = prompt, .pages = run.tables[size_t(i)].get()};
            run.forward(Attend::expand, {&all, 1});
            rows.push_back({.first = int64_t(prompt.size()),
                            .tokens = Tokens(size_t(each), 5 + i % 2),
                            .pages = all.pages});
          }
          for (const int64_t piece : {128, 4096}) {  // contexts in several of them, and in one
            const HostTensor together = run.forward(Attend::absorb, rows, piece);
            for (const int64_t beside : {1, 2, 8, 33})
              for (int64_t i = 0; i < many; i += beside) {
                const int64_t count = std::min(beside, many - i);
                const HostTensor some =
                    run.forward(Attend::absorb, std::span(rows).subspan(size_t(i), size_t(count)), piece);
                for (int64_t r = 0; r < count * each; ++r)
                  for (int64_t c = 0; c < config.hidden_size; ++c)
                    ASSERT_EQ(some(r, c), together(i * each + r, c))
                        << fmt::format("{}, sequence {} of {} beside each other, {} wide", device->name(),
                                       i + r / each, count, config.hidden_size);
              }
          }
        }
}

}  // namespace
}  // namespace cachalot
