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
constexpr int kFour = 4;   // numbers of a thread, neighbours beside neighbours
constexpr int kFours = 4;  // of a thread
constexpr int64_t kAddSpan = int64_t(kAddThreads) * kFours * kFour;  // columns of a block
constexpr int kFew = 3, kMany = 16;                                  // times that a row comes
constexpr int kStageBytes = 64 * kAddThreads;                        // of shared memory, twice
static_assert(kAddSpan / kMany == kAddThreads && kAddSpan / (kFew + 1) == kFour * kAddThreads);

struct alignas(8) FourOf16 {
  uint32_t w[2];
};
template <class T> struct PackedFour;
template <> struct PackedFour<float> { using Type = float4; };
template <> struct PackedFour<bf16> { using Type = FourOf16; };

__device__ inline float4 unpack_four(const float4& p) { return p; }
__device__ inline float4 unpack_four(const FourOf16& p) {
  return {__uint_as_float(p.w[0] << 16), __uint_as_float(p.w[0] & 0xFFFF0000u), __uint_as_float(p.w[1] << 16),
          __uint_as_float(p.w[1] & 0xFFFF0000u)};
}
template <class P> __device__ inline void add_four(float4& sum, const P& packed) {
  const float4 p = unpack_four(packed);
  sum = {sum.x + p.x, sum.y + p.y, sum.z + p.z, sum.w + p.w};
}
template <bool wide, class T>
__device__ inline typename PackedFour<T>::Type load_four(const T* row, int64_t at, int64_t cols) {
  typename PackedFour<T>::Type p;
  if constexpr (wide) {
    p = *reinterpret_cast<const typename PackedFour<T>::Type*>(row + at);
  } else {
    auto* numbers = reinterpret_cast<T*>(&p);
#pragma unroll
    for (int i = 0; i < kFour; ++i) numbers[i] = at + i < cols ? row[at + i] : T{};
  }
  return p;
}
template <bool wide>
__device__ inline void store_four(float* row, int64_t at, int64_t cols, const float4& p) {
  if constexpr (wide) {
    *reinterpret_cast<float4*>(row + at) = p;
  } else {
    if (at < cols) row[at] = p.x;
    if (at + 1 < cols) row[at + 1] = p.y;
    if (at + 2 < cols) row[at + 2] = p.z;
    if (at + 3 < cols) row[at + 3] = p.w;
  }
}

// Adds the x of all that begin at `first` and have this row to a column a thread, from `begin` on. Memory
// under load answers late: while one stage of rows is added the next is on its way into shared memory.
template <class T, bool wide>
__device__ inline void add_many(Matrix<const T> x, const Place* sorted, int64_t first, int32_t row,
                                float* out, int64_t begin, bool fresh, T (*stages)[kStageBytes / sizeof(T)]) {
  constexpr int kRows = kStageBytes / (kAddThreads * int(sizeof(T))),
                kPieces = kAddThreads * int(sizeof(T)) / 16,  // of a row
      kRowsAtOnce = kAddThreads / kPieces, kOfPiece = 16 / int(sizeof(T));
  const int64_t column = begin + threadIdx.x, d = x.cols;
  const int piece = int(threadIdx.x) % kPieces * kOfPiece;
  const auto ask = [&](int64_t from, T* stage) {
#pragma unroll
    for (int k = int(threadIdx.x) / kPieces; k < kRows; k += kRowsAtOnce) {
      const int64_t i = from + k;
      const Place its = i < x.rows ? sorted[i] : Place{kNoRow, 0};
      if (its.row != row || begin + piece >= d) continue;
      const T* source = x.data + int64_t(its.t) * x.ld + begin + piece;
      T* to = stage + k * kAddThreads + piece;
      if constexpr (wide) {
        const auto address = unsigned(__cvta_generic_to_shared(to));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source) : "memory");
      } else {
        for (int j = 0; j < kOfPiece; ++j)
          if (begin + piece + j < d) to[j] = source[j];
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  ask(first, stages[0]);
  ask(first + kRows, stages[1]);
  float sum = !fresh && column < d ? out[column] : 0.0f;
  for (int turn = 0;; turn = 1 - turn, first += kRows) {
    const int64_t i = first + threadIdx.x;
    const bool real = threadIdx.x < kRows && i < x.rows && sorted[i].row == row;
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    const int count = __syncthreads_count(real);
    if (column < d) {
#pragma unroll 8
      for (int k = 0; k < count; ++k) sum += float(stages[turn][k * kAddThreads + threadIdx.x]);
    }
    if (count < kRows) break;
    __syncthreads();
    ask(first + 2 * kRows, stages[turn]);
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (column < d) out[column] = sum;
}

// Block (place in the order, kAddSpan columns). A row that comes one to three times, as most do, is its first
// place's. Of a row that comes more often each of the first four places takes a quarter of these columns, of
// one that comes very often each of the first sixteen its part. `fresh`: y holds zeros.
template <class T, bool wide> __global__ void __launch_bounds__(kAddThreads, sizeof(T) == 2 ? 4 : 3)
    scatter_add_kernel(Matrix<const T> x, const Place* sorted, Matrix<float> y, bool fresh) {
  __shared__ alignas(16) T stages[2][kStageBytes / sizeof(T)];
  start();
  const int64_t n = x.rows, d = x.cols, place = blockIdx.x, begin = int64_t(blockIdx.y) * kAddSpan;
  const int lane = int(threadIdx.x) % 32;
  const int64_t around = place - kMany + lane;  // no neighbour farther away matters
  const Place its = 0 <= around && around < n ? sorted[around] : Place{-1, 0};
  const int32_t row = __shfl_sync(kAll, its.row, kMany);
  const unsigned same = __ballot_sync(kAll, its.row == row);
  if (row < 0 || row == kNoRow) return;
  const int before = __popc(same & ((1u << kMany) - 1)), count = __popc(same);
  const int owners = count <= kFew ? 1 : count < kMany ? kFew + 1 : kMany;
  if (before >= owners) return;
  float* out = y.data + row * y.ld;
  const auto source = [&](int k) {  // of those that have this row
    return x.data + int64_t(__shfl_sync(kAll, its.t, kMany - before + k)) * x.ld;
  };
  if (owners == kMany)
    return add_many<T, wide>(x, sorted, place - before, row, out, begin + before * (kAddSpan / kMany), fresh,
                             stages);
  if (owners > 1) {
    const int64_t column = begin + before * (kAddSpan / owners) + kFour * int64_t(threadIdx.x);
    typename PackedFour<T>::Type batch[kMany - 1];
    float4 sum = {};
    if (column < d && !fresh) sum = load_four<wide>(out, column, d);
#pragma unroll
    for (int k = 0; k < kMany - 1; ++k) {
      if (k >= count) break;
      const T* from = source(k);
      if (column < d) batch[k] = load_four<wide>(from, column, d);
    }
#pragma unroll
    for (int k = 0; k < kMany - 1; ++k)
      if (k < count) add_four(sum, batch[k]);
    if (column < d) store_four<wide>(out, column, d, sum);
    return;
  }
  const auto column = [&](int k) { return begin + kFour * (int64_t(k) * kAddThreads + threadIdx.x); };
  float4 sums[kFours];
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    sums[k] = {};
    if (column(k) < d && !fresh) sums[k] = load_four<wide>(out, column(k), d);
  }
  for (int j = 0; j < count; ++j) {
    const T* from = source(j);
    typename PackedFour<T>::Type batch[kFours];
#pragma unroll
    for (int k = 0; k < kFours; ++k)
      if (column(k) < d) batch[k] = load_four<wide>(from, column(k), d);
#pragma unroll
    for (int k = 0; k < kFours; ++k)
      if (column(k) < d) add_four(sums[k], batch[k]);
  }
#pragma unroll
  for (int k = 0; k < kFours; ++k)
    if (column(k) < d) store_four<wide>(out, column(k), d, sums[k]);
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
  const bool wide = are_wide({&s.x, &s.y});
  auto* sorted = static_cast<Place*>(workspace_);
  const auto across = unsigned((s.x.cols + kAddSpan - 1) / kAddSpan);
  for (int64_t first = 0; first < s.x.rows; first += kMostSorted) {
    const Tensor x = s.x.slice_rows(first, std::min<int64_t>(kMostSorted, s.x.rows - first));
    launch(queue_, sort_kernel, unsigned((x.rows + 31) / 32), kSortThreads, 0,
           s.rows.vector<const int32_t>().data + first, int(x.rows), s.y.rows, sorted, faults_);
    with_act(x.dtype, [&](auto act) {
      using T = decltype(act);
      with_width(wide, [&](auto w) {
        launch(queue_, scatter_add_kernel<T, w.value>, dim3(unsigned(x.rows), across), kAddThreads, 0,
               x.matrix<const T>(), sorted, s.y.matrix<float>(), overwrite && first == 0);
      });
    });
  }
  launched("scatter_add_rows");
}

}  // namespace cachalot::cuda
