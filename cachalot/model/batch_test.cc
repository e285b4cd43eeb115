#include "model/batch.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

std::vector<int32_t> host(Stream& s, Tensor t) {
  std::vector<int32_t> v(size_t(t.size()));
  on(s).download(t, v.data());
  on(s).synchronize();
  return v;
}

using Ints = std::vector<int32_t>;

TEST(TrainingBatch, DepthsShiftTokensAndLoseOneRowASequence) {
  auto device = open_device("ref");
  Stream s(*device);
  Arena arena(*device, 1 << 16, "test");
  const Ints a{10, 11, 12, 13, 14}, b{20, 21, 22, 23};
  const std::vector<std::span<const int32_t>> sequences{a, b};
  const TrainingBatch batch = make_training_batch(s, arena, sequences, 2);
  EXPECT_EQ(batch.main.rows, 7);
  EXPECT_EQ(host(s, batch.main.tokens), (Ints{10, 11, 12, 13, 20, 21, 22}));
  EXPECT_EQ(host(s, batch.main.targets), (Ints{11, 12, 13, 14, 21, 22, 23}));
  EXPECT_EQ(host(s, batch.main.positions), (Ints{0, 1, 2, 3, 0, 1, 2}));
  EXPECT_EQ(host(s, batch.main.starts), (Ints{0, 4, 7}));
  ASSERT_EQ(batch.mtp.size(), 2u);
  EXPECT_EQ(host(s, batch.mtp[0].batch.tokens), (Ints{11, 12, 13, 21, 22}));
  EXPECT_EQ(host(s, batch.mtp[0].batch.targets), (Ints{12, 13, 14, 22, 23}));
  EXPECT_EQ(host(s, batch.mtp[0].previous_rows), (Ints{0, 1, 2, 4, 5}));
  EXPECT_EQ(host(s, batch.mtp[0].next_rows), (Ints{0, 1, 2, -1, 3, 4, -1}));
  EXPECT_EQ(host(s, batch.mtp[1].batch.tokens), (Ints{12, 13, 22}));
  EXPECT_EQ(host(s, batch.mtp[1].batch.targets), (Ints{13, 14, 23}));
  EXPECT_EQ(host(s, batch.mtp[1].previous_rows), (Ints{0, 1, 3}));  // rows of depth 1
  EXPECT_EQ(host(s, batch.mtp[1].next_rows), (Ints{0, 1, -1, 2, -1}));
  EXPECT_EQ(host(s, batch.mtp[1].batch.starts), (Ints{0, 2, 3}));
}

TEST(TrainingBatch, ASequenceShorterThanTheDepthsIsABug) {
  auto device = open_device("ref");
  Stream s(*device);
  Arena arena(*device, 1 << 16, "test");
  const Ints a{1, 2, 3};
  const std::vector<std::span<const int32_t>> sequences{a};
  EXPECT_THROW(make_training_batch(s, arena, sequences, 2), InternalError);
}

}  // namespace
}  // namespace cachalot
