// Contract: backend/ops/rows.h.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

template <class From, class To, bool wide>
__global__ void gather_kernel(Matrix<const From> x, const int32_t* rows, Matrix<To> y, Faults faults) {
  for_plane(y.rows, y.cols, [&](int64_t t, int64_t c) {
    const int64_t row = rows[t];
    Eight e = {};
    if (row >= 0 && faults.fine(FaultOf::gather_rows, row, x.rows))
      e = load_eight<wide>(x.data + row * x.ld, c, x.cols);
    store_eight<wide>(y.data + t * y.ld, c, y.cols, e);
  });
}

template <class From, class To, bool wide>
__global__ void scatter_kernel(Matrix<const From> x, const int32_t* rows, Matrix<To> y, Faults faults) {
  for_plane(x.rows, x.cols, [&](int64_t t, int64_t c) {
    const int64_t row = rows[t];
    if (row < 0 || !faults.fine(FaultOf::scatter_rows, row, y.rows)) return;
    store_eight<wide>(y.data + row * y.ld, c, y.cols, load_eight<wide>(x.data + t * x.ld, c, x.cols));
  });
}

// The blocks of the first t of a row add all of that row's, in order: each takes 2048 columns and looks
// through the indices in windows, four a thread, listing those that are its row's.
constexpr int kAddThreads = 256;
constexpr int kAddEach = 4;
constexpr int kAddWindow = kAddThreads * kAddEach;
constexpr int kAddAtOnce = 8;  // rows under way at once

template <class T, bool wide> __global__ void __launch_bounds__(kAddThreads)
    scatter_add_kernel(Matrix<const T> x, const int32_t* rows, Matrix<float> y, Faults faults) {
  __shared__ int32_t found[kAddWindow];
  __shared__ int warp_counts[kAddThreads / 32];
  const int64_t t = blockIdx.x, n = x.rows, row = rows[t];
  if (row < 0 || !faults.fine(FaultOf::scatter_add_rows, row, y.rows)) return;
  int earlier = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < t; i += kAddThreads) earlier |= int(rows[i] == row);
  if (__syncthreads_or(earlier)) return;

  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t at = kEight * (int64_t(blockIdx.y) * kAddThreads + threadIdx.x);
  const bool mine = at < x.cols;
  float* out = y.data + row * y.ld;
  Eight sum = {};
  if (mine) sum = load_eight<wide>(out, at, x.cols);
  for (int64_t window = t; window < n; window += kAddWindow) {
    const int64_t first = window + kAddEach * int64_t(threadIdx.x);
    bool hit[kAddEach];
    int hits = 0;
#pragma unroll
    for (int k = 0; k < kAddEach; ++k) {
      hit[k] = first + k < n && rows[first + k] == row;
      hits += int(hit[k]);
    }
    if (!__syncthreads_or(hits)) continue;
    int before = hits;  // of this warp's lanes up to this one
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(kAll, before, step);
      if (lane >= step) before += below;
    }
    if (lane == 31) warp_counts[warp] = before;
    before -= hits;
    __syncthreads();
    int all = 0;
    for (int w = 0; w < kAddThreads / 32; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      all += warp_counts[w];
    }
#pragma unroll
    for (int k = 0; k < kAddEach; ++k)
      if (hit[k]) found[before++] = int32_t(first + k);
    __syncthreads();
    for (int begin = 0; mine && begin < all; begin += kAddAtOnce) {
      Packed<T> batch[kAddAtOnce];
#pragma unroll
      for (int k = 0; k < kAddAtOnce; ++k) {
        batch[k] = {};
        if (begin + k < all) batch[k] = load<wide>(x.data + found[begin + k] * x.ld, at, x.cols);
      }
#pragma unroll
      for (int k = 0; k < kAddAtOnce; ++k) {
        if (begin + k >= all) break;
        const Eight e = unpack(batch[k]);
#pragma unroll
        for (int j = 0; j < kEight; ++j) sum.v[j] += e.v[j];
      }
    }
    __syncthreads();
  }
  if (mine) store_eight<wide>(out, at, x.cols, sum);
}

}  // namespace

void CudaBackend::gather_rows(const GatherRows& g) {
  check(g);
  require_no_f64("gather_rows", {&g.x, &g.y});
  if (g.y.size() == 0) return;
  select();
  const Plane p = plane(g.y.rows, g.y.cols);
  with_act(g.x.dtype, [&](auto from) {
    using From = decltype(from);
    with_act(g.y.dtype, [&](auto to) {
      using To = decltype(to);
      with_width(are_wide({&g.x, &g.y}), [&](auto wide) {
        gather_kernel<From, To, wide.value><<<p.grid, p.block, 0, stream_>>>(
            g.x.matrix<const From>(), g.rows.vector<const int32_t>().data, g.y.matrix<To>(), faults_);
      });
    });
  });
  launched("gather_rows");
}

void CudaBackend::scatter_rows(const ScatterRows& s) {
  check(s);
  require_no_f64("scatter_rows", {&s.x, &s.y});
  if (s.x.size() == 0) return;
  select();
  const Plane p = plane(s.x.rows, s.x.cols);
  with_act(s.x.dtype, [&](auto from) {
    using From = decltype(from);
    with_act(s.y.dtype, [&](auto to) {
      using To = decltype(to);
      with_width(are_wide({&s.x, &s.y}), [&](auto wide) {
        scatter_kernel<From, To, wide.value><<<p.grid, p.block, 0, stream_>>>(
            s.x.matrix<const From>(), s.rows.vector<const int32_t>().data, s.y.matrix<To>(), faults_);
      });
    });
  });
  launched("scatter_rows");
}

void CudaBackend::scatter_add_rows(const ScatterAddRows& s) {
  check(s);
  require_no_f64("scatter_add_rows", {&s.x, &s.y});
  select();
  if (s.accumulate == Accumulate::overwrite && s.y.size() > 0)
    must(cudaMemsetAsync(s.y.data, 0, size_t(s.y.size()) * sizeof(float), stream_), "scatter_add_rows");
  if (s.x.size() == 0) return;
  const dim3 grid(unsigned(s.x.rows), unsigned((eights(s.x.cols) + kAddThreads - 1) / kAddThreads));
  with_act(s.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(are_wide({&s.x, &s.y}), [&](auto wide) {
      scatter_add_kernel<T, wide.value><<<grid, kAddThreads, 0, stream_>>>(
          s.x.matrix<const T>(), s.rows.vector<const int32_t>().data, s.y.matrix<float>(), faults_);
    });
  });
  launched("scatter_add_rows");
}

}  // namespace cachalot::cuda
