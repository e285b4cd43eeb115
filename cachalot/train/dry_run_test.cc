#include "train/dry_run.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>

#include "train/pretrain_testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

// What RunDirectory does, save by save.
CheckpointCount played(const TrainSection& t, int64_t steps) {
  std::set<int64_t> there;
  CheckpointCount count;
  for (int64_t step = 1; step <= steps; ++step) {
    if (step < steps && (t.save_every == 0 || step % t.save_every != 0)) continue;
    there.insert(step);
    count.most = std::max(count.most, int64_t(there.size()));
    for (auto it = there.begin(); std::distance(it, there.end()) > t.keep_last;)
      it = t.keep_every > 0 && *it % t.keep_every == 0 ? std::next(it) : there.erase(it);
    count.kept = int64_t(there.size());
  }
  return count;
}

TEST(DryRun, CountsTheCheckpointsThatLieThereAtOnce) {
  TrainSection t = tiny_training();
  for (const int64_t steps : {1, 7, 100, 120, 121})
    for (const int64_t save_every : {0, 1, 10, 12, 100, 500})
      for (const int64_t keep_last : {1, 2, 5, 200})
        for (const int64_t keep_every : {0, 1, 10, 25, 50, 1000}) {
          t.steps = steps, t.tokens = 0, t.warmup_steps = 0;
          t.save_every = save_every, t.keep_last = keep_last, t.keep_every = keep_every;
          const CheckpointCount expected = played(t, steps), counted = count_checkpoints(t);
          const std::string of =
              fmt::format("{} steps, {}, {}, {}", steps, save_every, keep_last, keep_every);
          EXPECT_EQ(counted.most, expected.most) << of;
          EXPECT_EQ(counted.kept, expected.kept) << of;
        }
  t.steps = int64_t{1} << 50, t.save_every = (int64_t{1} << 49) - 1, t.keep_every = (int64_t{1} << 49) - 3;
  t.keep_last = 2;
  EXPECT_EQ(count_checkpoints(t).most, 3) << "no multiple of both is that small";
}

class DryRunTest : public PretrainTest {
 protected:
  std::string dry_run() {
    PretrainOptions o = options("r");
    o.dry_run = true;
    out_.str("");
    pretrain(config_, o, out_, stop_);
    return out_.str();
  }
};

// Bytes of a checkpoint as planned, beside those of its files.
TEST_F(DryRunTest, TheDiskIsWhatACheckpointTakes) {
  config_.train.save_every = 2;
  for (const double decay : {0.0, 0.9}) {
    config_.train.ema_decay = decay;
    const std::string text = dry_run();
    run("r");
    int64_t bytes = 0;
    for (const auto& e : fs::recursive_directory_iterator(folder_ / "r/checkpoints/step-00000010"))
      if (e.is_regular_file() && e.path().extension() == ".safetensors") bytes += int64_t(e.file_size());
    const size_t at = text.find("for 3 checkpoints of ");
    ASSERT_NE(at, std::string::npos) << text;
    double kib = 0;
    ASSERT_EQ(std::sscanf(text.c_str() + at, "for 3 checkpoints of %lf KiB", &kib), 1) << text;
    EXPECT_LE(1024 * kib, double(bytes) + 10);
    EXPECT_GE(1024 * kib, 0.75 * double(bytes)) << "the rest are names";
    fs::remove_all(folder_ / "r");
  }
}

TEST_F(DryRunTest, CheckpointsThatAreThereAlreadyNeedNoRoom) {
  config_.train.save_every = 2;
  EXPECT_FALSE(contains(dry_run(), "of them there"));
  run("r");
  config_.train.steps = 20;
  EXPECT_TRUE(contains(dry_run(), "(2 kept, one being written), 2 of them there; "));
}

class FullDevice final : public Device {
 public:
  std::string name() const override { return "full"; }
  void* take(int64_t) override { return nullptr; }
  void give(void*, int64_t) noexcept override {}
  int64_t free_bytes() const override { return 1000; }
  std::unique_ptr<Backend> open_backend() override { return nullptr; }
};

TEST_F(DryRunTest, TheDiskIsToldAlsoWhereTheMemoryDoesNotFit) {
  PretrainOptions o = options("r");
  o.dry_run = true;
  o.open = [](const std::string&, const DeviceOptions&) { return std::make_unique<FullDevice>(); };
  EXPECT_TRUE(contains(error_of([&] { pretrain(config_, o, out_, stop_); }), "training needs "));
  EXPECT_TRUE(contains(out_.str(), "disk       "));
}

}  // namespace
}  // namespace cachalot
