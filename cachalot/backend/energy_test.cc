#include "backend/energy.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {
namespace {

namespace fs = std::filesystem;

// A folder as Linux shows it: two packages, and a part of the first, which must not count twice.
struct Powercap {
  std::string path;
  Powercap() {
    path = (fs::temp_directory_path() / "cachalot-powercap-XXXXXX").string();
    if (!mkdtemp(path.data())) throw Error("no temporary folder");
    for (const char* name : {"intel-rapl", "intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"}) {
      fs::create_directories(path + "/" + name);
      write_file_atomic(path + "/" + std::string(name) + "/max_energy_range_uj", "1000000000\n");
      set(name, 500000000);
    }
  }
  ~Powercap() { fs::remove_all(path); }
  void set(const std::string& name, int64_t microjoules) const {
    write_file_atomic(path + "/" + name + "/energy_uj", std::to_string(microjoules) + "\n");
  }
};

TEST(EnergyMeter, AddsUpPackagesAndNotTheirParts) {
  const Powercap p;
  EnergyMeter meter("cpu", p.path);
  EXPECT_TRUE(meter.measures());
  EXPECT_EQ(meter.describe(), "2 processors");
  EXPECT_EQ(meter.joules(), 0);
  p.set("intel-rapl:0", 503000000);
  p.set("intel-rapl:0:0", 502000000);
  p.set("intel-rapl:1", 500500000);
  EXPECT_NEAR(meter.joules(), 3.5, 1e-9);
}

TEST(EnergyMeter, FollowsACounterThatWrapsAround) {
  const Powercap p;
  EnergyMeter meter("cpu", p.path);
  p.set("intel-rapl:0", 999000000);
  EXPECT_NEAR(meter.joules(), 499, 1e-9);
  p.set("intel-rapl:0", 2000000);
  EXPECT_NEAR(meter.joules(), 502, 1e-9);
}

TEST(EnergyMeter, ACounterThatVanishesStandsStill) {
  const Powercap p;
  EnergyMeter meter("cpu", p.path);
  p.set("intel-rapl:0", 501000000);
  EXPECT_NEAR(meter.joules(), 1, 1e-9);
  fs::remove_all(p.path + "/intel-rapl:0");
  p.set("intel-rapl:1", 502000000);
  EXPECT_NEAR(meter.joules(), 3, 1e-9);
}

TEST(EnergyMeter, SaysWhyItMeasuresNothing) {
  EnergyMeter meter("cpu", "/nonexistent/powercap");
  EXPECT_FALSE(meter.measures());
  EXPECT_EQ(meter.joules(), 0);
  EXPECT_NE(meter.describe().find("no energy counters"), std::string::npos);
}

}  // namespace
}  // namespace cachalot
