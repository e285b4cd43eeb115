#include "data/byte_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

std::string path_of(std::string_view bytes) {
  const std::string path =
      (fs::temp_directory_path() / ("byte_source_" + std::to_string(::getpid()))).string();
  write_file_atomic(path, bytes);
  return path;
}

std::string read_all(const std::string& path, size_t step = 1000, int64_t skip = 0) {
  const auto source = open_bytes(path);
  if (skip > 0) source->skip(skip);
  std::string all, block(step, '\0');
  while (const size_t n = source->read(block)) all.append(block, 0, n);
  return all;
}

std::string text(size_t size) {
  std::string t;
  for (uint64_t i = 0; t.size() < size; ++i)
    t += std::to_string(random_below(1, 2, i, 100000)) + (i % 9 ? " word " : "\n");
  t.resize(size);
  return t;
}

std::string error_of(const auto& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "";
}

// The gzip of "hello\n", by gzip 1.12.
const std::string kGzip(
    "\x1F\x8B\x08\0\0\0\0\0\0\x03\xCB\x48\xCD\xC9\xC9\xE7\x02\0\x20\x30\x3A\x36\x06\0\0\0", 26);

TEST(ByteSource, PlainFilesComeAsTheyAre) {
  for (const size_t size : {0, 1, 5, 6, 7, 300000}) {
    const std::string t = text(size);
    EXPECT_EQ(read_all(path_of(t)), t);
    if (size > 6) {
      EXPECT_EQ(read_all(path_of(t), 10, 3), t.substr(3));
      EXPECT_EQ(read_all(path_of(t), 10, 7), t.substr(7));
    }
  }
  EXPECT_NE(error_of([] { open_bytes("/nonexistent/file"); }), "");
  EXPECT_NE(error_of([] { open_bytes("/tmp"); }), "");
}

TEST(ByteSource, GzipMembersFollowOneAnother) {
  if (!can_read_gzip()) GTEST_SKIP() << "runs where zlib1g-dev is installed (scripts/setup.sh installs it)";
  for (const size_t step : {1, 3, 1000}) {
    EXPECT_EQ(read_all(path_of(kGzip), step), "hello\n");
    EXPECT_EQ(read_all(path_of(kGzip + kGzip), step), "hello\nhello\n");
    EXPECT_EQ(read_all(path_of(kGzip + std::string(512, '\0')), step), "hello\n");  // padded by tapes
  }
  EXPECT_EQ(read_all(path_of(kGzip + kGzip), 100, 8), "llo\n");
}

TEST(ByteSource, DamagedGzipIsAnErrorWithThePlace) {
  if (!can_read_gzip()) GTEST_SKIP() << "runs where zlib1g-dev is installed (scripts/setup.sh installs it)";
  for (size_t size = 3; size < kGzip.size(); ++size)
    EXPECT_NE(error_of([&] { read_all(path_of(kGzip.substr(0, size))); }).find("byte"), std::string::npos)
        << size;
  for (const size_t at : {12, 18, 19, 22}) {
    std::string bad = kGzip;
    bad[at] = char(bad[at] ^ 0x10);
    EXPECT_NE(error_of([&] { read_all(path_of(bad)); }), "") << at;
  }
  EXPECT_NE(error_of([&] { read_all(path_of(kGzip + "garbage")); }), "");
}

TEST(ByteSource, ZstandardFramesComeBackInAnySteps) {
  if (!can_use_zstd()) GTEST_SKIP() << "runs where libzstd-dev is installed (scripts/setup.sh installs it)";
  const std::string t = text(400000), frame = zstd_frame(t, 3);
  EXPECT_LT(frame.size(), t.size() / 2);
  EXPECT_EQ(zstd_frame(t, 3), frame);
  EXPECT_EQ(zstd_unframe(frame), t);
  for (const size_t step : {7, 4096, 1000000})
    EXPECT_EQ(read_all(path_of(frame + frame + zstd_frame("", 1)), step), t + t);
  EXPECT_EQ(read_all(path_of(frame), 1000, 399000), t.substr(399000));
}

TEST(ByteSource, DamagedZstandardIsAnError) {
  if (!can_use_zstd()) GTEST_SKIP() << "runs where libzstd-dev is installed (scripts/setup.sh installs it)";
  const std::string frame = zstd_frame(text(30000), 3);
  for (size_t size = 7; size < frame.size(); size += frame.size() / 40)
    EXPECT_NE(error_of([&] { read_all(path_of(frame.substr(0, size))); }), "") << size;
  EXPECT_NE(error_of([&] { zstd_unframe(frame.substr(0, frame.size() / 2)); }), "");
  int noticed = 0, tried = 0;
  for (size_t at = 4; at < frame.size(); at += 97, ++tried) {
    std::string bad = frame;
    bad[at] = char(bad[at] ^ 1);
    noticed += !error_of([&] { read_all(path_of(bad)); }).empty();
  }
  EXPECT_EQ(noticed, tried);
}

TEST(ByteSource, SkippingBeyondTheEndIsAnError) {
  EXPECT_NE(error_of([] { read_all(path_of("0123456789"), 10, 11); }), "");
  if (!can_read_gzip()) return;
  EXPECT_NE(error_of([] { read_all(path_of(kGzip), 10, 11); }), "");
}

}  // namespace
}  // namespace cachalot
