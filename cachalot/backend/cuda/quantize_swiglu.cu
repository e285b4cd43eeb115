// Contract: backend/ops/swiglu.h, where FP8 goes in or comes out. Sixteen lanes take a tile of the gate and the
// one of `up` beside it, so that each is quantised in registers. Widths that are not a multiple of 128, whose
// tiles of x lie across gate and up, and rows that do not begin on 16 bytes go number by number through the
// workspace, some rows at a time.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/cuda/swiglu.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// A warp's place: row and first column of a lane in a [rows, width] matrix whose width is a multiple of 128.
struct Place {
  int64_t row, col;
  bool real;
};
__device__ Place place_of(int64_t rows, int64_t width) {
  const int64_t pairs = (width + 2 * kScaleBlock - 1) / (2 * kScaleBlock);
  const int64_t work = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const Place p{work / pairs, work % pairs * 2 * kScaleBlock + kEight * int64_t(threadIdx.x % 32), false};
  return {p.row, p.col, p.row < rows && p.col < width};
}
unsigned blocks_for(int64_t rows, int64_t width) {
  const int64_t warps = rows * ((width + 2 * kScaleBlock - 1) / (2 * kScaleBlock));
  return unsigned((warps + kWarps - 1) / kWarps);
}

template <class T> __global__ void __launch_bounds__(kThreads)
    forward_kernel(Matrix<const T> x, Matrix<T> y, const __grid_constant__ Tensor quantized,
                   const __grid_constant__ Tensor cached, bool power_of_two) {
  start();
  const int64_t width = x.cols / 2;
  const Place p = place_of(x.rows, width);
  Packed<T> packed_gate = {}, packed_up = {};
  if (p.real) {
    const T* row = x.data + p.row * x.ld;
    packed_gate = load<true>(row, p.col, width), packed_up = load<true>(row + width, p.col, width);
  }
  const Eight gate = unpack(packed_gate), up = unpack(packed_up);
  const Packed<T> out = pack<T>(swiglu(gate, up));
  if (y.data && p.real) store<true>(y.data + p.row * y.ld, p.col, width, out);
  if (quantized.data) write_row_tile(quantized, p.row, p.col, p.real, unpack(out), power_of_two);
  if (cached.data) {
    write_row_tile(cached, p.row, p.col, p.real, gate, power_of_two);
    write_row_tile(cached, p.row, width + p.col, p.real, up, power_of_two);
  }
}

// x of T, or e4m3 with row tiles.
template <class T, bool codes> __global__ void __launch_bounds__(kThreads)
    backward_kernel(Matrix<const T> dy, const __grid_constant__ Tensor x, Matrix<T> dx, Matrix<T> y,
                    const __grid_constant__ Tensor quantized, bool power_of_two) {
  start();
  const int64_t width = dy.cols;
  const Place p = place_of(dy.rows, width);
  Eight gate = {}, up = {}, d = {};
  if (p.real) {
    d = load_eight<true>(dy.data + p.row * dy.ld, p.col, width);
    if constexpr (codes) {
      const uint2 gate_codes = load_codes(x, p.row, p.col, true),
                  up_codes = load_codes(x, p.row, width + p.col, true);
      const float gate_scale = x.scale(p.row, p.col), up_scale = x.scale(p.row, width + p.col);
      gate = numbers_of(gate_codes), up = numbers_of(up_codes);
#pragma unroll
      for (int i = 0; i < kEight; ++i) gate.v[i] *= gate_scale, up.v[i] *= up_scale;
    } else {
      const T* row = static_cast<const T*>(x.data) + p.row * x.ld;
      gate = load_eight<true>(row, p.col, width), up = load_eight<true>(row + width, p.col, width);
    }
  }
  const SwigluGradient g = swiglu_gradient(d, gate, up);
  const Packed<T> dgate = pack<T>(g.gate), dup = pack<T>(g.up);
  if (p.real) {
    if (dx.data) {
      store<true>(dx.data + p.row * dx.ld, p.col, width, dgate);
      store<true>(dx.data + p.row * dx.ld + width, p.col, width, dup);
    }
    if (y.data) store_eight<true>(y.data + p.row * y.ld, p.col, width, swiglu(gate, up));
  }
  if (quantized.data) {
    write_row_tile(quantized, p.row, p.col, p.real, unpack(dgate), power_of_two);
    write_row_tile(quantized, p.row, width + p.col, p.real, unpack(dup), power_of_two);
  }
}

// Number by number: eights of which only the first is used, so that the bits are the same.
__global__ void plain_forward(const __grid_constant__ Tensor x, const __grid_constant__ Tensor y) {
  start();
  const int64_t width = x.cols / 2, n = x.rows * width;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t r = i / width, c = i % width;
    Eight gate = {}, up = {};
    gate.v[0] = load_number(x, r, c), up.v[0] = load_number(x, r, width + c);
    store_number(y, r, c, swiglu(gate, up).v[0]);
  }
}
__global__ void plain_backward(const __grid_constant__ Tensor dy, const __grid_constant__ Tensor x,
                               const __grid_constant__ Tensor dx, const __grid_constant__ Tensor y) {
  start();
  const int64_t width = dy.cols, n = dy.rows * width;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t r = i / width, c = i % width;
    Eight gate = {}, up = {}, d = {};
    gate.v[0] = load_number(x, r, c), up.v[0] = load_number(x, r, width + c), d.v[0] = load_number(dy, r, c);
    const SwigluGradient g = swiglu_gradient(d, gate, up);
    store_number(dx, r, c, g.gate.v[0]);
    store_number(dx, r, width + c, g.up.v[0]);
    if (y.data) store_number(y, r, c, swiglu(gate, up).v[0]);
  }
}

Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  return t ? t.slice_rows(first, count) : Tensor{};
}

// Every row of codes begins on 8 bytes: of what others made, too.
bool codes_are_wide(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 8 == 0 && (t.rows <= 1 || t.ld % 8 == 0);
}

}  // namespace

void CudaBackend::quantized_swiglu(const SwigluForward& g) {
  const int64_t width = g.x.cols / 2;
  if (width % kScaleBlock == 0 && halves_are_wide(g.x) && are_wide({&g.y})) {
    with_act(g.x.dtype, [&](auto act) {
      using T = decltype(act);
      launch(queue_, forward_kernel<T>, blocks_for(g.x.rows, width), kThreads, 0, g.x.matrix<const T>(),
             g.y ? g.y.matrix<T>() : Matrix<T>{}, g.quantized, g.cached, g.power_of_two);
    });
    return launched("swiglu_forward");
  }
  const int64_t rows = std::max<int64_t>(1, kWorkspace / std::max<int64_t>(1, width * size_of(g.x.dtype)));
  for (int64_t first = 0; first < g.x.rows; first += rows) {
    const int64_t count = std::min(rows, g.x.rows - first);
    const Tensor x = g.x.slice_rows(first, count),
                 y = g.y ? g.y.slice_rows(first, count) : make_tensor(workspace_, g.x.dtype, count, width);
    launch(queue_, plain_forward, 1024, kThreads, 0, x, y);
    if (g.quantized)
      quantize({.x = y, .y = rows_of(g.quantized, first, count), .power_of_two = g.power_of_two});
    if (g.cached) quantize({.x = x, .y = rows_of(g.cached, first, count), .power_of_two = g.power_of_two});
  }
  launched("swiglu_forward");
}

void CudaBackend::quantized_swiglu(const SwigluBackward& g) {
  const int64_t width = g.dy.cols;
  const bool codes = g.x.dtype == DType::e4m3;
  if (width % kScaleBlock == 0 && (codes ? codes_are_wide(g.x) : halves_are_wide(g.x)) &&
      halves_are_wide(g.dx) && are_wide({&g.dy, &g.y})) {
    with_act(g.dy.dtype, [&](auto act) {
      using T = decltype(act);
      launch(queue_, codes ? backward_kernel<T, true> : backward_kernel<T, false>,
             blocks_for(g.dy.rows, width), kThreads, 0, g.dy.matrix<const T>(), g.x,
             g.dx ? g.dx.matrix<T>() : Matrix<T>{}, g.y ? g.y.matrix<T>() : Matrix<T>{}, g.quantized,
             g.power_of_two);
    });
    return launched("swiglu_backward");
  }
  const int64_t rows =
      std::max<int64_t>(1, kWorkspace / std::max<int64_t>(1, 2 * width * size_of(g.dy.dtype)));
  for (int64_t first = 0; first < g.dy.rows; first += rows) {
    const int64_t count = std::min(rows, g.dy.rows - first);
    const Tensor dx =
        g.dx ? g.dx.slice_rows(first, count) : make_tensor(workspace_, g.dy.dtype, count, 2 * width);
    launch(queue_, plain_backward, 1024, kThreads, 0, g.dy.slice_rows(first, count),
           g.x.slice_rows(first, count), dx, rows_of(g.y, first, count));
    if (g.quantized)
      quantize({.x = dx, .y = rows_of(g.quantized, first, count), .power_of_two = g.power_of_two});
  }
  launched("swiglu_backward");
}

}  // namespace cachalot::cuda
