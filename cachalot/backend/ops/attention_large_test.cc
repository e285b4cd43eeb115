// Attention for training with the widths of the real model, at lengths where a GPU works on many blocks of a
// sequence at once and on more than it holds: against the CPU, which the small cases hold to the oracle, and
// against itself, bit for bit. Without a GPU there is nothing to prove.
#include "backend/ops/attention.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

constexpr int64_t kNope = 128, kRope = 64, kValue = 128;

struct Sequences {
  std::vector<int32_t> queries, keys;  // of each
};

// Forward, and backward from what it left, `times` times from the same inputs: o, lse, dq, dkv, dk_rope.
std::vector<Outputs> run(Bench& b, const Sequences& s, int64_t heads, int times) {
  std::vector<int32_t> q_starts{0}, k_starts{0};
  for (const int32_t n : s.queries) q_starts.push_back(q_starts.back() + n);
  for (const int32_t n : s.keys) k_starts.push_back(k_starts.back() + n);
  const int64_t tokens = q_starts.back(), keys = k_starts.back();
  const DType act = DType::bf16;
  const AttentionShape shape{.heads = heads,
                             .nope = kNope,
                             .rope = kRope,
                             .value = kValue,
                             .scale = 0.0722,
                             .sequences = int64_t(s.queries.size()),
                             .q_starts = b.t.indices(q_starts),
                             .k_starts = b.t.indices(k_starts)};
  const Tensor q = b.t.normal(act, tokens, heads * (kNope + kRope)),
               kv = b.t.normal(act, keys, heads * (kNope + kValue)), k_rope = b.t.normal(act, keys, kRope),
               d_o = b.t.normal(act, tokens, heads * kValue);
  std::vector<Outputs> all;
  for (int i = 0; i < times; ++i) {
    const Tensor o = b.t.garbage(act, tokens, heads * kValue), lse = b.t.garbage(DType::f32, tokens, heads),
                 dq = b.t.garbage(act, tokens, q.cols), dkv = b.t.garbage(act, keys, kv.cols),
                 dk_rope = b.t.garbage(act, keys, kRope);
    on(b.s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
    on(b.s).attention_backward({.shape = shape,
                                .q = q,
                                .kv = kv,
                                .k_rope = k_rope,
                                .o = o,
                                .lse = lse,
                                .d_o = d_o,
                                .dq = dq,
                                .dkv = dkv,
                                .dk_rope = dk_rope});
    all.push_back({o, lse, dq, dkv, dk_rope});
  }
  return all;
}

class AttentionLarge : public Test {
 protected:
  void SetUp() override {
    const CudaStatus status = probe_cuda();
    if (status.devices.empty() || !status.devices[0].usable())
      GTEST_SKIP() << "runs on machines with a GPU, in the preset cuda: " << status.message;
    cuda = open_device("cuda");
    cpu = open_device("cpu");
  }
  std::unique_ptr<Device> cuda, cpu;
};

TEST_F(AttentionLarge, LongAndPackedSequencesAgreeWithTheCpu) {
  const std::vector<std::pair<Sequences, int64_t>> cases = {
      {{{4096}, {4096}}, 2},
      {{{1000, 0, 1, 2500, 64, 333}, {1000, 5, 1, 2500, 200, 3000}}, 3},  // as documents of a row, and chunks
      {{{65}, {65}}, 128},
      {{{65, 140}, {65, 300}}, 63},
      {{{20}, {140}}, 126}};
  for (const auto& [sequences, heads] : cases) {
    Bench gpu(*cuda), host(*cpu);
    const Outputs got = run(gpu, sequences, heads, 1)[0], expected = run(host, sequences, heads, 1)[0];
    for (size_t i = 0; i < got.size(); ++i) {
      const ScopedTrace trace(__FILE__, __LINE__,
                              fmt::format("{} sequences, {} heads, output {} {}", sequences.queries.size(),
                                          heads, i, got[i].describe()));
      EXPECT_METRIC(read(gpu.s, got[i]), read(host.s, expected[i]), 2 * bound_of(got[i].dtype));
    }
  }
}

// Blocks add to one gradient in turn; who comes when differs from run to run.
TEST_F(AttentionLarge, GradientsHaveTheSameBitsEachTime) {
  for (const auto& [sequences, heads] :
       {std::pair(Sequences{{4096}, {4096}}, 8), std::pair(Sequences{{200, 1, 300}, {400, 1, 300}}, 128)}) {
    Bench b(*cuda);
    std::vector<std::string> first;
    for (const Outputs& outputs : run(b, sequences, heads, 4)) {
      std::vector<std::string> bits;
      for (const Tensor& t : outputs) bits.push_back(read_bits(b.s, t));
      if (first.empty()) first = bits;
      for (size_t k = 0; k < bits.size(); ++k)
        EXPECT_TRUE(bits[k] == first[k]) << heads << " heads, output " << k;
    }
  }
}

}  // namespace
}  // namespace cachalot
