#include "base/disk_space.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/error.h"
#include "base/text.h"

namespace cachalot {

namespace fs = std::filesystem;

int64_t free_disk(const std::string& path) {
  std::error_code code;
  fs::path at = fs::absolute(path, code);
  while (!fs::exists(at, code) && at.has_parent_path() && at != at.parent_path()) at = at.parent_path();
  const fs::space_info space = fs::space(at, code);
  return code ? -1 : int64_t(space.available);
}

void require_disk(const std::string& path, int64_t bytes, const std::string& what) {
  const int64_t free = free_disk(path);
  if (free < 0 || bytes <= free) return;
  throw Error(fmt::format("{} needs {} in {}, where {} are free", what, human_bytes(double(bytes)), path,
                          human_bytes(double(free))))
      .hint(
          fmt::format("free {} there, or name a folder on another disk", human_bytes(double(bytes - free))));
}

}  // namespace cachalot
