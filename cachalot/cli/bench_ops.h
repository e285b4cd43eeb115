// Operations that only move memory, one at a time at DeepSeek-V3's sizes: how near each comes to a copy.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "backend/backend.h"

namespace cachalot::cli {

struct OpTime {
  std::string op, shape;
  double seconds = 0;  // of one call with a cold cache, median of 20
  double bytes = 0;    // that it reads and writes at least; 0: not bound by memory
};

// `tokens` rows of 7168 (V3's step on one card: 4096), logits over 129,280. Calls `show` for each operation.
void bench_ops(Device& device, int64_t tokens, const std::function<void(const OpTime&)>& show);

}  // namespace cachalot::cli
