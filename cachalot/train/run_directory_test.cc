#include "train/run_directory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>

#include "train/testing.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;
using namespace ::cachalot::testing;  // NOLINT

// Files cannot grow beyond `bytes` while it lives: what a full disk or a quota does to a write.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  sighandler_t old_handler_;
};

std::string save(const RunDirectory& run, int64_t step, size_t bytes = 10) {
  return run.save_checkpoint(step, [&](const std::string& model) {
    write_file_atomic(model + "/weights", std::string(bytes, char('a' + step % 26)));
  });
}

TEST(RunDirectory, KeepsTheLastTwoCheckpointsAndLinksTheNewest) {
  TemporaryFolder folder;
  const RunDirectory run(folder / "run", false);
  EXPECT_TRUE(run.checkpoints().empty());
  EXPECT_EQ(save(run, 9), folder / "run/checkpoints/step-00000009");
  save(run, 10);
  EXPECT_EQ(run.checkpoints().size(), 2u);
  save(run, 100000000);  // more digits than the name is padded to
  const std::vector<std::string> kept = run.checkpoints();
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(fs::path(kept[0]).filename(), "step-00000010");
  EXPECT_EQ(fs::path(kept[1]).filename(), "step-100000000");
  EXPECT_TRUE(fs::exists(kept[1] + "/COMPLETE"));
  EXPECT_FALSE(fs::exists(folder / "run/checkpoints/step-00000009"));
  EXPECT_EQ(read_file(folder / "run/model/weights"), read_file(kept[1] + "/model/weights"));
}

TEST(RunDirectory, AFullDiskLeavesThePreviousCheckpointAndNothingElse) {
  TemporaryFolder folder;
  const RunDirectory run(folder / "run", false);
  const std::string first = save(run, 1, 5000);
  {
    const FileSizeLimit full(1000);
    EXPECT_TRUE(contains(error_of([&] { save(run, 2, 5000); }), "step-00000002.tmp/model/weights"));
  }
  EXPECT_EQ(run.checkpoints(), std::vector<std::string>{first});
  EXPECT_EQ(read_file(first + "/model/weights"), std::string(5000, 'b'));
  EXPECT_EQ(read_file(folder / "run/model/weights"), std::string(5000, 'b'));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "run/checkpoints"), fs::directory_iterator{}), 1);
  save(run, 2, 5000);  // and there is room again
  EXPECT_EQ(run.checkpoints().size(), 2u);
}

TEST(RunDirectory, ARunIsReplacedOnlyWhenAskedForAndOnlyItsOwnFiles) {
  TemporaryFolder folder;
  const std::string path = folder / "run";
  {
    const RunDirectory run(path, false);
    save(run, 1);
    write_file_atomic(path + "/metrics.jsonl", "{}\n");
    write_file_atomic(path + "/notes.txt", "mine");
  }
  EXPECT_TRUE(contains(error_of([&] { RunDirectory::require_usable(path, false); }), "already holds a run"));
  EXPECT_TRUE(contains(error_of([&] { RunDirectory(path, false); }), "--overwrite"));
  EXPECT_TRUE(fs::exists(path + "/model/weights"));
  const RunDirectory again(path, true);
  EXPECT_TRUE(again.checkpoints().empty());
  EXPECT_FALSE(fs::exists(path + "/metrics.jsonl"));
  EXPECT_FALSE(fs::exists(fs::symlink_status(path + "/model")));
  EXPECT_EQ(read_file(path + "/notes.txt"), "mine");
}

TEST(RunDirectory, WhatIsNoRunIsNeverReplaced) {
  TemporaryFolder folder;
  write_file_atomic(folder / "config.json", "{}");  // a model directory, say
  EXPECT_TRUE(
      contains(error_of([&] { RunDirectory(folder.path(), true); }), "is no run but holds a config.json"));
  EXPECT_TRUE(fs::exists(folder / "config.json"));
  write_file_atomic(folder / "file", "");
  EXPECT_TRUE(contains(error_of([&] { RunDirectory(folder / "file", false); }), "is no directory"));
  EXPECT_TRUE(
      contains(error_of([&] { RunDirectory(folder / "file/run", false); }), "cannot make the run directory"));
}

}  // namespace
}  // namespace cachalot
