#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/quantize.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::rmsnorm_forward(const RmsNormForward& n) {
  check(n);
  const Reader x(n.x), g(n.gain);
  const Writer y(n.y), r(n.r);
  const int64_t width = n.x.cols;
  for (int64_t t = 0; t < n.x.rows; ++t) {
    double sum = 0;
    for (int64_t d = 0; d < width; ++d) sum += x(t, d) * x(t, d);
    const double scale = 1 / std::sqrt(sum / double(width) + n.eps);
    std::vector<float> row;
    for (int64_t d = 0; d < width; ++d) {
      const double value = g[d] * x(t, d) * scale;
      if (n.y) y.set(t, d, value);
      row.push_back(float(round_to(n.x.dtype, value)));
    }
    if (n.quantized) write_row_tiles(n.quantized, t, row, n.power_of_two);
    r.set(t, scale);
  }
}

void RefBackend::rmsnorm_backward(const RmsNormBackward& b) {
  check(b);
  const Reader dy(b.dy), x(b.x), g(b.gain), r(b.r);
  const Writer dx(b.dx), dgain(b.dgain);
  const int64_t width = b.x.cols;
  for (int64_t d = 0; d < width; ++d) {
    double sum = b.accumulate_gain == Accumulate::add ? dgain[d] : 0;
    for (int64_t t = 0; t < b.x.rows; ++t) sum += dy(t, d) * x(t, d) * r[t];
    dgain.set(d, sum);
  }
  for (int64_t t = 0; t < b.x.rows; ++t) {
    double mean = 0;
    for (int64_t d = 0; d < width; ++d) mean += g[d] * dy(t, d) * x(t, d) * r[t] / double(width);
    for (int64_t d = 0; d < width; ++d) {
      const double residual = b.residual ? Reader(b.residual)(t, d) : 0;
      dx.set(t, d, r[t] * (g[d] * dy(t, d) - x(t, d) * r[t] * mean) + residual);
    }
  }
}

}  // namespace cachalot
