// Contract: PackE5m6 and UnpackE5m6 in backend/ops/quantize.h. A warp takes two neighbouring tiles of kRows
// rows; the words of a row, three for a lane's eight numbers, turn in shared memory, so that memory is read
// and written in 16 bytes.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 4;        // under way at once
constexpr int kWords = 3 * 32;  // of two tiles
constexpr float kLargestE5m6 = 65024.0f;

// Where a warp works: rows [first, first + count), from column `begin` on, its lanes from `at` on.
struct Place {
  int64_t first, begin, at;
  int count;
  __device__ static Place of(int64_t rows, int64_t cols) {
    const unsigned pairs = unsigned((cols + 2 * kScaleBlock - 1) / (2 * kScaleBlock)),
                   work = blockIdx.x * kWarps + threadIdx.x / 32;
    const int64_t first = int64_t(work / pairs) * kRows, begin = int64_t(work % pairs) * 2 * kScaleBlock;
    return {first, begin, begin + kEight * int64_t(threadIdx.x % 32),
            int(max(int64_t(0), min(int64_t(kRows), rows - first)))};
  }
};
unsigned blocks_for(int64_t rows, int64_t cols) {
  const int64_t warps = (rows + kRows - 1) / kRows * ((cols + 2 * kScaleBlock - 1) / (2 * kScaleBlock));
  return unsigned((warps + kWarps - 1) / kWarps);
}

// The warp's words of row k and the same in memory, either way. `quads`: in 16 bytes, where all are there.
template <bool write> __device__ void move_words(uint32_t (&words)[kRows][kWords],
                                                 const Matrix<uint32_t>& packed, const Place& p, bool quads) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t at = p.begin / kEight * 3;
  if (quads && at + kWords <= packed.cols) {
    static_assert(kRows * kWords / 4 % 32 == 0);
    uint4 moved[kRows * kWords / 4 / 32];
#pragma unroll
    for (int i = 0; i < kRows * kWords / 4 / 32; ++i) {
      const int quad = i * 32 + lane, k = quad / (kWords / 4), word = quad % (kWords / 4) * 4;
      if (k >= p.count) continue;
      auto* far = reinterpret_cast<uint4*>(packed.data + (p.first + k) * packed.ld + at + word);
      auto* near = reinterpret_cast<uint4*>(&words[k][word]);
      if constexpr (write) *far = *near;
      else moved[i] = *far;
    }
    if constexpr (!write) {
#pragma unroll
      for (int i = 0; i < kRows * kWords / 4 / 32; ++i) {
        const int quad = i * 32 + lane, k = quad / (kWords / 4), word = quad % (kWords / 4) * 4;
        if (k < p.count) *reinterpret_cast<uint4*>(&words[k][word]) = moved[i];
      }
    }
    return;
  }
  for (int k = 0; k < p.count; ++k)
    for (int word = lane; word < kWords && at + word < packed.cols; word += 32) {
      uint32_t& far = packed.data[(p.first + k) * packed.ld + at + word];
      if constexpr (write) far = words[k][word];
      else words[k][word] = far;
    }
}

// Bits of the E5M6 that is nearest to x, |x| <= 65024.
__device__ uint32_t e5m6_bits(float x) {
  if (isnan(x)) return 0xFFF;
  const uint32_t u = __float_as_uint(x), sign = u >> 20 & 0x800u, size = u & 0x7FFFFFFFu;
  if (size < 0x38800000u) {                              // below 2^-14: subnormal, a multiple of 2^-20
    const float shifted = __uint_as_float(size) + 8.0f;  // its last bit is worth 2^-20
    return sign | (__float_as_uint(shifted) - 0x41000000u);
  }
  const uint32_t rounded = size + 0xFFFFu + (size >> 17 & 1u);  // ties to even
  return sign | ((rounded >> 17) - (112u << 6));                // rebias 127 -> 15
}

// Two numbers' bits, the first in the lower half.
struct FourPairs {
  uint32_t pair[4];
};
template <class T> __device__ FourPairs pairs_of(const Packed<T>& numbers, float scale) {
  const float inverse = __frcp_rn(scale);  // exact: a power of two
  const Eight e = unpack(numbers);
  FourPairs out;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    out.pair[i] = e5m6_bits(e.v[2 * i] * inverse) | e5m6_bits(e.v[2 * i + 1] * inverse) << 16;
  return out;
}

// The largest of the bits of eight sizes, which are ordered as the sizes are.
__device__ uint32_t largest_of(const Packed<bf16>& numbers) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = __vmaxu2(largest, numbers.w[i] & 0x7FFF7FFFu);
  return max(largest & 0xFFFFu, largest >> 16);
}
// With a finite scale 2^(steps - 127), if all of them become normal numbers of E5M6: one bit of the mantissa
// is rounded away, ties to even, and the exponent counts from another place. 64 is the least normal number.
__device__ bool normal_pairs(const Packed<bf16>& numbers, uint32_t steps, FourPairs& out) {
  const uint32_t least = (steps - 14) << 6, two = least << 16 | least;
  uint32_t above[4], all = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t w = numbers.w[i], half = w >> 1 & 0x3FFF3FFFu;
    above[i] = half + (w & half & 0x00010001u) - two;
    out.pair[i] = above[i] + 0x00400040u + (w >> 4 & 0x08000800u);
    all |= above[i];
  }
  return (all & 0xF800F800u) == 0;  // less than the least shows in the upper bits
}

template <class T, bool wide> __global__ void __launch_bounds__(kThreads)
    pack_kernel(Matrix<const T> x, Matrix<uint32_t> packed, Matrix<float> scales, bool quads) {
  __shared__ alignas(16) uint32_t words[kWarps][kRows][kWords];
  start();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Place p = Place::of(x.rows, x.cols);
  if (p.count == 0) return;
  Packed<T> numbers[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    numbers[k] = {};
    if (k < p.count && p.at < x.cols) numbers[k] = load<wide>(x.data + (p.first + k) * x.ld, p.at, x.cols);
  }
  float most[kRows];
  bool finite[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if constexpr (sizeof(T) == 2) {
      const uint32_t largest = largest_of(numbers[k]);
      finite[k] = largest < 0x7F80u;
      most[k] = finite[k] ? __uint_as_float(largest << 16) : amax_of(unpack(numbers[k]));  // passes over NaN
    } else {
      most[k] = amax_of(unpack(numbers[k]));
    }
  }
  const float scale = scale_of(tiles_max(most), kLargestE5m6, /*power_of_two=*/true);
  const int tile = tile_of_lane<kRows>();
  const int64_t column_tile = p.at / kScaleBlock;
  if (tile < p.count && column_tile * kScaleBlock < x.cols && lane % (kTileLanes / kRows) == 0)
    scales.data[column_tile * scales.ld + p.first + tile] = scale;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const float mine = __shfl_sync(kAll, scale, lane / kTileLanes * kTileLanes + k * (kTileLanes / kRows));
    FourPairs v;
    bool done = false;
    if constexpr (sizeof(T) == 2)
      done = finite[k] && !isinf(mine) && normal_pairs(numbers[k], __float_as_uint(mine) >> 23, v);
    if (!done) v = pairs_of(numbers[k], mine);
    uint32_t two[4];  // of 12 bits each, the first above the second; what is above them is left out below
#pragma unroll
    for (int i = 0; i < 4; ++i) two[i] = v.pair[i] << 12 | v.pair[i] >> 16;
    uint32_t* to = words[warp][k] + 3 * lane;
    to[0] = __byte_perm(two[0], two[1], 0x2106);
    to[1] = __byte_perm(two[1], two[2], 0x1065);
    to[2] = __byte_perm(two[2], two[3], 0x0654);
  }
  __syncwarp();
  move_words</*write=*/true>(words[warp], packed, p, quads);
}

template <class T, bool wide> __global__ void __launch_bounds__(kThreads)
    unpack_kernel(Matrix<uint32_t> packed, Matrix<const float> scales, Matrix<T> y, bool quads) {
  __shared__ alignas(16) uint32_t words[kWarps][kRows][kWords];
  start();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Place p = Place::of(y.rows, y.cols);
  if (p.count == 0) return;
  const bool real = p.at < y.cols;
  float scale[kRows] = {};
#pragma unroll
  for (int k = 0; k < kRows; ++k)
    if (k < p.count && real) scale[k] = scales.data[p.at / kScaleBlock * scales.ld + p.first + k];
  move_words</*write=*/false>(words[warp], packed, p, quads);
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if (k >= p.count || !real) break;
    const uint32_t *w = words[warp][k] + 3 * lane, a = w[0], b = w[1], c = w[2];
    // Twice 12 bits above a byte that does not count; with four zeros behind it, an E5M6 is an f16.
    const uint32_t two[4] = {a, __byte_perm(a, b, 0x0760), __byte_perm(b, c, 0x1070), c << 8};
    Eight e;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = two[i] >> 16 & 0xFFF0u, high = two[i] << 12 & 0xFFF00000u;
      asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
          : "=f"(e.v[2 * i]), "=f"(e.v[2 * i + 1])
          : "r"(low | high));
    }
#pragma unroll
    for (int i = 0; i < kEight; ++i) e.v[i] *= scale[k];
    store_eight<wide>(y.data + (p.first + k) * y.ld, p.at, y.cols, e);
  }
}

Matrix<uint32_t> words_of(const Tensor& t) { return {static_cast<uint32_t*>(t.data), t.rows, t.cols, t.ld}; }
// Rows of words begin on 16 bytes.
bool in_quads(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows <= 1 || t.ld % 4 == 0);
}

}  // namespace

void CudaBackend::pack_e5m6(const PackE5m6& p) {
  check(p);
  require_no_f64("pack_e5m6", {&p.x});
  if (p.x.size() == 0) return;
  select();
  with_act(p.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(is_wide(p.x), [&](auto wide) {
      launch(queue_, pack_kernel<T, wide.value>, blocks_for(p.x.rows, p.x.cols), kThreads, 0,
             p.x.matrix<const T>(), words_of(p.packed), p.scales.matrix<float>(), in_quads(p.packed));
    });
  });
  launched("pack_e5m6");
}

void CudaBackend::unpack_e5m6(const UnpackE5m6& p) {
  check(p);
  require_no_f64("unpack_e5m6", {&p.y});
  if (p.y.size() == 0) return;
  select();
  with_act(p.y.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(is_wide(p.y), [&](auto wide) {
      launch(queue_, unpack_kernel<T, wide.value>, blocks_for(p.y.rows, p.y.cols), kThreads, 0,
             words_of(p.packed), p.scales.matrix<const float>(), p.y.matrix<T>(), in_quads(p.packed));
    });
  });
  launched("unpack_e5m6");
}

}  // namespace cachalot::cuda
