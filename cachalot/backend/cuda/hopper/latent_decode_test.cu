// Absorbed decoding beside other work on the card: a block waits for none that could not run before it ends.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "backend/cuda/hopper/latent_decode.h"

namespace cachalot::cuda::hopper {
namespace {

// A multiprocessor each, until `go` is set, and not longer than 2^34 clocks, some nine seconds.
__global__ void __launch_bounds__(32, 1) hold(const volatile int32_t* go) {
  if (threadIdx.x > 0) return;
  for (const int64_t start = clock64(); *go == 0 && clock64() - start < int64_t(1) << 34;) __nanosleep(30000);
}

template <class T> class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& from) : size_(from.size()) {
    EXPECT_EQ(cudaMalloc(&data_, size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, from.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> to(size_);
    EXPECT_EQ(cudaMemcpy(to.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return to;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// Numbers between -1 and 1, as bf16.
std::vector<uint16_t> some_numbers(size_t count, uint32_t state) {
  std::vector<uint16_t> x(count);
  for (uint16_t& y : x) {
    state = state * 1664525u + 1013904223u;
    y = uint16_t((state >> 16 & 0x8000u) | 0x3E00u | (state >> 20 & 0x17Fu));
  }
  return x;
}

// A cache of `tokens` tokens, in bytes.
std::vector<uint8_t> some_cache(LatentFormat format, int64_t tokens) {
  const int64_t width = bytes_of_token(format);
  std::vector<uint8_t> bytes(size_t(tokens * width));
  const std::vector<uint16_t> numbers = some_numbers(size_t(tokens * (kLatentWidth + kRopeWidth)), 3);
  if (format == LatentFormat::bf16) {
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
    return bytes;
  }
  const float scales[4] = {1, 0.5f, 2, 0.25f};
  for (int64_t t = 0; t < tokens; ++t) {
    uint8_t* const token = bytes.data() + t * width;
    const uint16_t* const from = numbers.data() + t * (kLatentWidth + kRopeWidth);
    for (int i = 0; i < kLatentWidth; ++i) token[i] = uint8_t((from[i] >> 8 & 0x80) | (0x20 + from[i] % 32));
    std::memcpy(token + kLatentWidth, scales, sizeof(scales));
    std::memcpy(token + kLatentWidth + sizeof(scales), from + kLatentWidth, 2 * kRopeWidth);
  }
  return bytes;
}

// Every sequence is cut in two, so that all blocks but the last depend on their right neighbours' pieces. One
// multiprocessor is free: blocks run one after the other, and the launch ends all the same, in the bits that
// it has with the card to itself.
TEST(LatentDecode, EndsWhereItsBlocksRunOneAfterTheOther) {
  cudaDeviceProp card{};
  if (cudaGetDeviceProperties(&card, 0) != cudaSuccess || card.major != 9)
    GTEST_SKIP() << "runs on machines with a Hopper GPU, in the preset cuda";
  constexpr int64_t kHeads = 128, kPages = 16;
  constexpr int32_t kTokens = 1000;
  const int64_t sequences = card.multiProcessorCount / 2 + 1;
  std::vector<int32_t> table(size_t(sequences * kPages)), starts(size_t(sequences + 1));
  for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t((i * 7 + i / kPages) % kPages);
  for (size_t i = 0; i < starts.size(); ++i) starts[i] = int32_t(i);
  const OnDevice<int32_t> pages(table), lens(std::vector<int32_t>(size_t(sequences), kTokens)),
      q_starts(starts), go(std::vector<int32_t>{0});
  const OnDevice<unsigned long long> faults(std::vector<unsigned long long>(64));
  const OnDevice<uint16_t> q(some_numbers(size_t(sequences * kHeads * kLatentWidth), 1)),
      rope(some_numbers(size_t(sequences * kHeads * kRopeWidth), 2)),
      o(std::vector<uint16_t>(size_t(sequences * kHeads * kLatentWidth)));
  cudaStream_t stream, other;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  constexpr int kMost = 200 << 10;  // of shared memory: nobody else's block fits beside it
  ASSERT_EQ(cudaFuncSetAttribute(hold, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost), cudaSuccess);
  for (const LatentFormat format : {LatentFormat::bf16, LatentFormat::fp8}) {
    const OnDevice<uint8_t> cache(some_cache(format, kPages * kBlockTokens));
    LatentDecode d{.step = {.sequences = sequences,
                            .rows = sequences,
                            .heads = kHeads,
                            .page_table = pages.data(),
                            .table_ld = kPages,
                            .table_cols = kPages,
                            .page_size = kBlockTokens,
                            .slots = kPages * kBlockTokens,
                            .kv_lens = lens.data(),
                            .q_starts = q_starts.data(),
                            .multiprocessors = card.multiProcessorCount,
                            .faults = {faults.data()}},
                   .q_latent = reinterpret_cast<const bf16*>(q.data()),
                   .q_rope = reinterpret_cast<const bf16*>(rope.data()),
                   .q_rope_stride = kRopeWidth,
                   .format = format,
                   .cache = cache.data(),
                   .o_latent = reinterpret_cast<bf16*>(o.data()),
                   .scale = 0.05f};
    const OnDevice<int32_t> plan(std::vector<int32_t>(size_t(plan_words(d.step))));
    const OnDevice<uint8_t> pieces(std::vector<uint8_t>(size_t(piece_bytes(d.step))));
    d.plan = plan.data(), d.pieces = pieces.data();
    const Queue queue{.stream = stream, .overlap = true};
    make_latent_plan(queue, d.step, plan.data());
    latent_decode(queue, d);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const std::vector<uint16_t> alone = o.read();
    cudaMemset(o.data(), 0xFF, alone.size() * 2);
    cudaMemset(go.data(), 0, sizeof(int32_t));
    cudaDeviceSynchronize();

    hold<<<card.multiProcessorCount - 1, 32, kMost, other>>>(go.data());
    const auto now = [] { return std::chrono::steady_clock::now(); };
    for (const auto begin = now(); now() - begin < std::chrono::milliseconds(5);) {
    }
    latent_decode(queue, d);
    const bool held = cudaStreamQuery(other) == cudaErrorNotReady;
    bool ended = false;  // before the others are let go
    while (!ended && cudaStreamQuery(other) == cudaErrorNotReady)
      ended = cudaStreamQuery(stream) == cudaSuccess;
    const int32_t set = 1;
    cudaStream_t third;
    ASSERT_EQ(cudaStreamCreateWithFlags(&third, cudaStreamNonBlocking), cudaSuccess);
    cudaMemcpyAsync(go.data(), &set, sizeof(set), cudaMemcpyHostToDevice, third);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    cudaStreamDestroy(third);
    if (!held) GTEST_SKIP() << "kernels run one at a time here";
    EXPECT_TRUE(ended) << "blocks waited for blocks that did not run";
    EXPECT_TRUE(o.read() == alone) << "other bits beside other work";
    for (const unsigned long long fault : faults.read()) EXPECT_EQ(fault, 0u);
  }
  cudaStreamDestroy(stream), cudaStreamDestroy(other);
}

}  // namespace
}  // namespace cachalot::cuda::hopper
