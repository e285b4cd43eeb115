// Contract: backend/ops/quantize.h, the transpose of codes. A block takes squares of 128 x 128 codes, one after the
// other; the next one comes into shared memory while it works on one. A warp takes sixteen columns, a lane four
// columns of sixteen rows, which are sixteen neighbouring codes of four rows of the transpose: nothing passes from
// warp to warp, and a square needs one barrier.
#include "backend/cuda/quantize_codes.h"

#include <algorithm>

#include "backend/cuda/quantize.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kSide = int(kScaleBlock), kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = 3;  // on a multiprocessor
constexpr int kChunk = 16;  // codes that are brought in at once; columns of a warp, rows of a lane
constexpr int kChunks = kSide / kChunk;  // of a row
constexpr int kColumns = 4;              // of a lane
static_assert(kWarps == kChunks && kColumns * kChunk * kThreads == kSide * kSide);

struct Stage {
  uint4 codes[kSide][kChunks];        // chunk c of row r is at c ^ (r / 16): a warp's lanes read all banks
  float scales[kChunks][kChunk + 4];  // of sixteen rows each, the same
};

struct Args {
  Tensor x, transposed;
  RowsToTurn turn;
  unsigned across, down;  // squares
};

// Copies `bytes`, or zeros where nothing is there. Codes: the next square's line comes along to L2.
template <int bytes> __device__ void bring(void* to, const void* from, bool real) {
  const auto at = unsigned(__cvta_generic_to_shared(to));
  const int size = real ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(size)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(size) : "memory");
}

template <bool power_of_two> __global__ void __launch_bounds__(kThreads, kBlocks)
    turn_codes_kernel(const __grid_constant__ Args a) {
  __shared__ Stage stages[2];
  start();
  const int tid = int(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int fours = lane % 4, group = lane / 4;  // columns, rows of this lane
  // This block's squares: neighbours, so that it seldom has to look up whose rows they are.
  const unsigned filled = a.turn.offsets ? unsigned(a.turn.padded[a.turn.experts]) / kSide : a.down;
  const uint64_t squares = uint64_t(min(filled, a.down)) * a.across;
  const auto first = unsigned(squares * blockIdx.x / gridDim.x),
             last = unsigned(squares * (blockIdx.x + 1) / gridDim.x);
  if (first == last) return;
  unsigned down = first / a.across, across = first % a.across;  // of the square that is brought
  const int row = tid / kChunks, chunk = tid % kChunks;  // that this thread brings, and every 32nd from there
  constexpr int kStep = kThreads / kChunks;
  Square square;
  const uint8_t* codes;
  const float* row_scales;
  const auto look_up = [&] {
    square = find_rows(a.turn, down);  // every warp for itself
    codes = static_cast<const uint8_t*>(a.x.data) + (square.from + row) * a.x.ld + kChunk * chunk;
    row_scales = a.x.scales + square.from + tid;
  };
  const auto bring_square = [&](Stage& to) {
    const int rows = int(square.end - square.from);
    const unsigned col = across * unsigned(kSide);
    const bool in_row = col + unsigned(kChunk * chunk) < a.x.cols;
    const uint8_t* from = codes + col;
#pragma unroll
    for (int k = 0; k < kSide / kStep; ++k, from += kStep * a.x.ld) {
      const int r = k * kStep + row;
      const bool real = in_row && r < rows;
      bring<16>(&to.codes[r][chunk ^ r / kChunk], real ? from : a.x.data, real);
    }
    if (tid < kSide) {
      const bool real = tid < rows;
      bring<4>(&to.scales[tid / kChunk][tid % kChunk], real ? row_scales + across * a.x.scale_ld : a.x.scales,
               real);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  look_up();
  bring_square(stages[0]);
  for (unsigned i = first; i < last; ++i) {
    const Stage& s = stages[(i - first) % 2];
    const int64_t col = int64_t(across) * kSide + kChunk * warp + kColumns * fours;
    const int64_t begin = square.to, end = square.to_end;
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();  // of all threads; and the other stage has been read
    if (i + 1 < last) {
      if (++across == a.across) across = 0, ++down, look_up();
      bring_square(stages[(i + 1 - first) % 2]);
    }
    if (end == 0) continue;  // wrong offsets; the whole block
    float v[kChunk][kColumns], most[kColumns] = {};
#pragma unroll
    for (int k = 0; k < kChunk; k += 4) {
      const float4 scales = *reinterpret_cast<const float4*>(&s.scales[group][k]);
#pragma unroll
      for (int r = k; r < k + 4; ++r) {
        four_numbers(reinterpret_cast<const uint32_t*>(&s.codes[kChunk * group + r][warp ^ group])[fours],
                     v[r]);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          v[r][j] *= (&scales.x)[r - k];
          most[j] = fmaxf(most[j], fabsf(v[r][j]));
        }
      }
    }
    // The lanes of four columns pass on half of what is left; each ends with one column, `mine`.
    const bool high = lane & 4, odd = lane & 8;
    const int mine = 2 * high + odd;
#pragma unroll
    for (int j = 0; j < 2; ++j)
      most[j] = fmaxf(high ? most[j + 2] : most[j], __shfl_xor_sync(kAll, high ? most[j] : most[j + 2], 4));
    float largest = fmaxf(odd ? most[1] : most[0], __shfl_xor_sync(kAll, odd ? most[0] : most[1], 8));
    largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 16));
    const float scale = scale_of(largest, e4m3::kMax, power_of_two);
    const Divider<float> divides = divider<float>(scale);
    const Tensor& t = a.transposed;
    if (lane < 16 && col < a.x.cols) t.scales[begin / kSide * t.scale_ld + col + mine] = scale;
    const int64_t left = col < a.x.cols ? end - begin - kChunk * group : 0;
    uint8_t* to = static_cast<uint8_t*>(t.data) + col * t.ld + begin + kChunk * group;
#pragma unroll
    for (int j = 0; j < kColumns; ++j, to += t.ld) {
      const int from = fours + 4 * (j / 2) + 8 * (j % 2);
      const Divider<float> by{.minus_inverse = __shfl_sync(kAll, divides.minus_inverse, from),
                              .scale = __shfl_sync(kAll, divides.scale, from)};
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float q[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {  // by a power of two: exact at once
          const float x = v[4 * w + k][j];
          q[k] = power_of_two ? x * -by.minus_inverse : by(x);
        }
        words[w] = four_codes(q[0], q[1], q[2], q[3]);
      }
      if (left >= kChunk) {
        *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
      } else {
        store_codes(to, left, false, {words[0], words[1]});
        store_codes(to + kEight, left - kEight, false, {words[2], words[3]});
      }
    }
  }
}

}  // namespace

bool turn_codes(const Queue& queue, int multiprocessors, const Tensor& x, const Tensor& transposed,
                const RowsToTurn& turn, bool power_of_two) {
  if (reinterpret_cast<uintptr_t>(x.data) % kChunk || x.cols % kChunk || (x.rows > 1 && x.ld % kChunk))
    return false;
  const auto across = unsigned((x.cols + kSide - 1) / kSide),
             down = unsigned((transposed.cols + kSide - 1) / kSide);
  const Args args{.x = x, .transposed = transposed, .turn = turn, .across = across, .down = down};
  launch(queue, power_of_two ? turn_codes_kernel<true> : turn_codes_kernel<false>,
         std::min(across * down, unsigned(kBlocks * multiprocessors)), kThreads, 0, args);
  return true;
}

}  // namespace cachalot::cuda
