#include "base/disk_space.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"

namespace cachalot {
namespace {

TEST(DiskSpace, OfAFolderThatIsStillToBeMadeIsThatOfTheOneItWillBeIn) {
  const std::string folder = ::testing::TempDir();
  const int64_t here = free_disk(folder), below = free_disk(folder + "/not/there/yet");
  EXPECT_GT(here, 0);
  EXPECT_GT(below, 0);
  EXPECT_LT(std::abs(here - below), here / 2) << "others write there meanwhile";
  EXPECT_GT(free_disk("relative/and/not/there"), 0);
}

TEST(DiskSpace, WhatDoesNotFitIsToldWithBothNumbersAndWhatToDo) {
  const std::string folder = ::testing::TempDir();
  EXPECT_NO_THROW(require_disk(folder, 0, "nothing"));
  EXPECT_NO_THROW(require_disk(folder, free_disk(folder) / 2, "half of it"));
  try {
    require_disk(folder, int64_t(1) << 60, "the model");
    FAIL() << "an exabyte fits";
  } catch (const Error& e) {
    const std::string what = e.what();
    EXPECT_TRUE(what.starts_with("the model needs 1024.00 PiB in " + folder + ", where ")) << what;
    EXPECT_TRUE(what.ends_with(" are free")) << what;
    EXPECT_TRUE(e.hint().ends_with(" there, or name a folder on another disk")) << e.hint();
  }
}

}  // namespace
}  // namespace cachalot
