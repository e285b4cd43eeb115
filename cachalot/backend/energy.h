// Energy that the machine has used, from its own counters: processors' through Linux's powercap (RAPL), the cards'
// through NVIDIA's management library, which is looked for at run time. What a machine does not tell is left out and
// named: many virtual machines show neither.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cachalot {

class EnergyMeter {
 public:
  // `device`: "cpu", "cuda", "cuda:1". `powercap`: where Linux shows the counters, another folder in tests.
  explicit EnergyMeter(const std::string& device, const std::string& powercap = "/sys/class/powercap");
  ~EnergyMeter();
  EnergyMeter(EnergyMeter&&) noexcept;

  // Joules since the meter was made. RAPL's counters wrap around within minutes at full power: ask at least every
  // minute. A counter that vanishes stands still.
  double joules();
  bool measures() const { return !sources_.empty(); }
  // "2 processor packages and the GPU", or why nothing is measured.
  std::string describe() const;

 private:
  struct Source;
  struct Nvml;
  std::vector<Source> sources_;
  std::unique_ptr<Nvml> nvml_;
  std::string missing_;
};

}  // namespace cachalot
