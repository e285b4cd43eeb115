#include "backend/ops/adamw.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

TEST(AdamW, MeetsTheMetricClippedOrNot) {
  const int64_t shapes[][2] = {{0, 3}, {1, 1}, {3, 7}, {17, 65}, {2, 4500}};
  for (const auto& [rows, cols] : shapes)
    for (const double max_norm : {0.0, 1.0, 1e9})
      for (const int weight : {0, 1, 2})  // absent, f32, bf16
        for (const int64_t step : {1, 1000})
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const Tensor master = b.t.normal(DType::f32, rows, cols),
                             grad = b.t.normal(DType::f32, rows, cols);
                const Tensor m = b.t.normal(DType::bf16, rows, cols, 0.1, 1);
                const Tensor v = b.t.uniform(DType::bf16, rows, cols, 0, 0.1, 2);
                const Tensor copy = weight == 0
                                        ? Tensor{}
                                        : b.t.garbage(weight == 1 ? DType::f32 : DType::bf16, rows, cols, 3);
                on(b.s).adamw({.master = master,
                               .grad = grad,
                               .m = m,
                               .v = v,
                               .weight = copy,
                               .grad_norm_squared = b.t.values(DType::f64, 1, 1, {50}),
                               .lr = 0.1,
                               .weight_decay = 0.1,
                               .max_norm = max_norm,
                               .step = step});
                Outputs out{master, m, v};
                if (weight) out.push_back(copy);
                return out;
              },
              fmt::format("{} x {}, max_norm {}, weight {}, step {}", rows, cols, max_norm, weight, step));
}

TEST(AdamW, NothingChangesWhenTheNormIsNotFinite) {
  for (const TestedDevice& tested : tested_devices())
    for (const double norm : {double(NAN), double(INFINITY)}) {
      Bench b(*tested.device);
      const Tensor master = b.t.normal(DType::f32, 3, 5), m = b.t.normal(DType::bf16, 3, 5),
                   v = b.t.uniform(DType::bf16, 3, 5, 0, 1), weight = b.t.normal(DType::bf16, 3, 5);
      const auto bits = [&] {
        return read_bits(b.s, master) + read_bits(b.s, m) + read_bits(b.s, v) + read_bits(b.s, weight);
      };
      const std::string before = bits();
      on(b.s).adamw({.master = master,
                     .grad = b.t.garbage(DType::f32, 3, 5),
                     .m = m,
                     .v = v,
                     .weight = weight,
                     .grad_norm_squared = b.t.values(DType::f64, 1, 1, {norm}),
                     .lr = 0.1,
                     .max_norm = 1});
      EXPECT_TRUE(bits() == before) << tested.name;
    }
}

TEST(AdamW, ZeroGradientsFromAFreshStartOnlyDecay) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor master = b.t.values(DType::f32, 1, 1, {2}), zero = b.t.zeros(DType::bf16, 1, 1);
    on(b.s).adamw({.master = master,
                   .grad = b.t.zeros(DType::f32, 1, 1),
                   .m = zero,
                   .v = b.t.zeros(DType::bf16, 1, 1),
                   .grad_norm_squared = b.t.zeros(DType::f64, 1, 1),
                   .lr = 0.5,
                   .weight_decay = 0.25,
                   .max_norm = 1});
    EXPECT_EQ(read_number(b.s, master), 1.75) << tested.name;
  }
}

}  // namespace
}  // namespace cachalot
