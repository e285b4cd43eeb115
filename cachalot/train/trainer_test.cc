#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_device.h"
#include "backend/fake/fake_device.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

// A trainer on a device of its own.
struct OneTrainer {
  OneTrainer(std::unique_ptr<Device> d, const ModelConfig& model, const TrainSection& train)
      : device(std::move(d)),
        s(*device),
        trainer(s, model, train, Trainer::plan(model, train).arena),
        text(model, train) {
    trainer.init();
  }
  StepMetrics step(int64_t i) { return trainer.step(text.batch(i), 0.01); }
  std::string bits() { return all_bits(s, trainer); }
  std::unique_ptr<Device> device;
  Stream s;
  Trainer trainer;
  RandomText text;
};

OneTrainer cpu_run(const TrainSection& train, int threads = 2) {
  return {open_device("cpu", {.threads = threads}), tiny_model(), train};
}

TEST(Trainer, MicroBatchesAddUpToTheWholeBatch) {
  TrainSection whole = tiny_training(), parts = tiny_training();
  parts.micro_batch = 1;
  OneTrainer a = cpu_run(whole), b = cpu_run(parts);
  const StepMetrics x = a.step(0), y = b.step(0);
  EXPECT_EQ(x.counts, y.counts);
  EXPECT_NEAR(x.loss, y.loss, 1e-6 * x.loss);
  ASSERT_EQ(x.mtp_losses.size(), 1u);
  EXPECT_NEAR(x.mtp_losses[0], y.mtp_losses[0], 1e-6 * x.mtp_losses[0]);
  EXPECT_NEAR(x.balance, y.balance, 1e-5 * x.balance);
  EXPECT_NEAR(x.grad_norm, y.grad_norm, 1e-5 * x.grad_norm);
  for (size_t i = 0; i < a.trainer.params().table().size(); ++i) {
    const Param& p = a.trainer.params().table()[i];
    if (!p.trained()) continue;
    EXPECT_METRIC(read(a.s, a.trainer.params().gradient(i)), read(b.s, b.trainer.params().gradient(i)), 1e-10)
        << p.name;
  }
  const int64_t rows = whole.batch * whole.seq_len;
  for (size_t l = 0; l < 2; ++l)  // trunk layers see every row, K experts each
    EXPECT_EQ(std::accumulate(x.counts[l].begin(), x.counts[l].end(), int64_t{0}), 2 * rows);
}

// Rows of whole documents are not all equally long: every target of the step weighs the same.
TEST(Trainer, TheLossIsTheMeanOverAllTargetsOfRowsOfAnyLength) {
  TrainSection train = tiny_training(), parts = tiny_training();
  parts.micro_batch = 1;
  OneTrainer a = cpu_run(train), b = cpu_run(parts), c = cpu_run(train);
  std::vector<TokenSpan> rows = a.text.batch(0);
  rows[1] = rows[1].first(3);  // the fewest tokens: MTP predicts one
  rows[2] = rows[2].first(7);
  int64_t targets = 0;
  for (const TokenSpan& row : rows) targets += int64_t(row.size()) - 1;
  const double nats = *c.trainer.score(rows, false);
  const StepMetrics x = a.trainer.step(rows, 0.01), y = b.trainer.step(rows, 0.01);
  EXPECT_NEAR(x.loss, nats / double(targets), 1e-6 * x.loss);
  EXPECT_NEAR(x.loss, y.loss, 1e-6 * x.loss);
  EXPECT_NEAR(x.mtp_losses[0], y.mtp_losses[0], 1e-6 * x.mtp_losses[0]);
  for (size_t i = 0; i < a.trainer.params().table().size(); ++i)
    if (a.trainer.params().table()[i].trained()) {
      EXPECT_METRIC(read(a.s, a.trainer.params().gradient(i)), read(b.s, b.trainer.params().gradient(i)),
                    1e-10)
          << a.trainer.params().table()[i].name;
    }
}

// What a step that was skipped, or one before, left in the gradients must not matter.
TEST(Trainer, GradientsStartAfreshEveryStep) {
  TrainSection train = tiny_training();
  train.micro_batch = 2;
  OneTrainer a = cpu_run(train), b = cpu_run(train);
  for (size_t i = 0; i < b.trainer.params().table().size(); ++i)
    if (const Tensor g = b.trainer.params().gradient(i)) on(b.s).fill({.y = g, .value = NAN});
  EXPECT_EQ(a.step(0).grad_norm, b.step(0).grad_norm);
  EXPECT_TRUE(a.bits() == b.bits());
}

TEST(Trainer, AnyNumberOfThreadsGivesTheSameBits) {
  for (const char* precision : {"f32", "bf16", "fp8"}) {
    TrainSection train = tiny_training();
    train.precision = precision;
    train.micro_batch = 2;
    std::string first;
    std::vector<double> losses;
    for (const int threads : {1, 2, 3}) {
      OneTrainer run = cpu_run(train, threads);
      std::vector<double> l;
      for (int64_t i = 0; i < 3; ++i) l.push_back(run.step(i).loss);
      if (threads == 1) {
        first = run.bits();
        losses = l;
      } else {
        EXPECT_TRUE(run.bits() == first) << threads << " threads, " << precision;
        EXPECT_EQ(l, losses);
      }
    }
  }
}

TEST(Trainer, AStepOnAQueueingDeviceWaitsOnceAndGivesTheSameBits) {
  for (const char* precision : {"f32", "bf16", "fp8"}) {
    TrainSection train = tiny_training();
    train.precision = precision;
    train.micro_batch = 2;
    OneTrainer cpu = cpu_run(train);
    auto device = open_fake_device({.threads = 2});
    FakeDevice& fake = *device;
    OneTrainer run(std::move(device), tiny_model(), train);
    for (int64_t i = 0; i < 3; ++i) {
      const FakeCounters before = fake.counters();
      const int64_t blocks = fake.blocks();
      const StepMetrics x = run.step(i), y = cpu.step(i);
      EXPECT_EQ(fake.counters().synchronizes - before.synchronizes, 1);
      EXPECT_EQ(fake.blocks(), blocks) << "a step allocates nothing";
      EXPECT_EQ(x.loss, y.loss);
      EXPECT_EQ(x.mtp_losses, y.mtp_losses);
      EXPECT_EQ(x.grad_norm, y.grad_norm);
      EXPECT_EQ(x.counts, y.counts);
    }
    EXPECT_TRUE(run.bits() == cpu.bits()) << precision;
  }
}

// The same on a GPU, whose sums have another order than the CPU's: as close as the format allows, the same
// bits each time.
TEST(Trainer, AStepOnAGpuTakesNothingWaitsOnceAndRepeatsItsBits) {
  const CudaStatus status = probe_cuda();
  if (status.devices.empty() || !status.devices[0].usable())
    GTEST_SKIP() << "runs on machines with a GPU, in the preset cuda: " << status.message;
  for (const char* precision : {"f32", "bf16"}) {
    SCOPED_TRACE(precision);
    TrainSection train = tiny_training();
    train.precision = precision;
    train.micro_batch = 2;
    const double close = train.precision == "f32" ? 1e-5 : 2e-2;
    OneTrainer cpu = cpu_run(train);
    OneTrainer run(open_device("cuda"), tiny_model(), train), again(open_device("cuda"), tiny_model(), train);
    for (int64_t i = 0; i < 3; ++i) {
      const StepMetrics y = i == 0 ? cpu.step(i) : StepMetrics{};
      on(run.s).synchronize();
      const CudaCounters before = cuda_counters();
      const StepMetrics x = run.step(i);
      EXPECT_EQ(cuda_counters().allocations, before.allocations);
      EXPECT_EQ(cuda_counters().waits - before.waits, 1);
      EXPECT_EQ(again.step(i).loss, x.loss);
      if (i > 0) continue;  // AdamW's first step turns gradients of rounding errors into whole steps
      EXPECT_NEAR(x.loss, y.loss, close * y.loss);
      EXPECT_NEAR(x.grad_norm, y.grad_norm, 10 * close * y.grad_norm);
    }
    EXPECT_TRUE(again.bits() == run.bits());
  }
}

TEST(Trainer, ThePlanIsWhatAStepAndAnEvaluationTake) {
  TrainSection train = tiny_training();
  train.micro_batch = 2;
  const MemoryPlan plan = Trainer::plan(tiny_model(), train);
  OneTrainer run = cpu_run(train);
  run.step(0);
  EXPECT_EQ(run.trainer.arena_high_water(), plan.arena);
  EXPECT_EQ(run.trainer.params().weight_bytes(), plan.weights);
  EXPECT_EQ(run.trainer.optimizer().bytes(), plan.optimizer);
  EXPECT_EQ(plan.total(), plan.weights + plan.gradients + plan.optimizer + plan.tables + plan.arena);

  TrainSection larger = train;
  larger.micro_batch = 4;
  EXPECT_GT(Trainer::plan(tiny_model(), larger).arena, plan.arena);
  EXPECT_EQ(Trainer::plan(tiny_model(), larger).weights, plan.weights);
}

class SmallDevice : public Device {  // says how much it has; nothing is taken
 public:
  explicit SmallDevice(int64_t free) : free_(free) {}
  std::string name() const override { return "small"; }
  void* take(int64_t) override { return nullptr; }
  void give(void*, int64_t) noexcept override {}
  int64_t free_bytes() const override { return free_; }
  std::unique_ptr<Backend> open_backend() override { return nullptr; }

 private:
  int64_t free_;
};

TEST(Trainer, WhatCannotFitIsRefusedNamingTheSettingToChange) {
  const MemoryPlan plan{.weights = 100, .gradients = 100, .optimizer = 100, .tables = 0, .arena = 1600};
  TrainSection train = tiny_training();
  train.batch = 16;
  plan.require_fit(SmallDevice(1900), train);
  const auto message = [&](int64_t free) {
    return error_of([&] { plan.require_fit(SmallDevice(free), train); });
  };
  EXPECT_TRUE(contains(message(1899),
                       "training needs 1.86 KiB (1.56 KiB of it for the activations of a micro-batch)"));
  EXPECT_TRUE(
      contains(message(1899), "| --train.micro_batch 8"));  // the next below 16 that divides the batch
  EXPECT_TRUE(contains(message(800), "| --train.micro_batch 4"));
  EXPECT_TRUE(contains(message(299), "--model.hidden_size"));
  train.micro_batch = 1;
  EXPECT_TRUE(contains(message(1000), "lower --train.seq_len"));
}

TEST(Trainer, AGradientThatIsNotFiniteChangesNothingAndIsReported) {
  TrainSection train = tiny_training();
  OneTrainer run = cpu_run(train);
  EXPECT_TRUE(run.step(0).updated);
  const Tensor gain = run.trainer.params().weight("norm");
  const std::vector<double> good = read(run.s, gain);
  on(run.s).fill({.y = gain, .value = INFINITY});
  const std::string before = run.bits();
  const StepMetrics bad = run.step(1);
  EXPECT_FALSE(bad.updated);
  EXPECT_FALSE(std::isfinite(bad.grad_norm));
  EXPECT_TRUE(run.bits() == before) << "weights and router biases";
  EXPECT_EQ(run.trainer.updates(), 1);
  const std::vector<float> restored(good.begin(), good.end());
  on(run.s).upload(restored.data(), gain);
  EXPECT_TRUE(run.step(2).updated);
  EXPECT_EQ(run.trainer.updates(), 2);
}

TEST(Trainer, RouterBiasesMoveByGammaAgainstTheLoad) {
  TrainSection train = tiny_training();
  train.bias_gamma = 0.125;
  OneTrainer run = cpu_run(train);
  const StepMetrics m = run.step(0);
  const std::vector<double> bias = read(run.s, run.trainer.params().weight("layers.1.mlp.gate_bias"));
  const double mean = double(train.batch * train.seq_len * 2) / 6;
  ASSERT_EQ(bias.size(), 6u);
  for (size_t e = 0; e < 6; ++e) {
    const double expected = double(m.counts[0][e]) > mean   ? -0.125
                            : double(m.counts[0][e]) < mean ? 0.125
                                                            : 0;
    EXPECT_EQ(bias[e], expected) << e;
  }
  EXPECT_GT(m.max_vio[0], 0);
}

// Of 3 groups of 2 experts a token may reach 2: its 2 experts lie in one of them or in both.
TEST(Trainer, CountsTheGroupsThatTokensReachWhereThereAreSeveral) {
  TrainSection train = tiny_training();
  train.batch = 4;
  train.micro_batch = 2;
  EXPECT_TRUE(cpu_run(train).step(0).groups_per_token.empty());
  ModelConfig model = tiny_model();
  model.n_group = 3;
  model.topk_group = 2;
  OneTrainer run(open_device("cpu", {.threads = 2}), model, train);
  const StepMetrics m = run.step(0);
  ASSERT_EQ(m.groups_per_token.size(), 3u);
  double sum = 0;
  for (const double groups : m.groups_per_token) {
    EXPECT_GE(groups, 1);
    EXPECT_LE(groups, 2);
    sum += groups;
  }
  EXPECT_NE(sum, 3);  // some reach both
  EXPECT_GT(m.experts_per_group, 1);
  EXPECT_LT(m.experts_per_group, 2);
}

TEST(Trainer, LearnsAShortTextByHeart) {
  TrainSection train = tiny_training();
  train.seq_len = 24;
  train.batch = 2;
  OneTrainer run(open_device("cpu", {.threads = 2}), tiny_model(), train);
  RandomText text(tiny_model(), train);
  const std::vector<TokenSpan> rows = text.batch(0);
  const double first = run.trainer.step(rows, 0.01).loss;
  StepMetrics last;
  for (int i = 0; i < 150; ++i) last = run.trainer.step(rows, 0.01);
  EXPECT_NEAR(first, std::log(61.0), 0.3);  // knows nothing
  EXPECT_LT(last.loss, 0.2);
  EXPECT_LT(last.mtp_losses[0], 0.5);
}

TEST(Trainer, ScoresEveryTargetOnceWhateverTheMicroBatch) {
  TrainSection train = tiny_training();
  train.micro_batch = 4;
  OneTrainer a = cpu_run(train);
  train.micro_batch = 1;
  OneTrainer b = cpu_run(train);
  RandomText text(tiny_model(), train);
  std::vector<TokenSpan> windows = text.batch(0);
  windows.push_back(windows[0].first(2));  // a ragged last one
  const std::atomic<bool> go{false}, halt{true};
  const auto x = a.trainer.score(windows, go), y = b.trainer.score(windows, go);
  ASSERT_TRUE(x && y);
  EXPECT_NEAR(*x, *y, 1e-6 * *x);
  EXPECT_NEAR(*x / double(4 * 9 + 1), std::log(61.0), 0.3);
  // The training loss of the same windows is the same number.
  const double scored = *a.trainer.score(text.batch(0), go);
  EXPECT_NEAR(scored / double(4 * 9), a.trainer.step(text.batch(0), 0).loss, 1e-6);
  EXPECT_FALSE(a.trainer.score(windows, halt));
}

}  // namespace
}  // namespace cachalot
