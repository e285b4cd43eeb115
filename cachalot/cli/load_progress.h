// A progress line on standard error while a large model is read.
#pragma once

#include <cstdint>
#include <functional>

namespace cachalot::cli {

// For LoadOptions::progress (model/load.h). Below half a billion parameters nothing is shown: they are there
// in a moment.
std::function<void(int64_t read, int64_t all)> show_loading();

}  // namespace cachalot::cli
