#include "backend/cpu/cpu_device.h"

#include <array>
#include <thread>

#include "backend/cpu/cpu_backend.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

std::vector<const cpu::Kernels*> all_kernels() {
  std::vector<const cpu::Kernels*> all;
  for (const char* isa : {"sse2", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"}) {
    const ForcedIsa forced(isa);
    try {
      all.push_back(&cpu::choose_kernels());
    } catch (const Error&) {  // not of this machine
    }
  }
  if (all.empty()) all.push_back(&cpu::choose_kernels());
  return all;
}

TEST(CpuDevice, NamesItsThreadsAndRoundTripsPaddedRows) {
  EXPECT_EQ(open_cpu_device(1)->name(), "cpu (1 thread)");
  EXPECT_EQ(open_cpu_device(3)->name(), "cpu (3 threads)");
  Bench b(*tested_devices()[0].device);
  const Tensor t = b.t.garbage(DType::bf16, 3, 5, 2);
  const std::array<bf16, 15> numbers = [] {
    std::array<bf16, 15> n;
    for (int i = 0; i < 15; ++i) n[size_t(i)] = bf16(float(i));
    return n;
  }();
  on(b.s).upload(numbers.data(), t);
  const std::vector<double> got = read(b.s, t);
  for (int i = 0; i < 15; ++i) EXPECT_EQ(got[size_t(i)], i);
  EXPECT_TRUE(b.t.padding_intact(t));
}

TEST(CpuDevice, MemoryIsAlignedAndTooMuchOfItIsRefused) {
  auto device = open_cpu_device(1);
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{9} << 20}) {
    void* data = device->take(bytes);
    ASSERT_NE(data, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 256, 0u);
    device->give(data, bytes);
  }
  EXPECT_GT(device->free_bytes(), 0);
  EXPECT_EQ(device->take(int64_t{1} << 50), nullptr);
}

// Streams of one device share its threads: one takes them, another works alone meanwhile, and both are right.
TEST(CpuDevice, StreamsOfOneDeviceMayRunAtTheSameTime) {
  auto device = open_cpu_device(3, 0);
  const auto work = [&](uint64_t seed) {
    Bench b(*device, seed);
    const Tensor x = b.t.normal(DType::f32, 40, 70), w = b.t.normal(DType::f32, 90, 70);
    const Tensor first = b.t.garbage(DType::f32, 40, 90), y = b.t.garbage(DType::f32, 40, 90);
    on(b.s).gemm({.a = x, .b = w, .c = first, .trans_b = true});
    int differences = 0;
    for (int i = 0; i < 200; ++i) {
      on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
      differences += read_bits(b.s, y) != read_bits(b.s, first);
    }
    return differences;
  };
  int other = -1;
  std::thread thread([&] { other = work(1); });
  const int mine = work(2);
  thread.join();
  EXPECT_EQ(mine, 0);
  EXPECT_EQ(other, 0);
}

TEST(CpuScratch, NestsAndIsKeptBetweenOperations) {
  void *first = nullptr, *again = nullptr;
  for (int round = 0; round < 6; ++round) {
    cpu::Scratch outer;
    int64_t* a = outer.take<int64_t>(1000);
    a[999] = 7;
    for (int i = 0; i < 3; ++i) {  // larger than everything before in the first round
      cpu::Scratch inner;
      int64_t* b = inner.take<int64_t>(1 << 20);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 64, 0u);
      b[0] = b[(1 << 20) - 1] = i;
    }
    EXPECT_EQ(a[999], 7);
    if (round == 4) first = a;
    if (round == 5) again = a;
  }
  EXPECT_EQ(first, again);
}

TEST(CpuKernels, PanelsHoldEveryNumberOnceAndZerosBehindThem) {
  for (const cpu::Kernels* kernels : all_kernels())
    for (const int64_t w : {kernels->mr, kernels->nr})
      for (const int64_t count : {1, 3, 5, 16, 17, 33})
        for (const int64_t k : {1, 2, 5, 17, 40}) {
          const int64_t ld = 50;
          std::vector<float> rows(size_t(50 * ld));
          for (size_t i = 0; i < rows.size(); ++i) rows[i] = float(i + 1);
          std::vector<float> along(size_t(cpu::round_up(count, w) * k), NAN), across = along;
          kernels->pack_along(rows.data(), ld, count, k, w, along.data());
          kernels->pack_across(rows.data(), ld, count, k, w, across.data());
          for (int64_t i = 0; i < cpu::round_up(count, w); ++i)
            for (int64_t p = 0; p < k; ++p) {
              const size_t at = size_t(i / w * w * k + p * w + i % w);
              EXPECT_EQ(along[at], i < count ? rows[size_t(i * ld + p)] : 0);
              EXPECT_EQ(across[at], i < count ? rows[size_t(p * ld + i)] : 0);
            }
        }
}

}  // namespace
}  // namespace cachalot
