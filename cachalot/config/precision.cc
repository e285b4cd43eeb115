#include "config/precision.h"

#include <fmt/format.h>

namespace cachalot {

Precision parse_precision(const std::string& name) {
  if (name == "f32") return Precision::f32;
  if (name == "bf16") return Precision::bf16;
  if (name == "fp8") return Precision::fp8;
  throw Error(fmt::format("precision \"{}\" is not known", name)).hint(fmt::format("use {}", kPrecisions));
}

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::f32: return "f32";
    case Precision::bf16: return "bf16";
    case Precision::fp8: return "fp8";
    case Precision::f64: return "f64";
  }
  return "?";
}

}  // namespace cachalot
