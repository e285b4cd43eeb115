// A precision recipe: which format each kind of number has. Every layer runs every recipe on every backend.
#pragma once

#include <string>

#include "base/error.h"

namespace cachalot {

enum class Precision { f32, bf16, f64 };  // f64: the oracle's own, for finite differences (device "ref" only)

Precision parse_precision(const std::string& name);  // "f32" or "bf16"; else Error
const char* name_of(Precision precision);

}  // namespace cachalot
