#include "train/metrics_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

TEST(MetricsFile, LinesPastACheckpointAreCutAndLaterFieldsOfItsLastLineStay) {
  TemporaryFolder folder;
  MetricsFile file(folder / "m");
  file.append({{"step", 1}});
  const int64_t end = file.bytes();
  file.append({{"step", 2}});
  file.extend(end, {{"held_out", 0.5}});  // of the line before the last
  EXPECT_EQ(read_file(folder / "m"), "{\"step\":1,\"held_out\":0.5}\n{\"step\":2}\n");
  file.append({{"step", 3}});
  const std::vector<Json> kept = file.cut(end);
  ASSERT_EQ(kept.size(), 1u);
  EXPECT_EQ(kept[0]["held_out"], 0.5);
  file.append({{"step", 2}});
  EXPECT_EQ(read_file(folder / "m"), "{\"step\":1,\"held_out\":0.5}\n{\"step\":2}\n");
  EXPECT_TRUE(file.cut(0).empty());
  EXPECT_EQ(read_file(folder / "m"), "");
}

TEST(MetricsFile, ALineThatWasCutShortIsRemoved) {
  TemporaryFolder folder;
  write_file_atomic(folder / "m", "{\"step\":1}\n{\"st");
  MetricsFile file(folder / "m");
  EXPECT_EQ(file.cut(1000).size(), 1u);
  file.append({{"step", 2}});
  EXPECT_EQ(read_file(folder / "m"), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(MetricsFile, WhatAFullDiskRefusesIsWrittenWhenThereIsRoomAgain) {
  TemporaryFolder folder;
  MetricsFile file(folder / "m");
  file.append({{"step", 1}});
  const int64_t end = file.bytes();
  {
    const FileSizeLimit full(4);
    file.append({{"step", 2}});
    EXPECT_TRUE(contains(file.flush(), "cannot write " + (folder / "m")));
    file.extend(end, {{"held_out", 1}});
    EXPECT_GT(file.bytes(), 20);
    EXPECT_EQ(read_file(folder / "m"), "{\"step\":1}\n");
  }
  EXPECT_EQ(file.flush(), "");
  EXPECT_EQ(read_file(folder / "m"), "{\"step\":1,\"held_out\":1}\n{\"step\":2}\n");
}

}  // namespace
}  // namespace cachalot
