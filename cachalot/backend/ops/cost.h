// What an operation costs at least: the FLOPs of its products and the bytes it cannot help moving, each
// operand once. Times over these numbers are what `cachalot bench` shows beside the machine's ceilings.
//
// FLOPs count multiplications and additions of matrix products (2 M N K); element-wise work counts none: it
// is bound by memory. Numbers of rows that live on the device (grouped products, sequences) are read through
// `read`, after the operation's inputs are there.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace cachalot {

enum class CostKind : uint8_t { product, attention, memory };

struct Cost {
  CostKind kind = CostKind::memory;
  double flops = 0, bytes = 0;
  std::string shape;  // "4096 x 768 x 384 bf16": M x N x K of a product, rows x columns elsewhere
};

// The values of an i32 tensor on the device.
using ReadIndices = std::function<std::vector<int32_t>(const Tensor&)>;

#define CACHALOT_DECLARE_COST(name, Args) Cost cost_of(const Args& args, const ReadIndices& read);
CACHALOT_OPS(CACHALOT_DECLARE_COST)
#undef CACHALOT_DECLARE_COST

}  // namespace cachalot
