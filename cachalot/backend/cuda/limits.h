// Shapes that a kernel was not made for. A model may be larger than any that was thought of, so its user hears of it
// as of any other wrong input: what there is, what the kernel takes, what to do.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"

namespace cachalot::cuda {

// Error when `value` of `what` ("experts") is more than `most`.
inline void require_at_most(const char* op, int64_t value, int64_t most, const char* what,
                            const char* hint = "use the device cpu for this model") {
  if (value <= most) return;
  throw Error(std::string(op) + " on CUDA: " + std::to_string(value) + " " + what +
              "; the kernel takes up to " + std::to_string(most))
      .hint(hint);
}

}  // namespace cachalot::cuda
