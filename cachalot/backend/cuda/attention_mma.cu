// Contract: backend/ops/attention.h, in bf16 on the tensor cores: heads of up to 192 numbers of key and 128
// of value (V3's). Scores, maxima and sums are float; probabilities and score gradients are rounded to bf16
// as inputs of the second products only.
//
// A warp owns 16 rows of what its block sums up and keeps the sums in registers:
//   forward            128 queries a block, 64 keys at a time      o
//   backward_queries   128 queries a block, 32 keys at a time      dq
//   backward_keys      128 keys a block, 32 queries at a time      dk, dv  (scores transposed: keys are rows)
// The backward computes scores twice, once for each kernel: that is the price of sums with one owner and a
// fixed order. Scores come out of the tensor cores as the left operand of the next product wants them
// (mma.cuh), so they never leave the registers. What is streamed has two buffers, filled by cp.async one step
// ahead. Rows in shared memory are padded by 16 bytes: the eight rows of an ldmatrix block lie in different
// banks.
//
// Keys are counted from the sequence's first, so a query's bits do not depend on the queries beside it.
#include <algorithm>

#include "backend/cuda/attention.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda {

namespace {

// What a kernel is compiled for; narrower heads are padded with zeros. Loops without conditions inside: ptxas
// then loads fragments ahead of the instructions that wait for them, which matters with 8 warps a
// multiprocessor.
template <int wide, int value> struct Size {
  static constexpr int kWide = wide, kValue = value, kWideLd = wide + 8, kValueLd = value + 8;
};
using Large = Size<192, 128>;
using Small = Size<96, 64>;

constexpr int kRows = 128, kThreads = 256, kKeys = 64, kStep = 32;
constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float exp2_fast(float x) {  // 2 ulp; exp2_fast(-inf) = 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

struct Rows {  // rows of one head in a bf16 tensor
  const bf16* data;
  int64_t ld;
};
__device__ inline Rows rows_of(const Tensor& t, int64_t row, int64_t col) {
  return {static_cast<const bf16*>(t.data) + row * t.ld + col, t.ld};
}

// `rows` rows of `pieces` * 8 numbers into shared memory; zeros behind `count` rows and `width` numbers. From
// column `split` on the numbers come from `other` (the rope key).
template <int rows, int pieces> __device__ inline void load_rows(const bf16* to, int ld, Rows from,
                                                                 int64_t count, int width, int split,
                                                                 Rows other) {
  const uint32_t base = shared_address(to);
#pragma unroll 4
  for (int i = threadIdx.x; i < rows * pieces; i += kThreads) {
    const int r = i / pieces, c = i % pieces * 8;
    const bool take = r < count && c < width;
    const bf16* source = c < split ? from.data + r * from.ld + c : other.data + r * other.ld + (c - split);
    copy_16(base + uint32_t(r * ld + c) * 2, take ? source : from.data, take);
  }
}

struct Head {  // of one block
  int64_t h;
  int nope, rope, wide, value;
};
__device__ inline Head head_of(const AttentionShape& a, int64_t h) {
  return {h, int(a.nope), int(a.rope), int(a.nope + a.rope), int(a.value)};
}

template <class Z, int rows> __device__ inline void load_keys(const bf16* to, const Tensor& kv,
                                                              const Tensor& k_rope, const Head& head,
                                                              int64_t row, int64_t count) {
  const int64_t col = head.h * (head.nope + head.value);
  load_rows<rows, Z::kWide / 8>(to, Z::kWideLd, rows_of(kv, row, col), count, head.wide, head.nope,
                                rows_of(k_rope, row, 0));
}
template <class Z, int rows> __device__ inline void load_values(const bf16* to, const Tensor& kv,
                                                                const Head& head, int64_t row,
                                                                int64_t count) {
  const Rows from = rows_of(kv, row, head.h * (head.nope + head.value) + head.nope);
  load_rows<rows, Z::kValue / 8>(to, Z::kValueLd, from, count, head.value, Z::kValue, from);
}
template <class Z, int rows> __device__ inline void load_wide(const bf16* to, const Tensor& t,
                                                              const Head& head, int64_t row, int64_t count) {
  const Rows from = rows_of(t, row, head.h * head.wide);
  load_rows<rows, Z::kWide / 8>(to, Z::kWideLd, from, count, head.wide, Z::kWide, from);
}
template <class Z, int rows> __device__ inline void load_outputs(const bf16* to, const Tensor& t,
                                                                 const Head& head, int64_t row,
                                                                 int64_t count) {
  const Rows from = rows_of(t, row, head.h * head.value);
  load_rows<rows, Z::kValue / 8>(to, Z::kValueLd, from, count, head.value, Z::kValue, from);
}

// Byte offset of this lane's row for ldmatrix: A fragments; B fragments of two tiles of 8 columns from memory
// along K; the same from memory across K.
__device__ inline uint32_t a_offset(int ld) {
  const int lane = threadIdx.x % 32;
  return uint32_t(lane % 16 * ld + lane / 16 * 8) * 2;
}
__device__ inline uint32_t b_offset(int ld) {
  const int lane = threadIdx.x % 32;
  return uint32_t((lane % 8 + lane / 16 * 8) * ld + lane / 8 % 2 * 8) * 2;
}
__device__ inline uint32_t across_offset(int ld) { return a_offset(ld); }

// c [16, 8 tiles] += a [16, depth] b [8 tiles, depth]^T; a, b: addresses with a_offset, b_offset.
template <int tiles, int depth>
__device__ inline void multiply_along(float (&c)[tiles][4], uint32_t a, uint32_t b, int ld) {
#pragma unroll
  for (int k = 0; k < depth; k += 16) {
    uint32_t x[4];
    load_blocks(x, a + 2 * k);
#pragma unroll
    for (int j = 0; j < tiles; j += 2) {
      uint32_t y[4];
      load_blocks(y, b + uint32_t(j * 8 * ld + k) * 2);
      multiply_add(c[j], x, y[0], y[1]);
      multiply_add(c[j + 1], x, y[2], y[3]);
    }
  }
}

// c [16, 8 tiles] += p [16, 8 depth] b [8 depth, 8 tiles], p in the registers of an earlier product; b:
// address with across_offset.
template <int depth, int tiles>
__device__ inline void multiply_across(float (&c)[tiles][4], const float (&p)[depth][4], uint32_t b, int ld) {
#pragma unroll
  for (int k = 0; k < depth; k += 2) {
    const uint32_t x[4] = {pack_bf16(p[k][0], p[k][1]), pack_bf16(p[k][2], p[k][3]),
                           pack_bf16(p[k + 1][0], p[k + 1][1]), pack_bf16(p[k + 1][2], p[k + 1][3])};
#pragma unroll
    for (int j = 0; j < tiles; j += 2) {
      uint32_t y[4];
      load_blocks_transposed(y, b + uint32_t(k * 8 * ld + j * 8) * 2);
      multiply_add(c[j], x, y[0], y[1]);
      multiply_add(c[j + 1], x, y[2], y[3]);
    }
  }
}

template <int tiles> __device__ inline void clear(float (&c)[tiles][4]) {
#pragma unroll
  for (int j = 0; j < tiles; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
}

__device__ inline Piece shared_piece(const AttentionShape& shape, int64_t q_rows, int64_t k_rows,
                                     bool of_queries, int64_t index, const Faults& faults, FaultOf op) {
  __shared__ Piece piece;
  if (threadIdx.x < 32) {
    const Piece found = find_piece(shape, q_rows, k_rows, of_queries, kRows, index, faults, op);
    if (threadIdx.x == 0) piece = found;
  }
  __syncthreads();
  return piece;
}

template <class Z> struct ForwardShared {
  alignas(16) bf16 q[kRows * Z::kWideLd];
  alignas(16) bf16 k[2][kKeys * Z::kWideLd];
  alignas(16) bf16 v[2][kKeys * Z::kValueLd];
};

// Blocks with many keys begin first.
template <class Z> __global__ void __launch_bounds__(kThreads, 1)
    forward(const __grid_constant__ AttentionForward a, const Faults faults) {
  extern __shared__ __align__(16) uint8_t memory[];
  ForwardShared<Z>& shared = *reinterpret_cast<ForwardShared<Z>*>(memory);
  const Piece s = shared_piece(a.shape, a.q.rows, a.kv.rows, true, int64_t(gridDim.x) - 1 - blockIdx.x,
                               faults, FaultOf::attention_forward);
  if (s.none) return;
  const Head head = head_of(a.shape, blockIdx.y);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  const int64_t n = min(int64_t(kRows), s.queries - s.first), end = s.visible(s.first + n - 1);
  const int64_t row = s.first + warp * 16 + group;  // of the sequence; this thread also has row + 8
  const int64_t low_end = s.visible(row), high_end = s.visible(row + 8);
  const int64_t warp_begin = s.visible(s.first + warp * 16), warp_end = s.visible(s.first + warp * 16 + 15);
  const float scale = float(a.shape.scale) * kLog2E;

  load_wide<Z, kRows>(shared.q, a.q, head, s.q + s.first, n);
  const auto load = [&](int buffer, int64_t key) {
    const int64_t keys = s.keys - key;
    load_keys<Z, kKeys>(shared.k[buffer], a.kv, a.k_rope, head, s.k + key, keys);
    load_values<Z, kKeys>(shared.v[buffer], a.kv, head, s.k + key, keys);
    end_copies();
  };
  load(0, 0);

  float o[Z::kValue / 8][4], low_top = -INFINITY, high_top = -INFINITY, low_sum = 0, high_sum = 0;
  clear(o);
  const uint32_t q = shared_address(shared.q + warp * 16 * Z::kWideLd) + a_offset(Z::kWideLd);
  int buffer = 0;
  for (int64_t key = 0; key < end; key += kKeys, buffer ^= 1) {
    wait_copies<0>();
    __syncthreads();
    if (key + kKeys < end) load(buffer ^ 1, key + kKeys);
    if (key >= warp_end) continue;
    float p[kKeys / 8][4];
    clear(p);
    multiply_along<kKeys / 8, Z::kWide>(p, q, shared_address(shared.k[buffer]) + b_offset(Z::kWideLd),
                                        Z::kWideLd);
    if (key + kKeys > warp_begin) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
        const int64_t at = key + 8 * j + 2 * pair;
        if (at >= low_end) p[j][0] = -INFINITY;
        if (at + 1 >= low_end) p[j][1] = -INFINITY;
        if (at >= high_end) p[j][2] = -INFINITY;
        if (at + 1 >= high_end) p[j][3] = -INFINITY;
      }
    }
    float low = low_top, high = high_top;  // of scores, not scaled
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
      low = fmaxf(low, fmaxf(p[j][0], p[j][1]));
      high = fmaxf(high, fmaxf(p[j][2], p[j][3]));
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      low = fmaxf(low, __shfl_xor_sync(~0u, low, step));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
    }
    // Every row sees key 0, so after the first block no largest score is -inf.
    const float low_shrink = exp2_fast(scale * (low_top - low)),
                high_shrink = exp2_fast(scale * (high_top - high));
    low_top = low, high_top = high;
    // Rounded after each step, in so many words: left to the compiler, multiply and add are fused for one of a
    // thread's two rows and not for the other, and a query's last bits hang on its place in the block.
    low_sum = __fmul_rn(low_sum, low_shrink), high_sum = __fmul_rn(high_sum, high_shrink);
    const float low_base = scale * low, high_base = scale * high;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
      p[j][0] = exp2_fast(fmaf(scale, p[j][0], -low_base));
      p[j][1] = exp2_fast(fmaf(scale, p[j][1], -low_base));
      p[j][2] = exp2_fast(fmaf(scale, p[j][2], -high_base));
      p[j][3] = exp2_fast(fmaf(scale, p[j][3], -high_base));
      low_sum = __fadd_rn(low_sum, __fadd_rn(p[j][0], p[j][1]));
      high_sum = __fadd_rn(high_sum, __fadd_rn(p[j][2], p[j][3]));
    }
#pragma unroll
    for (int j = 0; j < Z::kValue / 8; ++j)
      o[j][0] *= low_shrink, o[j][1] *= low_shrink, o[j][2] *= high_shrink, o[j][3] *= high_shrink;
    multiply_across<kKeys / 8, Z::kValue / 8>(
        o, p, shared_address(shared.v[buffer]) + across_offset(Z::kValueLd), Z::kValueLd);
  }
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    low_sum += __shfl_xor_sync(~0u, low_sum, step);
    high_sum += __shfl_xor_sync(~0u, high_sum, step);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = row + 8 * half;
    if (i >= s.first + n) continue;
    const float sum = half ? high_sum : low_sum, top = half ? high_top : low_top, inverse = 1 / sum;
    bf16* to = static_cast<bf16*>(a.o.data) + (s.q + i) * a.o.ld + head.h * head.value + 2 * pair;
#pragma unroll
    for (int j = 0; j < Z::kValue / 8; ++j)
      if (8 * j < head.value)
        *reinterpret_cast<uint32_t*>(to + 8 * j) =
            pack_bf16(inverse * o[j][2 * half], inverse * o[j][2 * half + 1]);
    if (pair == 0)
      static_cast<float*>(a.lse.data)[(s.q + i) * a.shape.heads + head.h] =
          fmaf(float(a.shape.scale), top, logf(sum));
  }
}

template <class Z> struct BackwardShared {
  alignas(16) bf16 wide[kRows * Z::kWideLd];    // queries, or keys
  alignas(16) bf16 value[kRows * Z::kValueLd];  // d_o, or values
  alignas(16) bf16 step_wide[2][kStep * Z::kWideLd];
  alignas(16) bf16 step_value[2][kStep * Z::kValueLd];
  float lse[2][kStep], d[2][kStep];  // backward_keys: of the queries
};

template <class Z> __global__ void __launch_bounds__(kThreads, 1)
    backward_queries(const __grid_constant__ AttentionBackward a, const float* d, const Faults faults) {
  extern __shared__ __align__(16) uint8_t memory[];
  BackwardShared<Z>& shared = *reinterpret_cast<BackwardShared<Z>*>(memory);
  const Piece s = shared_piece(a.shape, a.q.rows, a.kv.rows, true, int64_t(gridDim.x) - 1 - blockIdx.x,
                               faults, FaultOf::attention_backward);
  if (s.none) return;
  const Head head = head_of(a.shape, blockIdx.y);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  const int64_t n = min(int64_t(kRows), s.queries - s.first), end = s.visible(s.first + n - 1);
  const int64_t row = s.first + warp * 16 + group;
  const int64_t low_end = s.visible(row), high_end = s.visible(row + 8);
  const int64_t warp_begin = s.visible(s.first + warp * 16), warp_end = s.visible(s.first + warp * 16 + 15);
  const float scale = float(a.shape.scale) * kLog2E;
  float base[2], mean[2];  // a row that is not there: probability exp2(-inf) = 0
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = row + 8 * half, at = (s.q + i) * a.shape.heads + head.h;
    const bool there = i < s.first + n;
    base[half] = there ? kLog2E * static_cast<const float*>(a.lse.data)[at] : INFINITY;
    mean[half] = there ? d[at] : 0;
  }

  load_wide<Z, kRows>(shared.wide, a.q, head, s.q + s.first, n);
  load_outputs<Z, kRows>(shared.value, a.d_o, head, s.q + s.first, n);
  const auto load = [&](int buffer, int64_t key) {
    const int64_t keys = s.keys - key;
    load_keys<Z, kStep>(shared.step_wide[buffer], a.kv, a.k_rope, head, s.k + key, keys);
    load_values<Z, kStep>(shared.step_value[buffer], a.kv, head, s.k + key, keys);
    end_copies();
  };
  load(0, 0);

  float dq[Z::kWide / 8][4];
  clear(dq);
  const uint32_t q = shared_address(shared.wide + warp * 16 * Z::kWideLd) + a_offset(Z::kWideLd);
  const uint32_t d_o = shared_address(shared.value + warp * 16 * Z::kValueLd) + a_offset(Z::kValueLd);
  int buffer = 0;
  for (int64_t key = 0; key < end; key += kStep, buffer ^= 1) {
    wait_copies<0>();
    __syncthreads();
    if (key + kStep < end) load(buffer ^ 1, key + kStep);
    if (key >= warp_end) continue;
    const uint32_t keys = shared_address(shared.step_wide[buffer]);
    float p[kStep / 8][4], dp[kStep / 8][4];
    clear(p);
    multiply_along<kStep / 8, Z::kWide>(p, q, keys + b_offset(Z::kWideLd), Z::kWideLd);
    clear(dp);
    multiply_along<kStep / 8, Z::kValue>(
        dp, d_o, shared_address(shared.step_value[buffer]) + b_offset(Z::kValueLd), Z::kValueLd);
    const bool edge = key + kStep > warp_begin;
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e / 2;
        float x = exp2_fast(fmaf(scale, p[j][e], -base[half]));
        if (edge && key + 8 * j + 2 * pair + e % 2 >= (half ? high_end : low_end)) x = 0;
        p[j][e] = x * (dp[j][e] - mean[half]);
      }
    multiply_across<kStep / 8, Z::kWide / 8>(dq, p, keys + across_offset(Z::kWideLd), Z::kWideLd);
  }
  const float factor = float(a.shape.scale);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = row + 8 * half;
    if (i >= s.first + n) continue;
    bf16* to = static_cast<bf16*>(a.dq.data) + (s.q + i) * a.dq.ld + head.h * head.wide + 2 * pair;
#pragma unroll
    for (int j = 0; j < Z::kWide / 8; ++j)
      if (8 * j < head.wide)
        *reinterpret_cast<uint32_t*>(to + 8 * j) =
            pack_bf16(factor * dq[j][2 * half], factor * dq[j][2 * half + 1]);
  }
}

template <class Z> __global__ void __launch_bounds__(kThreads, 1)
    backward_keys(const __grid_constant__ AttentionBackward a, const BackwardMemory buffers,
                  int64_t first_head, const Faults faults) {
  extern __shared__ __align__(16) uint8_t memory[];
  BackwardShared<Z>& shared = *reinterpret_cast<BackwardShared<Z>*>(memory);
  const Piece s =
      shared_piece(a.shape, a.q.rows, a.kv.rows, false, blockIdx.x, faults, FaultOf::attention_backward);
  if (s.none) return;
  const Head head = head_of(a.shape, first_head + blockIdx.y);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  const int64_t n = min(int64_t(kRows), s.keys - s.first);
  const int64_t row = s.first + warp * 16 + group, warp_first = s.first + warp * 16;
  const float scale = float(a.shape.scale) * kLog2E;

  load_keys<Z, kRows>(shared.wide, a.kv, a.k_rope, head, s.k + s.first, n);
  load_values<Z, kRows>(shared.value, a.kv, head, s.k + s.first, n);
  const auto load = [&](int buffer, int64_t query) {
    const int64_t queries = s.queries - query;
    load_wide<Z, kStep>(shared.step_wide[buffer], a.q, head, s.q + query, queries);
    load_outputs<Z, kStep>(shared.step_value[buffer], a.d_o, head, s.q + query, queries);
    end_copies();
    if (threadIdx.x < kStep) {  // a query that is not there: probability exp2(-inf) = 0
      const bool there = threadIdx.x < queries;
      const int64_t at = (s.q + query + threadIdx.x) * a.shape.heads + head.h;
      shared.lse[buffer][threadIdx.x] = there ? kLog2E * static_cast<const float*>(a.lse.data)[at] : INFINITY;
      shared.d[buffer][threadIdx.x] = there ? buffers.d[at] : 0;
    }
  };
  // The first query that sees a key of this block, rounded down to a step.
  const int64_t begin = max(int64_t(0), s.first - (s.keys - s.queries)) / kStep * kStep;
  if (begin < s.queries) load(0, begin);

  float dk[Z::kWide / 8][4], dv[Z::kValue / 8][4];
  clear(dk);
  clear(dv);
  const uint32_t k = shared_address(shared.wide + warp * 16 * Z::kWideLd) + a_offset(Z::kWideLd);
  const uint32_t v = shared_address(shared.value + warp * 16 * Z::kValueLd) + a_offset(Z::kValueLd);
  int buffer = 0;
  for (int64_t query = begin; query < s.queries; query += kStep, buffer ^= 1) {
    wait_copies<0>();
    __syncthreads();
    if (query + kStep < s.queries) load(buffer ^ 1, query + kStep);
    if (warp_first >= s.visible(query + kStep - 1)) continue;
    const uint32_t queries = shared_address(shared.step_wide[buffer]),
                   d_o = shared_address(shared.step_value[buffer]);
    float p[kStep / 8][4], dp[kStep / 8][4];
    clear(p);
    multiply_along<kStep / 8, Z::kWide>(p, k, queries + b_offset(Z::kWideLd), Z::kWideLd);
    clear(dp);
    multiply_along<kStep / 8, Z::kValue>(dp, v, d_o + b_offset(Z::kValueLd), Z::kValueLd);
    const bool edge = warp_first + 15 >= s.visible(query);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = 8 * j + 2 * pair + e % 2;
        float x = exp2_fast(fmaf(scale, p[j][e], -shared.lse[buffer][at]));
        if (edge && row + e / 2 * 8 >= s.visible(query + at)) x = 0;
        p[j][e] = x;
        dp[j][e] = x * (dp[j][e] - shared.d[buffer][at]);
      }
    multiply_across<kStep / 8, Z::kValue / 8>(dv, p, d_o + across_offset(Z::kValueLd), Z::kValueLd);
    multiply_across<kStep / 8, Z::kWide / 8>(dk, dp, queries + across_offset(Z::kWideLd), Z::kWideLd);
  }
  wait_copies<0>();
  const float factor = float(a.shape.scale);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = row + 8 * half;
    if (i >= s.first + n) continue;
    const int64_t to = s.k + i;
    bf16* out = static_cast<bf16*>(a.dkv.data) + to * a.dkv.ld + head.h * (head.nope + head.value) + 2 * pair;
    float* share = buffers.shares + (int64_t(blockIdx.y) * a.kv.rows + to) * head.rope + 2 * pair;
#pragma unroll
    for (int j = 0; j < Z::kWide / 8; ++j) {
      const float low = factor * dk[j][2 * half], high = factor * dk[j][2 * half + 1];
      if (8 * j < head.nope) *reinterpret_cast<uint32_t*>(out + 8 * j) = pack_bf16(low, high);
      else if (8 * j < head.wide)
        *reinterpret_cast<float2*>(share + (8 * j - head.nope)) = make_float2(low, high);
    }
#pragma unroll
    for (int j = 0; j < Z::kValue / 8; ++j)
      if (8 * j < head.value)
        *reinterpret_cast<uint32_t*>(out + head.nope + 8 * j) =
            pack_bf16(dv[j][2 * half], dv[j][2 * half + 1]);
  }
}

bool on_16_bytes(const Tensor& t) {
  return t.size() == 0 || (reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows <= 1 || t.ld % 8 == 0));
}

bool is_small(const AttentionShape& a) { return a.nope + a.rope <= Small::kWide && a.value <= Small::kValue; }

bool takes(const AttentionShape& a, const Tensor& q, std::initializer_list<const Tensor*> tensors,
           size_t bytes) {
  if (q.dtype != DType::bf16 || a.nope % 8 != 0 || a.rope % 8 != 0 || a.value % 8 != 0 ||
      a.nope + a.rope == 0 || a.nope + a.rope > Large::kWide || a.value > Large::kValue)
    return false;
  for (const Tensor* t : tensors)
    if (!on_16_bytes(*t)) return false;
  int device = 0, most = 0;
  must(cudaGetDevice(&device), "asking for the device");
  must(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking the device");
  return size_t(most) >= bytes;
}

// Raises the kernel's limit of shared memory, then launches it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t rows, const AttentionShape& shape, int64_t heads,
            size_t bytes, const AttentionCall& call, const char* op, const Arguments&... arguments) {
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), op);
  const dim3 grid(unsigned(rows / kRows + shape.sequences), unsigned(heads));
  kernel<<<grid, kThreads, bytes, call.stream>>>(arguments..., call.faults);
  launched(op);
}

}  // namespace

bool mma_takes(const AttentionForward& a) {
  return takes(a.shape, a.q, {&a.q, &a.kv, &a.k_rope, &a.o},
               is_small(a.shape) ? sizeof(ForwardShared<Small>) : sizeof(ForwardShared<Large>));
}
bool mma_takes(const AttentionBackward& a) {
  return takes(a.shape, a.q, {&a.q, &a.kv, &a.k_rope, &a.d_o, &a.dq, &a.dkv},
               is_small(a.shape) ? sizeof(BackwardShared<Small>) : sizeof(BackwardShared<Large>));
}

void mma_forward(const AttentionCall& call, const AttentionForward& a) {
  const bool small = is_small(a.shape);
  launch(small ? forward<Small> : forward<Large>, a.q.rows, a.shape, a.shape.heads,
         small ? sizeof(ForwardShared<Small>) : sizeof(ForwardShared<Large>), call, "attention_forward", a);
}

void mma_backward_queries(const AttentionCall& call, const AttentionBackward& a,
                          const BackwardMemory& memory) {
  const bool small = is_small(a.shape);
  const float* d = memory.d;
  launch(small ? backward_queries<Small> : backward_queries<Large>, a.q.rows, a.shape, a.shape.heads,
         small ? sizeof(BackwardShared<Small>) : sizeof(BackwardShared<Large>), call,
         "attention_backward: dq", a, d);
}

void mma_backward_keys(const AttentionCall& call, const AttentionBackward& a, const BackwardMemory& memory,
                       int64_t first, int64_t count) {
  const bool small = is_small(a.shape);
  launch(small ? backward_keys<Small> : backward_keys<Large>, a.kv.rows, a.shape, count,
         small ? sizeof(BackwardShared<Small>) : sizeof(BackwardShared<Large>), call,
         "attention_backward: dkv", a, memory, first);
}

}  // namespace cachalot::cuda
