#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

namespace {
double sigmoid(double a) { return 1 / (1 + std::exp(-a)); }
}  // namespace

void RefBackend::swiglu_forward(const SwigluForward& f) {
  check(f);
  const Reader x(f.x);
  const Writer y(f.y);
  const int64_t width = f.y.cols;
  for (int64_t t = 0; t < f.y.rows; ++t)
    for (int64_t d = 0; d < width; ++d) y.set(t, d, x(t, d) * sigmoid(x(t, d)) * x(t, width + d));
}

void RefBackend::swiglu_backward(const SwigluBackward& b) {
  check(b);
  const Reader dy(b.dy), x(b.x);
  const Writer dx(b.dx);
  const int64_t width = b.dy.cols;
  for (int64_t t = 0; t < b.dy.rows; ++t)
    for (int64_t d = 0; d < width; ++d) {
      const double gate = x(t, d), up = x(t, width + d), s = sigmoid(gate);
      dx.set(t, d, dy(t, d) * up * s * (1 + gate * (1 - s)));
      dx.set(t, width + d, dy(t, d) * gate * s);
    }
}

}  // namespace cachalot
