// Contract: backend/ops/swiglu.h. What reads or writes FP8 is in quantize_swiglu.cu.
#include "backend/cuda/swiglu.cuh"

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

// Gate and up are one row's halves, each in eights: y's width decides.
template <class T, bool wide> __global__ void forward_kernel(Matrix<const T> x, Matrix<T> y) {
  start();
  for_plane(y.rows, y.cols, [&](int64_t r, int64_t c) {
    const T* row = x.data + r * x.ld;
    const Packed<T> gate = load<wide>(row, c, y.cols), up = load<wide>(row + y.cols, c, y.cols);
    store_eight<wide>(y.data + r * y.ld, c, y.cols, swiglu(unpack(gate), unpack(up)));
  });
}

template <class T, bool wide>
__global__ void backward_kernel(Matrix<const T> dy, Matrix<const T> x, Matrix<T> dx, Matrix<T> y) {
  start();
  const int64_t width = dy.cols;
  for_plane(dy.rows, width, [&](int64_t r, int64_t c) {
    const T* row = x.data + r * x.ld;
    const Packed<T> gate = load<wide>(row, c, width), up = load<wide>(row + width, c, width),
                    packed_dy = load<wide>(dy.data + r * dy.ld, c, width);
    const SwigluGradient g = swiglu_gradient(unpack(packed_dy), unpack(gate), unpack(up));
    T* out = dx.data + r * dx.ld;
    store_eight<wide>(out, c, width, g.gate);
    store_eight<wide>(out + width, c, width, g.up);
    if (y.data) store_eight<wide>(y.data + r * y.ld, c, width, swiglu(unpack(gate), unpack(up)));
  });
}

// Rows with weights: a warp takes a row, whose dot product it needs.
constexpr int kWarps = 8;
template <class T, bool wide> __global__ void __launch_bounds__(32 * kWarps)
    weighted_kernel(Matrix<const T> dy, Matrix<const T> x, Matrix<T> dx, Matrix<T> y, const float* weights,
                    float* dweights) {
  start();
  const int lane = int(threadIdx.x) % 32;
  const int64_t width = dy.cols;
  for (int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; r < dy.rows;
       r += int64_t(gridDim.x) * kWarps) {
    const float weight = weights[r];
    float dot = 0;
    for (int64_t c = kEight * lane; c < width; c += kEight * 32) {
      const T* row = x.data + r * x.ld;
      const Eight gate = load_eight<wide>(row, c, width), up = load_eight<wide>(row + width, c, width);
      const WeightedSwiglu w =
          weighted_swiglu(load_eight<wide>(dy.data + r * dy.ld, c, width), gate, up, weight);
      dot += w.dot;
      T* out = dx.data + r * dx.ld;
      store_eight<wide>(out, c, width, w.gradient.gate);
      store_eight<wide>(out + width, c, width, w.gradient.up);
      if (y.data) store_eight<wide>(y.data + r * y.ld, c, width, w.y);
    }
    dot = warp_sum(dot);
    if (lane == 0) dweights[r] = dot;
  }
}

}  // namespace

void CudaBackend::swiglu_forward(const SwigluForward& g) {
  check(g);
  require_no_f64("swiglu_forward", {&g.x, &g.y});
  if (g.x.size() == 0) return;
  select();
  if (g.quantized || g.cached) return quantized_swiglu(g);
  const Plane p = plane(g.y.rows, g.y.cols);
  with_act(g.y.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(halves_are_wide(g.x) && is_wide(g.y), [&](auto wide) {
      launch(queue_, forward_kernel<T, wide.value>, p.grid, p.block, 0, g.x.matrix<const T>(),
             g.y.matrix<T>());
    });
  });
  launched("swiglu_forward");
}

void CudaBackend::swiglu_backward(const SwigluBackward& g) {
  check(g);
  require_no_f64("swiglu_backward", {&g.x, &g.dx});
  if (g.dy.size() == 0) return;
  select();
  if (g.quantized || g.transposed || g.x.dtype == DType::e4m3) return quantized_swiglu(g);
  const Plane p = plane(g.dy.rows, g.dy.cols);
  with_act(g.dy.dtype, [&](auto act) {
    using T = decltype(act);
    const bool wide = halves_are_wide(g.x) && halves_are_wide(g.dx) && are_wide({&g.dy, &g.y});
    with_width(wide, [&](auto w) {
      if (g.weights)
        return launch(queue_, weighted_kernel<T, w.value>,
                      unsigned(std::min<int64_t>((g.dy.rows + kWarps - 1) / kWarps, 1 << 20)), 32 * kWarps, 0,
                      g.dy.matrix<const T>(), g.x.matrix<const T>(), g.dx.matrix<T>(),
                      g.y ? g.y.matrix<T>() : Matrix<T>{}, static_cast<const float*>(g.weights.data),
                      static_cast<float*>(g.dweights.data));
      launch(queue_, backward_kernel<T, w.value>, p.grid, p.block, 0, g.dy.matrix<const T>(),
             g.x.matrix<const T>(), g.dx.matrix<T>(), g.y ? g.y.matrix<T>() : Matrix<T>{});
    });
  });
  launched("swiglu_backward");
}

}  // namespace cachalot::cuda
