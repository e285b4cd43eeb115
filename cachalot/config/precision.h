// A precision recipe: which format each kind of number has. Every layer runs every recipe on every backend.
#pragma once

#include <string>

#include "base/error.h"

namespace cachalot {

enum class Precision {
  f32,
  bf16,
  fp8,  // bf16, with linear layers multiplied in E4M3 (V3 report, section 3.3)
  f64,  // the oracle's own, for finite differences (device "ref" only)
};
inline constexpr const char* kPrecisions = "f32, bf16 or fp8";

Precision parse_precision(const std::string& name);  // one of kPrecisions; else Error
const char* name_of(Precision precision);

}  // namespace cachalot
