// metrics.jsonl: one JSON object a line, of which a checkpoint remembers how far it belongs to its steps.
//
// A line is at once with the operating system: what a killed process wrote is there. A full disk does not end
// a run: lines are kept in memory and written when there is room again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace cachalot {

class MetricsFile {
 public:
  // Opens or makes the file. Error when it cannot be written.
  explicit MetricsFile(std::string path);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;

  // Keeps the lines up to the one in which byte `bytes` - 1 is, and removes the others: `bytes` is what
  // bytes() was then, and the last line may have got more fields since. Returns the lines that are kept.
  std::vector<Json> cut(int64_t bytes);

  void append(const Json& line);
  // Adds fields to the line that ends at byte `end`, an object: what follows is written over, in one write.
  void extend(int64_t end, const Json& fields);

  int64_t bytes() const { return written_ + int64_t(pending_.size()); }
  // Tries to write what is pending; why that failed, or "". A line appended does so itself.
  const std::string& flush();
  const std::string& path() const { return path_; }

 private:
  std::string path_, pending_, error_;
  int fd_ = -1;
  int64_t written_ = 0;
};

}  // namespace cachalot
