// Block-quantised weights on the host (DeepSeek-V3 report, section 3.3.2; inference/kernel.py of the
// published code):
//
//   value(r, c) = code(r, c) * scale(r / 128, c / 128)    code: E4M3, scale: float32, product rounded once
//   scale = max(amax of the block, 1e-4) / 448            for scale_fmt "ue8m0" rounded up to a power of two
//   code  = value / scale, rounded to the nearest, ties to even
//
// Matrices are row-major and contiguous. x, codes: [rows, cols]; scales: [blocks(rows), blocks(cols)], ragged
// at the right and lower edge. A parameter that stacks several matrices is quantised matrix by matrix.
#pragma once

#include <cstdint>
#include <string>

namespace cachalot {

class ThreadPool;

enum class ScaleFormat : uint8_t { float32, power_of_two };

constexpr int64_t fp8_blocks(int64_t n) { return (n + 127) / 128; }


void dequantise(const uint8_t* codes, const float* scales, int64_t rows, int64_t cols, float* x);

struct QuantiseOptions {
  ScaleFormat format = ScaleFormat::float32;

  // x may be what dequantise() gave, rounded to bfloat16 since or not. `known_scales` (as `scales`) are the
  // ones it was made with, if somebody kept them: a block uses its own if that reproduces it exactly.
  const float* known_scales = nullptr;
  bool stored_as_bf16 = false;  // x are bfloat16 numbers: only a known scale or the recipe's is tried

  ThreadPool* pool = nullptr;   // nullptr: this thread alone; the result does not depend on it
  std::string name = {};        // of the tensor, for messages
};

// Chooses the scales of x. Float32 that came from dequantise() gets its old scales back wherever the values
// determine them, so that FP8 -> float32 -> FP8 is the identity:
//
// Codes come out right. A scale that the recipe made does too: fl(fl(448 s) / 448) = s for s = fl(a / 448),
// checked for all 2^23 significands of a. Of scales made otherwise, by multiplication with fl(1 / 448) for
// instance, every ninth comes back one float off. A block therefore takes the recipe's scale if every value
// is exactly some code times it; else the one scale that does reproduce every value: it is read off a value
// whose code is a power of two (that product was not rounded), or is a neighbour of the recipe's. A block
// that none reproduces was not E4M3 before and gets the recipe's.
// The values do not determine the scale of a block whose largest code is not 448 (float32 scales; blocks
// under the amax floor are fine) or not in (224, 448] (powers of two: an amax of 228 has scale 1 and rounds
// to 224, which fits scale 1/2 as well). For these there is `known_scales`.
//
// Error naming the tensor if a value is not finite.
void choose_scales(const float* x, int64_t rows, int64_t cols, const QuantiseOptions& options, float* scales);

// Codes for scales that are given. |x / scale| beyond 448 becomes 448.
void quantise(const float* x, const float* scales, int64_t rows, int64_t cols, const QuantiseOptions& options,
              uint8_t* codes);

}  // namespace cachalot
