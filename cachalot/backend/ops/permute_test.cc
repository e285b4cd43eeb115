#include "backend/ops/permute.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

// Choices of `tokens` tokens: k distinct experts each, ascending.
std::vector<int32_t> choices(int64_t tokens, int64_t k, int64_t experts) {
  std::vector<int32_t> all;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> of_token;
    for (int64_t e = 0; e < experts && int64_t(of_token.size()) < k; ++e) {
      const uint64_t left = uint64_t(experts - e), wanted = uint64_t(k) - of_token.size();
      if (random_below(3, uint64_t(t), uint64_t(e), left) < wanted) of_token.push_back(int32_t(e));
    }
    all.insert(all.end(), of_token.begin(), of_token.end());
  }
  return all;
}

const int64_t kShapes[][3] = {{0, 2, 4},  {1, 1, 1},    {3, 2, 7},
                              {17, 8, 8}, {129, 3, 33}, {130, 8, 64}};  // T, K, E

Tensor plan(Bench& b, int64_t tokens, int64_t k, int64_t experts) {
  const Tensor row_of = b.t.garbage(DType::i32, tokens, k), offsets = b.t.garbage(DType::i32, 1, experts + 1);
  on(b.s).permute_plan({.indices = b.t.indices(tokens, k, choices(tokens, k, experts)),
                        .row_of = row_of,
                        .offsets = offsets,
                        .experts = experts});
  return row_of;
}

TEST(Permute, ThePlanSortsByExpertThenByToken) {
  for (const auto& [tokens, k, experts] : kShapes)
    expect_like_ref([&](Bench& b) -> Outputs {
      const Tensor row_of = b.t.garbage(DType::i32, tokens, k),
                   offsets = b.t.garbage(DType::i32, 1, experts + 1);
      on(b.s).permute_plan({.indices = b.t.indices(tokens, k, choices(tokens, k, experts)),
                            .row_of = row_of,
                            .offsets = offsets,
                            .experts = experts});
      return {row_of, offsets};
    });
  for (const TestedDevice& tested : tested_devices()) {  // and by hand
    Bench b(*tested.device);
    const Tensor row_of = b.t.garbage(DType::i32, 3, 2), offsets = b.t.garbage(DType::i32, 1, 5);
    on(b.s).permute_plan({.indices = b.t.indices(3, 2, {0, 3, 0, 1, 1, 3}),
                          .row_of = row_of,
                          .offsets = offsets,
                          .experts = 4});
    EXPECT_EQ(read_indices(b.s, row_of), (std::vector<int32_t>{0, 4, 1, 2, 3, 5}));
    EXPECT_EQ(read_indices(b.s, offsets), (std::vector<int32_t>{0, 2, 4, 4, 6}));
  }
}

TEST(Permute, CodesTakeTheirScalesAlong) {
  for (const auto& [tokens, k, experts] : kShapes)
    for (const int64_t cols : {5, 128, 300})
      expect_like_ref([&](Bench& b) -> Outputs {
        const Tensor row_of = plan(b, tokens, k, experts), x = b.t.normal_row_tiles(tokens, cols, 2),
                     y = b.t.garbage_row_tiles(tokens * k, cols, 7);
        on(b.s).permute({.x = x, .row_of = row_of, .y = y});
        return {y};
      });
}

TEST(Permute, ExpertsOutOfRangeAreRefused) {
  for (const int32_t expert : {-1, 4})
    expect_refused(
        [&](Bench& b) {
          on(b.s).permute_plan({.indices = b.t.indices(1, 2, {0, expert}),
                                .row_of = b.t.garbage(DType::i32, 1, 2),
                                .offsets = b.t.garbage(DType::i32, 1, 5),
                                .experts = 4});
        },
        "permute_plan");
}

TEST(Permute, CopiesEveryTokenToItsRows) {
  for (const auto& [tokens, k, experts] : kShapes)
    for (const int64_t width : {1, 7, 65})
      for (const DType act : {DType::f32, DType::bf16})
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor y = b.t.garbage(act, tokens * k, width, 3), x = b.t.normal(act, tokens, width, 1, 1);
          on(b.s).permute({.x = x, .row_of = plan(b, tokens, k, experts), .y = y});
          return {y};
        });
}

TEST(Unpermute, AddsWhatIsThereInEveryCombination) {
  int number = 0;
  for (const auto& [tokens, k, experts] : kShapes)
    for (const bool with_weights : {false, true})
      for (const int residual : {0, 1, 2})  // absent, apart, y itself
        for (const int shared : {0, 1, 2})
          for (const DType act : {DType::f32, DType::bf16}) {
            const int64_t width = ++number % 2 ? 7 : 33;
            expect_like_ref(
                [&](Bench& b) -> Outputs {
                  const Tensor x = b.t.normal(act, tokens * k, width, 1, 1),
                               y = b.t.normal(act, tokens, width, 1, 2);
                  const Tensor other = b.t.normal(act, tokens, width, 1, 4),
                               third = b.t.normal(act, tokens, width);
                  const Tensor weights = b.t.normal(DType::f32, tokens, k), none;
                  on(b.s).unpermute({.x = x,
                                     .row_of = plan(b, tokens, k, experts),
                                     .weights = with_weights ? weights : none,
                                     .residual = residual == 0   ? none
                                                 : residual == 1 ? other
                                                                 : y,
                                     .shared = shared == 0   ? none
                                               : shared == 1 ? third
                                                             : y,
                                     .y = y});
                  return {y};
                },
                fmt::format("{} tokens, weights {}, residual {}, shared {}", tokens, with_weights, residual,
                            shared));
          }
}

TEST(Unpermute, BackwardMeetsTheMetric) {
  for (const auto& [tokens, k, experts] : kShapes)
    for (const int64_t width : {1, 33, 257})
      for (const DType act : {DType::f32, DType::bf16})
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor dy = b.t.normal(act, tokens, width, 1, 1),
                       x = b.t.normal(act, tokens * k, width, 1, 2);
          const Tensor dx = b.t.garbage(act, tokens * k, width, 3),
                       dweights = b.t.garbage(DType::f32, tokens, k);
          on(b.s).unpermute_backward({.dy = dy,
                                      .x = x,
                                      .row_of = plan(b, tokens, k, experts),
                                      .weights = b.t.normal(DType::f32, tokens, k),
                                      .dx = dx,
                                      .dweights = dweights});
          return {dx, dweights};
        });
}

TEST(Unpermute, RowsOutOfRangeAreRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).unpermute({.x = b.t.normal(DType::f32, 2, 3),
                           .row_of = b.t.indices(1, 2, {0, 2}),
                           .y = b.t.garbage(DType::f32, 1, 3)});
      },
      "unpermute");
}

}  // namespace
}  // namespace cachalot
