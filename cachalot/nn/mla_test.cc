#include "nn/mla.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

// V3's proportions, for FP8: no sum so short that single codes show.
ModelConfig larger_config() {
  ModelConfig c;
  c.num_attention_heads = 3;
  c.hidden_size = 72;
  c.q_lora_rank = 48;
  c.kv_lora_rank = 40;
  c.qk_nope_head_dim = 24;
  c.qk_rope_head_dim = 16;
  c.v_head_dim = 24;
  return c;
}

ModelConfig small_config(bool compressed_query) {
  ModelConfig c;
  c.num_attention_heads = 3;
  c.hidden_size = 10;
  c.q_lora_rank = compressed_query ? 7 : 0;
  c.kv_lora_rank = 5;
  c.qk_nope_head_dim = 6;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 3;
  c.yarn = YarnConfig{.factor = 4, .original_max_position_embeddings = 8};
  return c;
}

struct Parts {
  Mla mla;
  std::vector<LayerCase::Parameter> parameters;
};

// `together`: in fp8 the transposes of both down-projections lie side by side.
Parts make_mla(LayerContext& c, const ModelConfig& config, const RopeTable* table, bool together = false) {
  const int64_t h = config.num_attention_heads, qk = config.qk_head_dim(), latent = config.kv_lora_rank;
  Parts parts;
  const auto linear = [&](int64_t out, int64_t in) {
    parts.parameters.push_back(c.weight(out, in));
    const auto& p = parts.parameters.back();
    return Linear{p.w, p.dw, p.w_transposed};
  };
  const auto norm = [&](int64_t n) {
    parts.parameters.push_back(c.gain(n));
    return RmsNorm{parts.parameters.back().w, parts.parameters.back().dw, 1e-6};
  };
  Mla& m = parts.mla;
  m.heads = h, m.nope = config.qk_nope_head_dim, m.rope = config.qk_rope_head_dim,
  m.value = config.v_head_dim;
  m.latent = latent, m.softmax_scale = config.softmax_scale(), m.recipe = c.recipe, m.table = table;
  if (config.q_lora_rank) {
    m.q_a = linear(config.q_lora_rank, config.hidden_size);
    m.q_a_norm = norm(config.q_lora_rank);
  }
  m.q_b = linear(h * qk, config.q_lora_rank ? config.q_lora_rank : config.hidden_size);
  m.kv_a = linear(latent + m.rope, config.hidden_size);
  m.kv_a_norm = norm(latent);
  m.kv_b = linear(h * (m.nope + m.value), latent);
  m.o = linear(config.hidden_size, h * m.value);
  if (together && c.recipe.fp8) {
    const int64_t q = m.q_a->out();
    m.down_transposed = c.t.garbage_e4m3(config.hidden_size, q + m.kv_a.out(), config.hidden_size);
    m.q_a->w_transposed = m.down_transposed.slice_cols(0, q);
    m.kv_a.w_transposed = m.down_transposed.slice_cols(q, m.kv_a.out());
    for (const Linear& l : {*m.q_a, m.kv_a})
      on(c.s).quantize_weight({.x = l.w, .transposed = l.w_transposed});
  }
  return parts;
}

MakeLayer mla_case(const ModelConfig& config, bool together = false) {
  return [=](LayerContext& c) {
    auto table = std::make_shared<RopeTable>(c.s, config, 16, c.recipe.stat);
    const Parts parts = make_mla(c, config, table.get(), together);
    const int64_t d = config.hidden_size, tokens = 9;
    LayerCase l{.x = c.act(tokens, d),
                .y = c.act_garbage(tokens, d),
                .dy = c.act(tokens, d),
                .dx = c.act_garbage(tokens, d),
                .parameters = parts.parameters,
                .forward = {},
                .backward = {}};
    TokenBatch batch;
    batch.rows = tokens, batch.sequences = 2;
    batch.starts = c.t.indices({0, 4, tokens});
    batch.positions = c.t.indices({0, 1, 2, 3, 0, 1, 2, 3, 4});
    auto saved = std::make_shared<Mla::Saved>();
    l.forward = [=, &s = c.s, &arena = c.arena] {
      (void)table;  // keeps it alive
      *saved = parts.mla.forward(s, arena, batch, {}, l.x, l.y);
    };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      parts.mla.backward_input(s, arena, batch, *saved, l.dy, l.dx, mode);
      parts.mla.backward_weight(s, arena, *saved, mode);
    };
    return l;
  };
}

TEST(Mla, GradientsContractsBackends) { expect_layer(mla_case(small_config(true))); }
TEST(Mla, WithoutQueryCompression) { expect_layer(mla_case(small_config(false))); }
TEST(Mla, InFp8) { expect_fp8(mla_case(larger_config())); }

// The input gradient of both down-projections as one product: two products' numbers but for a rounding less,
// and everything else to the bit.
TEST(Mla, OneInputGradientOfBothDownProjectionsInFp8) {
  ModelConfig config = larger_config();
  config.q_lora_rank = 128;
  expect_fp8(mla_case(config, true));
  LayerRun one("cpu", Precision::fp8, mla_case(config, true)), two("cpu", Precision::fp8, mla_case(config));
  for (LayerRun* run : {&one, &two}) {
    run->layer.forward();
    run->layer.backward(Accumulate::overwrite);
  }
  EXPECT_METRIC(read(one.s, one.layer.dx), read(two.s, two.layer.dx), 1e-5);
  for (size_t p = 0; p < one.layer.parameters.size(); ++p)
    EXPECT_EQ(read(one.s, one.layer.parameters[p].dw), read(two.s, two.layer.parameters[p].dw)) << p;
}

// A sequence in one piece, in chunks against the cache, and token by token in absorbed form.
TEST(Mla, ChunkedAndAbsorbedEqualTheWholeSequence) {
  auto device = open_device("ref");
  Stream s(*device);
  Arena arena(*device, 1 << 20, "test");
  TestTensors t(*device, s);
  LayerContext c{s, arena, t, Recipe::of(Precision::f64)};
  const ModelConfig config = small_config(true);
  RopeTable table(s, config, 16, DType::f64);
  const Parts parts = make_mla(c, config, &table);
  const int64_t n = 7, d = config.hidden_size, page = 2, pages = 5;
  Tensor x = t.normal(DType::f64, n, d), whole = t.garbage(DType::f64, n, d);
  TokenBatch batch;
  batch.rows = n, batch.sequences = 1, batch.starts = t.indices({0, n}),
  batch.positions = t.indices({0, 1, 2, 3, 4, 5, 6});
  parts.mla.forward(s, arena, batch, {}, x, whole);
  const auto expected = read(s, whole);

  const std::vector<int32_t> table_row{4, 1, 3, 0};  // pages in no order
  const auto slot = [&](int64_t position) {
    return int32_t(table_row[position / page] * page + position % page);
  };
  for (const Attend mode : {Attend::expand, Attend::absorb}) {
    Tensor cache = t.garbage(DType::f64, pages * page, config.cached_per_token()),
           y = t.garbage(DType::f64, n, d);
    for (int64_t first = 0; first < n;) {
      const int64_t rows = std::min<int64_t>(mode == Attend::expand ? 3 : 2, n - first);
      std::vector<int32_t> positions, slots, keys;
      for (int64_t i = first; i < first + rows; ++i)
        positions.push_back(int32_t(i)), slots.push_back(slot(i));
      for (int64_t i = 0; i < first + rows; ++i) keys.push_back(slot(i));
      TokenBatch b;
      b.rows = rows, b.sequences = 1, b.starts = t.indices({0, int32_t(rows)}),
      b.positions = t.indices(positions);
      b.attend = mode, b.slots = t.indices(slots);
      b.key_rows = first + rows, b.key_slots = t.indices(keys),
      b.key_starts = t.indices({0, int32_t(first + rows)});
      b.page_size = page, b.page_table = t.indices(1, 4, table_row),
      b.kv_lens = t.indices({int32_t(first + rows)});
      parts.mla.forward(s, arena, b, cache, x.slice_rows(first, rows), y.slice_rows(first, rows));
      first += rows;
    }
    EXPECT_METRIC(read(s, y), expected, 1e-26);
  }
}

TEST(Rope, YarnKeepsFastPairsAndSlowsDownSlowOnes) {
  ModelConfig c;  // V3: theta 1e4, 64 wide, factor 40 over 4096
  const auto plain = rope_frequencies(c);
  c.yarn = YarnConfig{};
  const auto scaled = rope_frequencies(c);
  ASSERT_EQ(scaled.size(), 32u);
  EXPECT_DOUBLE_EQ(scaled[0], plain[0]);
  EXPECT_DOUBLE_EQ(scaled[9], plain[9]);  // turns more than 32 times in 4096 positions
  EXPECT_DOUBLE_EQ(scaled[31], plain[31] / 40);
  for (int i = 11; i < 23; ++i) {  // the ramp, between pairs 10 and 23
    EXPECT_LT(scaled[i], plain[i]);
    EXPECT_GT(scaled[i], plain[i] / 40);
  }
  EXPECT_DOUBLE_EQ(rope_attention_factor(c), 1);
  c.yarn->mscale = 0.5;
  EXPECT_NEAR(rope_attention_factor(c), (0.05 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1), 1e-15);
}

}  // namespace
}  // namespace cachalot::testing
