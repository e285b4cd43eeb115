#include "train/run_directory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "model/load.h"
#include "train/testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

std::string save(const RunDirectory& run, int64_t step, size_t bytes = 10) {
  return run.save_checkpoint(step, [&](const std::string& directory) {
    fs::create_directory(directory + "/model");
    write_file_atomic(directory + "/model/weights", std::string(bytes, char('a' + step % 26)));
    return fmt::format("step {}\n", step);
  });
}

constexpr auto kFresh = RunDirectory::Open::fresh, kResume = RunDirectory::Open::resume,
               kOverwrite = RunDirectory::Open::overwrite;

int64_t entries(const std::string& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator{});
}

TEST(RunDirectory, KeepsTheLastTwoCheckpointsAndLinksTheNewest) {
  TemporaryFolder folder;
  EXPECT_EQ(RunDirectory::newest_step(folder / "run"), 0);
  const RunDirectory run(folder / "run", kFresh);
  EXPECT_TRUE(run.checkpoints().empty());
  EXPECT_EQ(RunDirectory::newest_step(run.path()), 0);
  EXPECT_EQ(save(run, 9), folder / "run/checkpoints/step-00000009");
  save(run, 10);
  EXPECT_EQ(run.checkpoints().size(), 2u);
  save(run, 100000000);  // more digits than the name is padded to
  const std::vector<std::string> kept = run.checkpoints();
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(fs::path(kept[0]).filename(), "step-00000010");
  EXPECT_EQ(fs::path(kept[1]).filename(), "step-100000000");
  EXPECT_TRUE(fs::exists(kept[1] + "/COMPLETE"));
  EXPECT_EQ(read_file(kept[1] + "/COMPLETE"), "step 100000000\n");
  EXPECT_EQ(entries(folder / "run/checkpoints"), 2);
  EXPECT_EQ(read_file(folder / "run/model/weights"), read_file(kept[1] + "/model/weights"));
  EXPECT_EQ(RunDirectory::newest_step(run.path()), 100000000);
  EXPECT_EQ(RunDirectory::complete_checkpoints(run.path()), 2);
  fs::remove(kept[1] + "/COMPLETE");
  EXPECT_EQ(RunDirectory::newest_step(run.path()), 10);
}

TEST(RunDirectory, KeepsAsManyAsItIsToldAndThoseOfEveryNthStepForGood) {
  TemporaryFolder folder;
  const RunDirectory run(folder / "run", kFresh, {.last = 3, .every = 100});
  for (int64_t step = 50; step <= 450; step += 50) save(run, step);
  std::vector<int64_t> steps;
  for (const std::string& path : run.checkpoints()) steps.push_back(RunDirectory::step_of(path));
  EXPECT_EQ(steps, (std::vector<int64_t>{100, 200, 300, 350, 400, 450}));
}

TEST(RunDirectory, WhatAKilledProcessLeftHalfDoneIsRemovedAndNothingElse) {
  TemporaryFolder folder;
  const std::string checkpoints = folder / "run/checkpoints";
  {
    const RunDirectory run(folder / "run", kFresh);
    run.write_config("{}");
    save(run, 1);
    fs::create_directories(checkpoints + "/step-00000002.tmp/model");
    fs::create_directories(checkpoints + "/step-00000000.old/model");
    fs::create_directories(checkpoints + "/step-00000001.tmp.old/model");
    fs::create_directories(checkpoints + "/step-00000003.damaged");
    fs::create_directories(checkpoints + "/mine.tmp");
  }
  const RunDirectory run(folder / "run", kResume);
  EXPECT_EQ(run.checkpoints().size(), 1u);
  EXPECT_EQ(entries(checkpoints), 3);
  EXPECT_FALSE(fs::exists(checkpoints + "/step-00000002.tmp"));
  EXPECT_FALSE(fs::exists(checkpoints + "/step-00000001.tmp.old"));
  EXPECT_TRUE(fs::exists(checkpoints + "/step-00000003.damaged"));
  EXPECT_EQ(run.put_aside(run.checkpoints()[0], RunDirectory::Aside::damaged),
            checkpoints + "/step-00000001.damaged");
  EXPECT_TRUE(run.checkpoints().empty());
}

TEST(RunDirectory, TwoProcessesDoNotTrainInOneFolder) {
  TemporaryFolder folder;
  {
    const RunDirectory run(folder / "run", kFresh);
    run.write_config("{}");
    for (const auto open : {kResume, kOverwrite})
      EXPECT_TRUE(
          contains(error_of([&] { RunDirectory(folder / "run", open); }), "another process trains in"));
    EXPECT_TRUE(fs::exists(folder / "run/config.json"));
    EXPECT_TRUE(RunDirectory::is_locked(folder / "run"));
  }
  EXPECT_FALSE(RunDirectory::is_locked(folder / "run"));
  EXPECT_FALSE(RunDirectory::is_locked(folder / "nothing"));
  const RunDirectory later(folder / "run", kResume);
}

TEST(RunDirectory, AFullDiskLeavesThePreviousCheckpointAndNothingElse) {
  TemporaryFolder folder;
  const RunDirectory run(folder / "run", kFresh);
  const std::string first = save(run, 1, 5000);
  {
    const FileSizeLimit full(1000);
    EXPECT_TRUE(contains(error_of([&] { save(run, 2, 5000); }), "step-00000002.tmp/model/weights"));
  }
  EXPECT_EQ(run.checkpoints(), std::vector<std::string>{first});
  EXPECT_EQ(read_file(first + "/model/weights"), std::string(5000, 'b'));
  EXPECT_EQ(read_file(folder / "run/model/weights"), std::string(5000, 'b'));
  EXPECT_EQ(entries(folder / "run/checkpoints"), 1);
  save(run, 2, 5000);  // and there is room again
  EXPECT_EQ(run.checkpoints().size(), 2u);
}

TEST(RunDirectory, ARunIsReplacedOnlyWhenAskedForAndOnlyItsOwnFiles) {
  TemporaryFolder folder;
  const std::string path = folder / "run";
  {
    const RunDirectory run(path, kFresh);
    EXPECT_EQ(RunDirectory::look(path), RunDirectory::Holds::beginnings);
    run.write_config("{}");
    EXPECT_EQ(RunDirectory::look(path), RunDirectory::Holds::run);
    save(run, 1);
    write_file_atomic(path + "/metrics.jsonl", "{}\n");
    write_file_atomic(path + "/notes.txt", "mine");
  }
  EXPECT_TRUE(contains(error_of([&] { RunDirectory(path, kFresh); }), "already holds a run | --overwrite"));
  EXPECT_TRUE(fs::exists(path + "/model/weights"));
  const RunDirectory again(path, kOverwrite);
  EXPECT_TRUE(again.checkpoints().empty());
  EXPECT_FALSE(fs::exists(path + "/metrics.jsonl"));
  EXPECT_FALSE(fs::exists(fs::symlink_status(path + "/model")));
  EXPECT_EQ(read_file(path + "/notes.txt"), "mine");
}

TEST(RunDirectory, WhatAProcessLeftBeforeItsConfigurationIsGoneOnWithout) {
  TemporaryFolder folder;
  const std::string path = folder / "run";
  {
    const RunDirectory run(path, kFresh);
    write_file_atomic(path + "/tokenizer_config.json", "{}");
    fs::create_directories(path + "/checkpoints/step-00000002.tmp/model");
  }
  EXPECT_EQ(RunDirectory::look(path), RunDirectory::Holds::beginnings);
  const RunDirectory again(path, kFresh);
  EXPECT_EQ(entries(path + "/checkpoints"), 0);
  EXPECT_FALSE(fs::exists(path + "/tokenizer_config.json"));
}

// A run that lost its config.json, or another program's folder: work that nobody asked to remove.
TEST(RunDirectory, CheckpointsOrMetricsWithoutAConfigurationAreRemovedOnlyWhenAskedFor) {
  TemporaryFolder folder;
  const std::string path = folder / "run";
  {
    const RunDirectory run(path, kFresh);
    save(run, 1);
  }
  const std::string foreign = folder / "foreign", counted = folder / "counted", damaged = folder / "damaged";
  fs::create_directories(foreign + "/checkpoints/epoch-1");
  write_file_atomic(foreign + "/checkpoints/epoch-1/weights", "mine");
  fs::create_directories(counted);
  write_file_atomic(counted + "/metrics.jsonl", "{}");
  fs::create_directories(damaged + "/checkpoints/step-00000001.damaged");
  for (const std::string& p : {path, foreign, counted, damaged}) {
    EXPECT_EQ(RunDirectory::look(p), RunDirectory::Holds::remains) << p;
    EXPECT_TRUE(contains(error_of([&] { RunDirectory(p, kFresh); }), "no config.json")) << p;
    EXPECT_TRUE(contains(error_of([&] { RunDirectory::require_free(p); }), "--overwrite to remove them"));
  }
  EXPECT_TRUE(fs::exists(path + "/checkpoints/step-00000001/COMPLETE"));
  EXPECT_TRUE(fs::exists(foreign + "/checkpoints/epoch-1/weights"));
  EXPECT_TRUE(fs::exists(counted + "/metrics.jsonl"));
  const RunDirectory asked(path, kOverwrite);
  EXPECT_TRUE(asked.checkpoints().empty());
}

// A folder of a tokenizer in which somebody made checkpoints/ has a tokenizer that is not ours.
TEST(RunDirectory, ATokenizerThatNoRunPutThereIsNotRemoved) {
  TemporaryFolder folder;
  fs::create_directories(folder / "checkpoints");
  write_file_atomic(folder / "tokenizer.json", "mine");
  EXPECT_NE(error_of([&] { RunDirectory(folder.path(), kFresh); }), "no error");
  EXPECT_EQ(read_file(folder / "tokenizer.json"), "mine");
}

TEST(RunDirectory, TheModelOfARunIsThatOfItsNewestCheckpointNotOfOnePutAside) {
  TemporaryFolder folder;
  const RunDirectory run(folder / "run", kFresh, {.last = 9});
  save(run, 8);
  save(run, 99999999);
  save(run, 100000000);
  EXPECT_EQ(resolve_model_directory(run.path()), run.path() + "/checkpoints/step-100000000/model");
  EXPECT_EQ(resolve_model_directory(run.checkpoints()[0]), run.checkpoints()[0] + "/model");
  EXPECT_EQ(run.put_aside(run.checkpoints().back(), RunDirectory::Aside::rewound),
            run.path() + "/checkpoints/step-100000000.rewound");
  EXPECT_EQ(resolve_model_directory(run.path()), run.path() + "/checkpoints/step-99999999/model");
  run.put_aside(run.checkpoints().back(), RunDirectory::Aside::damaged);
  EXPECT_EQ(resolve_model_directory(run.path()), run.path() + "/checkpoints/step-00000008/model");
  run.put_aside(run.checkpoints().back(), RunDirectory::Aside::rewound);
  EXPECT_EQ(run.aside().size(), 3u);
  EXPECT_TRUE(contains(error_of([&] { resolve_model_directory(run.path()); }), "no complete checkpoint"));
}

TEST(RunDirectory, WhatIsNoRunIsNeverReplaced) {
  TemporaryFolder folder;
  write_file_atomic(folder / "config.json", "{}");  // a model directory, say
  EXPECT_TRUE(contains(error_of([&] { RunDirectory(folder.path(), kOverwrite); }),
                       "is no run but holds a config.json"));
  EXPECT_TRUE(fs::exists(folder / "config.json"));
  write_file_atomic(folder / "file", "");
  EXPECT_TRUE(contains(error_of([&] { RunDirectory(folder / "file", kFresh); }), "is no directory"));
  EXPECT_TRUE(contains(error_of([&] { RunDirectory(folder / "file/run", kFresh); }),
                       "cannot make the run directory"));
}

}  // namespace
}  // namespace cachalot
