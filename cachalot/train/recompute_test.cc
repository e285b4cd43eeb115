// train.recompute: what is computed again in the backward gives the same bits, and takes less memory.
#include <gtest/gtest.h>

#include "backend/fake/fake_device.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

struct Outcome {
  std::string bits, gradients;
  std::vector<double> losses;
  std::vector<std::vector<int32_t>> counts;
};

Outcome train_three_steps(Device& device, const ModelConfig& model, const TrainSection& train) {
  Stream s(device);
  Trainer trainer(s, model, train, Trainer::plan(model, train).arena);
  trainer.init();
  RandomText text(model, train);
  Outcome o;
  for (int64_t i = 0; i < 3; ++i) {
    const StepMetrics m = trainer.step(text.batch(i), 0.01);
    o.losses.push_back(m.loss);
    o.counts = m.counts;
  }
  for (size_t i = 0; i < trainer.params().table().size(); ++i)
    if (const Tensor g = trainer.params().gradient(i)) o.gradients += read_bits(s, g);
  o.bits = all_bits(s, trainer);
  return o;
}

TEST(Recompute, GivesTheBitsOfKeepingInEveryPrecision) {
  for (const char* precision : {"f32", "bf16", "fp8"})
    for (const int64_t q_rank : {14, 0}) {  // also without a compressed query
      SCOPED_TRACE(std::string(precision) + (q_rank ? "" : ", q_lora_rank null"));
      ModelConfig model = tiny_model();
      model.q_lora_rank = q_rank;
      TrainSection keep = tiny_training();
      keep.precision = precision;
      keep.micro_batch = 2;
      TrainSection again = keep;
      again.recompute = "v3";
      const auto cpu = open_device("cpu", {.threads = 2});
      const Outcome a = train_three_steps(*cpu, model, keep), b = train_three_steps(*cpu, model, again);
      EXPECT_EQ(a.losses, b.losses);
      EXPECT_EQ(a.counts, b.counts) << "routers count once";
      EXPECT_TRUE(a.gradients == b.gradients);
      EXPECT_TRUE(a.bits == b.bits);
      // Nothing reads what is no longer there: memory that is given back is poisoned between operations.
      const auto fake = open_fake_device({.threads = 2});
      EXPECT_TRUE(train_three_steps(*fake, model, again).bits == a.bits);
    }
}

// Of the shapes that dominate in a large model (many heads, wide experts) most of the memory goes.
TEST(Recompute, ThePlanShowsWhatItSaves) {
  for (const char* precision : {"bf16", "fp8"}) {
    ModelConfig model = tiny_model();
    model.num_hidden_layers = 24;
    model.num_attention_heads = 32;
    TrainSection keep = tiny_training();
    keep.seq_len = 60;
    keep.precision = precision;
    TrainSection again = keep;
    again.recompute = "v3";
    const MemoryPlan a = Trainer::plan(model, keep), b = Trainer::plan(model, again);
    EXPECT_LT(double(b.arena), 0.75 * double(a.arena)) << precision;
    EXPECT_EQ(a.total() - a.arena, b.total() - b.arena);
  }
}

}  // namespace
}  // namespace cachalot
