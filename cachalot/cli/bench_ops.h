// Operations that only move memory, one at a time at DeepSeek-V3's sizes: how near each comes to a copy.
#pragma once

#include <cstdint>

#include "cli/op_bench.h"

namespace cachalot::cli {

// `tokens` rows of 7168 (V3's step on one card: 4096), logits over 129,280. Calls `show` for each operation.
void bench_ops(Device& device, int64_t tokens, const ShowTime& show);

}  // namespace cachalot::cli
