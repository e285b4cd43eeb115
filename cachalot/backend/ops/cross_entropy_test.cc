#include "backend/ops/cross_entropy.h"

#include <algorithm>
#include <cmath>

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

// Rows cut into slices, and more rows than are worked on at a time.
TEST(CrossEntropy, LongRowsAndManyRowsMeetTheMetric) {
  for (const auto& [rows, vocabulary] : std::vector<std::pair<int64_t, int64_t>>{
           {600, 1000}, {3, 16388}, {140, 20000}, {70, 40004}, {3, 129280}, {2, 131076}})
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Tensor logits = b.t.normal(DType::f32, rows, vocabulary, 3), kept = b.t.copy(b.s, logits);
          std::vector<int32_t> targets;
          for (int64_t t = 0; t < rows; ++t)
            targets.push_back(t % 4 == 1 ? -100 : int32_t(t == 0 ? vocabulary - 1 : t * 7919 % vocabulary));
          const Tensor loss = b.t.garbage(DType::f32, 1, rows), same = b.t.garbage(DType::f32, 1, rows);
          on(b.s).cross_entropy({.logits = logits,
                                 .targets = b.t.indices(targets),
                                 .loss = loss,
                                 .gradient = true,
                                 .scale = 0.37});
          on(b.s).cross_entropy({.logits = kept, .targets = b.t.indices(targets), .loss = same});
          EXPECT_TRUE(read_bits(b.s, loss) == read_bits(b.s, same)) << "the gradient changes the loss";
          return {logits, loss};
        },
        fmt::format("{} x {}", rows, vocabulary));
}

// The gradient elsewhere, rounded to bf16: the same numbers, zeros where there is no target.
TEST(CrossEntropy, TheGradientGoesWhereItIsWanted) {
  for (const DType format : {DType::bf16, DType::f32})
    for (const int64_t vocabulary : {1, 7, 129, 1000, 16392})
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            const Tensor logits = b.t.normal(DType::f32, 5, vocabulary, 2.0),
                         dlogits = b.t.garbage(format, 5, vocabulary), loss = b.t.garbage(DType::f32, 1, 5);
            on(b.s).cross_entropy(
                {.logits = logits,
                 .targets = b.t.indices({0, -1, int32_t(vocabulary - 1), 0, int32_t(vocabulary / 2)}),
                 .loss = loss,
                 .gradient = true,
                 .scale = 0.37,
                 .dlogits = dlogits});
            return {dlogits, loss};
          },
          fmt::format("{} columns, gradient in {}", vocabulary, name_of(format)));
}

// Rows of the gradient may be longer than the vocabulary; what lies behind them stays.
TEST(CrossEntropy, TheGradientKeepsToItsColumns) {
  for (const DType format : {DType::bf16, DType::f32})
    for (const auto& [vocabulary, padding] : {std::pair<int64_t, int64_t>{1000, 4}, {1000, 3}, {16392, 20}})
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            const Tensor logits = b.t.normal(DType::f32, 3, vocabulary, 2.0),
                         dlogits = b.t.garbage(format, 3, vocabulary, padding),
                         loss = b.t.garbage(DType::f32, 1, 3);
            on(b.s).cross_entropy({.logits = logits,
                                   .targets = b.t.indices({5, -1, int32_t(vocabulary - 1)}),
                                   .loss = loss,
                                   .gradient = true,
                                   .dlogits = dlogits});
            return {dlogits, loss};
          },
          fmt::format("{} columns and {}, {}", vocabulary, padding, name_of(format)));
}

// A NaN shows in the loss and the gradient of its row, wherever in the row it stands, and nowhere else.
TEST(CrossEntropy, NanStaysInItsRow) {
  for (const int64_t vocabulary : {7, 1000, 20000, 131076})
    for (const int64_t at : {int64_t(0), vocabulary / 2, vocabulary - 1})
      for (const TestedDevice& tested : tested_devices()) {
        const ScopedTrace trace(__FILE__, __LINE__, fmt::format("{}, {} of {}", tested.name, at, vocabulary));
        Bench b(*tested.device);
        const Tensor logits = b.t.normal(DType::f32, 3, vocabulary), loss = b.t.garbage(DType::f32, 1, 3),
                     same = b.t.garbage(DType::f32, 1, 3);
        const float nan = std::nanf("");
        on(b.s).upload(&nan, logits.slice_rows(1, 1).slice_cols(at, 1));
        const Tensor targets = b.t.indices({2, 3, 4});
        on(b.s).cross_entropy({.logits = logits, .targets = targets, .loss = same});
        on(b.s).cross_entropy({.logits = logits, .targets = targets, .loss = loss, .gradient = true});
        for (int64_t r = 0; r < 3; ++r) {
          EXPECT_EQ(std::isnan(read(b.s, loss)[size_t(r)]), r == 1);
          EXPECT_EQ(std::isnan(read(b.s, same)[size_t(r)]), r == 1);
          const std::vector<double> gradient = read(b.s, logits.slice_rows(r, 1));
          EXPECT_EQ(std::isnan(gradient[size_t(at)]), r == 1);
          EXPECT_EQ(std::any_of(gradient.begin(), gradient.end(), [](double x) { return std::isnan(x); }),
                    r == 1);
        }
      }
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
  // Whole parts of a row at -inf, and at a distance that no exponential reaches.
  expect_like_ref([](Bench& b) -> Outputs {
    constexpr int64_t kVocabulary = 40000;
    std::vector<double> values(2 * kVocabulary, -INFINITY);
    for (int64_t v = 30000; v < kVocabulary; ++v) values[size_t(v)] = double(v % 7);
    for (int64_t v = 0; v < kVocabulary; ++v) values[size_t(kVocabulary + v)] = v < 100 ? 0 : -1e30;
    const Tensor logits = b.t.values(DType::f32, 2, kVocabulary, values),
                 loss = b.t.garbage(DType::f32, 1, 2);
    on(b.s).cross_entropy(
        {.logits = logits, .targets = b.t.indices({30001, 7}), .loss = loss, .gradient = true});
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
