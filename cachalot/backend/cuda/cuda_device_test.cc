// What a stream of a GPU promises beyond its operations. Without a GPU there is nothing to prove.
#include <algorithm>
#include <numeric>

#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_device.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

class CudaDevice : public Test {
 protected:
  void SetUp() override {
    const CudaStatus status = probe_cuda();
    if (status.devices.empty() || !status.devices[0].usable())
      GTEST_SKIP() << "runs on machines with a GPU, in the preset cuda: " << status.message;
    device = open_device("cuda");
  }
  std::unique_ptr<Device> device;
};

std::vector<int32_t> counting(int64_t n, int32_t first = 0) {
  std::vector<int32_t> v(static_cast<size_t>(n));
  std::iota(v.begin(), v.end(), first);
  return v;
}

TEST_F(CudaDevice, TransfersOfAnySizeArriveWhole) {
  Stream s(*device);
  const int64_t shapes[][3] = {{1, 1, 1},       {3, 5, 7},       {1, 3000001, 3000001}, {2, 2500000, 2500001},
                               {700, 999, 999}, {700, 999, 1024}};  // rows, cols, ld
  for (const auto& [rows, cols, ld] : shapes) {
    Buffer memory(*device, rows * ld * 4, "test");
    Tensor whole = make_tensor(memory.data(), DType::i32, rows, ld), part = whole;
    part.cols = cols;
    on(s).fill({.y = whole, .value = -7});
    const std::vector<int32_t> sent = counting(rows * cols);
    on(s).upload(sent.data(), part);
    std::vector<int32_t> back(sent.size(), -1), all(size_t(rows * ld), -1);
    on(s).download(part, back.data());
    on(s).download(whole, all.data());
    on(s).synchronize();
    EXPECT_EQ(back, sent);
    for (int64_t i = 0; i < rows * ld; ++i)
      ASSERT_EQ(all[size_t(i)], i % ld < cols ? int32_t(i / ld * cols + i % ld) : -7) << i;
  }
}

TEST_F(CudaDevice, AnUploadHasCopiedItsSourceWhenItReturns) {
  Stream s(*device);
  constexpr int kCount = 300;
  constexpr int64_t kSize = 40000;  // 48 MB in all: more than is staged at once
  Buffer memory(*device, kCount * kSize * 4, "test");
  const Tensor all = make_tensor(memory.data(), DType::i32, kCount, kSize);
  for (int i = 0; i < kCount; ++i) {
    std::vector<int32_t> source = counting(kSize, i);
    on(s).upload(source.data(), all.slice_rows(i, 1));
    std::fill(source.begin(), source.end(), -1);
  }
  const HostTensor back = download(s, all);
  for (int i = 0; i < kCount; ++i)
    for (const int64_t c : {int64_t(0), int64_t(1), kSize - 1}) EXPECT_EQ(back(i, c), double(i + c));
}

TEST_F(CudaDevice, ADownloadHoldsWhatWasThereWhenItWasAskedFor) {
  Stream s(*device);
  Buffer memory(*device, 4, "test");
  const Tensor x = make_tensor(memory.data(), DType::i32, 1, 1);
  int32_t first = 0, second = 0;
  on(s).fill({.y = x, .value = 1});
  on(s).download(x, &first);
  on(s).fill({.y = x, .value = 2});
  on(s).download(x, &second);
  on(s).synchronize();
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 2);
}

TEST_F(CudaDevice, AnotherStreamWaitsForAnEventAndEventsTellTheTime) {
  Stream a(*device), b(*device);
  constexpr int64_t kSize = 64 << 20;
  Buffer memory(*device, kSize * 4, "test");
  const Tensor x = make_tensor(memory.data(), DType::i32, 1, kSize);
  const EventPtr before = on(a).record();
  for (int i = 1; i <= 20; ++i) on(a).fill({.y = x, .value = double(i)});
  const EventPtr after = on(a).record();
  on(b).wait(after);
  Tensor last = make_tensor(static_cast<int32_t*>(memory.data()) + kSize - 1, DType::i32, 1, 1);
  int32_t got = 0;
  on(b).download(last, &got);
  on(b).synchronize();
  EXPECT_EQ(got, 20);
  EXPECT_GT(after->seconds_after(*before), 1e-4);  // 5 GB written
  EXPECT_LT(after->seconds_after(*before), 1);
}

// An index out of range is met on the device: the next synchronize() names it, and the one after is clean.
TEST_F(CudaDevice, AWrongIndexIsReportedOnceAndTheStreamGoesOn) {
  Stream s(*device);
  TestTensors t(*device, s);
  const Tensor y = t.garbage(DType::f32, 2, 3), x = t.normal(DType::f32, 4, 3);
  on(s).gather_rows({.x = x, .rows = t.indices({1, 4}), .y = y});
  try {
    on(s).synchronize();
    FAIL();
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("gather_rows: row 4 of 4"), std::string::npos) << e.what();
  }
  on(s).gather_rows({.x = x, .rows = t.indices({1, 3}), .y = y});
  const std::vector<double> values = read(s, x), rows = read(s, y);
  EXPECT_TRUE(std::equal(rows.begin(), rows.begin() + 3, values.begin() + 3));
  EXPECT_TRUE(std::equal(rows.begin() + 3, rows.end(), values.begin() + 9));
}

TEST_F(CudaDevice, MemoryIsAlignedAndTooMuchIsRefusedWithNumbers) {
  for (const int64_t bytes : {0, 1, 1000}) {
    const Buffer memory(*device, bytes, "test");
    EXPECT_NE(memory.data(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % 256, 0u);
  }
  const int64_t free = device->free_bytes();
  EXPECT_GT(free, 0);
  EXPECT_THROW(Buffer(*device, free + (int64_t(1) << 30), "weights"), Error);
  const Buffer still_fine(*device, 1 << 20, "test");
}

// What a model may ask for and no kernel has room for: said with the number, what there is, and what to do;
// the stream is as it was.
TEST_F(CudaDevice, ShapesThatNoKernelTakesAreRefusedWithTheirNumbers) {
  Stream s(*device);
  TestTensors t(*device, s);
  constexpr DType kAct = DType::bf16, kStat = DType::f32;
  const auto refused = [&](const char* number, const char* most, const std::function<void(Backend&)>& call) {
    try {
      call(on(s));
      ADD_FAILURE() << number << " was taken";
    } catch (const Error& e) {
      const std::string what = e.what();
      EXPECT_NE(what.find(number), std::string::npos) << what;
      EXPECT_NE(what.find(most), std::string::npos) << what;
      EXPECT_FALSE(e.hint().empty());
    }
  };
  const AttentionShape shape{.heads = 1,
                             .nope = 292,
                             .rope = 8,
                             .value = 16,
                             .scale = 1,
                             .sequences = 1,
                             .q_starts = t.indices({0, 2}),
                             .k_starts = t.indices({0, 2})};
  const Tensor q = t.normal(kAct, 2, 300), kv = t.normal(kAct, 2, 308), k_rope = t.normal(kAct, 2, 8),
               o = t.garbage(kAct, 2, 16), lse = t.garbage(kStat, 2, 1);
  refused("300", "256", [&](Backend& b) {
    b.attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
  });
  refused("300", "256", [&](Backend& b) {
    b.attention_backward({.shape = shape,
                          .q = q,
                          .kv = kv,
                          .k_rope = k_rope,
                          .o = o,
                          .lse = lse,
                          .d_o = o,
                          .dq = t.garbage(kAct, 2, 300),
                          .dkv = t.garbage(kAct, 2, 308),
                          .dk_rope = t.garbage(kAct, 2, 8)});
  });
  refused("1032", "1024", [&](Backend& b) {
    b.latent_attention({.q_latent = t.normal(kAct, 1, 1032),
                        .q_rope = t.normal(kAct, 1, 8),
                        .cache = t.normal(kAct, 64, 1040),
                        .page_table = t.indices(1, 1, {0}),
                        .kv_lens = t.indices({3}),
                        .q_starts = t.indices({0, 1}),
                        .o_latent = t.garbage(kAct, 1, 1032),
                        .heads = 1,
                        .latent = 1032,
                        .rope = 8,
                        .q_rope_stride = 8,
                        .page_size = 64,
                        .sequences = 1,
                        .scale = 1});
  });
  const Tensor wide = t.normal(kAct, 1, 32776), r = t.normal(kStat, 1, 1), gain = t.normal(kStat, 1, 32776);
  refused("32776", "32768", [&](Backend& b) {
    b.rmsnorm_forward({.x = wide, .gain = gain, .y = t.garbage(kAct, 1, 32776), .r = r, .eps = 1e-6});
  });
  const auto part = [](const Tensor& x) { return x.slice_cols(0, 14344); };
  refused("14344", "14336", [&](Backend& b) {
    b.rmsnorm_backward({.dy = part(wide),
                        .x = part(wide),
                        .gain = part(gain),
                        .r = r,
                        .dx = t.garbage(kAct, 1, 14344),
                        .dgain = t.garbage(kStat, 1, 14344)});
  });
  on(s).fill({.y = r, .value = 2});
  EXPECT_EQ(read_number(s, r), 2);
}

// A stream that records a graph refuses whatever waits, and what reads memory sees nothing yet: operations
// that come out of a graph with the bits that they have without one only queue. None of them takes memory.
TEST_F(CudaDevice, OperationsOnlyQueueAndRepeatTheirBitsFromAGraph) {
  Stream s(*device);
  TestTensors t(*device, s);
  constexpr int64_t kTokens = 70, kWidth = 48, kExperts = 16, kChosen = 4, kRows = kTokens * kChosen;
  std::vector<Tensor> outputs;
  const auto out = [&](DType format, int64_t rows, int64_t cols) {
    outputs.push_back(t.garbage(format, rows, cols));
    return outputs.back();
  };
  constexpr DType kAct = DType::bf16, kStat = DType::f32, kIndex = DType::i32;
  const Tensor x = t.normal(kAct, kTokens, kWidth), dy = t.normal(kAct, kTokens, kWidth);
  const Tensor gain = t.normal(kStat, 1, kWidth), logits = t.normal(kStat, kTokens, kExperts);
  const Tensor bias = t.normal(kStat, 1, kExperts), positions = t.indices(counting(kTokens));
  const Tensor targets = t.indices(std::vector<int32_t>(kTokens, 3)), starts = t.indices({0, 30, kTokens});
  const Tensor cos = t.normal(kStat, kTokens, kWidth / 2), sin = t.normal(kStat, kTokens, kWidth / 2);
  const Tensor gradient = t.normal(kStat, 9, 100), step_by = t.values(DType::f64, 1, 1, {2});
  const Tensor y = out(kAct, kTokens, kWidth), r = out(kStat, 1, kTokens), dx = out(kAct, kTokens, kWidth),
               dgain = out(kStat, 1, kWidth), turned = out(kAct, kTokens, kWidth),
               swiglu = out(kAct, kTokens, kWidth / 2), dswiglu = out(kAct, kTokens, kWidth),
               scores = out(kStat, kTokens, kExperts), indices = out(kIndex, kTokens, kChosen),
               weights = out(kStat, kTokens, kChosen), counts = out(kIndex, 1, kExperts),
               visits = out(kIndex, 1, 1), fractions = out(kStat, 2, kExperts), balance = out(kStat, 1, 2),
               dlogits = out(kStat, kTokens, kExperts), moved = out(kStat, 1, kExperts),
               row_of = out(kIndex, kTokens, kChosen), offsets = out(kIndex, 1, kExperts + 1),
               rows = out(kAct, kRows, kWidth), back = out(kAct, kTokens, kWidth),
               drows = out(kAct, kRows, kWidth), dweights = out(kStat, kTokens, kChosen),
               gathered = out(kStat, kTokens, kWidth), scattered = out(kAct, kTokens, kWidth),
               summed = out(kStat, 7 + kTokens, kWidth), soft = out(kStat, kTokens, kExperts),
               loss = out(kStat, 1, kTokens), drawn = out(kIndex, 1, kTokens),
               likeliest = out(kIndex, 1, kTokens), squares = out(DType::f64, 1, 1),
               master = out(kStat, 9, 100), m = out(kAct, 9, 100), v = out(kAct, 9, 100),
               weight = out(kAct, 9, 100);
  const auto work = [&] {
    Backend& b = on(s);
    b.rmsnorm_forward({.x = x, .gain = gain, .y = y, .r = r, .eps = 1e-6});
    b.rmsnorm_backward({.dy = dy, .x = x, .gain = gain, .r = r, .residual = y, .dx = dx, .dgain = dgain});
    b.cast({.x = x, .y = turned});
    b.rope({.x = turned, .positions = positions, .cos = cos, .sin = sin, .width = kWidth});
    b.swiglu_forward({.x = x, .y = swiglu});
    b.swiglu_backward({.dy = swiglu, .x = x, .dx = dswiglu});
    b.gate_forward({.logits = logits,
                    .bias = bias,
                    .scores = scores,
                    .indices = indices,
                    .weights = weights,
                    .counts = counts,
                    .groups = 4,
                    .topk_groups = 2});
    b.balance_loss({.scores = scores,
                    .starts = starts,
                    .fractions = fractions,
                    .loss = balance,
                    .sequences = 2,
                    .top_k = kChosen});
    b.gate_backward({.dweights = weights,
                     .scores = scores,
                     .indices = indices,
                     .dlogits = dlogits,
                     .balance_factor = 0.1,
                     .starts = starts,
                     .fractions = fractions,
                     .sequences = 2});
    b.count_groups({.indices = indices, .visits = visits, .experts = kExperts, .groups = 4});
    b.cast({.x = bias, .y = moved});
    b.update_gate_bias({.counts = counts, .bias = moved, .gamma = 0.01});
    b.permute_plan({.indices = indices, .row_of = row_of, .offsets = offsets, .experts = kExperts});
    b.permute({.x = x, .row_of = row_of, .y = rows});
    b.unpermute({.x = rows, .row_of = row_of, .weights = weights, .residual = x, .y = back});
    b.unpermute_backward(
        {.dy = dy, .x = rows, .row_of = row_of, .weights = weights, .dx = drows, .dweights = dweights});
    b.gather_rows({.x = x, .rows = positions, .y = gathered});
    b.scatter_rows({.x = gathered, .rows = positions, .y = scattered});
    b.scatter_add_rows({.x = x, .rows = targets, .y = summed});
    b.cast({.x = logits, .y = soft});
    b.cross_entropy({.logits = soft, .targets = targets, .loss = loss, .gradient = true});
    b.sample({.logits = logits, .positions = positions, .tokens = drawn, .temperature = 1, .top_p = 0.9});
    b.sample({.logits = logits, .positions = positions, .tokens = likeliest});
    b.fill({.y = squares, .value = 0});
    b.sum_squares({.x = gradient, .out = squares});
    b.fill({.y = m, .value = 0});
    b.fill({.y = v, .value = 0});
    b.fill({.y = master, .value = 1});
    b.adamw({.master = master,
             .grad = gradient,
             .m = m,
             .v = v,
             .weight = weight,
             .grad_norm_squared = step_by,
             .lr = 0.1,
             .max_norm = 1});
    b.add({.a = x, .b = dy, .y = back});
  };
  const auto bits = [&] {
    std::vector<std::string> all;
    for (const Tensor& o : outputs) all.push_back(read_bits(s, o));
    return all;
  };
  work();
  const std::vector<std::string> direct = bits();
  const int64_t taken = cuda_counters().allocations;
  const GraphPtr graph = on(s).capture(work);
  for (const Tensor& o : outputs) on(s).fill({.y = o, .value = -77});
  const std::vector<std::string> poisoned = bits();
  on(s).replay(graph);
  const std::vector<std::string> replayed = bits();
  for (size_t i = 0; i < outputs.size(); ++i) {
    EXPECT_NE(poisoned[i], direct[i]) << i;
    EXPECT_EQ(replayed[i], direct[i]) << "output " << i << " " << outputs[i].describe();
  }
  // Nothing was asked of the driver by way of ours, nor past it: a graph that took memory would show on the
  // card every time (a little is the graph's own), another program of the card does not move it five times
  // over.
  EXPECT_EQ(cuda_counters().allocations, taken);
  bool steady = false;
  for (int i = 0; i < 5 && !steady; ++i) {
    const int64_t free = device->free_bytes();
    std::vector<GraphPtr> graphs;
    for (int k = 0; k < 2; ++k) {
      graphs.push_back(on(s).capture(work));
      on(s).replay(graphs.back());
      work();
    }
    on(s).synchronize();
    steady = device->free_bytes() > free - (int64_t(64) << 20);
  }
  EXPECT_TRUE(steady) << "operations take memory of the card";
}

// More rows than a grid is high, rows longer than a block's registers, memory off any alignment.
TEST_F(CudaDevice, LargeAndOddViewsAreTakenWhole) {
  Stream s(*device);
  constexpr int64_t kRows = 70001;
  Buffer a(*device, kRows * 9 * 4, "test"), b(*device, kRows * 9 * 4, "test");
  Tensor x = make_tensor(a.data(), DType::f32, kRows, 9), y = make_tensor(b.data(), DType::bf16, kRows, 11);
  std::vector<float> values(size_t(kRows * 9));
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i % 251);
  on(s).upload(values.data(), x);
  on(s).cast({.x = x, .y = y.slice_cols(1, 9)});
  const HostTensor got = download(s, y.slice_cols(1, 9));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < 9; ++c) ASSERT_EQ(got(r, c), double((r * 9 + c) % 251)) << r << " " << c;
}

}  // namespace
}  // namespace cachalot
