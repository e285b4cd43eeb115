#include <utility>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/quantize.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

namespace {
double sigmoid(double a) { return 1 / (1 + std::exp(-a)); }
}  // namespace

void RefBackend::swiglu_forward(const SwigluForward& f) {
  check(f);
  const Reader x(f.x);
  const Writer y(f.y);
  const int64_t width = f.x.cols / 2;
  for (int64_t t = 0; t < f.x.rows; ++t) {
    std::vector<float> out, in;
    for (int64_t d = 0; d < width; ++d) {
      const double value = x(t, d) * sigmoid(x(t, d)) * x(t, width + d);
      if (f.y) y.set(t, d, value);
      out.push_back(float(round_to(f.x.dtype, value)));
    }
    for (int64_t d = 0; d < 2 * width; ++d) in.push_back(float(x(t, d)));
    if (f.quantized) write_row_tiles(f.quantized, t, out, f.power_of_two);
    if (f.cached) write_row_tiles(f.cached, t, in, f.power_of_two);
  }
}

void RefBackend::swiglu_backward(const SwigluBackward& b) {
  check(b);
  const Reader dy(b.dy), x(b.x), weights(b.weights);
  const Writer dx(b.dx), y(b.y), dweights(b.dweights);
  const int64_t width = b.dy.cols;
  // A cached x is what code * scale is in f32.
  const auto at = [&](int64_t t, int64_t d) { return b.x.dtype == DType::e4m3 ? float(x(t, d)) : x(t, d); };
  for (int64_t t = 0; t < b.dy.rows; ++t) {
    std::vector<float> out(size_t(2 * width));
    const double weight = b.weights ? weights(0, t) : 1;
    double dweight = 0;
    for (int64_t d = 0; d < width; ++d) {
      const double gate = at(t, d), up = at(t, width + d), s = sigmoid(gate), g = weight * dy(t, d);
      const double dgate = g * up * s * (1 + gate * (1 - s)), dup = g * gate * s;
      dweight += dy(t, d) * gate * s * up;
      if (b.dx) dx.set(t, d, dgate), dx.set(t, width + d, dup);
      if (b.y) y.set(t, d, weight * gate * s * up);
      out[size_t(d)] = float(round_to(b.dy.dtype, dgate));
      out[size_t(width + d)] = float(round_to(b.dy.dtype, dup));
    }
    if (b.dweights) dweights.set(0, t, dweight);
    if (b.quantized) write_row_tiles(b.quantized, t, out, b.power_of_two);
  }
  if (b.transposed)  // dx and y as they were rounded
    for (const auto& [x, to] : {std::pair{b.dx, b.transposed}, {b.y, b.y_transposed}})
      quantize({.x = x,
                .transposed = to,
                .offsets = b.offsets,
                .padded = b.padded,
                .power_of_two = b.power_of_two});
}

}  // namespace cachalot
