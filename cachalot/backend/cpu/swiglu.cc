// Contract: backend/ops/swiglu.h.
#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

// s[i] = 1 / (1 + exp(-gate[i]))
void sigmoids(const Kernels& kernels, const float* gate, int64_t n, float* s) {
  for (int64_t i = 0; i < n; ++i) s[i] = -gate[i];
  kernels.exp_shifted(s, 0, n, s);
  for (int64_t i = 0; i < n; ++i) s[i] = 1 / (1 + s[i]);
}

}  // namespace

void CpuBackend::swiglu_forward(const SwigluForward& g) {
  check(g);
  require_no_f64("swiglu_forward", {&g.x, &g.y});
  const int64_t width = g.y.cols;
  const double nanoseconds = 2.0 * double(g.y.size());
  context_->parallel_ranges(g.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* buffer = scratch.take<float>(2 * width);
    float* y = scratch.take<float>(width);
    for (int64_t t = begin; t < end; ++t) {
      const float *gate = row_as_floats(g.x, t, buffer), *up = gate + width;
      sigmoids(context_->kernels, gate, width, y);
      for (int64_t i = 0; i < width; ++i) y[i] = gate[i] * y[i] * up[i];
      store_row(g.y, t, 0, width, y);
    }
  });
}

void CpuBackend::swiglu_backward(const SwigluBackward& g) {
  check(g);
  require_no_f64("swiglu_backward", {&g.x, &g.dx});
  const int64_t width = g.dy.cols;
  const double nanoseconds = 4.0 * double(g.dy.size());
  context_->parallel_ranges(g.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* x_buffer = scratch.take<float>(2 * width);
    float* dy_buffer = scratch.take<float>(width);
    float* s = scratch.take<float>(width);
    float *dgate = scratch.take<float>(2 * width), *dup = dgate + width;
    for (int64_t t = begin; t < end; ++t) {
      const float *gate = row_as_floats(g.x, t, x_buffer), *up = gate + width;
      const float* dy = row_as_floats(g.dy, t, dy_buffer);
      sigmoids(context_->kernels, gate, width, s);
      for (int64_t i = 0; i < width; ++i) {
        dgate[i] = dy[i] * up[i] * s[i] * (1 + gate[i] * (1 - s[i]));
        dup[i] = dy[i] * gate[i] * s[i];
      }
      store_row(g.dx, t, 0, 2 * width, dgate);
    }
  });
}

}  // namespace cachalot::cpu
