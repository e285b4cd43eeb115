#include "cli/load_progress.h"

#include <iostream>
#include <memory>

#include "base/progress.h"

namespace cachalot::cli {

std::function<void(int64_t read, int64_t all)> show_loading() {
  constexpr int64_t kLarge = 500'000'000, kMillion = 1'000'000;
  return [line = std::shared_ptr<Progress>()](int64_t read, int64_t all) mutable {
    if (all < kLarge) return;
    if (!line) line = std::make_shared<Progress>(std::cerr, "load, M parameters", all / kMillion);
    line->update(read / kMillion);
    if (read == all) line->finish();
  };
}

}  // namespace cachalot::cli
