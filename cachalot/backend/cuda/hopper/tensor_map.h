// Host side of the copy engine: what a matrix looks like and which box a kernel asks for.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace cachalot::cuda::hopper {

enum class Swizzle : uint8_t { none, b32, b64, b128 };

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
};

// Throws Error when there is no driver, CHECK-fails on what the engine cannot take. Host work of about a
// microsecond, no call to the device: fine inside a step, and inside graph capture.
CUtensorMap tensor_map(const Boxes& boxes);

}  // namespace cachalot::cuda::hopper
