#include "base/error.h"

#include <fmt/format.h>

namespace cachalot {

void check_failed(const char* condition, const char* file, int line, const std::string& note) {
  throw InternalError(
      fmt::format("{}:{}: {} does not hold{}{}", file, line, condition, note.empty() ? "" : ": ", note));
}

}  // namespace cachalot
