#include "backend/ops/swiglu.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

TEST(Swiglu, ForwardAndBackwardMeetTheMetric) {
  for (const int64_t rows : {0, 1, 3, 33, 129})
    for (const int64_t width : {1, 7, 17, 257})
      for (const DType act : {DType::f32, DType::bf16})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor x = b.t.normal(act, rows, 2 * width, 3, 1),
                           dy = b.t.normal(act, rows, width, 1, 2);
              const Tensor y = b.t.garbage(act, rows, width, 3), dx = b.t.garbage(act, rows, 2 * width);
              on(b.s).swiglu_forward({.x = x, .y = y});
              on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = dx});
              return {y, dx};
            },
            fmt::format("{} x {} {}", rows, width, name_of(act)));
}

TEST(Swiglu, LargeGatesNeitherOverflowNorLoseTheirSign) {
  for (const double gate : {-80.0, -30.0, 88.5, 200.0, 1e30})
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Tensor x = b.t.values(DType::f32, 1, 2, {gate, 1.5}), y = b.t.garbage(DType::f32, 1, 1);
          const Tensor dx = b.t.garbage(DType::f32, 1, 2);
          on(b.s).swiglu_forward({.x = x, .y = y});
          on(b.s).swiglu_backward({.dy = b.t.values(DType::f32, 1, 1, {1}), .x = x, .dx = dx});
          return {y, dx};
        },
        fmt::format("gate {}", gate));
  for (const TestedDevice& tested : tested_devices())
    for (const double gate : {-88.5, -200.0, -1e30}) {  // the true value is no normal float
      Bench b(*tested.device);
      const Tensor x = b.t.values(DType::f32, 1, 2, {gate, 1.5}), y = b.t.garbage(DType::f32, 1, 1);
      on(b.s).swiglu_forward({.x = x, .y = y});
      EXPECT_LT(std::abs(read_number(b.s, y)), 1e-35) << tested.name << ", gate " << gate;
    }
}

}  // namespace
}  // namespace cachalot
