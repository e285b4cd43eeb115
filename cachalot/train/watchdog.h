// A thread that looks whether a run still makes progress. One that does not is ended by whoever was told: a
// supervisor then starts the same command again, which goes on from the newest checkpoint.
//
// A hang: nothing counted by Activity::progress for max(least, factor x the median step). Time is counted in the
// watchdog's own ticks, so that a clock that jumps, a machine that sleeps and a process that was stopped
// (Ctrl-Z) are no hangs.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "train/activity.h"

namespace cachalot {

class Watchdog {
 public:
  struct Options {
    double least_seconds = 600;
    double factor = 10;
    int rank = 0;
    double tick_seconds = 1;
    // Called once, by the watchdog's thread, with the report: what hung where, and what every thread of the
    // process does.
    std::function<void(const std::string& report)> on_hang;
  };
  Watchdog(const Activity& activity, Options options);  // `activity` outlives it
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;

  void step_took(double seconds);

 private:
  void watch();
  std::string report(double waited, double limit) const;

  const Activity& activity_;
  Options options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool closing_ = false;
  std::vector<double> steps_;  // seconds of the last ones
  double median_ = 0;
  std::thread thread_;
};

// One line for every thread of this process: name, state, and what it waits for in the kernel, as /proc says.
std::string describe_threads();

}  // namespace cachalot
