#include "model/block.h"

#include "backend/fake/fake_device.h"
#include "model/model_testing.h"

namespace cachalot::testing {
namespace {

// One block with experts of a small model; two micro-batches of 8 and 5 tokens.
struct BlockRun {
  explicit BlockRun(Device& device, Precision precision)
      : run(device, tiny_config(), precision), comm(device) {
    TestTensors t(device, run.s, 17);
    const DType act = Recipe::of(precision).act;
    for (int m : {0, 1}) {
      arenas.emplace_back(device, 4 << 20, "test");
      const int32_t rows = m ? 5 : 8;
      TokenBatch b;
      b.rows = rows, b.sequences = 1, b.starts = t.indices({0, rows});
      std::vector<int32_t> positions;
      for (int32_t i = 0; i < rows; ++i) positions.push_back(i);
      b.positions = t.indices(positions);
      batches.push_back(b);
      x.push_back(t.normal(act, rows, 12));
      dy.push_back(t.normal(act, rows, 12));
    }
    keep.push_back(std::move(t));
    on(run.s).synchronize();
  }
  const Block& block() const { return run.model.blocks()[2]; }

  std::string result(const Block::State& forward, const Block::State& backward) {
    std::string bits = read_bits(run.s, forward.y) + read_bits(run.s, backward.dx);
    for (size_t p = 0; p < run.params.table().size(); ++p)
      if (run.params.table()[p].layer == 2 && run.params.table()[p].trained())
        bits += read_bits(run.s, run.params.gradient(p));
    return bits;
  }

  ModelRun run;
  Stream comm;
  std::vector<Arena> arenas;
  std::vector<TokenBatch> batches;
  std::vector<Tensor> x, dy;
  std::vector<TestTensors> keep;
};

constexpr double kBalance = 0.01;

// Micro-batch 1 backward, then micro-batch 0 forward, all on one stream.
std::string sequential(Device& device, Precision precision) {
  BlockRun r(device, precision);
  const Block& b = r.block();
  Block::State one = b.forward(r.run.s, r.arenas[1], r.batches[1], r.x[1], {.with_balance = true});
  b.backward(r.run.s, r.arenas[1], r.batches[1], one, r.dy[1], kBalance, Accumulate::overwrite);
  Block::State zero = b.forward(r.run.s, r.arenas[0], r.batches[0], r.x[0], {.with_balance = true});
  on(r.run.s).synchronize();
  return r.result(zero, one);
}

// The order of DeepSeek's published training profile (profile-data, train.json), communication on its own
// stream: combine(B) attn(F) mlp(B) dispatch(F) dispatch(B) mlp(W) mlp(F) attn(B) attn(W) combine(F).
std::string interleaved(Device& device, Precision precision) {
  BlockRun r(device, precision);
  const Block& b = r.block();
  Stream &compute = r.run.s, &comm = r.comm;
  const auto mode = Accumulate::overwrite;
  Block::State B = b.forward(compute, r.arenas[1], r.batches[1], r.x[1], {.with_balance = true});
  on(comm).wait(on(compute).record());

  b.backward_combine(comm, r.arenas[1], B, r.dy[1]);
  const EventPtr combined = on(comm).record();
  Block::State F = b.forward_attention(compute, r.arenas[0], r.batches[0], r.x[0], {.with_balance = true});
  const EventPtr attended = on(compute).record();
  on(compute).wait(combined);
  b.backward_mlp(compute, r.arenas[1], B);
  const EventPtr mlp_back = on(compute).record();
  on(comm).wait(attended);
  b.forward_dispatch(comm, r.arenas[0], F);
  const EventPtr dispatched = on(comm).record();
  on(comm).wait(mlp_back);
  b.backward_dispatch(comm, r.arenas[1], B);
  const EventPtr dispatched_back = on(comm).record();
  b.weight_mlp(compute, r.arenas[1], B, mode);
  on(compute).wait(dispatched);
  b.forward_mlp(compute, r.arenas[0], F);
  const EventPtr mlp_done = on(compute).record();
  on(compute).wait(dispatched_back);
  b.backward_attention(compute, r.arenas[1], r.batches[1], B, kBalance, mode);
  b.weight_attention(compute, r.arenas[1], B, mode);
  on(comm).wait(mlp_done);
  b.forward_combine(comm, r.arenas[0], F);
  on(compute).wait(on(comm).record());
  on(compute).synchronize();
  return r.result(F, B);
}

TEST(Block, InterleavedPhasesOfTwoMicroBatchesHaveTheSequentialBits) {
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
    auto cpu = open_device("cpu");
    const std::string expected = sequential(*cpu, precision);
    EXPECT_EQ(interleaved(*cpu, precision), expected);
    for (uint64_t seed = 0; seed < 8;
         ++seed) {  // fake runs the two streams in any order that the events allow
      auto fake = open_device("fake", {.fake_seed = seed});
      EXPECT_EQ(interleaved(*fake, precision), expected) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace cachalot::testing
