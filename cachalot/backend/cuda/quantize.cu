// Contract: backend/ops/quantize.h. Sixteen lanes take a tile of 128, as in quantize.cuh. Where a transpose is
// asked for, a block takes 128 x 128 numbers, once from memory: a thread eight columns of eight rows, whose
// codes turn in shared memory. Transposes of codes in rows that begin on 16 bytes: quantize_codes.cu.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/cuda/quantize_codes.h"
#include "backend/cuda/squares.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 4;  // of one tile of columns, under way at once

int64_t tiles_of(int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; }

// A warp takes kRows rows of two neighbouring tiles; block (pairs of tiles, kWarps times as many rows).
template <class T, bool wide> __global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 2)
    row_tiles_kernel(Matrix<const T> x, const __grid_constant__ Tensor y, const int32_t* offsets,
                     int64_t experts, bool power_of_two) {
  __shared__ WarpDividers<T, kRows> dividers[kWarps];
  start();
  const int64_t rows = offsets ? min(int64_t(offsets[experts]), x.rows) : x.rows;
  const int64_t at = int64_t(blockIdx.x) * 2 * kScaleBlock + kEight * (threadIdx.x % 32);
  for (int64_t block = blockIdx.y; block * kWarps * kRows < rows; block += gridDim.y) {
    const int64_t first = (block * kWarps + threadIdx.x / 32) * kRows;
    if (first >= rows) return;
    const int count = int(min(int64_t(kRows), rows - first)), real = at < x.cols ? count : 0;
    const T* from = x.data + first * x.ld;
    Packed<T> packed[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      packed[k] = {};
      if (k < real) packed[k] = load<wide>(from + k * x.ld, at, x.cols);
    }
    float most[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) most[k] = amax_of(packed[k]);
    WarpDividers<T, kRows>& by = dividers[threadIdx.x / 32];
    const float scale = by.make(most, power_of_two);
    const int tile = tile_of_lane<kRows>();
    if (tile < count && at / kScaleBlock * kScaleBlock < x.cols && threadIdx.x % (kTileLanes / kRows) == 0)
      y.scales[at / kScaleBlock * y.scale_ld + first + tile] = scale;
    uint8_t* to = static_cast<uint8_t*>(y.data) + first * y.ld + at;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (k >= real) break;
      const uint2 codes = eight_codes(unpack(packed[k]), by[k]);
      if constexpr (wide) store_codes(to + k * y.ld, codes);
      else store_codes(to + k * y.ld, y.cols - at, true, codes);
    }
  }
}

struct SquareArgs {
  Tensor x, y, transposed;
  const int32_t *offsets, *padded;  // rows of experts
  int64_t experts;
  int64_t outputs;  // of weights: rows of a matrix, of which x is a stack
  bool power_of_two;
  bool wide_y, wide_transposed;  // their rows begin on 8 bytes
  Faults faults;
};

__host__ __device__ RowsToTurn turn_of(const SquareArgs& a) {
  return {.rows = a.x.rows,
          .columns = a.transposed.cols,
          .offsets = a.offsets,
          .padded = a.padded,
          .experts = a.experts,
          .faults = a.faults};
}

// What block `at` of those above each other takes.
__device__ Square find_rows(const SquareArgs& a, int64_t at) { return find_rows(turn_of(a), at); }

// Of a stack of matrices cut into parts of whole blocks.
__device__ Square find_block(const SquareArgs& a, int64_t at) {
  const Tensor& t = a.y.data ? a.y : a.x;
  const int64_t part = t.part_rows ? t.part_rows : t.rows, down = (part + kScaleBlock - 1) / kScaleBlock;
  Square s{};
  s.from = at / down * part + at % down * kScaleBlock;
  s.end = min((at / down + 1) * part, s.from + kScaleBlock);
  s.to = s.from % a.outputs;
  s.to_end = s.to + (s.end - s.from);
  s.down = s.from / a.outputs * a.x.cols;
  s.scale_row = at;
  return s;
}

// Eight numbers of row r from column c on.
template <bool wide, class T> __device__ void fetch(Stored<T>& to, const Tensor& x, int64_t r, int64_t c) {
  if constexpr (std::is_same_v<T, e4m3>) to = {load_codes(x, r, c, wide), x.scale(r, c)};
  else to = {load<wide>(static_cast<const T*>(x.data) + r * x.ld, c, x.cols)};
}

// The format in which numbers of T are divided: codes times scales are any f32.
template <class T> using Divided = std::conditional_t<std::is_same_v<T, bf16>, bf16, float>;

// Row tiles of the transpose and, `with_y`, of x itself, where rows of bf16 or codes can be read in eights: a
// block takes squares of 128 x 128 numbers, a thread eight columns of eight rows. Where `ahead`, a block takes
// one after the other and the next is on its way while one is worked on; elsewhere a third block on the same
// multiprocessor hides more.
constexpr int kSide = int(kScaleBlock), kBlocksAhead = 2;  // on a multiprocessor
template <class T, bool with_y, bool ahead>
__global__ void __launch_bounds__(kThreads, ahead ? kBlocksAhead : 3)
    turn_kernel(const __grid_constant__ SquareArgs a, unsigned across, unsigned squares) {
  using D = Divided<T>;
  static_assert(kThreads == kTileLanes * kSide / kEight);
  // [column][8 rows, exchanged so that neighbours lie in other banks]
  __shared__ alignas(16) uint2 turned[kSide][kTileLanes];
  __shared__ alignas(16) float amax[kWarps][kSide];
  __shared__ Divider<D> columns[kEight / 2][kTileLanes][2];  // column c is [c % 8 / 2][c / 8][c % 2]
  __shared__ WarpDividers<D, kEight> row_dividers[with_y ? kWarps : 1];
  start();
  const int tx = int(threadIdx.x) % kTileLanes, ty = int(threadIdx.x) / kTileLanes,
            warp = int(threadIdx.x) / 32;
  Square square;
  Stored<T> source[kEight];
  const auto fetch_square = [&](unsigned i) {
    square = find_rows(a, i / across);  // every warp for itself
    const int64_t at = int64_t(i % across) * kSide + kEight * tx, row = square.from + kEight * ty;
    const int64_t left = at < a.x.cols ? square.end - row : 0;
    const Rows<T> from(a.x, row, at);
#pragma unroll
    for (int k = 0; k < kEight; ++k) {
      source[k] = {};
      if (k < left) source[k] = from[k];
    }
  };
  fetch_square(blockIdx.x);
  for (unsigned i = blockIdx.x; i < squares; i += gridDim.x) {
    const Square here = square;
    std::conditional_t<std::is_same_v<T, e4m3>, Eight, Stored<T>> kept[kEight];
    float most[kEight] = {}, row_most[kEight];
#pragma unroll
    for (int k = 0; k < kEight; ++k) {
      if constexpr (std::is_same_v<T, e4m3>) {
        kept[k] = source[k].numbers();
#pragma unroll
        for (int j = 0; j < kEight; ++j) most[j] = fmaxf(most[j], fabsf(kept[k].v[j]));
      } else {
        kept[k] = source[k];
        if constexpr (with_y) row_most[k] = amax_of(kept[k].packed);
      }
    }
    if constexpr (!std::is_same_v<T, e4m3>) {
#pragma unroll
      for (int j = 0; j < kEight; j += 2) {  // two columns at a time
        uint32_t two = 0;
#pragma unroll
        for (int k = 0; k < kEight; ++k) two = larger_two(two, kept[k].packed.w[j / 2] & 0x7FFF7FFFu);
        most[j] = __uint_as_float(two << 16), most[j + 1] = __uint_as_float(two & 0xFFFF0000u);
      }
    }
    if (ahead && i + gridDim.x < squares) fetch_square(i + gridDim.x);
    if (here.to_end == 0) continue;  // the whole block
    const auto number = [&](int k, int j) {
      if constexpr (std::is_same_v<T, e4m3>) return kept[k].v[j];
      else return kept[k].numbers().v[j];
    };
    const int64_t col = int64_t(i % across) * kSide, row = here.from + kEight * ty;
    const bool upper = threadIdx.x & 16;  // a warp's two groups of rows share their columns
    float4 four;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float mine = upper ? most[j + 4] : most[j], passed = upper ? most[j] : most[j + 4];
      (&four.x)[j] = fmaxf(mine, __shfl_xor_sync(kAll, passed, 16));
    }
    *reinterpret_cast<float4*>(&amax[warp][kEight * tx + (upper ? 4 : 0)]) = four;
    __syncthreads();
    if (threadIdx.x < kSide) {
      const int c = int(threadIdx.x);
      float largest = 0;
#pragma unroll
      for (int g = 0; g < kWarps; ++g) largest = fmaxf(largest, amax[g][c]);
      const float scale = scale_of(largest, e4m3::kMax, a.power_of_two);
      columns[c % kEight / 2][c / kEight][c % 2] = divider<D>(scale);
      if (col + c < a.x.cols)
        a.transposed.scales[here.to / kScaleBlock * a.transposed.scale_ld + col + c] = scale;
    }
    if constexpr (with_y) {
      WarpDividers<D, kEight>& by = row_dividers[warp];
      const float scale = by.make(row_most, a.power_of_two);
      const int tile = tile_of_lane<kEight>();
      if (row + tile < here.end && threadIdx.x % 2 == 0)
        a.y.scales[int64_t(i % across) * a.y.scale_ld + row + tile] = scale;
      const int64_t at = col + kEight * tx, left = at < a.x.cols ? here.end - row : 0;
      uint8_t* to = static_cast<uint8_t*>(a.y.data) + row * a.y.ld + at;
#pragma unroll
      for (int k = 0; k < kEight; ++k)
        if (k < left) store_codes(to + k * a.y.ld, eight_codes(kept[k].numbers(), by[k]));
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      const Divider<D> by = columns[j / 2][tx][j % 2];
      Eight q;
#pragma unroll
      for (int k = 0; k < kEight; ++k) q.v[k] = number(k, j);
      turned[kEight * tx + j][ty ^ tx] = eight_codes(q, by);
    }
    __syncthreads();
    // Eight lanes write a row of the transpose, 128 bytes. The two groups of eight rows that a lane takes lie
    // side by side, exchanged in every other group of columns.
    constexpr int kLanes = kTileLanes / 2, kAtOnce = kThreads / kLanes;
    const int lane = int(threadIdx.x) % kLanes;
    const int64_t left = here.to_end - here.to - 2 * kEight * lane;
    uint8_t* to = static_cast<uint8_t*>(a.transposed.data) + (col + threadIdx.x / kLanes) * a.transposed.ld +
                  here.to + 2 * kEight * lane;
#pragma unroll
    for (int k = 0; k < kSide / kAtOnce; ++k, to += kAtOnce * a.transposed.ld) {
      const int c = k * kAtOnce + int(threadIdx.x) / kLanes, group = c / kEight;
      if (col + c >= a.x.cols || left <= 0) break;
      const uint4 both = reinterpret_cast<const uint4*>(turned[c])[lane ^ group / 2];
      const uint2 low = group % 2 ? uint2{both.z, both.w} : uint2{both.x, both.y},
                  high = group % 2 ? uint2{both.x, both.y} : uint2{both.z, both.w};
      if (left >= 2 * kEight) {
        *reinterpret_cast<uint4*>(to) = {low.x, low.y, high.x, high.y};
      } else {
        store_codes(to, left, false, low);
        store_codes(to + kEight, left - kEight, false, high);
      }
    }
    if (!ahead) break;
  }
}

// Block (columns of x, rows): 128 of each. `blocks`: one scale for all of it, instead of one a row for y and
// one a column for the transpose; codes with blocks are carried over as they are.
template <class T, bool wide, bool blocks> __global__ void __launch_bounds__(kThreads, 2)
    square_kernel(const __grid_constant__ SquareArgs a) {
  constexpr int kGroups = kSide / kEight;
  constexpr bool kCarried = blocks && std::is_same_v<T, e4m3>;
  static_assert(kThreads == kTileLanes * kGroups);
  __shared__ uint2
      turned[kSide][kGroups];  // [column][8 rows, exchanged so that neighbours lie in other banks]
  __shared__ alignas(16) float amax[kGroups][kSide];
  __shared__ float scales[kSide];
  __shared__ float quarters[kSide / 32];  // blocks: the amax of 32 columns each
  __shared__ Square square;
  start();
  if (threadIdx.x < 32) {
    const Square found = blocks ? find_block(a, blockIdx.y) : find_rows(a, blockIdx.y);
    if (threadIdx.x == 0) square = found;
  }
  __syncthreads();
  const Square s = square;
  if (s.to_end == 0) return;
  const int tx = int(threadIdx.x) % kTileLanes, ty = int(threadIdx.x) / kTileLanes;
  const int64_t col = int64_t(blockIdx.x) * kSide, at = col + kEight * tx, row = s.from + kEight * ty;
  const bool in_row = at < a.x.cols;
  Stored<T> source[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    source[i] = {};
    if (in_row && row + i < s.end) fetch<wide>(source[i], a.x, row + i, at);
  }

  uint2 code_rows[kEight];  // of the transpose, before it is one
  if constexpr (kCarried) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) code_rows[i] = source[i].codes;
    if (threadIdx.x == 0) {
      const float scale = a.x.scale(s.from, col);
      const Tensor& t = a.transposed;
      t.scales[t.scale_row(s.down + col) * t.scale_ld + s.to / kScaleBlock] = scale;
    }
  } else {
    Eight most = {};
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const Eight e = source[i].numbers();
#pragma unroll
      for (int j = 0; j < kEight; ++j) most.v[j] = fmaxf(most.v[j], fabsf(e.v[j]));
    }
    auto* to = reinterpret_cast<float4*>(&amax[ty][kEight * tx]);
    to[0] = {most.v[0], most.v[1], most.v[2], most.v[3]};
    to[1] = {most.v[4], most.v[5], most.v[6], most.v[7]};
    __syncthreads();
    if (threadIdx.x < kSide) {
      float largest = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) largest = fmaxf(largest, amax[g][threadIdx.x]);
      if constexpr (blocks) {
        largest = warp_max(largest);
        if (threadIdx.x % 32 == 0) quarters[threadIdx.x / 32] = largest;
      } else {
        const float scale = scale_of(largest, e4m3::kMax, a.power_of_two);
        scales[threadIdx.x] = scale;
        const int64_t c = col + threadIdx.x;
        if (c < a.x.cols) a.transposed.scales[s.to / kScaleBlock * a.transposed.scale_ld + c] = scale;
      }
    }
    __syncthreads();
    if constexpr (blocks) {
      const float scale = scale_of(fmaxf(fmaxf(quarters[0], quarters[1]), fmaxf(quarters[2], quarters[3])),
                                   e4m3::kMax, a.power_of_two);
      const Divider by = divider<Divided<T>>(scale);
#pragma unroll
      for (int i = 0; i < kEight; ++i) code_rows[i] = eight_codes(source[i].numbers(), by);
      if (a.y.data && in_row) {
#pragma unroll
        for (int i = 0; i < kEight; ++i)
          if (row + i < s.end)
            store_codes(static_cast<uint8_t*>(a.y.data) + (row + i) * a.y.ld + at, a.y.cols - at, a.wide_y,
                        code_rows[i]);
      }
      if (threadIdx.x == 0) {
        if (a.y.data) a.y.scales[s.scale_row * a.y.scale_ld + blockIdx.x] = scale;
        const Tensor& t = a.transposed;
        if (t.data) t.scales[t.scale_row(s.down + col) * t.scale_ld + s.to / kScaleBlock] = scale;
      }
    } else {
      float q[kEight][kEight];  // [column][row]
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        const Eight e = source[i].numbers();
        if (a.y.data)
          write_row_tile<Divided<T>>(a.y, row + i, at, in_row && row + i < s.end, e, a.power_of_two);
#pragma unroll
        for (int j = 0; j < kEight; ++j) q[j][i] = e.v[j];
      }
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const Divider by = divider<Divided<T>>(scales[kEight * tx + j]);
        Eight column;
#pragma unroll
        for (int i = 0; i < kEight; ++i) column.v[i] = q[j][i];
        turned[kEight * tx + j][ty ^ tx] = eight_codes(column, by);
      }
    }
  }
  if (!a.transposed.data) return;
  if constexpr (blocks) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      uint2 column{0, 0};
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        (i < 4 ? column.x : column.y) |= ((j < 4 ? code_rows[i].x : code_rows[i].y) >> 8 * (j % 4) & 0xFFu)
                                         << 8 * (i % 4);
      turned[kEight * tx + j][ty ^ tx] = column;
    }
  }
  __syncthreads();
  // Sixteen lanes write a row of the transpose, 128 bytes.
#pragma unroll
  for (int i = 0; i < kSide / kGroups; ++i) {
    const int c = i * kGroups + ty;
    const int64_t to = s.to + kEight * tx;
    if (col + c >= a.x.cols || to >= s.to_end) continue;
    store_codes(static_cast<uint8_t*>(a.transposed.data) + (s.down + col + c) * a.transposed.ld + to,
                s.to_end - to, a.wide_transposed, turned[c][tx ^ (c / kEight)]);
  }
}

// Where a transpose's blocks cover other numbers than those of x: a thread a block.
__global__ void other_blocks_kernel(const __grid_constant__ SquareArgs a) {
  start();
  const Tensor& y = a.transposed;
  const int64_t part = y.part_rows ? y.part_rows : y.rows, down = (part + kScaleBlock - 1) / kScaleBlock,
                across = (y.cols + kScaleBlock - 1) / kScaleBlock, inputs = a.x.cols;
  const auto number = [&](int64_t r, int64_t c) {
    return load_number(a.x, r / inputs * a.outputs + c, r % inputs);
  };
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < y.rows / part * down * across;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t begin = i / (down * across) * part, row = begin + i / across % down * kScaleBlock,
                  col = i % across * kScaleBlock;
    const int64_t row_end = min(begin + part, row + kScaleBlock), col_end = min(y.cols, col + kScaleBlock);
    float amax = 0;
    for (int64_t r = row; r < row_end; ++r)
      for (int64_t c = col; c < col_end; ++c) amax = fmaxf(amax, fabsf(number(r, c)));
    const float scale = scale_of(amax, e4m3::kMax, a.power_of_two);
    const Divider by = divider<float>(scale);
    y.scales[y.scale_row(row) * y.scale_ld + col / kScaleBlock] = scale;
    for (int64_t r = row; r < row_end; ++r)
      for (int64_t c = col; c < col_end; ++c)
        static_cast<uint8_t*>(y.data)[r * y.ld + c] = uint8_t(two_codes(by(number(r, c)), 0));
  }
}

// One warp.
__global__ void pad_kernel(const int32_t* offsets, int32_t* padded, int experts) {
  start();
  const int lane = int(threadIdx.x);
  int32_t before = 0;
  for (int first = 0; first < experts; first += 32) {
    const int e = first + lane;
    const int32_t mine = e < experts ? (offsets[e + 1] - offsets[e] + 127) / 128 * 128 : 0;
    int32_t sum = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t below = __shfl_up_sync(kAll, sum, step);
      if (lane >= step) sum += below;
    }
    if (e < experts) padded[e] = before + sum - mine;
    before += __shfl_sync(kAll, sum, 31);
  }
  if (lane == 0) padded[experts] = before;
}

// body(T{}, wide) by the format of x.
template <class Body> void with_source(const Tensor& x, const Body& body) {
  if (x.dtype == DType::e4m3) with_width(codes_are_wide(x), [&](auto wide) { body(e4m3{}, wide); });
  else with_act(x.dtype, [&](auto act) { with_width(is_wide(x), [&](auto wide) { body(act, wide); }); });
}

dim3 row_tiles_grid(int64_t rows, int64_t cols) {
  return dim3(unsigned((cols + 2 * kScaleBlock - 1) / (2 * kScaleBlock)),
              unsigned(std::min<int64_t>((rows + kWarps * kRows - 1) / (kWarps * kRows), 65535)));
}

}  // namespace

void CudaBackend::quantize(const Quantize& q) {
  check(q);
  require_no_f64("quantize", {&q.x});
  if (q.x.cols == 0) return;
  select();
  const int32_t* offsets = static_cast<const int32_t*>(q.offsets.data);
  const int64_t experts = q.offsets ? q.offsets.cols - 1 : 0;
  if (q.transposed && q.transposed.cols > 0) {
    const SquareArgs args{.x = q.x,
                          .y = q.y,
                          .transposed = q.transposed,
                          .offsets = offsets,
                          .padded = static_cast<const int32_t*>(q.padded.data),
                          .experts = experts,
                          .outputs = 0,
                          .power_of_two = q.power_of_two,
                          .wide_y = true,
                          .wide_transposed = true,
                          .faults = faults_};
    const dim3 grid(unsigned(tiles_of(q.x.cols)), unsigned(tiles_of(q.transposed.cols)));
    CHECK(grid.y <= 65535, "quantize: up to 8388480 rows at once on cuda");
    if (q.x.dtype == DType::e4m3 &&
        turn_codes(queue_, context_->multiprocessors, q.x, q.transposed, turn_of(args), q.power_of_two))
      return launched("quantize");
    with_source(q.x, [&](auto act, auto wide) {
      using T = decltype(act);
      if constexpr (wide.value && !std::is_same_v<T, float>) {
        if (q.x.cols % kEight == 0) {
          constexpr bool kCodes = std::is_same_v<T, e4m3>;  // of which the numbers take time to make
          const unsigned squares = grid.x * grid.y, few = unsigned(kBlocksAhead * context_->multiprocessors);
          const auto kernel = q.y ? turn_kernel<T, !kCodes, kCodes> : turn_kernel<T, false, kCodes>;
          return launch(queue_, kernel, kCodes ? std::min(squares, few) : squares, kThreads, 0, args, grid.x,
                        squares);
        }
      }
      launch(queue_, square_kernel<T, wide.value, false>, grid, kThreads, 0, args);
    });
  } else if (q.y && q.x.rows > 0) {
    with_act(q.x.dtype, [&](auto act) {
      using T = decltype(act);
      with_width(is_wide(q.x), [&](auto wide) {
        launch(queue_, row_tiles_kernel<T, wide.value>, row_tiles_grid(q.x.rows, q.x.cols), kThreads, 0,
               q.x.matrix<const T>(), q.y, offsets, experts, q.power_of_two);
      });
    });
  }
  launched("quantize");
}

void CudaBackend::quantize_weight(const QuantizeWeight& q) {
  check(q);
  require_no_f64("quantize_weight", {&q.x});
  if (q.x.size() == 0) return;
  select();
  const int64_t outputs = q.x.rows / q.experts;
  const Tensor& cut = q.y ? q.y : q.x;  // whose blocks those of the transpose are, where they can be
  const int64_t part = cut.part_rows ? cut.part_rows : cut.rows;
  SquareArgs args{.x = q.x,
                  .y = q.y,
                  .transposed = q.transposed,
                  .offsets = nullptr,
                  .padded = nullptr,
                  .experts = q.experts,
                  .outputs = outputs,
                  .power_of_two = q.power_of_two,
                  .wide_y = !q.y || codes_are_wide(q.y),
                  .wide_transposed = !q.transposed || codes_are_wide(q.transposed),
                  .faults = faults_};
  const bool same_blocks = cut.scale_tile == ScaleTile::block && cut.dtype == DType::e4m3
                               ? part == outputs || part % kScaleBlock == 0
                               : outputs == q.x.rows;
  const bool apart = q.transposed && !same_blocks;
  if (apart) args.transposed = {};
  if (q.y || args.transposed) {
    const int64_t down = q.x.rows / part * tiles_of(part);
    // A launch takes 65535 blocks above each other: stacks of more are cut between parts.
    CHECK(down <= 65535, "quantize_weight: up to 65535 blocks above each other on cuda");
    const dim3 grid(unsigned(tiles_of(q.x.cols)), unsigned(down));
    with_source(q.x, [&](auto act, auto wide) {
      launch(queue_, square_kernel<decltype(act), wide.value, true>, grid, kThreads, 0, args);
    });
  }
  if (apart) {
    args.transposed = q.transposed;
    const int64_t blocks = std::max<int64_t>(1, q.x.size() / (64 * kThreads));
    launch(queue_, other_blocks_kernel, unsigned(std::min<int64_t>(blocks, 1 << 20)), kThreads, 0, args);
  }
  launched("quantize_weight");
}

void CudaBackend::pad_offsets(const PadOffsets& p) {
  check(p);
  select();
  launch(queue_, pad_kernel, 1, 32, 0, static_cast<const int32_t*>(p.offsets.data),
         static_cast<int32_t*>(p.padded.data), int(p.offsets.cols - 1));
  launched("pad_offsets");
}

}  // namespace cachalot::cuda
