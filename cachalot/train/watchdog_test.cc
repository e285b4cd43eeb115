#include "train/watchdog.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <future>

#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT
using std::chrono::milliseconds;

TEST(Watchdog, NamesWhatHangsOnce) {
  Activity activity;
  activity.step = 42;
  activity.enter("forward and backward of micro-batch", 3);
  const auto device = open_device("cpu", {.threads = 1});
  const auto followed = open_followed_device(*device, activity);
  Stream s(*followed);
  TestTensors tensors(*followed, s);
  on(s).fill({.y = tensors.garbage(DType::f32, 2, 2), .value = 1});
  std::promise<std::string> told;
  std::string report;
  {
    const Watchdog dog(activity, {.least_seconds = 0.03,
                                  .factor = 10,
                                  .tick_seconds = 0.005,
                                  .on_hang = [&](const std::string& text) { told.set_value(text); }});
    auto future = told.get_future();
    ASSERT_EQ(future.wait_for(std::chrono::seconds(20)), std::future_status::ready);
    report = future.get();
  }
  EXPECT_TRUE(
      contains(report,
               "rank 0: no progress for 0.0 s in step 42, forward and backward of micro-batch 3: after "
               "fill (operation "));
  EXPECT_TRUE(contains(report, "thread "));
}

// A long evaluation, or a checkpoint that is read, is one phase.
TEST(Watchdog, APhaseInWhichTheDeviceAnswersIsNoHang) {
  Activity activity;
  const auto device = open_device("cpu", {.threads = 1});
  const auto followed = open_followed_device(*device, activity);
  Stream s(*followed);
  TestTensors tensors(*followed, s);
  const Tensor x = tensors.garbage(DType::f32, 2, 2);
  const float values[4] = {};
  std::atomic<int> hangs{0};
  const Watchdog dog(activity, {.least_seconds = 0.4,
                                .factor = 10,
                                .tick_seconds = 0.005,
                                .on_hang = [&](const std::string&) { ++hangs; }});
  activity.enter("evaluation");
  for (int i = 0; i < 120; ++i) {
    if (i < 60) on(s).synchronize();
    else on(s).upload(values, x);
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(hangs, 0);
}

// Ctrl-Z, a debugger, a machine that sleeps: the process stood still, and so did its watchdog.
TEST(Watchdog, AProcessThatWasStoppedDidNotHang) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    Activity activity;
    std::atomic<int> hangs{0};
    const Watchdog dog(activity, {.least_seconds = 0.5,
                                  .factor = 10,
                                  .tick_seconds = 0.005,
                                  .on_hang = [&](const std::string&) { ++hangs; }});
    std::this_thread::sleep_for(milliseconds(50));  // it has looked, and waits for the next tick
    ::raise(SIGSTOP);
    std::this_thread::sleep_for(milliseconds(100));  // enough to be told, if the second that passed counts
    ::_exit(hangs);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  std::this_thread::sleep_for(milliseconds(1000));
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Watchdog, ProgressIsNoHangAndSlowStepsGetTheirTime) {
  Activity activity;
  std::atomic<int> hangs{0};
  {
    Watchdog dog(activity, {.least_seconds = 0.4,
                            .factor = 10,
                            .tick_seconds = 0.005,
                            .on_hang = [&](const std::string&) { ++hangs; }});
    for (int i = 0; i < 60; ++i) {
      activity.enter("step");
      std::this_thread::sleep_for(milliseconds(10));
    }
    EXPECT_EQ(hangs, 0) << "longer in all than is allowed without progress";
  }
  Watchdog dog(activity, {.least_seconds = 0.01,
                          .factor = 10,
                          .tick_seconds = 0.005,
                          .on_hang = [&](const std::string&) { ++hangs; }});
  dog.step_took(1000);
  std::this_thread::sleep_for(milliseconds(60));
  EXPECT_EQ(hangs, 0) << "ten median steps are 10000 s";
}

}  // namespace
}  // namespace cachalot
