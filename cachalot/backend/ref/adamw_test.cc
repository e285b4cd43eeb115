#include "backend/ref/ref_backend.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

class RefAdamWTest : public Test {
 protected:
  std::unique_ptr<Device> device = open_ref_device();
  Stream s{*device};
  TestTensors t{*device, s};
};

// One number by hand: lr 0.1, beta1 0.5, beta2 0.75, eps 0, decay 0.2; m^ and v^ are m and v corrected.
//   g = 2:  m = 1, v = 1, m^ = 1 / 0.5 = 2, v^ = 1 / 0.25 = 4:   w = 3 - 0.1 (2 / 2 + 0.6) = 2.84
//   g = -1: m = 0, v = 1, m^ = 0:                                w = 2.84 - 0.1 0.2 2.84 = 2.7832
//   g = 1:  m = 0.5, v = 1, m^ = 0.5 / (1 - 0.5^3), v^ = 1 / (1 - 0.75^3)
TEST_F(RefAdamWTest, FollowsTheFormula) {
  const Tensor master = t.values(DType::f64, 1, 1, {3}), m = t.zeros(DType::f64, 1, 1),
               v = t.zeros(DType::f64, 1, 1);
  const Tensor norm = t.values(DType::f64, 1, 1, {1e9});  // no max_norm: not looked at
  const auto step = [&](int64_t n, double grad) {
    on(s).adamw({.master = master,
                 .grad = t.values(DType::f64, 1, 1, {grad}),
                 .m = m,
                 .v = v,
                 .grad_norm_squared = norm,
                 .lr = 0.1,
                 .beta1 = 0.5,
                 .beta2 = 0.75,
                 .eps = 0,
                 .weight_decay = 0.2,
                 .step = n});
    return read_number(s, master);
  };
  EXPECT_NEAR(step(1, 2), 2.84, 1e-14);
  EXPECT_NEAR(step(2, -1), 2.7832, 1e-14);
  EXPECT_NEAR(read_number(s, v), 1, 1e-14);
  EXPECT_NEAR(step(3, 1), 2.7832 - 0.1 * (0.5 / 0.875 / std::sqrt(1 / 0.578125) + 0.2 * 2.7832), 1e-14);
}

TEST_F(RefAdamWTest, EpsIsOutsideTheRoot) {
  const Tensor master = t.values(DType::f64, 1, 1, {0});
  on(s).adamw({.master = master,
               .grad = t.values(DType::f64, 1, 1, {1e-8}),
               .m = t.zeros(DType::f64, 1, 1),
               .v = t.zeros(DType::f64, 1, 1),
               .grad_norm_squared = t.zeros(DType::f64, 1, 1),
               .lr = 1,
               .eps = 1e-8});
  EXPECT_NEAR(read_number(s, master), -0.5, 1e-12);
}

TEST_F(RefAdamWTest, ClipsByTheNormOnTheDevice) {
  const auto first_moment = [&](double norm_squared, double max_norm) {
    const Tensor m = t.zeros(DType::f64, 1, 1);
    on(s).adamw({.master = t.zeros(DType::f64, 1, 1),
                 .grad = t.values(DType::f64, 1, 1, {8}),
                 .m = m,
                 .v = t.zeros(DType::f64, 1, 1),
                 .grad_norm_squared = t.values(DType::f64, 1, 1, {norm_squared}),
                 .lr = 1,
                 .beta1 = 0,
                 .max_norm = max_norm});
    return read_number(s, m);
  };
  EXPECT_DOUBLE_EQ(first_moment(16, 1), 2);  // norm 4: a quarter
  EXPECT_DOUBLE_EQ(first_moment(0.25, 1), 8);
  EXPECT_DOUBLE_EQ(first_moment(16, 0), 8);
  EXPECT_DOUBLE_EQ(first_moment(0, 1), 8);
}

TEST_F(RefAdamWTest, RoundsMomentsToBf16ButUpdatesWithTheUnrounded) {
  const Tensor master = t.values(DType::f32, 2, 1, {1, -2}), grad = t.values(DType::f32, 2, 1, {0.3, 0.7});
  const Tensor m = t.zeros(DType::bf16, 2, 1), v = t.zeros(DType::bf16, 2, 1),
               weight = t.garbage(DType::bf16, 2, 1);
  on(s).adamw({.master = master,
               .grad = grad,
               .m = m,
               .v = v,
               .weight = weight,
               .grad_norm_squared = t.zeros(DType::f64, 1, 1),
               .lr = 0.01,
               .eps = 0});
  // The first step moves by lr sign(g), whatever g is: only with unrounded m and v is that exact.
  EXPECT_EQ(read(s, master), (std::vector<double>{float(1 - 0.01), float(-2 - 0.01)}));
  EXPECT_EQ(read(s, m)[0], float(bf16(0.1f * 0.3f)));
  EXPECT_EQ(read(s, weight)[0], float(bf16(0.99f)));
}

TEST_F(RefAdamWTest, ChangesNothingWhenTheNormIsNotFinite) {
  for (const double bad : {double(INFINITY), std::nan("")}) {
    const Tensor master = t.values(DType::f32, 1, 2, {1, 2}), m = t.values(DType::bf16, 1, 2, {3, 4});
    const Tensor v = t.values(DType::bf16, 1, 2, {5, 6}), weight = t.values(DType::bf16, 1, 2, {7, 8});
    on(s).adamw({.master = master,
                 .grad = t.garbage(DType::f32, 1, 2),
                 .m = m,
                 .v = v,
                 .weight = weight,
                 .grad_norm_squared = t.values(DType::f64, 1, 1, {bad}),
                 .lr = 1});
    EXPECT_EQ(read(s, master), (std::vector<double>{1, 2}));
    EXPECT_EQ(read(s, m), (std::vector<double>{3, 4}));
    EXPECT_EQ(read(s, v), (std::vector<double>{5, 6}));
    EXPECT_EQ(read(s, weight), (std::vector<double>{7, 8}));
  }
}

}  // namespace
}  // namespace cachalot
