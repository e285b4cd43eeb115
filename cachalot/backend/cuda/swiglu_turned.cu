// Contract: backend/ops/swiglu.h, backward, where weight gradients want the transposes of dx and y: a block
// takes 128 rows and 128 columns of gate, up and dy, all from memory once. Numbers as they are rounded stand in
// shared memory, from where a thread takes eight columns of eight rows of each of the three matrices.
#include "backend/cuda/swiglu_turned.h"

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/quantize.cuh"
#include "backend/cuda/squares.cuh"
#include "backend/cuda/swiglu.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kSide = int(kScaleBlock);
constexpr int kGroups = kSide / kEight;  // of eight rows, or of eight columns
constexpr int kWarpRows = 2 * kEight;    // that a warp makes
constexpr int kHere = 4;                 // of a thread's rows, under way at once
enum { kGate, kUp, kY, kMatrices };

struct Shared {
  uint4 numbers[kMatrices][kSide][kGroups];  // bf16; column group c of a row is at c ^ (row / 8)
  uint4 most[kWarps][kMatrices][kGroups];    // |bf16| of a warp's rows
  Divider<bf16> columns[kMatrices][kSide];
  WarpDividers<bf16, 2 * kHere> rows[kWarps];
  float gate_scales[kSide], up_scales[kSide], weights[kSide];
};

struct Args {
  Tensor dy, x, quantized, transposed, y_transposed;
  RowsToTurn turn;
  const float* weights;
  float* dots;
  bool power_of_two;
};

// The sums over sixteen lanes of `count` numbers each: every lane gets that of number tile_of_lane<count>().
template <int count> __device__ float sums_of(float (&x)[count]) {
  int left = count / 2;
#pragma unroll
  for (int step = kTileLanes / 2; step > 0; step /= 2, left /= 2) {
    if (left == 0) {
      x[0] += __shfl_xor_sync(kAll, x[0], step);
      continue;
    }
    const bool upper = threadIdx.x & unsigned(step);
#pragma unroll
    for (int k = 0; k < count / 2; ++k)
      if (k < left) {
        const float kept = upper ? x[k + left] : x[k], passed = upper ? x[k] : x[k + left];
        x[k] = kept + __shfl_xor_sync(kAll, passed, step);
      }
  }
  return x[0];
}

__device__ uint4 larger(const uint4& a, const uint4& b) {
  return {larger_two(a.x, b.x), larger_two(a.y, b.y), larger_two(a.z, b.z), larger_two(a.w, b.w)};
}

template <bool weighted> __global__ void __launch_bounds__(kThreads, 2)
    turned_kernel(const __grid_constant__ Args a) {
  extern __shared__ uint4 memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  start();
  const Square square = find_rows(a.turn, blockIdx.y);  // every warp for itself
  if (square.to_end == 0) return;
  const int tid = int(threadIdx.x), warp = tid / 32, tx = tid % kTileLanes, ty = tid / kTileLanes;
  const int64_t width = a.dy.cols, col = int64_t(blockIdx.x) * kSide, at = col + kEight * tx,
                row = square.from + kEight * ty;
  const int count = int(max(int64_t(0), min(int64_t(kEight), square.end - row)));
  const int some = int(square.end - square.from);  // rows behind them are zeros

  const bf16* dy = static_cast<const bf16*>(a.dy.data) + row * a.dy.ld + at;
  const uint8_t* codes = static_cast<const uint8_t*>(a.x.data) + row * a.x.ld + at;
  Packed<bf16> d[kEight];
  uint2 gate[kEight], up[kEight];
#pragma unroll
  for (int k = 0; k < kEight; ++k) {
    d[k] = {}, gate[k] = {}, up[k] = {};
    if (k < count) {
      d[k] = load<true>(dy + k * a.dy.ld, 0, kEight);
      gate[k] = *reinterpret_cast<const uint2*>(codes + k * a.x.ld);
      up[k] = *reinterpret_cast<const uint2*>(codes + k * a.x.ld + width);
    }
  }
  if (tid < kSide) {
    const bool real = tid < some;
    const float* scales = a.x.scales + col / kScaleBlock * a.x.scale_ld + square.from + tid;
    s.gate_scales[tid] = real ? scales[0] : 0;
    s.up_scales[tid] = real ? scales[width / kScaleBlock * a.x.scale_ld] : 0;
    if constexpr (weighted) s.weights[tid] = real ? a.weights[square.from + tid] : 0;
  }
  __syncthreads();

  uint4 most[kMatrices] = {};  // of this thread's columns
  const auto keep = [&](int matrix, int k, const Packed<bf16>& p) {
    constexpr uint32_t kNoSigns = 0x7FFF7FFFu;
    const uint4 four{p.w[0], p.w[1], p.w[2], p.w[3]};
    s.numbers[matrix][kEight * ty + k][tx ^ ty] = four;
    most[matrix] =
        larger(most[matrix], {four.x & kNoSigns, four.y & kNoSigns, four.z & kNoSigns, four.w & kNoSigns});
  };
  if (kWarpRows * warp >= some) {
#pragma unroll
    for (int k = 0; k < kEight; ++k)
      for (int m = 0; m < kMatrices; ++m) keep(m, k, {});
  }
#pragma unroll
  for (int half = 0; half < kEight; half += kHere) {
    if (kWarpRows * warp >= some) break;
    Packed<bf16> dgate[kHere], dup[kHere];
    float row_most[2 * kHere], dot[kHere];
#pragma unroll
    for (int i = 0; i < kHere; ++i) {
      const int k = half + i, r = kEight * ty + k;
      const Eight g = Stored<e4m3>{gate[k], s.gate_scales[r]}.numbers(),
                  u = Stored<e4m3>{up[k], s.up_scales[r]}.numbers();
      SwigluGradient gradient;
      if constexpr (weighted) {
        const WeightedSwiglu w = weighted_swiglu(unpack(d[k]), g, u, s.weights[r]);
        gradient = w.gradient, dot[i] = w.dot;
        keep(kY, k, pack<bf16>(w.y));
      } else {
        gradient = swiglu_gradient(unpack(d[k]), g, u);
        keep(kY, k, pack<bf16>(swiglu(g, u)));
      }
      dgate[i] = pack<bf16>(gradient.gate), dup[i] = pack<bf16>(gradient.up);
      keep(kGate, k, dgate[i]), keep(kUp, k, dup[i]);
      row_most[i] = amax_of(dgate[i]), row_most[kHere + i] = amax_of(dup[i]);
    }
    if constexpr (weighted) {
      const float sum = sums_of(dot);
      const int k = half + tile_of_lane<kHere>();
      if (k < count && tid % (kTileLanes / kHere) == 0)
        a.dots[int64_t(blockIdx.x) * a.dy.rows + row + k] = sum;
    }
    if (!a.quantized.data) continue;
    const Tensor& q = a.quantized;
    WarpDividers<bf16, 2 * kHere>& by = s.rows[warp];
    const float scale = by.make(row_most, a.power_of_two);
    const int tile = tile_of_lane<2 * kHere>(), k = half + tile % kHere;
    if (k < count && tid % (kTileLanes / (2 * kHere)) == 0)
      q.scales[(col + (tile < kHere ? 0 : width)) / kScaleBlock * q.scale_ld + row + k] = scale;
    uint8_t* to = static_cast<uint8_t*>(q.data) + (row + half) * q.ld + at;
#pragma unroll
    for (int i = 0; i < kHere; ++i, to += q.ld)
      if (half + i < count) {
        store_codes(to, eight_codes(unpack(dgate[i]), by[i]));
        store_codes(to + width, eight_codes(unpack(dup[i]), by[kHere + i]));
      }
  }

  // The largest of every column: over a thread's rows, its warp's, the block's.
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    const uint4 mine = most[m], other{__shfl_xor_sync(kAll, mine.x, 16), __shfl_xor_sync(kAll, mine.y, 16),
                                      __shfl_xor_sync(kAll, mine.z, 16), __shfl_xor_sync(kAll, mine.w, 16)};
    if (tid % 32 < kTileLanes) s.most[warp][m][tx] = larger(mine, other);
  }
  __syncthreads();
  for (int pair = tid; pair < kMatrices * kSide / 2; pair += kThreads) {
    const int m = pair / (kSide / 2), c = pair % (kSide / 2) * 2;
    uint32_t two = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      two = larger_two(two, reinterpret_cast<const uint32_t*>(s.most[w][m])[c / 2]);
    const Tensor& t = m == kY ? a.y_transposed : a.transposed;
    float* scales = t.scales + square.to / kScaleBlock * t.scale_ld + col + (m == kUp ? width : 0) + c;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float amax = __uint_as_float(i == 0 ? two << 16 : two & 0xFFFF0000u),
                  scale = scale_of(amax, e4m3::kMax, a.power_of_two);
      s.columns[m][c + i] = divider<bf16>(scale);
      scales[i] = scale;
    }
  }
  __syncthreads();

  const int group = tid % kGroups, eight = tid / kGroups;   // of rows, of columns
  if (square.to + kEight * group >= square.to_end) return;  // both are multiples of eight
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    const Tensor& t = m == kY ? a.y_transposed : a.transposed;
    uint8_t* to = static_cast<uint8_t*>(t.data) + (col + (m == kUp ? width : 0) + kEight * eight) * t.ld +
                  square.to + kEight * group;
    Packed<bf16> rows[kEight];
#pragma unroll
    for (int k = 0; k < kEight; ++k)
      *reinterpret_cast<uint4*>(&rows[k]) = s.numbers[m][kEight * group + k][eight ^ group];
#pragma unroll
    for (int j = 0; j < kEight; ++j, to += t.ld) {
      Eight column;
#pragma unroll
      for (int k = 0; k < kEight; ++k) column.v[k] = unpack(rows[k]).v[j];
      store_codes(to, eight_codes(column, s.columns[m][kEight * eight + j]));
    }
  }
}

}  // namespace

bool turned_swiglu(const Queue& queue, const SwigluBackward& g, float* dots, const Faults& faults) {
  int device = 0, room = 0;  // of shared memory, for a block
  must(cudaGetDevice(&device), "swiglu_backward");
  must(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "swiglu_backward");
  const int64_t width = g.dy.cols;
  if (room < int(sizeof(Shared)) || g.dy.dtype != DType::bf16 || g.x.dtype != DType::e4m3 ||
      width % kScaleBlock != 0 || (!g.offsets && g.dy.rows % kEight != 0) || !is_wide(g.dy) ||
      !codes_are_wide(g.x))
    return false;
  const Args args{.dy = g.dy,
                  .x = g.x,
                  .quantized = g.quantized,
                  .transposed = g.transposed,
                  .y_transposed = g.y_transposed,
                  .turn = {.rows = g.dy.rows,
                           .columns = g.transposed.cols,
                           .offsets = static_cast<const int32_t*>(g.offsets.data),
                           .padded = static_cast<const int32_t*>(g.padded.data),
                           .experts = g.offsets ? g.offsets.cols - 1 : 0,
                           .faults = faults},
                  .weights = static_cast<const float*>(g.weights.data),
                  .dots = dots,
                  .power_of_two = g.power_of_two};
  const dim3 grid(unsigned(width / kScaleBlock), unsigned((g.transposed.cols + kSide - 1) / kSide));
  CHECK(grid.y <= 65535, "swiglu_backward: up to 8388480 rows at once on cuda");
  const auto kernel = g.weights ? turned_kernel<true> : turned_kernel<false>;
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared))),
       "swiglu_backward: asking for shared memory");
  launch(queue, kernel, grid, kThreads, sizeof(Shared), args);
  launched("swiglu_backward");
  return true;
}

}  // namespace cachalot::cuda
