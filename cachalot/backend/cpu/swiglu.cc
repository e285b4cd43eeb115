// Contract: backend/ops/swiglu.h. A row is read and written once.
#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::swiglu_forward(const SwigluForward& g) {
  check(g);
  require_no_f64("swiglu_forward", {&g.x, &g.y});
  const RowVectors& vectors = rows_in(context_->vectors, g.x.dtype);
  const int64_t width = g.y.cols;
  const double nanoseconds = double(g.y.size());
  context_->parallel_ranges(g.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      vectors.swiglu_forward(place(g.x, t), place(g.x, t, width), width, place(g.y, t));
  });
}

void CpuBackend::swiglu_backward(const SwigluBackward& g) {
  check(g);
  require_no_f64("swiglu_backward", {&g.x, &g.dx});
  const RowVectors& vectors = rows_in(context_->vectors, g.x.dtype);
  const int64_t width = g.dy.cols;
  const double nanoseconds = 1.5 * double(g.dy.size());
  context_->parallel_ranges(g.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      vectors.swiglu_backward(place(g.dy, t), place(g.x, t), place(g.x, t, width), width, place(g.dx, t),
                              place(g.dx, t, width));
  });
}

}  // namespace cachalot::cpu
