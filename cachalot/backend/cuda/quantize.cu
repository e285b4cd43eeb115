// Contract: backend/ops/quantize.h. Sixteen lanes take a tile of 128, as in quantize.cuh. Where a transpose is
// asked for, a block takes 128 x 128 numbers, once from memory: a thread eight columns of eight rows, whose
// codes turn in shared memory.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 4;  // of one tile of columns, under way at once

int64_t tiles_of(int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; }

// A warp takes kRows rows of two neighbouring tiles.
template <class T, bool wide> __global__ void __launch_bounds__(kThreads)
    row_tiles_kernel(Matrix<const T> x, const __grid_constant__ Tensor y, const int32_t* offsets,
                     int64_t experts, bool power_of_two) {
  start();
  const int64_t rows = offsets ? min(int64_t(offsets[experts]), x.rows) : x.rows;
  const int64_t pairs = (x.cols + 2 * kScaleBlock - 1) / (2 * kScaleBlock);
  const int64_t work = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, first = work / pairs * kRows;
  const int64_t at = work % pairs * 2 * kScaleBlock + kEight * int64_t(threadIdx.x % 32);
  if (first >= rows) return;
  Packed<T> packed[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    packed[k] = {};
    if (first + k < rows && at < x.cols) packed[k] = load<wide>(x.data + (first + k) * x.ld, at, x.cols);
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k)
    write_row_tile(y, first + k, at, first + k < rows && at < x.cols, unpack(packed[k]), power_of_two);
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

// Rows [from, end) of x, at most 128, are columns [to, to_end) of the transpose; rows behind `end` are zeros.
struct Square {  // no initialisers: it stands in shared memory
  int64_t from, end, to, to_end;
  int64_t down;       // the transpose begins at this row of it
  int64_t scale_row;  // blocks: of y's scales
};

// What block `at` of those above each other takes; from = end = to_end = 0: nothing.
__device__ Square find_rows(const SquareArgs& a, int64_t at) {
  Square s{
      .from = at * kScaleBlock, .end = 0, .to = at * kScaleBlock, .to_end = 0, .down = 0, .scale_row = 0};
  if (!a.offsets) {
    s.end = min(a.x.rows, s.from + kScaleBlock);
    s.to_end = min(a.transposed.cols, s.to + kScaleBlock);
    return s;
  }
  for (int64_t base = 0; base < a.experts; base += 32) {  // one warp
    const int64_t e = base + threadIdx.x % 32;
    const bool real = e < a.experts;
    const int64_t begin = real ? a.padded[e] : 0, after = real ? a.padded[e + 1] : 0;
    const unsigned found = __ballot_sync(kAll, begin <= s.to && s.to < after);
    if (!found) continue;
    const int64_t expert = base + __ffs(int(found)) - 1, first = a.offsets[expert],
                  last = a.offsets[expert + 1], pad = a.padded[expert], pad_end = a.padded[expert + 1];
    if (!a.faults.fine(FaultOf::quantize, last, a.x.rows + 1) ||
        !a.faults.fine(FaultOf::quantize, first, last + 1) ||
        !a.faults.fine(FaultOf::quantize, pad_end, a.transposed.cols + 1) ||
        !a.faults.fine(FaultOf::quantize, pad % kScaleBlock, 1))
      break;
    s.from = first + s.to - pad;
    s.end = min(last, s.from + kScaleBlock);
    s.to_end = min(pad_end, s.to + kScaleBlock);
    return s;
  }
  return {};
}

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

// Eight numbers of T of row r from column c on.
template <class T, bool wide> struct Source {
  Packed<T> packed;
  __device__ void fetch(const Tensor& x, int64_t r, int64_t c) {
    packed = load<wide>(static_cast<const T*>(x.data) + r * x.ld, c, x.cols);
  }
  __device__ Eight numbers() const { return unpack(packed); }
};
template <bool wide> struct Source<e4m3, wide> {
  uint2 codes;
  float scale;
  __device__ void fetch(const Tensor& x, int64_t r, int64_t c) {
    codes = load_codes(x, r, c, wide);
    scale = x.scale(r, c);
  }
  __device__ Eight numbers() const {
    Eight e = numbers_of(codes);
#pragma unroll
    for (int i = 0; i < kEight; ++i) e.v[i] *= scale;
    return e;
  }
};

// Block (columns of x, rows): 128 of each. `blocks`: one scale for all of it, instead of one a row for y and
// one a column for the transpose; codes with blocks are carried over as they are.
template <class T, bool wide, bool blocks> __global__ void __launch_bounds__(kThreads, 2)
    square_kernel(const __grid_constant__ SquareArgs a) {
  constexpr int kSide = int(kScaleBlock), kGroups = kSide / kEight;
  constexpr bool kCarried = blocks && std::is_same_v<T, e4m3>;
  static_assert(kThreads == kTileLanes * kGroups);
  __shared__ uint2
      turned[kSide][kGroups];  // [column][8 rows, exchanged so that neighbours lie in other banks]
  __shared__ alignas(16) float amax[kGroups][kSide];
  __shared__ float scales[kSide];
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
  Source<T, wide> source[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    source[i] = {};
    if (in_row && row + i < s.end) source[i].fetch(a.x, row + i, at);
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
        if (threadIdx.x % 32 == 0) amax[0][threadIdx.x / 32] = largest;  // read above by this warp only
      } else {
        const float scale = scale_of(largest, e4m3::kMax, a.power_of_two);
        scales[threadIdx.x] = scale;
        const int64_t c = col + threadIdx.x;
        if (c < a.x.cols) a.transposed.scales[s.to / kScaleBlock * a.transposed.scale_ld + c] = scale;
      }
    }
    __syncthreads();
    if constexpr (blocks) {
      const float scale = scale_of(fmaxf(fmaxf(amax[0][0], amax[0][1]), fmaxf(amax[0][2], amax[0][3])),
                                   e4m3::kMax, a.power_of_two);
      const Divider by = divider(scale);
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
        if (a.y.data) write_row_tile(a.y, row + i, at, in_row && row + i < s.end, e, a.power_of_two);
#pragma unroll
        for (int j = 0; j < kEight; ++j) q[j][i] = e.v[j];
      }
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const Divider by = divider(scales[kEight * tx + j]);
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
    const Divider by = divider(scale);
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

constexpr float kLargestE5m6 = 65024.0f;

// Bits of the E5M6 that is nearest to x, |x| <= 65024. Adding 2^(23 - 6) times the power of two below x rounds
// to six bits, ties to even.
__device__ uint32_t e5m6_bits(float x) {
  if (isnan(x)) return 0xFFF;
  const uint32_t u = __float_as_uint(x), sign = u >> 20 & 0x800u, size = u & 0x7FFFFFFFu;
  if (size < 0x38800000u) {                              // below 2^-14: subnormal, a multiple of 2^-20
    const float shifted = __uint_as_float(size) + 8.0f;  // its last bit is worth 2^-20
    return sign | (__float_as_uint(shifted) - 0x41000000u);
  }
  const uint32_t rounded = size + 0xFFFFu + (size >> 17 & 1u);
  return sign | ((rounded >> 17) - (112u << 6));  // rebias 127 -> 15
}

__device__ float e5m6_value(uint32_t bits) {
  const uint32_t sign = (bits & 0x800u) << 20, exponent = bits >> 6 & 31, mantissa = bits & 63;
  if (exponent == 31) return __uint_as_float(0x7FC00000u);
  const float size =
      exponent == 0 ? float(mantissa) * 0x1p-20f : __uint_as_float((exponent + 112) << 23 | mantissa << 17);
  return __uint_as_float(__float_as_uint(size) | sign);
}

// Two tiles of kRows rows a warp; the words of a row turn in shared memory, so that a lane stores four.
template <class T, bool wide> __global__ void __launch_bounds__(kThreads)
    pack_kernel(Matrix<const T> x, Matrix<uint32_t> packed, Matrix<float> scales, bool on_16_bytes) {
  constexpr int kWords = 3 * 32;  // of two tiles
  __shared__ alignas(16) uint32_t words[kWarps][kWords];
  start();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t pairs = (x.cols + 2 * kScaleBlock - 1) / (2 * kScaleBlock);
  const int64_t work = int64_t(blockIdx.x) * kWarps + warp, first = work / pairs * kRows;
  const int64_t begin = work % pairs * 2 * kScaleBlock, at = begin + kEight * lane;
  if (first >= x.rows) return;
  Packed<T> numbers[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    numbers[k] = {};
    if (first + k < x.rows && at < x.cols) numbers[k] = load<wide>(x.data + (first + k) * x.ld, at, x.cols);
  }
  uint32_t* mine = words[warp];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int64_t t = first + k;
    const Eight e = unpack(numbers[k]);
    const float scale = scale_of(tile_max(amax_of(e)), kLargestE5m6, true), inverse = __frcp_rn(scale);
    uint32_t v[kEight];
#pragma unroll
    for (int j = 0; j < kEight; ++j) v[j] = e5m6_bits(e.v[j] * inverse);  // exact: a power of two
    const bool real = t < x.rows && at < x.cols;
    if (real && at % kScaleBlock == 0) scales.data[at / kScaleBlock * scales.ld + t] = scale;
    __syncwarp();
    mine[3 * lane] = v[0] << 20 | v[1] << 8 | v[2] >> 4;
    mine[3 * lane + 1] = (v[2] & 0xF) << 28 | v[3] << 16 | v[4] << 4 | v[5] >> 8;
    mine[3 * lane + 2] = (v[5] & 0xFF) << 24 | v[6] << 12 | v[7];
    __syncwarp();
    if (t >= x.rows) break;
    uint32_t* to = packed.data + t * packed.ld + begin / kEight * 3;
    const int64_t count = min(int64_t(kWords), packed.cols - begin / kEight * 3);
    if (on_16_bytes && count == kWords) {
      if (lane < kWords / 4) reinterpret_cast<uint4*>(to)[lane] = reinterpret_cast<const uint4*>(mine)[lane];
    } else {
      for (int i = lane; i < count; i += 32) to[i] = mine[i];
    }
  }
}

// A thread takes eight numbers of a row.
template <class T, bool wide>
__global__ void unpack_kernel(Matrix<const uint32_t> packed, Matrix<const float> scales, Matrix<T> y) {
  start();
  for_plane(y.rows, y.cols, [&](int64_t t, int64_t c) {
    const uint32_t* w = packed.data + t * packed.ld + c / kEight * 3;
    const uint32_t a = w[0], b = w[1], d = w[2];
    const float scale = scales.data[c / kScaleBlock * scales.ld + t];
    const uint32_t v[kEight] = {a >> 20,         a >> 8 & 0xFFF, (a & 0xFF) << 4 | b >> 28,
                                b >> 16 & 0xFFF, b >> 4 & 0xFFF, (b & 0xF) << 8 | d >> 24,
                                d >> 12 & 0xFFF, d & 0xFFF};
    Eight e;
#pragma unroll
    for (int i = 0; i < kEight; ++i) e.v[i] = e5m6_value(v[i]) * scale;
    store_eight<wide>(y.data + t * y.ld, c, y.cols, e);
  });
}

// Rows of codes begin on 8 bytes.
bool codes_are_wide(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 8 == 0 && (t.rows <= 1 || t.ld % 8 == 0);
}

// body(T{}, wide) by the format of x.
template <class Body> void with_source(const Tensor& x, const Body& body) {
  if (x.dtype == DType::e4m3) with_width(codes_are_wide(x), [&](auto wide) { body(e4m3{}, wide); });
  else with_act(x.dtype, [&](auto act) { with_width(is_wide(x), [&](auto wide) { body(act, wide); }); });
}

unsigned warps_for(int64_t rows, int64_t cols) {
  const int64_t warps = (rows + kRows - 1) / kRows * ((cols + 2 * kScaleBlock - 1) / (2 * kScaleBlock));
  return unsigned((warps + kWarps - 1) / kWarps);
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
    with_source(q.x, [&](auto act, auto wide) {
      launch(queue_, square_kernel<decltype(act), wide.value, false>, grid, kThreads, 0, args);
    });
  } else if (q.y && q.x.rows > 0) {
    with_act(q.x.dtype, [&](auto act) {
      using T = decltype(act);
      with_width(is_wide(q.x), [&](auto wide) {
        launch(queue_, row_tiles_kernel<T, wide.value>, warps_for(q.x.rows, q.x.cols), kThreads, 0,
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

void CudaBackend::pack_e5m6(const PackE5m6& p) {
  check(p);
  require_no_f64("pack_e5m6", {&p.x});
  if (p.x.size() == 0) return;
  select();
  const Matrix<uint32_t> packed{static_cast<uint32_t*>(p.packed.data), p.packed.rows, p.packed.cols,
                                p.packed.ld};
  const bool on_16_bytes =
      reinterpret_cast<uintptr_t>(p.packed.data) % 16 == 0 && (p.packed.rows <= 1 || p.packed.ld % 4 == 0);
  with_act(p.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(is_wide(p.x), [&](auto wide) {
      launch(queue_, pack_kernel<T, wide.value>, warps_for(p.x.rows, p.x.cols), kThreads, 0,
             p.x.matrix<const T>(), packed, p.scales.matrix<float>(), on_16_bytes);
    });
  });
  launched("pack_e5m6");
}

void CudaBackend::unpack_e5m6(const UnpackE5m6& p) {
  check(p);
  require_no_f64("unpack_e5m6", {&p.y});
  if (p.y.size() == 0) return;
  select();
  const Plane plane_of_y = plane(p.y.rows, p.y.cols);
  const Matrix<const uint32_t> packed{static_cast<const uint32_t*>(p.packed.data), p.packed.rows,
                                      p.packed.cols, p.packed.ld};
  with_act(p.y.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(is_wide(p.y), [&](auto wide) {
      launch(queue_, unpack_kernel<T, wide.value>, plane_of_y.grid, plane_of_y.block, 0, packed,
             p.scales.matrix<const float>(), p.y.matrix<T>());
    });
  });
  launched("unpack_e5m6");
}

}  // namespace cachalot::cuda
