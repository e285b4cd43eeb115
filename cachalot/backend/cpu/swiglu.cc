// Contract: backend/ops/swiglu.h. A row is read and written once.
#include <utility>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/quantize.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::swiglu_forward(const SwigluForward& g) {
  check(g);
  require_no_f64("swiglu_forward", {&g.x});
  const RowVectors& vectors = rows_in(context_->vectors, g.x.dtype);
  const int64_t width = g.x.cols / 2;
  const double nanoseconds = (g.quantized ? 4.0 : 1.0) * double(g.x.rows * width);
  context_->parallel_ranges(g.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    const Tensor row = make_tensor(scratch.take<float>(width), g.x.dtype, 1, width);  // when nobody keeps it
    float* buffer = scratch.take<float>(2 * width);
    for (int64_t t = begin; t < end; ++t) {
      const Tensor y = g.y ? g.y.slice_rows(t, 1) : row;
      vectors.swiglu_forward(place(g.x, t), place(g.x, t, width), width, y.data);
      if (g.quantized)
        quantise_row(context_->vectors, row_as_floats(y, 0, buffer), g.quantized, t, g.power_of_two);
      if (g.cached)
        quantise_row(context_->vectors, row_as_floats(g.x, t, buffer), g.cached, t, g.power_of_two);
    }
  });
}

void CpuBackend::swiglu_backward(const SwigluBackward& g) {
  check(g);
  require_no_f64("swiglu_backward", {&g.dy, &g.x});
  const int64_t width = g.dy.cols;
  // A cached x is read as floats, and then so is dy; rows with weights too.
  const bool in_floats = g.x.dtype == DType::e4m3 || g.weights;
  const DType format = in_floats ? DType::f32 : g.x.dtype;
  const RowVectors& vectors = rows_in(context_->vectors, format);
  const double nanoseconds = (g.quantized ? 5.0 : 1.5) * double(g.dy.size());
  context_->parallel_ranges(g.dy.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    const auto own_row = [&](DType t, int64_t n) { return make_tensor(scratch.take<float>(n), t, 1, n); };
    const Tensor x_row = own_row(DType::f32, 2 * width), dy_row = own_row(DType::f32, width),
                 out = own_row(format, 2 * width), rounded = own_row(g.dy.dtype, 2 * width);
    float* buffer = scratch.take<float>(2 * width);
    const auto floats = [](const Tensor& t) { return static_cast<float*>(t.data); };
    for (int64_t t = begin; t < end; ++t) {
      Tensor x = g.x.slice_rows(t, 1), dy = g.dy.slice_rows(t, 1),
             dx = g.dx ? g.dx.slice_rows(t, 1) : rounded;
      if (in_floats) {
        load_row(g.x, t, 0, 2 * width, floats(x_row));
        load_row(g.dy, t, 0, width, floats(dy_row));
        x = x_row, dy = dy_row;
      }
      const Tensor to = in_floats ? out : dx;
      if (g.y || g.weights) {
        vectors.swiglu_forward(x.data, place(x, 0, width), width, in_floats ? out.data : place(g.y, t));
        if (g.weights) {
          const float weight = static_cast<const float*>(g.weights.data)[t];
          static_cast<float*>(g.dweights.data)[t] = dot(floats(dy), floats(out), width);
          context_->vectors.scale(floats(out), weight, width);
          context_->vectors.scale(floats(dy), weight, width);
        }
        if (g.y && in_floats) store_row(g.y, t, 0, width, floats(out));
      }
      vectors.swiglu_backward(dy.data, x.data, place(x, 0, width), width, to.data, place(to, 0, width));
      if (in_floats) store_row(dx, 0, 0, 2 * width, floats(out));
      if (g.quantized)
        quantise_row(context_->vectors, row_as_floats(dx, 0, buffer), g.quantized, t, g.power_of_two);
    }
  });
  if (g.transposed)  // dx and y as they were rounded
    for (const auto& [x, to] : {std::pair{g.dx, g.transposed}, {g.y, g.y_transposed}})
      quantize({.x = x,
                .transposed = to,
                .offsets = g.offsets,
                .padded = g.padded,
                .power_of_two = g.power_of_two});
}

}  // namespace cachalot::cpu
