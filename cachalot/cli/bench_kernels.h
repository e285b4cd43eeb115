// The heavy operations, one at a time at DeepSeek-V3's sizes: products in FP8 and grouped, attention.
#pragma once

#include <cstdint>

#include "cli/op_bench.h"

namespace cachalot::cli {

// The shapes of DeepSeek-V3's linears (report section 4.2) with 64, 128 and `rows` rows, FP8 to bf16; the
// experts' products, FP8 and bf16, and their weight gradients; on Hopper their products in decoding, too, whose
// rows stand apart (backend/masked_gemm.h). Few rows are timed in captured graphs.
void bench_products(Device& device, int64_t rows, const ShowTime& show);

// Causal attention of 128 heads, forward and backward, over `rows` and 4 `rows` tokens; absorbed decoding
// over the paged latent cache, `rows` keys a sequence.
void bench_attention(Device& device, int64_t rows, const ShowTime& show);

}  // namespace cachalot::cli
