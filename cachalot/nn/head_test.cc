#include "nn/head.h"

#include "nn/embedding.h"
#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

// The loss itself is the output: dy is 1 for every row, because the head multiplies by `scale` inside.
TEST(Head, GradientsContractsBackendsOverSeveralChunks) {
  expect_layer([](LayerContext& c) {
    const int64_t tokens = 7, d = 5, vocab = 11;
    const auto w = c.weight(vocab, d);
    LayerCase l{.x = c.act(tokens, d),
                .y = c.t.garbage(c.recipe.stat, 1, tokens),
                .dy = c.t.values(c.recipe.stat, 1, tokens, std::vector<double>(tokens, 0.25)),
                .dx = c.act_garbage(tokens, d),
                .parameters = {w},
                .forward = {},
                .backward = {}};
    Tensor targets = c.t.indices({3, 0, -1, 10, 5, 5, 1});
    const Head head{.linear = {w.w, w.dw}, .recipe = c.recipe, .chunk_rows = 2, .gradient_rows = 4};
    l.forward = [=, &s = c.s, &arena = c.arena] { head.losses(s, arena, l.x, targets, l.y); };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      head.losses_and_gradients(s, arena, l.x, targets, 0.25, l.y, l.dx, mode);
    };
    return l;
  });
}

TEST(Embedding, GradientSumsRepeatedTokensAndSkipsNone) {
  auto device = open_device("cpu");
  Stream s(*device);
  TestTensors t(*device, s);
  const Embedding embedding{t.normal(DType::f32, 5, 3), t.garbage(DType::f32, 5, 3)};
  Tensor tokens = t.indices({2, 4, 2}), x = t.garbage(DType::f32, 3, 3), dx = t.normal(DType::f32, 3, 3);
  embedding.forward(s, tokens, x);
  const auto table = read(s, embedding.w), rows = read(s, x), d = read(s, dx);
  for (int c = 0; c < 3; ++c) {
    EXPECT_EQ(rows[c], table[2 * 3 + c]);
    EXPECT_EQ(rows[3 + c], table[4 * 3 + c]);
  }
  embedding.backward_weight(s, tokens, dx, Accumulate::overwrite);
  embedding.backward_weight(s, tokens, dx, Accumulate::add);
  const auto g = read(s, embedding.dw);
  for (int c = 0; c < 3; ++c) {
    EXPECT_NEAR(g[2 * 3 + c], 2 * (d[c] + d[6 + c]), 1e-6);
    EXPECT_NEAR(g[4 * 3 + c], 2 * d[3 + c], 1e-6);
    EXPECT_EQ(g[c], 0);
  }
}

}  // namespace
}  // namespace cachalot::testing
