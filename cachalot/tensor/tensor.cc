#include "tensor/tensor.h"

#include <fmt/format.h>

#include <cmath>

namespace cachalot {

std::string Tensor::describe() const {
  return fmt::format("{} [{}, {}]{}", name_of(dtype), rows, cols,
                     ld == cols ? "" : fmt::format(" ld {}", ld));
}

namespace {

double value_at(const Tensor& t, int64_t r, int64_t c) {
  const int64_t i = r * t.ld + c;
  switch (t.dtype) {
    case DType::f64: return static_cast<const double*>(t.data)[i];
    case DType::f32: return static_cast<const float*>(t.data)[i];
    case DType::bf16: return float(static_cast<const bf16*>(t.data)[i]);
    case DType::e4m3: return double(float(static_cast<const e4m3*>(t.data)[i])) * t.scale(r, c);
    case DType::i32: return static_cast<const int32_t*>(t.data)[i];
  }
  return 0;
}

}  // namespace

double error_metric(const Tensor& x, const Tensor& y) {
  CHECK(same_shape(x, y), x.describe() + " against " + y.describe());
  double difference = 0, size = 0;
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.cols; ++c) {
      const double a = value_at(x, r, c), b = value_at(y, r, c);
      difference += (a - b) * (a - b);
      size += a * a + b * b;
    }
  if (std::isnan(difference) || std::isnan(size) || std::isinf(size)) return std::nan("");
  return size == 0 ? 0 : difference / size;
}

}  // namespace cachalot
