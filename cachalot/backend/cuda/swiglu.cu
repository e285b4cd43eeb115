// Contract: backend/ops/swiglu.h.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

// Gate and up are one row's halves, each in eights: y's width decides.
template <class T, bool wide> __global__ void forward_kernel(Matrix<const T> x, Matrix<T> y) {
  for_plane(y.rows, y.cols, [&](int64_t r, int64_t c) {
    const T* row = x.data + r * x.ld;
    const Packed<T> packed_gate = load<wide>(row, c, y.cols), packed_up = load<wide>(row + y.cols, c, y.cols);
    const Eight gate = unpack(packed_gate), up = unpack(packed_up);
    Eight out;
#pragma unroll
    for (int i = 0; i < kEight; ++i) out.v[i] = __fdividef(gate.v[i], 1.0f + expf(-gate.v[i])) * up.v[i];
    store_eight<wide>(y.data + r * y.ld, c, y.cols, out);
  });
}

template <class T, bool wide>
__global__ void backward_kernel(Matrix<const T> dy, Matrix<const T> x, Matrix<T> dx) {
  const int64_t width = dy.cols;
  for_plane(dy.rows, width, [&](int64_t r, int64_t c) {
    const T* row = x.data + r * x.ld;
    const Packed<T> packed_gate = load<wide>(row, c, width), packed_up = load<wide>(row + width, c, width),
                    packed_dy = load<wide>(dy.data + r * dy.ld, c, width);
    const Eight gate = unpack(packed_gate), up = unpack(packed_up), d = unpack(packed_dy);
    Eight dgate, dup;
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const float s = __fdividef(1.0f, 1.0f + expf(-gate.v[i]));
      dgate.v[i] = d.v[i] * up.v[i] * s * (1.0f + gate.v[i] * (1.0f - s));
      dup.v[i] = d.v[i] * gate.v[i] * s;
    }
    T* out = dx.data + r * dx.ld;
    store_eight<wide>(out, c, width, dgate);
    store_eight<wide>(out + width, c, width, dup);
  });
}

// Both halves of every row in eights.
bool halves_are_wide(const Tensor& t) { return is_wide(t) && t.cols / 2 % kEight == 0; }

}  // namespace

void CudaBackend::swiglu_forward(const SwigluForward& g) {
  check(g);
  require_no_f64("swiglu_forward", {&g.x, &g.y});
  if (g.y.size() == 0) return;
  select();
  const Plane p = plane(g.y.rows, g.y.cols);
  with_act(g.y.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(halves_are_wide(g.x) && is_wide(g.y), [&](auto wide) {
      forward_kernel<T, wide.value><<<p.grid, p.block, 0, stream_>>>(g.x.matrix<const T>(), g.y.matrix<T>());
    });
  });
  launched("swiglu_forward");
}

void CudaBackend::swiglu_backward(const SwigluBackward& g) {
  check(g);
  require_no_f64("swiglu_backward", {&g.x, &g.dx});
  if (g.dy.size() == 0) return;
  select();
  const Plane p = plane(g.dy.rows, g.dy.cols);
  with_act(g.dy.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(halves_are_wide(g.x) && halves_are_wide(g.dx) && is_wide(g.dy), [&](auto wide) {
      backward_kernel<T, wide.value>
          <<<p.grid, p.block, 0, stream_>>>(g.dy.matrix<const T>(), g.x.matrix<const T>(), g.dx.matrix<T>());
    });
  });
  launched("swiglu_backward");
}

}  // namespace cachalot::cuda
