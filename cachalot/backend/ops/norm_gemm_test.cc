#include "backend/ops/norm_gemm.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t rows, width, first, second;
  DType act, weight, out;
};

NormGemm run(Bench& b, const Case& c) {
  NormGemm g{.x = b.t.normal(c.act, c.rows, c.width, 3, 8),
             .gain = b.t.normal(DType::f32, 1, c.width),
             .y = b.t.garbage(c.act, c.rows, c.width),
             .r = b.t.garbage(DType::f32, 1, c.rows),
             .eps = 1e-3,
             .w = b.t.normal(c.weight, c.first, c.width, 0.1, 8),
             .c = b.t.garbage(c.out, c.rows, c.first, 1)};
  if (c.second > 0) {
    g.w2 = b.t.normal(c.weight, c.second, c.width, 0.1);
    g.c2 = b.t.garbage(c.out, c.rows, c.second, 2);
  }
  on(b.s).norm_gemm(g);
  return g;
}

// Few rows have kernels of their own, more are normalised and multiplied.
const std::vector<int64_t> kFewRows{0, 1, 3, 5, 8}, kMoreRows{9, 32, 70};

// Widths that end inside a lane's piece, one product and two.
std::vector<Case> cases(const std::vector<int64_t>& rows_of) {
  std::vector<Case> list;
  for (const int64_t rows : rows_of)
    for (const auto& [width, first, second] :
         {std::tuple(1024, 20, 12), std::tuple(512, 24, 0), std::tuple(264, 7, 3), std::tuple(1024, 72, 40),
          std::tuple(1500, 16, 0), std::tuple(2056, 5, 0), std::tuple(9, 3, 2)})
      for (const auto& [act, weight, out] :
           {std::tuple(DType::bf16, DType::bf16, DType::bf16),
            std::tuple(DType::bf16, DType::f32, DType::f32), std::tuple(DType::f32, DType::f32, DType::f32)})
        list.push_back({rows, width, first, second, act, weight, out});
  return list;
}

std::string name_of(const Case& c) {
  return fmt::format("{} x {} to {} and {}, {} by {}", c.rows, c.width, c.first, c.second,
                     cachalot::name_of(c.act), cachalot::name_of(c.weight));
}

void expect_metric(const std::vector<int64_t>& rows) {
  for (const Case& c : cases(rows))
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const NormGemm g = run(b, c);
          if (c.act != c.out) return {g.y, g.r};  // a number rounded the other way is far away in f32: below
          return c.second > 0 ? Outputs{g.y, g.r, g.c, g.c2} : Outputs{g.y, g.r, g.c};
        },
        name_of(c));
}

TEST(NormGemm, FewRowsMeetTheMetric) { expect_metric(kFewRows); }
TEST(NormGemm, MoreRowsMeetTheMetric) { expect_metric(kMoreRows); }

// What is multiplied is y as it was rounded and written.
void expect_products_of_what_is_written(const std::vector<int64_t>& rows) {
  for (const TestedDevice& tested : tested_devices())
    for (const Case& c : cases(rows)) {
      Bench b(*tested.device);
      const NormGemm g = run(b, c);
      const auto expect = [&](const Tensor& w, const Tensor& made) {
        const Tensor apart = b.t.garbage(c.out, c.rows, w.rows);
        on(b.s).gemm({.a = g.y, .b = w, .c = apart, .trans_b = true});
        EXPECT_METRIC(download(b.s, made), download(b.s, apart), bound_of(c.out));
        EXPECT_TRUE(b.t.padding_intact(made));
      };
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, tested.name + ", " + name_of(c));
      expect(g.w, g.c);
      if (c.second > 0) expect(g.w2, g.c2);
    }
}

TEST(NormGemm, FewRowsMultiplyTheNumbersWritten) { expect_products_of_what_is_written(kFewRows); }
TEST(NormGemm, MoreRowsMultiplyTheNumbersWritten) { expect_products_of_what_is_written(kMoreRows); }

}  // namespace
}  // namespace cachalot
