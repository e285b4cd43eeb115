#include "train/ema.h"

#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "base/error.h"
#include "train/activity.h"
#include "train/fault_testing.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

struct OneRun {
  explicit OneRun(const TrainSection& train, int threads = 2)
      : device(open_device("cpu", {.threads = threads})),
        s(*device),
        trainer(s, tiny_model(), train, Trainer::plan(tiny_model(), train).arena),
        text(tiny_model(), train) {
    trainer.init();
  }
  std::vector<float> average(const std::string& name) {
    const Tensor t = trainer.average()->average(trainer.params().index(name));
    trainer.average()->settle();
    const auto* data = static_cast<const float*>(t.data);
    return {data, data + t.size()};
  }
  std::vector<double> master(const std::string& name) {
    return read(s, trainer.optimizer().master(trainer.params().index(name)));
  }
  std::unique_ptr<Device> device;
  Stream s;
  Trainer trainer;
  RandomText text;
};

TrainSection averaged(const char* precision) {
  TrainSection train = tiny_training();
  train.precision = precision;
  train.ema_decay = 0.9;
  return train;
}

TEST(Ema, FollowsTheMastersByItsFormulaInEveryPrecision) {
  for (const char* precision : {"f32", "bf16", "fp8"}) {
    OneRun run(averaged(precision));
    for (const char* name : {"embed", "layers.1.mlp.experts.gate_up", "norm"}) {
      const std::vector<double> start = run.master(name);
      const std::vector<float> average = run.average(name);
      EXPECT_TRUE(std::equal(start.begin(), start.end(), average.begin())) << name;
    }
    std::vector<float> expected = run.average("layers.1.attn.o");
    for (int64_t i = 1; i <= 4; ++i) {
      ASSERT_TRUE(run.trainer.step(run.text.batch(i), 0.01).updated);
      const float weight = float(1 - std::min(0.9, double(1 + i) / double(10 + i)));
      const std::vector<double> master = run.master("layers.1.attn.o");
      for (size_t k = 0; k < expected.size(); ++k) expected[k] += weight * (float(master[k]) - expected[k]);
    }
    EXPECT_EQ(run.average("layers.1.attn.o"), expected) << precision;
  }
}

TEST(Ema, AveragingChangesNoBitOfTheTraining) {
  TrainSection plain = averaged("bf16");
  plain.ema_decay = 0;
  OneRun a(averaged("bf16")), b(plain);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(a.trainer.step(a.text.batch(i), 0.01).average_wait.has_value());
    EXPECT_FALSE(b.trainer.step(b.text.batch(i), 0.01).average_wait.has_value());
  }
  EXPECT_TRUE(all_bits(a.s, a.trainer) == all_bits(b.s, b.trainer));
  EXPECT_EQ(b.trainer.average(), nullptr);
}

TEST(Ema, ItsBitsDoNotDependOnThreadsAndAreInTheStateOfTheRun) {
  OneRun a(averaged("bf16"), 1), b(averaged("bf16"), 2);
  for (int64_t i = 0; i < 3; ++i) {
    a.trainer.step(a.text.batch(i), 0.01);
    b.trainer.step(b.text.batch(i), 0.01);
  }
  EXPECT_EQ(a.average("embed"), b.average("embed"));
  size_t found = 0;
  for (const StateTensor& t : a.trainer.state())
    if (t.name.starts_with(kAveragePrefix)) {
      EXPECT_TRUE(t.on_host);
      ++found;
    }
  size_t trained = 0;
  for (const Param& p : a.trainer.params().table()) trained += p.trained();
  EXPECT_EQ(found, trained);
}

TEST(Ema, LendingItsWeightsScoresWithThemAndTakingThemBackRestoresEveryBit) {
  for (const char* precision : {"f32", "bf16", "fp8"}) {
    OneRun run(averaged(precision));
    for (int64_t i = 0; i < 3; ++i) run.trainer.step(run.text.batch(i), 0.05);
    const std::string before = all_bits(run.s, run.trainer);
    const std::vector<TokenSpan> windows = run.text.batch(9);
    const std::atomic<bool> go{false};
    const double now = *run.trainer.score(windows, go);
    run.trainer.average()->lend(run.s);
    const double averaged_score = *run.trainer.score(windows, go);
    const std::vector<double> lent = read(run.s, run.trainer.params().weight("norm"));
    const std::vector<float> average = run.average("norm");
    for (size_t i = 0; i < lent.size(); ++i) EXPECT_FLOAT_EQ(float(lent[i]), average[i]);
    run.trainer.average()->take_back(run.s);
    EXPECT_NE(averaged_score, now) << precision;
    EXPECT_EQ(*run.trainer.score(windows, go), now);
    EXPECT_TRUE(all_bits(run.s, run.trainer) == before) << precision;
  }
}

// What its thread meets is thrown where training waits for it, not in the thread, which would end the
// process.
TEST(Ema, AnErrorOfItsThreadReachesWhoeverWaitsForIt) {
  const auto training_thread = std::this_thread::get_id();
  Faults faults;
  FaultyDevice device(open_device("cpu", {.threads = 1}), faults);
  Stream s(device);
  const TrainSection train = averaged("f32");
  Trainer trainer(s, tiny_model(), train, Trainer::plan(tiny_model(), train).arena);
  trainer.init();
  RandomText text(tiny_model(), train);
  faults.before = [&](const char*) {
    if (std::this_thread::get_id() != training_thread) throw Error("the device is lost");
  };
  trainer.step(text.batch(1), 0.01);
  EXPECT_TRUE(contains(error_of([&] { trainer.average()->settle(); }), "the device is lost"));
  EXPECT_TRUE(contains(error_of([&] { trainer.average()->state(); }), "the device is lost"));
}

TEST(Ema, WhatItsThreadCallsIsNoneOfTheTrainingThreadsActivity) {
  std::vector<int64_t> calls;
  for (const double decay : {0.0, 0.9}) {
    TrainSection train = averaged("f32");
    train.ema_decay = decay;
    Activity activity;
    const auto device = open_device("cpu", {.threads = 1});
    const auto followed = open_followed_device(*device, activity);
    EXPECT_EQ(&unfollowed(*followed), device.get());
    EXPECT_EQ(&unfollowed(*device), device.get());
    Stream s(*followed);
    Trainer trainer(s, tiny_model(), train, Trainer::plan(tiny_model(), train).arena);
    trainer.init();
    RandomText text(tiny_model(), train);
    const int64_t before = activity.calls;
    trainer.step(text.batch(1), 0.01);
    if (trainer.average()) trainer.average()->settle();
    calls.push_back(activity.calls - before);
  }
  EXPECT_GT(calls[0], 0);
  EXPECT_EQ(calls[0], calls[1]);
}

}  // namespace
}  // namespace cachalot
