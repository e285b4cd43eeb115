#include "backend/ops/cross_entropy.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

TEST(CrossEntropy, LossAndGradientMeetTheMetric) {
  for (const int64_t rows : {0, 1, 3, 33})
    for (const int64_t vocabulary : {1, 2, 7, 129, 1000, 4099})
      for (const double spread : {1.0, 10.0})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor logits = b.t.normal(DType::f32, rows, vocabulary, spread);
              const Tensor kept = b.t.copy(b.s, logits);
              std::vector<int32_t> targets;
              for (int64_t t = 0; t < rows; ++t)
                targets.push_back(t % 4 == 1 ? -100 : int32_t(t * 37 % vocabulary));
              const Tensor loss = b.t.garbage(DType::f32, 1, rows), same = b.t.garbage(DType::f32, 1, rows);
              on(b.s).cross_entropy({.logits = logits,
                                     .targets = b.t.indices(targets),
                                     .loss = loss,
                                     .gradient = true,
                                     .scale = 0.37});
              on(b.s).cross_entropy({.logits = kept, .targets = b.t.indices(targets), .loss = same});
              EXPECT_TRUE(read_bits(b.s, loss) == read_bits(b.s, same)) << "the gradient changes the loss";
              return {logits, loss, kept};  // kept: without `gradient` the logits stay
            },
            fmt::format("{} x {}, spread {}", rows, vocabulary, spread));
}

// A confident model: all of the gradient is in what the target's probability lacks to 1.
TEST(CrossEntropy, SmallGradientsAreNotRoundedAway) {
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor logits = b.t.values(DType::f32, 1, 4, {20, 0, 0.5, -1}),
                 loss = b.t.garbage(DType::f32, 1, 1);
    on(b.s).cross_entropy({.logits = logits, .targets = b.t.indices({0}), .loss = loss, .gradient = true});
    return {logits, loss};
  });
}

TEST(CrossEntropy, LargeAndMinusInfiniteLogits) {
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor logits = b.t.values(DType::f32, 2, 3, {1e30, 3e30, -1e30, -INFINITY, 2, 1});
    const Tensor loss = b.t.garbage(DType::f32, 1, 2);
    on(b.s).cross_entropy({.logits = logits, .targets = b.t.indices({1, 2}), .loss = loss, .gradient = true});
    return {logits, loss};
  });
}

TEST(CrossEntropy, ATargetOutsideTheVocabularyIsRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).cross_entropy({.logits = b.t.normal(DType::f32, 1, 5),
                               .targets = b.t.indices({5}),
                               .loss = b.t.garbage(DType::f32, 1, 1)});
      },
      "target 5");
}

}  // namespace
}  // namespace cachalot
