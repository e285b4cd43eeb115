// Contract: backend/ops/swiglu.h, where FP8 goes in or comes out. Sixteen lanes take a tile of the gate and the
// one of `up` beside it, so that each is quantised in registers. Widths that are not a multiple of 128, whose
// tiles of x lie across gate and up, and rows that do not begin on 16 bytes go number by number through the
// workspace, some rows at a time.
#include <algorithm>
#include <utility>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/cuda/swiglu.cuh"
#include "backend/cuda/swiglu_turned.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Rows of a tile that a warp has under way at once, as the registers allow.
template <class T> constexpr int kForwardRows = sizeof(T) == 2 ? 2 : 1;
template <class T> constexpr int kBackwardRows = sizeof(T) == 2 ? 4 : 1;

// Where `lanes` lanes, which take one tile or two neighbouring ones, are in a [rows, width] matrix whose width is a
// multiple of 128: `each` rows from `row` on, a lane eight columns from `col` on.
struct Place {
  int64_t row, col;
  int count;  // of rows that this lane has numbers in
};
template <int each, int lanes> __device__ Place place_of(int64_t rows, int64_t width) {
  constexpr int kColumns = lanes * kEight;
  const unsigned across = unsigned((width + kColumns - 1) / kColumns),
                 work = (blockIdx.x * kThreads + threadIdx.x) / lanes;
  const int64_t row = int64_t(work / across) * each,
                col = int64_t(work % across) * kColumns + kEight * (threadIdx.x % lanes);
  return {row, col, col < width ? int(max(int64_t(0), min(int64_t(each), rows - row))) : 0};
}
unsigned blocks_for(int64_t rows, int64_t width, int each, int lanes) {
  const int64_t work = (rows + each - 1) / each * ((width + lanes * kEight - 1) / (lanes * kEight));
  return unsigned((work * lanes + kThreads - 1) / kThreads);
}

// Codes of this lane's eight numbers of one row each, `shift` columns to the right of where it works.
template <class T, int each, int count>
__device__ void write_codes(const Tensor& y, const Place& p, int64_t shift, const Packed<T> (&numbers)[each],
                            const WarpDividers<T, count>& by, int first_tile) {
  uint8_t* to = static_cast<uint8_t*>(y.data) + p.row * y.ld + p.col + shift;
#pragma unroll
  for (int k = 0; k < each; ++k)
    if (k < p.count) store_codes(to + k * y.ld, eight_codes(unpack(numbers[k]), by[first_tile + k]));
}
__device__ void write_scale(const Tensor& y, int64_t row, int64_t col, float scale) {
  y.scales[col / kScaleBlock * y.scale_ld + row] = scale;
}

template <class T> __global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(Matrix<const T> x, Matrix<T> y, const __grid_constant__ Tensor quantized,
                   const __grid_constant__ Tensor cached, bool power_of_two) {
  constexpr int kHere = kForwardRows<T>;
  __shared__ WarpDividers<T, 4 * kHere> dividers[kWarps];
  start();
  const int64_t width = x.cols / 2;
  const Place p = place_of<kHere, kTileLanes>(x.rows, width);
  Packed<T> gate[kHere], up[kHere], out[kHere];
  const T* from = x.data + p.row * x.ld;
#pragma unroll
  for (int k = 0; k < kHere; ++k) {
    gate[k] = {}, up[k] = {};
    if (k < p.count) {
      gate[k] = load<true>(from + k * x.ld, p.col, width);
      up[k] = load<true>(from + k * x.ld + width, p.col, width);
    }
  }
  float most[4 * kHere] = {};  // of y, gate, up and nothing
#pragma unroll
  for (int k = 0; k < kHere; ++k) {
    const Eight g = unpack(gate[k]), u = unpack(up[k]);
    out[k] = pack<T>(swiglu(g, u));
    most[k] = amax_of(out[k]), most[kHere + k] = amax_of(g), most[2 * kHere + k] = amax_of(u);
    if (y.data && k < p.count) store<true>(y.data + (p.row + k) * y.ld, p.col, width, out[k]);
  }
  WarpDividers<T, 4 * kHere>& by = dividers[threadIdx.x / 32];
  const float scale = by.make(most, power_of_two);
  const int tile = tile_of_lane<4 * kHere>(), k = tile % kHere, which = tile / kHere;
  if (k < p.count && threadIdx.x % (kTileLanes / (4 * kHere)) == 0) {
    if (which == 0 && quantized.data) write_scale(quantized, p.row + k, p.col, scale);
    if (which == 1 && cached.data) write_scale(cached, p.row + k, p.col, scale);
    if (which == 2 && cached.data) write_scale(cached, p.row + k, width + p.col, scale);
  }
  if (quantized.data) write_codes<T>(quantized, p, 0, out, by, 0);
  if (cached.data) {
    write_codes<T>(cached, p, 0, gate, by, kHere);
    write_codes<T>(cached, p, width, up, by, 2 * kHere);
  }
}

// x of T, or e4m3 with row tiles.
template <class T, bool codes> __global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(Matrix<const T> dy, const __grid_constant__ Tensor x, Matrix<T> dx, Matrix<T> y,
                    const __grid_constant__ Tensor quantized, bool power_of_two, const float* weights,
                    float* dots) {
  constexpr int kHere = kBackwardRows<T>;
  __shared__ WarpDividers<T, 2 * kHere> dividers[kWarps];
  start();
  const int64_t width = dy.cols;
  const Place p = place_of<kHere, 32>(dy.rows, width);
  using X = std::conditional_t<codes, e4m3, T>;
  const Rows<X> gates(x, p.row, p.col), ups(x, p.row, width + p.col);
  Packed<T> d[kHere], dgate[kHere], dup[kHere];
  Stored<X> gate[kHere], up[kHere];
#pragma unroll
  for (int k = 0; k < kHere; ++k) {
    d[k] = {}, gate[k] = {}, up[k] = {};
    if (k < p.count) {
      d[k] = load<true>(dy.data + (p.row + k) * dy.ld, p.col, width);
      gate[k] = gates[k], up[k] = ups[k];
    }
  }
  float most[2 * kHere];
#pragma unroll
  for (int k = 0; k < kHere; ++k) {
    const Eight g = gate[k].numbers(), u = up[k].numbers();
    SwigluGradient gradient;
    if (weights) {
      const WeightedSwiglu w = weighted_swiglu(unpack(d[k]), g, u, k < p.count ? weights[p.row + k] : 0.0f);
      gradient = w.gradient;
      const float dot = warp_sum(w.dot);
      if (threadIdx.x % 32 == 0 && k < p.count) dots[p.col / (2 * kScaleBlock) * dy.rows + p.row + k] = dot;
      if (y.data && k < p.count) store_eight<true>(y.data + (p.row + k) * y.ld, p.col, width, w.y);
    } else {
      gradient = swiglu_gradient(unpack(d[k]), g, u);
      if (y.data && k < p.count) store_eight<true>(y.data + (p.row + k) * y.ld, p.col, width, swiglu(g, u));
    }
    dgate[k] = pack<T>(gradient.gate), dup[k] = pack<T>(gradient.up);
    most[k] = amax_of(dgate[k]), most[kHere + k] = amax_of(dup[k]);
    if (k >= p.count) continue;
    if (dx.data) {
      T* to = dx.data + (p.row + k) * dx.ld;
      store<true>(to, p.col, width, dgate[k]);
      store<true>(to + width, p.col, width, dup[k]);
    }
  }
  if (!quantized.data) return;
  WarpDividers<T, 2 * kHere>& by = dividers[threadIdx.x / 32];
  const float scale = by.make(most, power_of_two);
  const int tile = tile_of_lane<2 * kHere>(), k = tile % kHere;
  if (k < p.count && threadIdx.x % (kTileLanes / (2 * kHere)) == 0)
    write_scale(quantized, p.row + k, p.col + (tile < kHere ? 0 : width), scale);
  write_codes<T>(quantized, p, 0, dgate, by, 0);
  write_codes<T>(quantized, p, width, dup, by, kHere);
}

// dweights[r]: what the warps of a row found, in the order of its columns.
__global__ void add_dots(const float* dots, int64_t rows, int parts, float* dweights) {
  start();
  const int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  float sum = 0;
  for (int i = 0; i < parts; ++i) sum += dots[i * rows + r];
  dweights[r] = sum;
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
                               const __grid_constant__ Tensor dx, const __grid_constant__ Tensor y,
                               const float* weights) {
  start();
  const int64_t width = dy.cols, n = dy.rows * width;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t r = i / width, c = i % width;
    Eight gate = {}, up = {}, d = {};
    gate.v[0] = load_number(x, r, c), up.v[0] = load_number(x, r, width + c), d.v[0] = load_number(dy, r, c);
    const float weight = weights ? weights[r] : 1.0f;
    const WeightedSwiglu w = weighted_swiglu(d, gate, up, weight);
    store_number(dx, r, c, w.gradient.gate.v[0]);
    store_number(dx, r, width + c, w.gradient.up.v[0]);
    if (y.data) store_number(y, r, c, w.y.v[0]);
  }
}
// A warp a row.
__global__ void plain_dots(const __grid_constant__ Tensor dy, const __grid_constant__ Tensor x,
                           float* dweights) {
  start();
  const int lane = int(threadIdx.x) % 32;
  for (int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; r < dy.rows;
       r += int64_t(gridDim.x) * kWarps) {
    float dot = 0;
    for (int64_t c = lane; c < dy.cols; c += 32) {
      Eight gate = {}, up = {};
      gate.v[0] = load_number(x, r, c), up.v[0] = load_number(x, r, dy.cols + c);
      dot += load_number(dy, r, c) * swiglu(gate, up).v[0];
    }
    dot = warp_sum(dot);
    if (lane == 0) dweights[r] = dot;
  }
}

Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  return t ? t.slice_rows(first, count) : Tensor{};
}

}  // namespace

void CudaBackend::quantized_swiglu(const SwigluForward& g) {
  const int64_t width = g.x.cols / 2;
  if (width % kScaleBlock == 0 && halves_are_wide(g.x) && are_wide({&g.y})) {
    with_act(g.x.dtype, [&](auto act) {
      using T = decltype(act);
      launch(queue_, forward_kernel<T>, blocks_for(g.x.rows, width, kForwardRows<T>, kTileLanes), kThreads, 0,
             g.x.matrix<const T>(), g.y ? g.y.matrix<T>() : Matrix<T>{}, g.quantized, g.cached,
             g.power_of_two);
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
  const int64_t width = g.dy.cols, parts = (width + 2 * kScaleBlock - 1) / (2 * kScaleBlock);
  const bool codes = g.x.dtype == DType::e4m3;
  const auto* weights = static_cast<const float*>(g.weights.data);
  auto* dweights = static_cast<float*>(g.dweights.data);
  const auto add_parts = [&](const float* dots, int64_t count) {
    if (weights)
      launch(queue_, add_dots, unsigned((g.dy.rows + kThreads - 1) / kThreads), kThreads, 0, dots, g.dy.rows,
             int(count), dweights);
    launched("swiglu_backward");
  };
  if (g.transposed) {
    const int64_t tiles = (width + kScaleBlock - 1) / kScaleBlock;
    auto* dots = static_cast<float*>(workspace_);
    if (4 * tiles * g.dy.rows <= kWorkspace && turned_swiglu(queue_, g, dots, faults_))
      return add_parts(dots, tiles);
    SwigluBackward rows = g;
    rows.transposed = rows.y_transposed = rows.offsets = rows.padded = {};
    swiglu_backward(rows);
    for (const auto& [x, to] : {std::pair{g.dx, g.transposed}, {g.y, g.y_transposed}})
      quantize({.x = x,
                .transposed = to,
                .offsets = g.offsets,
                .padded = g.padded,
                .power_of_two = g.power_of_two});
    return;
  }
  if (width % kScaleBlock == 0 && (codes ? codes_are_wide(g.x) : halves_are_wide(g.x)) &&
      halves_are_wide(g.dx) && are_wide({&g.dy, &g.y}) && 4 * parts * g.dy.rows <= kWorkspace) {
    auto* dots = static_cast<float*>(workspace_);
    with_act(g.dy.dtype, [&](auto act) {
      using T = decltype(act);
      launch(queue_, codes ? backward_kernel<T, true> : backward_kernel<T, false>,
             blocks_for(g.dy.rows, width, kBackwardRows<T>, 32), kThreads, 0, g.dy.matrix<const T>(), g.x,
             g.dx ? g.dx.matrix<T>() : Matrix<T>{}, g.y ? g.y.matrix<T>() : Matrix<T>{}, g.quantized,
             g.power_of_two, weights, dots);
    });
    return add_parts(dots, parts);
  }
  const int64_t rows =
      std::max<int64_t>(1, kWorkspace / std::max<int64_t>(1, 2 * width * size_of(g.dy.dtype)));
  for (int64_t first = 0; first < g.dy.rows; first += rows) {
    const int64_t count = std::min(rows, g.dy.rows - first);
    const Tensor dx =
        g.dx ? g.dx.slice_rows(first, count) : make_tensor(workspace_, g.dy.dtype, count, 2 * width);
    launch(queue_, plain_backward, 1024, kThreads, 0, g.dy.slice_rows(first, count),
           g.x.slice_rows(first, count), dx, rows_of(g.y, first, count), weights ? weights + first : nullptr);
    if (weights)
      launch(queue_, plain_dots, 1024, kThreads, 0, g.dy.slice_rows(first, count),
             g.x.slice_rows(first, count), dweights + first);
    if (g.quantized)
      quantize({.x = dx, .y = rows_of(g.quantized, first, count), .power_of_two = g.power_of_two});
  }
  launched("swiglu_backward");
}

}  // namespace cachalot::cuda
