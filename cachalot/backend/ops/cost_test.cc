// Costs of operations whose numbers can be counted by hand, and the device that adds them up.
#include "backend/ops/cost.h"

#include <gtest/gtest.h>

#include "backend/profile/profile_device.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

const ReadIndices kRead = [](const Tensor& t) {
  const auto* p = static_cast<const int32_t*>(t.data);
  return std::vector<int32_t>(p, p + t.size());
};
Tensor shape(DType dtype, int64_t rows, int64_t cols) {
  static double memory[1];
  return make_tensor(memory, dtype, rows, cols);
}
Tensor indices(std::vector<int32_t>& values) {
  return make_tensor(values.data(), DType::i32, 1, int64_t(values.size()));
}

TEST(Cost, ProductCountsTwoFlopsATermAndEachOperandOnce) {
  Gemm g{.a = shape(DType::bf16, 5, 7), .b = shape(DType::bf16, 3, 7), .c = shape(DType::f32, 5, 3),
         .trans_b = true};
  EXPECT_EQ(cost_of(g, kRead).flops, 2 * 5 * 3 * 7);
  EXPECT_EQ(cost_of(g, kRead).bytes, 2 * (35 + 21) + 4 * 15);
  EXPECT_EQ(cost_of(g, kRead).shape, "5 x 3 x 7 bf16");
  g.accumulate = Accumulate::add;
  EXPECT_EQ(cost_of(g, kRead).bytes, 2 * (35 + 21) + 2 * 4 * 15);
}

TEST(Cost, GroupedProductCountsRowsThatHaveAnExpertAndExpertsThatHaveRows) {
  std::vector<int32_t> offsets{0, 4, 4, 6};
  const GroupedGemm g{.x = shape(DType::bf16, 10, 8), .w = shape(DType::bf16, 3 * 5, 8),
                      .y = shape(DType::bf16, 10, 5), .offsets = indices(offsets), .experts = 3};
  const Cost cost = cost_of(g, kRead);
  EXPECT_EQ(cost.flops, 2 * 6 * 5 * 8);
  EXPECT_EQ(cost.bytes, 2 * (6 * 8 + 6 * 5 + 2 * 5 * 8));
}

TEST(Cost, AttentionCountsVisiblePairs) {
  std::vector<int32_t> q{0, 3, 5}, k{0, 3, 9};  // 3 of 3: 6 pairs; 2 of 6: 5 + 6
  const AttentionShape a{.heads = 2, .nope = 4, .rope = 2, .value = 3, .sequences = 2,
                         .q_starts = indices(q), .k_starts = indices(k)};
  EXPECT_EQ(cost_of(AttentionForward{.shape = a}, kRead).flops, 2 * 17 * 2 * (6 + 3));
  EXPECT_EQ(cost_of(AttentionBackward{.shape = a}, kRead).flops, 2 * 17 * 2 * (3 * 6 + 2 * 3));
}

TEST(Profile, AddsUpCallsOfOneShapeAndGivesTheResultsOfTheDeviceInside) {
  const auto inner = open_device("cpu");
  Profile profile;
  const auto device = open_profile_device(*inner, profile);
  Stream s(*device), plain(*inner);
  testing::TestTensors t(*device, s, 3), u(*inner, plain, 3);
  const auto run = [](Stream& stream, testing::TestTensors& tensors) {
    const Tensor a = tensors.normal(DType::f32, 6, 5), b = tensors.normal(DType::f32, 5, 4),
                 c = tensors.garbage(DType::f32, 6, 4);
    for (int i = 0; i < 3; ++i) on(stream).gemm({.a = a, .b = b, .c = c});
    on(stream).gemm({.a = a.slice_rows(0, 2), .b = b, .c = c.slice_rows(0, 2)});
    return testing::read_bits(stream, c);
  };
  profile.clear();
  EXPECT_EQ(run(s, t), run(plain, u));
  double seconds = 0;
  int64_t calls = 0;
  for (const ProfileLine& line : profile.lines()) {
    if (line.op != "gemm") continue;
    seconds += line.seconds, calls += line.calls;
    EXPECT_GT(line.seconds, 0);
  }
  EXPECT_EQ(calls, 4);
  const ProfileLine products = profile.total(CostKind::product);
  EXPECT_EQ(products.calls, 4);
  EXPECT_EQ(products.cost.flops, 2 * 4 * 5 * (3 * 6 + 2));
  EXPECT_DOUBLE_EQ(products.seconds, seconds);
}

}  // namespace
}  // namespace cachalot
