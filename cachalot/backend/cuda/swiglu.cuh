// The arithmetic of backend/ops/swiglu.h on eight numbers: the same bits with FP8 around it and without.
#pragma once

#include "backend/cuda/convert.cuh"

namespace cachalot::cuda {

__device__ inline Eight swiglu(const Eight& gate, const Eight& up) {
  Eight y;
#pragma unroll
  for (int i = 0; i < kEight; ++i) y.v[i] = __fdividef(gate.v[i], 1.0f + expf(-gate.v[i])) * up.v[i];
  return y;
}

struct SwigluGradient {
  Eight gate, up;
};
__device__ inline SwigluGradient swiglu_gradient(const Eight& dy, const Eight& gate, const Eight& up) {
  SwigluGradient g;
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float s = __fdividef(1.0f, 1.0f + expf(-gate.v[i]));
    g.gate.v[i] = dy.v[i] * up.v[i] * s * (1.0f + gate.v[i] * (1.0f - s));
    g.up.v[i] = dy.v[i] * gate.v[i] * s;
  }
  return g;
}

// Both halves of every row in eights.
inline bool halves_are_wide(const Tensor& t) { return !t || (is_wide(t) && t.cols / 2 % kEight == 0); }

}  // namespace cachalot::cuda
