// What can go wrong in a run, injected: each is caught, named and survived.
#include "train/training_loop.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <thread>

#include "train/fault_testing.h"
#include "train/machine_error.h"
#include "train/pretrain_testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

class FaultTest : public PretrainTest {
 protected:
  FaultTest() {
    config_.train.steps = 60;
    config_.train.save_every = 10;
    config_.train.keep_last = 3;
    config_.train.log_every = 1000;
    config_.guard.recheck_every = 0;
  }
  PretrainOptions faulty(const std::string& name) {
    PretrainOptions o = options(name);
    o.open = [this](const std::string& device, const DeviceOptions& d) {
      return std::make_unique<FaultyDevice>(open_device(device, d), faults_);
    };
    return o;
  }
  PretrainResult run_faulty(const std::string& name) { return pretrain(config_, faulty(name), out_, stop_); }
  std::vector<int64_t> steps(const std::string& name) {
    std::vector<int64_t> steps;
    for (const Json& line : metrics(name)) steps.push_back(line["step"]);
    return steps;
  }
  // `spoil` is called with the outputs of so many norms, from the step after `updates` updates on.
  void once_after(int64_t updates, const std::function<void(const Tensor&)>& spoil, int64_t calls = 1) {
    faults_ = {};
    faults_.after_norm = [this, updates, spoil, left = std::make_shared<int64_t>(calls)](const Tensor& y) {
      if (*left == 0 || faults_.updates < updates * updates_of_a_step()) return;
      --*left;
      spoil(y);
    };
  }
  // Of tiny_model(): 4 layers of 4 norms, the trunk's, and 3 of the MTP module.
  static constexpr int64_t kNormsOfAMicroBatch = 4 * 4 + 1 + 3;
  static int64_t updates_of_a_step() {
    int64_t n = 0;
    for (const Param& p : parameter_table(tiny_model())) n += p.trained();
    return n;
  }

  Faults faults_;
};

void flip_bit(const Tensor& y) {
  uint32_t word;
  std::memcpy(&word, y.data, 4);
  word ^= 1u << 20;  // of a mantissa: small enough that nothing else would notice
  std::memcpy(y.data, &word, 4);
}

TEST_F(FaultTest, AFlippedBitIsFoundByComputingTwiceNamedAndTheRunEndsWithTheRightBits) {
  config_.guard.recheck_every = 5;
  const PretrainResult clean = run("clean");
  EXPECT_TRUE(events("clean", "corruption").empty());
  once_after(24, flip_bit);  // step 25 is one that is computed twice
  const PretrainResult hit = run_faulty("hit");
  const std::vector<Json> found = events("hit", "corruption");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0]["step"], 25);
  EXPECT_TRUE(
      contains(found[0]["what"].get<std::string>(), "gave different bits: the losses, the gradient of "));
  EXPECT_EQ(found[0]["settled"], true);
  EXPECT_TRUE(contains(out_.str(), "computes or remembers wrong numbers at times"));
  EXPECT_TRUE(same_checkpoints(clean.checkpoint, hit.checkpoint));
}

TEST_F(FaultTest, AMachineThatIsWrongAgainAndAgainEndsTheRunAndSaysWhere) {
  config_.guard.recheck_every = 5;
  faults_.after_norm = [this](const Tensor& y) {
    if (faults_.updates < 24 * updates_of_a_step()) return;
    flip_bit(y);
    static_cast<float*>(y.data)[1] *= 1 + 1e-3f * float(faults_.norms % 97);  // other numbers each time
  };
  EXPECT_THROW(run_faulty("r"), MachineError);
  EXPECT_EQ(events("r", "corruption").size(), 1u);
  EXPECT_EQ(events("r", "corruption")[0]["settled"], false);
  EXPECT_EQ(steps("r").back(), 24);
  faults_ = {};
  EXPECT_EQ(run_faulty("r").resumed_from, 20);  // on another machine, say
  EXPECT_TRUE(same_checkpoints(folder_ / "r/checkpoints/step-00000060", run("clean").checkpoint));

  config_.guard.on_corruption = "stop";
  once_after(24, flip_bit);
  const std::string text = error_of([&] { run_faulty("s"); });
  EXPECT_TRUE(contains(text, "step 25: computed twice, the first micro-batch gave different bits"));
  EXPECT_TRUE(contains(text, "resume on another machine"));
}

TEST_F(FaultTest, ANaNIsNamedItsUpdateLeftOutAndTheRunGoesOn) {
  once_after(30, [](const Tensor& y) { *static_cast<float*>(y.data) = NAN; });
  const PretrainResult result = run_faulty("r");
  EXPECT_EQ(result.steps, 60);
  const std::vector<Json> found = events("r", "not_finite");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0]["step"], 31);
  EXPECT_EQ(found[0]["action"], "skip");
  EXPECT_TRUE(contains(out_.str(),
                       "WARNING: step 31: the loss is nan, the norm of the gradient nan; its update is "
                       "left out"));
  EXPECT_EQ(read_json_file(result.checkpoint + "/state.json")["updates"], 59);
  EXPECT_TRUE(std::isfinite(result.last_loss));
}

// All numbers wrong, in one micro-batch: the loss jumps.
void spike(const Tensor& y) {
  auto* x = static_cast<float*>(y.data);
  for (int64_t i = 0; i < y.size(); ++i) x[i] *= i % 2 ? -40.0f : 40.0f;
}

TEST_F(FaultTest, ASpikeOfTheLossIsNamedAndItsUpdateLeftOut) {
  once_after(45, spike, kNormsOfAMicroBatch);
  const PretrainResult result = run_faulty("r");
  EXPECT_EQ(result.steps, 60);
  const std::vector<Json> found = events("r", "loss_spike");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0]["step"], 46);
  EXPECT_EQ(read_json_file(result.checkpoint + "/state.json")["updates"], 59);

  config_.guard.on_spike = "stop";
  once_after(45, spike, kNormsOfAMicroBatch);
  EXPECT_TRUE(contains(error_of([&] { run_faulty("s"); }), "--guard.on_spike rewind"));
}

TEST_F(FaultTest, ARewindGoesBackToACheckpointAndLeavesTheRowsOut) {
  config_.guard.on_spike = "rewind";
  config_.guard.rewind_beyond = 2;
  once_after(45, spike, kNormsOfAMicroBatch);
  const PretrainResult result = run_faulty("r");
  EXPECT_EQ(result.steps, 60);
  std::vector<int64_t> all(60);
  for (int64_t i = 0; i < 60; ++i) all[size_t(i)] = i + 1;
  EXPECT_EQ(steps("r"), all) << "metrics of the steps that were undone are cut";
  const std::vector<Json> found = events("r", "rewind");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0]["step"], 46);
  EXPECT_EQ(found[0]["to_step"], 40);
  EXPECT_EQ(found[0]["rows_left_out"], (std::vector<int64_t>{160, 46 * 4 + 2 * 4}));
  EXPECT_TRUE(found[0]["put_aside"].empty()) << "the newest one is where it went";
  EXPECT_EQ(read_json_file(result.checkpoint + "/state.json")["next_row"], (60 + 6 + 2) * 4);
  EXPECT_TRUE(contains(out_.str(), "(step 40); rows 160 to 191 are left out"));
}

// The rows that a rewind left out stay left out, though the process is killed before the next checkpoint.
TEST_F(FaultTest, ARunThatIsKilledAfterARewindEndsWithTheBitsOfOneThatWasNot) {
  config_.guard.on_spike = config_.guard.on_not_finite = "rewind";
  for (const auto& [name, trouble] : {std::pair{"first", 5}, {"later", 45}}) {
    const auto spoil = [](const Tensor& y) { *static_cast<float*>(y.data) = NAN; };
    once_after(trouble, spoil);
    const std::string whole = name + std::string("-whole");
    const PretrainResult end = run_faulty(whole);
    once_after(trouble, spoil);
    faults_.before = [&, updates = int64_t(0)](const char* op) mutable {
      if (std::strcmp(op, "adamw") != 0) return;  // of the training thread, which writes out_
      if (contains(out_.str(), "are left out") && updates == 0) updates = faults_.updates;
      if (updates > 0 && faults_.updates > updates + 2 * updates_of_a_step()) throw Error("killed");
    };
    out_.str("");
    EXPECT_TRUE(contains(error_of([&] { run_faulty(name); }), "killed"));
    faults_ = {};
    const PretrainResult rest = run_faulty(name);
    EXPECT_EQ(rest.resumed_from, trouble / 10 * 10);
    EXPECT_TRUE(contains(out_.str(), fmt::format("after a rewind of step {} to step ", trouble + 1)));
    EXPECT_TRUE(same_checkpoints(rest.checkpoint, end.checkpoint));
    std::vector<Json> x = without_times(lines(whole)), y = without_times(lines(name));
    EXPECT_EQ(x, y);
  }
}

TEST_F(FaultTest, ARewindBeforeTheFirstCheckpointBeginsAnewAndTooManyEndTheRun) {
  config_.guard.on_not_finite = "rewind";
  once_after(5, [](const Tensor& y) { *static_cast<float*>(y.data) = NAN; });
  EXPECT_EQ(run_faulty("r").steps, 60);
  ASSERT_EQ(events("r", "rewind").size(), 1u);
  EXPECT_EQ(events("r", "rewind")[0]["to_step"], 0);
  EXPECT_EQ(read_json_file(folder_ / "r/checkpoints/step-00000060/state.json")["next_row"], 66 * 4);

  faults_ = {};
  faults_.after_norm = [this](const Tensor& y) {
    if (faults_.updates >= 35 * updates_of_a_step()) *static_cast<float*>(y.data) = NAN;
  };
  const std::string text = error_of([&] { run_faulty("s"); });
  EXPECT_TRUE(contains(text, "after 3 rewinds without a checkpoint beyond"));
  EXPECT_TRUE(fs::exists(folder_ / "s/checkpoints/step-00000030.rewound/COMPLETE")) << "it is a good one";
  EXPECT_FALSE(fs::exists(folder_ / "s/checkpoints/step-00000030.damaged"));
  EXPECT_TRUE(contains(out_.str(), "put aside: " + (folder_ / "s/checkpoints/step-00000030.rewound")));
  EXPECT_TRUE(fs::exists(folder_ / "s/checkpoints/step-00000010/COMPLETE"));
}

// A router that sends everything to the same experts, for as many steps as it takes: a bound so low that any
// router looks so.
TEST_F(FaultTest, ARouterThatCollapsedIsNamedAndWhatItsSettingSaysIsDone) {
  config_.guard.collapse_share = 0;
  config_.guard.collapse_steps = 25;
  const PretrainResult logged = run_faulty("log");
  EXPECT_EQ(logged.steps, 60);
  ASSERT_EQ(events("log", "collapse").size(), 2u) << "of steps 25 and 50";
  EXPECT_EQ(events("log", "collapse")[1]["step"], 50);
  EXPECT_TRUE(contains(out_.str(), "WARNING: step 25: layer 1: MaxVio has been above 0 for 25 steps"));
  config_.guard.collapse_steps = 0;
  const std::string unwatched = run("unwatched").checkpoint;
  EXPECT_TRUE(weights(logged.checkpoint) == weights(unwatched) &&
              optimizer(logged.checkpoint) == optimizer(unwatched))
      << "telling changes nothing";

  config_.guard.collapse_steps = 25;
  config_.guard.on_collapse = "stop";
  const std::string stopped = error_of([&] { run_faulty("stop"); });
  EXPECT_TRUE(contains(stopped, "step 25: layer 1: MaxVio has been above"));
  EXPECT_TRUE(
      contains(stopped, "the newest complete one is " + (folder_ / "stop/checkpoints/step-00000020")));
  EXPECT_TRUE(contains(stopped, "--guard.on_collapse rewind"));
  EXPECT_EQ(steps("stop").back(), 24);

  config_.guard.on_collapse = "rewind";
  config_.guard.most_rewinds = 1;
  EXPECT_TRUE(contains(error_of([&] { run_faulty("rewind"); }), "step 25: layer 1: MaxVio"));
  ASSERT_EQ(events("rewind", "rewind").size(), 1u);
  EXPECT_EQ(events("rewind", "rewind")[0]["trouble"], "collapse");
  EXPECT_EQ(events("rewind", "rewind")[0]["to_step"], 20);
}

// The rows have nothing to do with it: whichever they are, step 46 has no finite loss, and a checkpoint of step 40
// is written again and again.
TEST_F(FaultTest, TroubleThatComesBackWhateverTheRowsGoesFurtherBackEachTimeAndEndsTheRun) {
  config_.guard.on_not_finite = "rewind";
  config_.guard.most_rewinds = 3;
  config_.train.keep_last = 9;
  const int64_t tokens = config_.train.batch * config_.train.seq_len;
  config_.train.schedule.lr = {{.until = TrainingPoint{.tokens = 44 * tokens}, .from = {}, .to = 0.01},
                               {.until = {}, .from = {}, .to = 1e30}};
  faults_.before = [this](const char*) {
    if (faults_.updates > 300 * updates_of_a_step()) throw Error("it never ends");
  };
  EXPECT_TRUE(contains(error_of([&] { run_faulty("r"); }), "after 3 rewinds without a checkpoint beyond"));
  for (const int64_t step : {40, 30, 20})  // those in metrics.jsonl are cut with what they undid
    EXPECT_TRUE(contains(
        out_.str(),
        fmt::format("back to {} (step {})", folder_ / fmt::format("r/checkpoints/step-{:08}", step), step)));
  EXPECT_EQ(steps("r").back(), 45);

  // Killed after the second rewind, before the next checkpoint or behind it: the third goes where it did above.
  for (const auto& [name, later] : {std::pair{"s", 2}, {"t", 12}}) {
    const std::string run = folder_ / name;
    faults_ = {};
    faults_.before = [&, updates = int64_t(0)](const char* op) mutable {
      if (std::strcmp(op, "adamw") != 0) return;
      if (updates == 0 && contains(out_.str(), "(step 30); rows")) updates = faults_.updates;
      if (updates == 0 || faults_.updates <= updates + later * updates_of_a_step()) return;
      while (later > 10 && !fs::exists(run + "/checkpoints/step-00000040"))
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      throw Error("killed");
    };
    out_.str("");
    EXPECT_TRUE(contains(error_of([&] { run_faulty(name); }), "killed"));
    faults_ = {};
    out_.str("");
    EXPECT_TRUE(contains(error_of([&] { run_faulty(name); }), "after 3 rewinds without a checkpoint beyond"));
    EXPECT_TRUE(contains(out_.str(), "back to " + run + "/checkpoints/step-00000020 (step 20)"));
    EXPECT_FALSE(out_.str().find("back to " + run + "/checkpoints/step-00000040") != std::string::npos);
  }
}

// A pipe that nobody reads in the place of the file: opening it waits, as a disk that hangs does.
TEST_F(FaultTest, AHangOfTheDiskIsToldAndTheProcessEndsAllTheSame) {
  config_.guard.hang_seconds = 0.3;
  config_.guard.hang_factor = 0;
  fs::create_directories(folder_ / "r");
  const std::string pipe = folder_ / fmt::format("r/hang.txt.tmp.{}", ::getpid());
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::atomic<bool> hung{false}, told{false}, ended{false};
  faults_.before = [&](const char* op) {
    if (std::strcmp(op, "attention_backward") != 0 || hung || faults_.updates < 3 * updates_of_a_step())
      return;
    hung = true;
    const auto begin = std::chrono::steady_clock::now();
    while (!ended && std::chrono::steady_clock::now() - begin < std::chrono::seconds(15))
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    throw Error("the process has ended");
  };
  PretrainOptions o = faulty("r");
  o.on_hang = [&](const std::string&) { told = true; };
  o.end_hung = [&] {
    EXPECT_TRUE(told);
    ended = true;
  };
  error_of([&] { pretrain(config_, o, out_, stop_); });
  EXPECT_TRUE(ended);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);  // lets go of the thread that waits
  for (int i = 0; i < 1000 && !fs::exists(folder_ / "r/hang.txt"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::close(reader);
}

TEST_F(FaultTest, AHangIsNamedAndTheRunCanGoOnFromItsCheckpoint) {
  config_.guard.hang_seconds = 0.3;
  config_.guard.hang_factor = 0;
  std::atomic<bool> hung{false}, released{false};
  faults_.before = [&](const char* op) {
    if (std::strcmp(op, "attention_backward") != 0 || hung || faults_.updates < 33 * updates_of_a_step())
      return;
    hung = true;
    while (!released) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    throw Error("the process has ended");  // what exit code 3 does
  };
  PretrainOptions o = faulty("r");
  std::string report;
  o.on_hang = [&](const std::string& text) {
    EXPECT_FALSE(fs::exists(folder_ / "r/hang.txt")) << "told before a disk is waited for";
    report = text;
  };
  o.end_hung = [&] { released = true; };
  EXPECT_TRUE(contains(error_of([&] { pretrain(config_, o, out_, stop_); }), "the process has ended"));
  EXPECT_TRUE(contains(report, "rank 0: no progress for "));
  EXPECT_TRUE(
      contains(report, "in step 34, forward and backward of micro-batch 1: inside attention_backward"));
  EXPECT_EQ(read_file(folder_ / "r/hang.txt"), report);
  faults_ = {};
  EXPECT_EQ(run_faulty("r").resumed_from, 30);
  EXPECT_TRUE(same_checkpoints(folder_ / "r/checkpoints/step-00000060", run("clean").checkpoint));
}

TEST_F(FaultTest, AFullDiskOnTheWayIsToldAndTheNextCheckpointTriedAtTheEndItIsAnError) {
  PretrainOptions o = faulty("r");
  std::unique_ptr<FileSizeLimit> full;
  faults_.before = [&](const char* op) {
    if (std::strcmp(op, "adamw") != 0) return;
    const int64_t step = faults_.updates / updates_of_a_step() + 1;
    if (step == 18 && !full) {
      while (!fs::exists(folder_ / "r/checkpoints/step-00000010"))  // it may still be written
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      full = std::make_unique<FileSizeLimit>(5000);
    }
    if (step == 38) full.reset();
  };
  EXPECT_EQ(pretrain(config_, o, out_, stop_).steps, 60);
  EXPECT_TRUE(contains(out_.str(), "WARNING: step 20: the checkpoint could not be written"));
  EXPECT_GE(events("r", "checkpoint_failed").size(), 1u) << "that of step 30 may be written late, and whole";
  EXPECT_TRUE(fs::exists(folder_ / "r/checkpoints/step-00000040/COMPLETE"));
  EXPECT_EQ(steps("r").size(), 60u) << "metrics lack nothing";

  faults_ = {};
  faults_.before = [&](const char* op) {
    const int64_t step = faults_.updates / updates_of_a_step() + 1;
    if (std::strcmp(op, "adamw") != 0 || step != 55 || full) return;
    while (!fs::exists(folder_ / "s/checkpoints/step-00000050"))
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    full = std::make_unique<FileSizeLimit>(5000);
  };
  const std::string text = error_of([&] { pretrain(config_, faulty("s"), out_, stop_); });
  full.reset();
  EXPECT_TRUE(contains(text, "the checkpoint of step 60 could not be written"));
  EXPECT_TRUE(contains(text, "the newest complete one is " + (folder_ / "s/checkpoints/step-00000050")));
  faults_ = {};
  EXPECT_EQ(run_faulty("s").resumed_from, 50);
}

TEST_F(FaultTest, ADamagedCheckpointIsToldAndTheRunEndsWithTheSameBitsAllTheSame) {
  config_.train.steps = 40;
  run("r");
  fs::resize_file(folder_ / "r/checkpoints/step-00000040/model/model.safetensors", 100);
  const PretrainResult again = run("r");
  EXPECT_EQ(again.resumed_from, 30);
  EXPECT_TRUE(contains(out_.str(), "this checkpoint is not used; it is now "));
  EXPECT_TRUE(same_checkpoints(again.checkpoint, run("clean").checkpoint));
  EXPECT_EQ(without_times(lines("r")), without_times(lines("clean")));
}

}  // namespace
}  // namespace cachalot
