// What a run has written so far, read back: metrics.jsonl (train/telemetry.h) as columns. Works beside a run
// that goes on: a last line without its end is left for later. A line whose fields are of another kind than
// telemetry writes, by hand or by damage, is counted and left out: who reads a RunLog finds lists and numbers
// where they belong.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"

namespace cachalot {

struct RunLog {
  std::vector<double> step, tokens;  // of every step that has a line
  std::map<std::string, std::vector<double>>
      values;                // loss, lr, ...; max_vio.0, mtp_loss.1 ...; NaN where a line has none
  std::vector<Json> events;  // lines that are no steps
  // {"step": when, "sets": {name: [layer][expert]}} of every evaluation.
  std::vector<Json> expert_loads;
  int64_t unreadable = 0;  // lines that were no JSON objects, or had fields of a wrong kind

  bool has(const std::string& name) const { return values.count(name) > 0; }
  // The values of `name` and the steps that they belong to, those that are numbers only.
  struct Column {
    std::vector<double> step, value;
  };
  Column column(const std::string& name) const;
  double last(const std::string& name) const;  // the last number; NaN without any
  // Names that begin with `prefix`, in the order of the numbers or words that follow it.
  std::vector<std::string> names(const std::string& prefix) const;
};

// Error when the file cannot be read.
RunLog read_run_log(const std::string& metrics_path);

}  // namespace cachalot
