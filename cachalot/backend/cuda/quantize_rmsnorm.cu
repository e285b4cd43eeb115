// Contract: RmsNormForward in backend/ops/rmsnorm.h, where FP8 codes of y come out; the bits of y and r are
// those of rmsnorm.cu. A block takes row after row: the gain stays in shared memory, and the next row is on its
// way while one is worked on.
#include "backend/cuda/quantize_rmsnorm.h"

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/quantize.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kParts = 4;           // eights of a row in the registers of a thread
constexpr int kFewThreads = 256;    // a row of up to 8192 numbers
constexpr int kMostThreads = 1024;  // ... 32768

// Where part i of this thread begins: neighbours read neighbours.
__device__ int64_t begin_of(int part) { return kEight * (int64_t(part) * blockDim.x + threadIdx.x); }

template <class T, bool wide>
__device__ void load_row(Packed<T> (&row)[kParts], const Matrix<const T>& x, int64_t t) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    row[i] = {};
    if (t < x.rows && begin_of(i) < x.cols) row[i] = load<wide>(x.data + t * x.ld, begin_of(i), x.cols);
  }
}

template <class T, bool wide, int threads>
__global__ void __launch_bounds__(threads, threads == kFewThreads && sizeof(T) == 2 ? 3 : 1)
    forward_kernel(Matrix<const T> x, const float* gain, float eps, Matrix<T> y, float* scales,
                   const __grid_constant__ Tensor quantized, bool power_of_two) {
  __shared__ float scratch[2][threads / 32];
  __shared__ WarpDividers<T, kParts> dividers[threads / 32];
  start();
  const int64_t d = x.cols, step = int64_t(gridDim.x) * blockDim.y;
  Packed<T> next[kParts];
  load_row<T, wide>(next, x, int64_t(blockIdx.x) * blockDim.y + threadIdx.y);
  // The gain of this thread's numbers, read by it alone: no barrier. Of longer rows it would not fit.
  constexpr bool kGainKept = threads == kFewThreads;
  extern __shared__ float4 gains[];  // [2 kParts][threads]
  const unsigned all = blockDim.x * blockDim.y;
  float4* mine = gains + threadIdx.y * blockDim.x + threadIdx.x;
  if constexpr (kGainKept) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const Packed<float> g = begin_of(i) < d ? load<wide>(gain, begin_of(i), d) : Packed<float>{};
      mine[2 * i * all] = {g.w[0], g.w[1], g.w[2], g.w[3]};
      mine[(2 * i + 1) * all] = {g.w[4], g.w[5], g.w[6], g.w[7]};
    }
  }
  WarpDividers<T, kParts>& by = dividers[(threadIdx.y * blockDim.x + threadIdx.x) / 32];
  const int64_t column_tile =
      (begin_of(tile_of_lane<kParts>()) - kEight * (threadIdx.x % kTileLanes)) / kScaleBlock;
  int turn = 0;
  // Two rows of scratch in turn: the barrier inside separates this use from the one before the last.
  for (int64_t first = int64_t(blockIdx.x) * blockDim.y; first < x.rows; first += step, turn = 1 - turn) {
    const int64_t t = first + threadIdx.y;
    Packed<T> row[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) row[i] = next[i];
    load_row<T, wide>(next, x, t + step);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const Eight e = unpack(row[i]);
#pragma unroll
      for (int j = 0; j < kEight; ++j) sum += e.v[j] * e.v[j];
    }
    sum = row_sum(sum, scratch[turn]);
    const float r = 1.0f / sqrtf(sum / float(d) + eps);
    const bool real = t < x.rows;  // others only take part in what warps and blocks do together
    float most[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      Eight e = unpack(row[i]);
      Packed<float> g = {};
      if constexpr (kGainKept) {
        reinterpret_cast<float4*>(&g)[0] = mine[2 * i * all];
        reinterpret_cast<float4*>(&g)[1] = mine[(2 * i + 1) * all];
      } else if (begin_of(i) < d) {
        g = load<wide>(gain, begin_of(i), d);
      }
#pragma unroll
      for (int j = 0; j < kEight; ++j) e.v[j] = g.w[j] * (e.v[j] * r);
      row[i] = pack<T>(e);
      most[i] = amax_of(row[i]);
      if (y.data && real && begin_of(i) < d) store<wide>(y.data + t * y.ld, begin_of(i), d, row[i]);
    }
    const float scale = by.make(most, power_of_two);
    if (!real) continue;
    if (threadIdx.x % (kTileLanes / kParts) == 0 && column_tile * kScaleBlock < d)
      quantized.scales[column_tile * quantized.scale_ld + t] = scale;
    uint8_t* to = static_cast<uint8_t*>(quantized.data) + t * quantized.ld;
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      if (begin_of(i) < d) {
        const uint2 codes = eight_codes(unpack(row[i]), by[i]);
        if constexpr (wide) store_codes(to + begin_of(i), codes);
        else store_codes(to + begin_of(i), d - begin_of(i), true, codes);
      }
    if (threadIdx.x == 0) scales[t] = r;
  }
}

}  // namespace

void quantized_rmsnorm(const Queue& queue, int multiprocessors, const RmsNormForward& n) {
  const int64_t parts = (eights(n.x.cols) + kParts - 1) / kParts;
  const auto across = unsigned((parts + 31) / 32 * 32);
  const dim3 block(across, std::max(1u, 128 / across));
  const unsigned threads = block.x * block.y, blocks = unsigned((n.x.rows + block.y - 1) / block.y);
  // As many as run at once: a block goes on to other rows.
  const unsigned at_once = unsigned(multiprocessors) * std::max(1u, 3 * kFewThreads / threads);
  with_act(n.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(are_wide({&n.x, &n.y, &n.gain}), [&](auto wide) {
      const auto kernel = threads <= kFewThreads ? forward_kernel<T, wide.value, kFewThreads>
                                                 : forward_kernel<T, wide.value, kMostThreads>;
      launch(queue, kernel, std::min(blocks, at_once), block,
             threads <= kFewThreads ? kParts * kEight * sizeof(float) * threads : 0, n.x.matrix<const T>(),
             n.gain.vector<const float>().data, float(n.eps), n.y ? n.y.matrix<T>() : Matrix<T>{},
             n.r.vector<float>().data, n.quantized, n.power_of_two);
    });
  });
  launched("rmsnorm_forward");
}

}  // namespace cachalot::cuda
