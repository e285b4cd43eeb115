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

// Adding: a destination row belongs to the blocks of its first t's. Every block looks at all of rows[], up to
// kMostAtOnce at a time, for the t's that share its row: 16 to 32 KiB that stay in the first-level cache, so
// that nothing has to be sorted before.
constexpr int64_t kMostAtOnce = 8192;
constexpr int kAddThreads = 256, kAddWarps = kAddThreads / 32;
constexpr int kFour = 4;             // numbers of a thread, neighbours beside neighbours: whole sectors
constexpr int kFours = 2;            // of a thread in a slab of columns
constexpr int kAddParts = 2;         // slabs of a block
constexpr int kFew = 3, kMany = 16;  // times that a row comes
constexpr int64_t kAddSlab = int64_t(kFour) * kFours * kAddThreads;

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

// Stays in the first-level cache beside what streams by.
__device__ inline int32_t kept_index(const int32_t* p) {
  int32_t index;
  asm volatile("ld.global.nc.L1::evict_last.s32 %0, [%1];" : "=r"(index) : "l"(p));
  return index;
}

// Adds the listed rows to `span` columns of y from `begin` on, no more than a four a thread: some rows on
// their way at once, and more called into the cache.
template <bool wide, class T> __device__ inline void add_many(Matrix<const T> x, const uint16_t* list,
                                                              int count, float* out, int64_t begin,
                                                              int64_t span, bool fresh) {
  constexpr int kAtOnce = sizeof(T) == 2 ? 12 : 6, kCalled = 32;
  const int64_t column = begin + kFour * int64_t(threadIdx.x);
  if (column >= min(begin + span, x.cols)) return;
  const auto call = [&](int k) {  // its bytes with their neighbours'
    if (k < count && threadIdx.x % 16 == 0) call_in(x.data + int64_t(list[k]) * x.ld + column);
  };
  for (int k = kAtOnce; k < kCalled; ++k) call(k);
  float4 sum = {};
  if (!fresh) sum = load_four<wide>(out, column, x.cols);
  for (int first = 0; first < count; first += kAtOnce) {
    typename PackedFour<T>::Type batch[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < count)
        batch[k] = load_four<wide>(x.data + int64_t(list[first + k]) * x.ld, column, x.cols);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) call(first + kCalled + k);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < count) add_four(sum, batch[k]);
  }
  store_four<wide>(out, column, x.cols, sum);
}

// Block (t, kAddParts slabs of columns). A row that comes one to three times, as most do, is its first t's.
// Of a row that comes more often each of the first four t's takes a quarter of these columns, of one that
// comes very often each of the first sixteen its part. `fresh`: y holds zeros.
template <class T, bool wide> __global__ void __launch_bounds__(kAddThreads, wide && sizeof(T) == 2 ? 5 : 3)
    scatter_add_kernel(Matrix<const T> x, const int32_t* rows, Matrix<float> y, bool fresh, Faults faults) {
  using Packed4 = typename PackedFour<T>::Type;
  __shared__ uint32_t hits[kMostAtOnce / 32];
  __shared__ uint16_t list[kMostAtOnce];
  __shared__ int2 found[kAddWarps];
  start();
  const int64_t n = x.rows, d = x.cols, t = blockIdx.x, group = int64_t(blockIdx.y) * kAddParts;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int32_t row = rows[t];
  int before = 0, count = 0;
  const int all = int(n), mine = int(t);
#pragma unroll 8
  for (int i = int(threadIdx.x); i - lane < all; i += kAddThreads) {
    const unsigned its = __ballot_sync(kAll, i < all && kept_index(rows + i) == row);
    if (lane == 0) hits[i / 32] = its;
    if (its == 0) continue;               // most
    const int ahead = mine - (i - lane);  // of these 32
    before += __popc(ahead <= 0 ? 0 : ahead < 32 ? its & ((1u << ahead) - 1) : its);
    count += __popc(its);
  }
  if (row < 0 || !faults.fine(FaultOf::scatter_add_rows, row, y.rows)) return;
  if (lane == 0) found[warp] = {before, count};
  __syncthreads();
  before = count = 0;
#pragma unroll
  for (int w = 0; w < kAddWarps; ++w) before += found[w].x, count += found[w].y;
  const int owners = count <= kFew ? 1 : count < kMany ? kFew + 1 : kMany;
  if (before >= owners) return;
  if (count > 1) {  // the list of them, in order
    if (warp == 0) {
      int listed = 0;
      for (int64_t base = 0; base < (n + 31) / 32; base += 32) {
        uint32_t its = base + lane < (n + 31) / 32 ? hits[base + lane] : 0;
        int at = __popc(its);
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int other = __shfl_up_sync(kAll, at, step);
          if (lane >= step) at += other;
        }
        const int all = __shfl_sync(kAll, at, 31);
        for (at += listed - __popc(its); its; its &= its - 1)
          list[at++] = uint16_t(32 * (base + lane) + __ffs(int(its)) - 1);
        listed += all;
      }
    }
    __syncthreads();
  }
  float* out = y.data + row * y.ld;
  if (owners == 1) {
    constexpr int kOfRow = kAddParts * kFours;
    const auto column = [&](int i) {
      return group * kAddSlab + kFour * (int64_t(i) * kAddThreads + threadIdx.x);
    };
    float4 sums[kOfRow];
    Packed4 batch[kOfRow];
#pragma unroll
    for (int i = 0; i < kOfRow; ++i) {
      sums[i] = {}, batch[i] = {};
      if (column(i) >= d) continue;
      batch[i] = load_four<wide>(x.data + t * x.ld, column(i), d);
      if (!fresh) sums[i] = load_four<wide>(out, column(i), d);
    }
    for (int k = 1;; ++k) {
#pragma unroll
      for (int i = 0; i < kOfRow; ++i) add_four(sums[i], batch[i]);
      if (k >= count) break;
      const T* from = x.data + int64_t(list[k]) * x.ld;
#pragma unroll
      for (int i = 0; i < kOfRow; ++i)
        if (column(i) < d) batch[i] = load_four<wide>(from, column(i), d);
    }
#pragma unroll
    for (int i = 0; i < kOfRow; ++i)
      if (column(i) < d) store_four<wide>(out, column(i), d, sums[i]);
    return;
  }
  const int64_t span = kAddParts * kAddSlab / owners;
  add_many<wide>(x, list, count, out, group * kAddSlab + before * span, span, fresh);
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
  const auto across = unsigned((s.x.cols + kAddParts * kAddSlab - 1) / (kAddParts * kAddSlab));
  for (int64_t first = 0; first < s.x.rows; first += kMostAtOnce) {
    const Tensor x = s.x.slice_rows(first, std::min(kMostAtOnce, s.x.rows - first));
    with_act(x.dtype, [&](auto act) {
      using T = decltype(act);
      with_width(wide, [&](auto w) {
        launch(queue_, scatter_add_kernel<T, w.value>, dim3(unsigned(x.rows), across), kAddThreads, 0,
               x.matrix<const T>(), s.rows.vector<const int32_t>().data + first, s.y.matrix<float>(),
               overwrite && first == 0, faults_);
      });
    });
  }
  launched("scatter_add_rows");
}

}  // namespace cachalot::cuda
