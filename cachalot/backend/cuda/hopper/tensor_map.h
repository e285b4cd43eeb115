// Host side of the copy engine: what a matrix looks like and which box a kernel asks for.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace cachalot::cuda::hopper {

enum class Swizzle : uint8_t { none, b32, b64, b128 };
// How many bytes the second-level cache fetches where it misses a line. Long runs that are read once come 4 %
// faster with less than 256 (one H200, pages of 72 KiB, 604 MB: 147 us instead of 154).
enum class Promotion : uint8_t { none, b64, b128, b256 };

// A matrix (or a stack of them) in device memory, fastest dimension first. Sizes in elements; strides in bytes
// between rows (and matrices), multiples of 16; the base on 16 bytes. The box's first side times the element
// size is at most the swizzle's width; each side is at most 256.
struct Boxes {
  const void* data = nullptr;
  DType dtype = DType::bf16;
  int dimensions = 2;  // 2 ... 4
  int64_t size[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};  // stride[0] is the element and not read
  int64_t box[4] = {1, 1, 1, 1};
  Swizzle swizzle = Swizzle::b128;
  Promotion promotion = Promotion::b256;
};

// Throws Error when there is no driver, CHECK-fails on what the engine cannot take. Host work of about a
// microsecond, no call to the device: fine inside a step, and inside graph capture.
CUtensorMap tensor_map(const Boxes& boxes);

}  // namespace cachalot::cuda::hopper
