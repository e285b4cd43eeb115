// Dot products of a decoding step's few rows: a warp a weight row, nothing used twice, everything in flight
// at once. A lane owns pieces of 8 numbers, 256 apart; its sum runs over them in order, then the lanes add
// pairwise: a number's bits depend on its own row and column only.
#pragma once

#include "backend/cuda/convert.cuh"
#include "backend/cuda/reduce.cuh"

namespace cachalot::cuda {

constexpr int kPieceStep = 8 * 32;

// pieces i of this lane of a row of k numbers (on 16 bytes, k a multiple of 8); zeros behind it.
template <int pieces, class T>
__device__ inline void load_pieces(const T* row, int64_t k, Packed<T> (&to)[pieces]) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    const int64_t at = 8 * lane + kPieceStep * i;
    to[i] = at < k ? load<true>(row, at, k) : Packed<T>{};
  }
}

template <int pieces, class A, class B>
__device__ inline float dot(const Packed<A> (&a)[pieces], const Packed<B> (&b)[pieces]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    const Eight x = unpack(a[i]), y = unpack(b[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) sum = fmaf(x.v[j], y.v[j], sum);
  }
  return sum;
}

// 1 / sqrt(x) of a positive number, rounded once: a float's guess, its error taken out in double. Division and root
// in double would be chains of hundreds of clocks in front of every product.
__device__ inline float inverse_root(double x) {
  const double guess = double(rsqrtf(float(x))), e = fma(-x * guess, guess, 1.0);
  return float(fma(guess * e, fma(0.375, e, 0.5), guess));
}

// A row normalised (ops/rmsnorm.h) and rounded; in r its factor.
template <int pieces, class A> __device__ inline void normalise(Packed<A> (&x)[pieces],
                                                                const Packed<float> (&gain)[pieces],
                                                                int64_t k, double eps, float& r) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    const Eight e = unpack(x[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) sum = fmaf(e.v[j], e.v[j], sum);
  }
  r = inverse_root(double(warp_sum(sum)) / double(k) + eps);
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    Eight e = unpack(x[i]);
    const Eight g = unpack(gain[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) e.v[j] = g.v[j] * (e.v[j] * r);
    x[i] = pack<A>(e);
  }
}

}  // namespace cachalot::cuda
