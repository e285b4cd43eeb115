// Contract: backend/ops/rope.h. In place, one rounding; a thread turns four pairs (wide) or one of several
// heads.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 128, kAtOnce = 8;  // heads of a thread, on their way at once

struct RopeArgs {
  const int32_t* positions;
  const float *cos, *sin;  // [table, width / 2]
  int64_t table;
  int heads, width;
  int64_t stride, offset;
  float sign;
  Faults faults;
};

__device__ void turn(float c, float s, float& a, float& b) {
  const float x = a * c - b * s;
  b = a * s + b * c;
  a = x;
}

// Block (eights or pairs of a head, heads, tokens). A thread turns the same columns of several heads; their
// numbers are on their way before anyone knows the position.
template <class T, bool wide> __global__ void rope_kernel(Matrix<T> x, RopeArgs a) {
  constexpr int kNumbers = wide ? kEight : 2;
  start();
  const int64_t t = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (t >= x.rows) return;
  const int64_t position = a.positions[t];
  const int step = int(blockDim.y);
  for (int first = kNumbers * int(threadIdx.x); first < a.width; first += kNumbers * int(blockDim.x)) {
    T* row = x.data + t * x.ld + a.offset + first;
    const int64_t angle = position * (a.width / 2) + first / 2;
    if constexpr (wide) {
      for (int h = int(threadIdx.y); h < a.heads; h += kAtOnce * step) {
        Packed<T> heads[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          heads[k] = {};
          if (h + k * step < a.heads) heads[k] = load<true>(row + (h + k * step) * a.stride, 0, kEight);
        }
        if (!a.faults.fine(FaultOf::rope, position, a.table)) return;
        const float4 c4 = *reinterpret_cast<const float4*>(a.cos + angle);
        float4 s4 = *reinterpret_cast<const float4*>(a.sin + angle);
        s4 = {a.sign * s4.x, a.sign * s4.y, a.sign * s4.z, a.sign * s4.w};
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (h + k * step >= a.heads) break;
          Eight e = unpack(heads[k]);
          turn(c4.x, s4.x, e.v[0], e.v[1]);
          turn(c4.y, s4.y, e.v[2], e.v[3]);
          turn(c4.z, s4.z, e.v[4], e.v[5]);
          turn(c4.w, s4.w, e.v[6], e.v[7]);
          store_eight<true>(row + (h + k * step) * a.stride, 0, kEight, e);
        }
      }
    } else {
      if (!a.faults.fine(FaultOf::rope, position, a.table)) return;
      for (int h = int(threadIdx.y); h < a.heads; h += step) {
        T* pair = row + h * a.stride;
        float u = float(pair[0]), v = float(pair[1]);
        turn(a.cos[angle], a.sign * a.sin[angle], u, v);
        pair[0] = T(u), pair[1] = T(v);
      }
    }
  }
}

// The least power of two that is at least n, and at most `most`.
unsigned power_of_two(int64_t n, unsigned most) {
  unsigned p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}

bool on_16_bytes(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void CudaBackend::rope(const Rope& r) {
  check(r);
  require_no_f64("rope", {&r.x, &r.cos});
  if (r.x.rows == 0 || r.width == 0) return;
  select();
  const int64_t size = size_of(r.x.dtype);
  const bool wide = r.width % kEight == 0 && on_16_bytes(r.x.data) && on_16_bytes(r.cos.data) &&
                    on_16_bytes(r.sin.data) && (r.x.rows == 1 || r.x.ld * size % 16 == 0) &&
                    r.offset * size % 16 == 0 && (r.heads == 1 || r.stride * size % 16 == 0);
  const RopeArgs args{.positions = r.positions.vector<const int32_t>().data,
                      .cos = r.cos.matrix<const float>().data,
                      .sin = r.sin.matrix<const float>().data,
                      .table = r.cos.rows,
                      .heads = int(r.heads),
                      .width = int(r.width),
                      .stride = r.stride,
                      .offset = r.offset,
                      .sign = r.inverse ? -1.0f : 1.0f,
                      .faults = faults_};
  const unsigned across = power_of_two(r.width / (wide ? kEight : 2), 32);
  const unsigned heads = power_of_two((r.heads + kAtOnce - 1) / kAtOnce, kThreads / across),
                 tokens = std::min(64u, kThreads / (across * heads));
  const auto blocks = unsigned((r.x.rows + tokens - 1) / tokens);
  with_act(r.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(wide, [&](auto w) {
      launch(queue_, rope_kernel<T, w.value>, blocks, dim3(across, heads, tokens), 0, r.x.matrix<T>(), args);
    });
  });
  launched("rope");
}

}  // namespace cachalot::cuda
