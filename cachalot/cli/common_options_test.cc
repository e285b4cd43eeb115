#include "cli/common_options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace cachalot::cli {
namespace {

std::string error_of(CLI::App& app, std::vector<std::string> words) {
  try {
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(words);
  } catch (const CLI::ParseError& e) {
    return e.what();
  }
  return "no error";
}

TEST(CommonOptions, ADeviceThatComputesNothingIsRefused) {
  CLI::App app;
  std::string device = "cpu";
  add_device(app, device);
  EXPECT_EQ(error_of(app, {"--device", "cuda:1"}), "no error");
  EXPECT_EQ(device, "cuda:1");
  EXPECT_EQ(error_of(app, {"--device", "plan"}),
            "--device: plan measures what a step would take, and computes nothing");
}

TEST(CommonOptions, AResultWithoutAFolderIsRefusedBeforeTheWork) {
  CLI::App app;
  std::string file;
  app.add_option("--out", file)->check(file_in_a_folder());
  EXPECT_EQ(error_of(app, {"--out", "result.json"}), "no error");
  EXPECT_EQ(error_of(app, {"--out", testing::TempDir() + "/result.json"}), "no error");
  EXPECT_EQ(error_of(app, {"--out", "/dev/stdout"}), "no error");
  EXPECT_EQ(error_of(app, {"--out", "no/such/result.json"}), "--out: there is no folder no/such");
}

}  // namespace
}  // namespace cachalot::cli
