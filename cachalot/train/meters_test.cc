#include "train/meters.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

// DeepSeek-V3 with contexts of 4096, keys of the past only: 250 GFLOP a token, 261 with its MTP module.
TEST(Meters, CountTheFlopsOfATokenAsTheyArePublished) {
  ModelConfig v3;
  v3.num_nextn_predict_layers = 0;
  const double main = training_flops_per_token(v3, 4096);
  EXPECT_NEAR(1e-9 * main, 250, 1.5);
  v3.num_nextn_predict_layers = 1;
  const double mtp = training_flops_per_token(v3, 4096);
  EXPECT_GT(mtp, main);
  EXPECT_GT(training_flops_per_token(v3, 8192), mtp);
}

class MetersTest : public ::testing::Test {
 protected:
  MetersTest() {
    std::filesystem::create_directories(folder_ / "intel-rapl:0");
    write_file_atomic(folder_ / "intel-rapl:0/max_energy_range_uj", "1000000000000\n");
    count(0);
  }
  void count(int64_t joules) {
    write_file_atomic(folder_ / "intel-rapl:0/energy_uj", std::to_string(joules * 1000000) + "\n");
  }
  Meters meters(const std::string& counters) {
    return Meters(tiny_model(), train_, *device_, "cpu", EnergyMeter("cpu", counters));
  }

  TemporaryFolder folder_;
  TrainSection train_ = tiny_training();
  std::unique_ptr<Device> device_ = open_device("cpu");
};

TEST_F(MetersTest, EnergyAndCostAreThoseOfTheWholeRun) {
  train_.price_per_hour = 2;
  train_.price_per_kwh = 0.5;
  Meters m = meters(folder_.path());
  m.go_on_from(3.6e6 - 50);  // before the run was resumed
  count(50);
  Json line = Json::object();
  m.add_to(line, 100, 0.5, 1800);
  EXPECT_DOUBLE_EQ(line["energy_joules"], 3.6e6);
  EXPECT_DOUBLE_EQ(line["tokens_per_joule"], 2) << "of this process";
  EXPECT_DOUBLE_EQ(line["cost"], 1 + 0.5) << "half an hour and a kWh";
  EXPECT_GT(line["mfu"].get<double>(), 0);
  EXPECT_TRUE(contains(m.describe(), "energy of "));
}

TEST_F(MetersTest, WithoutCountersThereIsNoEnergyAndNoPriceOfIt) {
  train_.price_per_kwh = 0.5;
  Meters none = meters(folder_ / "absent");
  Json line = Json::object();
  none.add_to(line, 100, 0.5, 1800);
  for (const char* key : {"energy_joules", "tokens_per_joule", "cost"})
    EXPECT_FALSE(line.contains(key)) << key;
  train_.price_per_hour = 2;
  meters(folder_ / "absent").add_to(line, 100, 0.5, 1800);
  EXPECT_DOUBLE_EQ(line["cost"], 1);
}

}  // namespace
}  // namespace cachalot
