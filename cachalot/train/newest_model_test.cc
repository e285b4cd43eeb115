#include "train/newest_model.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "train/testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

std::string add_checkpoint(const std::string& run, int64_t step) {
  const std::string path = fmt::format("{}/checkpoints/step-{:08}", run, step);
  fs::create_directories(path + "/model");
  write_file_atomic(path + "/COMPLETE", "");
  return path;
}

TEST(NewestModel, ACheckpointThatARunRemovesMeanwhileMakesRoomForTheNextOne) {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  std::string newest = add_checkpoint(run, 1);
  std::vector<std::string> read;
  read_newest_model(run, [&](const std::string& directory) {
    read.push_back(directory);
    if (read.size() == 3) return;
    const std::string old = newest;
    newest = add_checkpoint(run, int64_t(read.size()) + 1);
    fs::remove_all(old);
    throw Error(directory + "/tokenizer.json is missing");
  });
  ASSERT_EQ(read.size(), 3u);
  EXPECT_EQ(read.back(), newest + "/model");
}

TEST(NewestModel, WhatIsWrongWithACheckpointThatStaysIsTold) {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  add_checkpoint(run, 1);
  int calls = 0;
  EXPECT_TRUE(contains(error_of([&] {
                         read_newest_model(run, [&](const std::string&) {
                           ++calls;
                           throw Error("a weight is not finite");
                         });
                       }),
                       "a weight is not finite"));
  EXPECT_EQ(calls, 1);
}

TEST(NewestModel, ARunWithoutCheckpointsAndOneThatNeverHoldsStillAreErrors) {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  fs::create_directories(run + "/checkpoints");
  EXPECT_TRUE(contains(error_of([&] { read_newest_model(run, [](const std::string&) {}); }),
                       "holds no complete checkpoint"));
  int64_t step = 1;
  add_checkpoint(run, step);
  const std::string text = error_of([&] {
    read_newest_model(run, [&](const std::string& directory) {
      add_checkpoint(run, ++step);
      fs::remove_all(fs::path(directory).parent_path());
      throw Error("it is gone");
    });
  });
  EXPECT_TRUE(contains(text, "replaces its checkpoints faster than they can be read"));
}

}  // namespace
}  // namespace cachalot
