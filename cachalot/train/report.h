// One self-contained page of a run: losses, learning rate, gradient, throughput, energy, experts, events,
// samples, configuration, machine. Nothing is fetched; it can be mailed.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "train/run_log.h"

namespace cachalot {

struct ReportInput {
  std::string title;
  RunLog log;
  std::string config_json;      // of the run, "" when there is none
  std::string machine_json;     // the same
  int64_t total_steps = 0;      // 0: unknown
  bool goes_on = false;         // a process trains in it
  double now = 0, written = 0;  // seconds since 1970: when the page is made, when the run last wrote
  std::vector<std::pair<std::string, std::string>> samples;  // prompt, continuation
};

std::string report_html(const ReportInput& input);

}  // namespace cachalot
