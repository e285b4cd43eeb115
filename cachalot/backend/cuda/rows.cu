// Contract: backend/ops/rows.h.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

template <class From, class To, bool wide>
__global__ void gather_kernel(Matrix<const From> x, const int32_t* rows, Matrix<To> y, Faults faults) {
  start();
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
  start();
  for_plane(x.rows, x.cols, [&](int64_t t, int64_t c) {
    const int64_t row = rows[t];
    if (row < 0 || !faults.fine(FaultOf::scatter_rows, row, y.rows)) return;
    store_eight<wide>(y.data + row * y.ld, c, y.cols, load_eight<wide>(x.data + t * x.ld, c, x.cols));
  });
}

// Adding takes the t in the order of (rows[t], t), up to kMostSorted at a time: what is added to one row then
// lies side by side in that order.
constexpr int kMostSorted = 8192;
constexpr int kSortThreads = 512, kSortParts = kSortThreads / 32;
constexpr int32_t kNoRow = INT32_MAX;  // of those to be skipped: they come last

struct alignas(8) Place {
  int32_t row, t;
};

// A t comes behind as many as have a lower row, or the same one and a lower t. Block: 32 t's, each counted by
// a thread of every warp, over its part of all.
__global__ void __launch_bounds__(kSortThreads)
    sort_kernel(const int32_t* rows, int n, int64_t bound, Place* sorted, Faults faults) {
  __shared__ alignas(16) int32_t all[kMostSorted];
  __shared__ int counts[kSortParts][32];
  start();
  const int part = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, first = int(blockIdx.x) * 32,
            t = first + lane;
  const auto row_of = [&](int i) {
    const int32_t row = i < n ? rows[i] : -1;
    return row < 0 ? kNoRow : row;
  };
  const int length = (n + 4 * kSortParts - 1) / (4 * kSortParts) * 4;  // of a part
#pragma unroll 8
  for (int i = int(threadIdx.x); i < length * kSortParts; i += kSortThreads) all[i] = row_of(i);
  int32_t mine = row_of(t);
  __syncthreads();
  int count = 0, i = part * length;
  const int end = i + length;
#pragma unroll 4
  for (; i < min(end, first); i += 4) {
    const int4 four = *reinterpret_cast<const int4*>(all + i);
    count += int(four.x <= mine) + int(four.y <= mine) + int(four.z <= mine) + int(four.w <= mine);
  }
  for (; i < min(end, first + 32); ++i) count += int(all[i] < mine || (all[i] == mine && i < t));
#pragma unroll 4
  for (; i < end; i += 4) {
    const int4 four = *reinterpret_cast<const int4*>(all + i);
    count += int(four.x < mine) + int(four.y < mine) + int(four.z < mine) + int(four.w < mine);
  }
  counts[part][lane] = count;
  __syncthreads();
  if (part > 0 || t >= n) return;
#pragma unroll
  for (int p = 1; p < kSortParts; ++p) count += counts[p][lane];
  if (mine != kNoRow && !faults.fine(FaultOf::scatter_add_rows, mine, bound)) mine = -1;  // left out
  sorted[count] = {mine, t};
}

constexpr int kAddThreads = 256;
constexpr int kAddParts = 4;  // slabs of columns of a block; eights of a thread
constexpr int64_t kAddSlab = int64_t(kEight) * kAddThreads;

// Block (place in the order, kAddParts slabs of columns). A row that comes one to three times, as most do, is
// its first place's. Of a row that comes more often each of the first four places takes a slab. `fresh`: y
// holds zeros.
template <class T, bool wide> __global__ void __launch_bounds__(kAddThreads, 2)
    scatter_add_kernel(Matrix<const T> x, const Place* sorted, Matrix<float> y, bool fresh) {
  constexpr int kAddAtOnce = sizeof(T) == 2 ? 16 : 8;  // rows under way at once, where there are many
  constexpr int kFew = kAddParts - 1;
  __shared__ int32_t list[kAddThreads];
  start();
  const int64_t n = x.rows, d = x.cols, place = blockIdx.x, group = int64_t(blockIdx.y) * kAddParts;
  const int32_t row = sorted[place].row;
  const auto is_row = [&](int64_t i) { return 0 <= i && i < n && sorted[i].row == row; };
  const auto order = [&](int64_t i) { return int64_t(sorted[i < n ? i : n - 1].t); };
  // The row's lie side by side: how many come before this one and behind it, as far as anyone needs to know.
  int before = 0, behind = 0;
#pragma unroll
  for (int k = 1; k <= kAddParts; ++k) {
    before += int(before == k - 1 && is_row(place - k));
    behind += int(behind == k - 1 && is_row(place + k));
  }
  if (row < 0 || row == kNoRow || before == kAddParts) return;
  const int64_t first = place - before;
  const auto add = [](Eight& sum, const Packed<T>& packed) {
    const Eight e = unpack(packed);
#pragma unroll
    for (int j = 0; j < kEight; ++j) sum.v[j] += e.v[j];
  };
  float* out = y.data + row * y.ld;
  if (before + behind < kFew) {  // all of them are known: one to three
    if (before > 0) return;
    const auto column = [&](int i) { return (group + i) * kAddSlab + kEight * int64_t(threadIdx.x); };
    Eight sums[kAddParts] = {};
    Packed<T> batch[kFew][kAddParts] = {};
#pragma unroll
    for (int i = 0; i < kAddParts; ++i)
      if (column(i) < d && !fresh) sums[i] = load_eight<wide>(out, column(i), d);
#pragma unroll
    for (int k = 0; k < kFew; ++k) {
      if (k > behind) break;
      const T* from = x.data + order(first + k) * x.ld;
#pragma unroll
      for (int i = 0; i < kAddParts; ++i)
        if (column(i) < d) batch[k][i] = load<wide>(from, column(i), d);
    }
#pragma unroll
    for (int i = 0; i < kAddParts; ++i) {
      if (column(i) >= d) break;
#pragma unroll
      for (int k = 0; k < kFew; ++k)
        if (k <= behind) add(sums[i], batch[k][i]);
      store_eight<wide>(out, column(i), d, sums[i]);
    }
    return;
  }
  const int64_t at = (group + before) * kAddSlab + kEight * int64_t(threadIdx.x);
  const bool mine = at < d;
  Eight sum = {};
  if (mine && !fresh) sum = load_eight<wide>(out, at, d);
  for (int64_t window = first;; window += kAddThreads) {
    const int64_t i = window + threadIdx.x;
    const bool hit = is_row(i);
    if (hit) list[threadIdx.x] = int32_t(order(i));
    const int count = __syncthreads_count(hit);  // the first ones of the window
    for (int begin = 0; mine && begin < count; begin += kAddAtOnce) {
      Packed<T> batch[kAddAtOnce];
#pragma unroll
      for (int k = 0; k < kAddAtOnce; ++k) {
        batch[k] = {};
        if (begin + k < count) batch[k] = load<wide>(x.data + list[begin + k] * x.ld, at, d);
      }
#pragma unroll
      for (int k = 0; k < kAddAtOnce; ++k)
        if (begin + k < count) add(sum, batch[k]);
    }
    if (count < kAddThreads) break;
    __syncthreads();
  }
  if (mine) store_eight<wide>(out, at, d, sum);
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
        launch(queue_, gather_kernel<From, To, wide.value>, p.grid, p.block, 0, g.x.matrix<const From>(),
               g.rows.vector<const int32_t>().data, g.y.matrix<To>(), faults_);
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
        launch(queue_, scatter_kernel<From, To, wide.value>, p.grid, p.block, 0, s.x.matrix<const From>(),
               s.rows.vector<const int32_t>().data, s.y.matrix<To>(), faults_);
      });
    });
  });
  launched("scatter_rows");
}

void CudaBackend::scatter_add_rows(const ScatterAddRows& s) {
  check(s);
  require_no_f64("scatter_add_rows", {&s.x, &s.y});
  select();
  const bool overwrite = s.accumulate == Accumulate::overwrite;
  if (overwrite && s.y.size() > 0)
    must(cudaMemsetAsync(s.y.data, 0, size_t(s.y.size()) * sizeof(float), stream_), "scatter_add_rows");
  if (s.x.size() == 0) return;
  auto* sorted = static_cast<Place*>(workspace_);
  const bool wide = are_wide({&s.x, &s.y});
  for (int64_t first = 0; first < s.x.rows; first += kMostSorted) {
    const Tensor x = s.x.slice_rows(first, std::min<int64_t>(kMostSorted, s.x.rows - first));
    launch(queue_, sort_kernel, unsigned((x.rows + 31) / 32), kSortThreads, 0,
           s.rows.vector<const int32_t>().data + first, int(x.rows), s.y.rows, sorted, faults_);
    const dim3 grid(unsigned(x.rows), unsigned((x.cols + kAddParts * kAddSlab - 1) / (kAddParts * kAddSlab)));
    with_act(x.dtype, [&](auto act) {
      using T = decltype(act);
      with_width(wide, [&](auto w) {
        launch(queue_, scatter_add_kernel<T, w.value>, grid, kAddThreads, 0, x.matrix<const T>(), sorted,
               s.y.matrix<float>(), overwrite && first == 0);
      });
    });
  }
  launched("scatter_add_rows");
}

}  // namespace cachalot::cuda
