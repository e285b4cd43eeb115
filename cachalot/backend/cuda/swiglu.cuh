// The arithmetic of backend/ops/swiglu.h on eight numbers: the same bits with FP8 around it and without.
#pragma once

#include "backend/cuda/convert.cuh"

namespace cachalot::cuda {

// 1 / (1 + exp(-a)); 0 where that is below 2^-126.
__device__ inline float sigmoid(float a) {
  float s;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.0f + expf(-a)));
  return s;
}

__device__ inline Eight swiglu(const Eight& gate, const Eight& up) {
  Eight y;
#pragma unroll
  for (int i = 0; i < kEight; ++i) y.v[i] = gate.v[i] * sigmoid(gate.v[i]) * up.v[i];
  return y;
}

struct SwigluGradient {
  Eight gate, up;
};
__device__ inline SwigluGradient swiglu_gradient(const Eight& dy, const Eight& gate, const Eight& up) {
  SwigluGradient g;
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float s = sigmoid(gate.v[i]);
    g.gate.v[i] = dy.v[i] * up.v[i] * s * (1.0f + gate.v[i] * (1.0f - s));
    g.up.v[i] = dy.v[i] * gate.v[i] * s;
  }
  return g;
}

// The same where the row that leaves is weight times the output; dot: of this dy with the output.
struct WeightedSwiglu {
  Eight y;
  SwigluGradient gradient;
  float dot = 0;
};
__device__ inline WeightedSwiglu weighted_swiglu(Eight dy, const Eight& gate, const Eight& up, float weight) {
  WeightedSwiglu w;
  w.y = swiglu(gate, up);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    w.dot += dy.v[i] * w.y.v[i];
    w.y.v[i] *= weight, dy.v[i] *= weight;
  }
  w.gradient = swiglu_gradient(dy, gate, up);
  return w;
}

// Both halves of every row in eights.
inline bool halves_are_wide(const Tensor& t) { return !t || (is_wide(t) && t.cols / 2 % kEight == 0); }

}  // namespace cachalot::cuda
