// Contract: backend/ops/rmsnorm.h. A row stays in the registers of its threads: forward moves x and y once,
// backward dy, x, residual and dx once, two rows on their way beside the one that is worked on, or, without a
// residual on Hopper, three (hopper/rmsnorm_rows.h). The gain's gradient sums the rows of a chunk in
// registers, then the chunks in order, in double; chunks are cut by the number of rows.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/rmsnorm_rows.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/limits.h"
#include "backend/cuda/quantize_rmsnorm.h"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kParts = 4;           // eights of a row in the registers of a thread
constexpr int kMostThreads = 1024;  // forward: rows up to 32768

// Threads for a row of `parts` eights each, as blockDim.x, and rows a block of about `most` threads, as
// blockDim.y.
dim3 row_block(int64_t cols, int parts, unsigned most) {
  const int64_t threads = std::max<int64_t>((eights(cols) + parts - 1) / parts, 1);
  const auto x = unsigned((threads + 31) / 32 * 32);
  return dim3(x, std::max(1u, most / x));
}

// Where part i of this thread begins: neighbours read neighbours.
__device__ int64_t begin_of(int part) { return kEight * (int64_t(part) * blockDim.x + threadIdx.x); }

template <class T, bool wide> __global__ void __launch_bounds__(kMostThreads)
    forward_kernel(Matrix<const T> x, const float* gain, float eps, Matrix<T> y, float* scales) {
  __shared__ float scratch[kMostThreads / 32];
  start();
  const int64_t t = int64_t(blockIdx.x) * blockDim.y + threadIdx.y, d = x.cols;
  const bool real = t < x.rows;  // others only take part in the barriers
  Packed<T> kept[kParts];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    kept[i] = {};
    if (real && begin_of(i) < d) kept[i] = load<wide>(x.data + t * x.ld, begin_of(i), d);
  }
  Packed<float> gains[kParts];  // on their way while the sum is made
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    gains[i] = {};
    if (begin_of(i) < d) gains[i] = load<wide>(gain, begin_of(i), d);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const Eight e = unpack(kept[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) sum += e.v[j] * e.v[j];
  }
  sum = row_sum(sum, scratch);
  if (!real) return;
  const float r = 1.0f / sqrtf(sum / float(d) + eps);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int64_t at = begin_of(i);
    if (at >= d) break;
    Eight e = unpack(kept[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) e.v[j] = gains[i].w[j] * (e.v[j] * r);
    store_eight<wide>(y.data + t * y.ld, at, d, e);
  }
  if (threadIdx.x == 0) scales[t] = r;
}

template <class T> struct BackwardArgs {
  Matrix<const T> dy, x, residual;
  Matrix<T> dx;
  const float *gain, *scales;
  float* sums;  // [chunks, cols]: of each chunk of rows, sum_t dy n
  int64_t rows_a_chunk;
};

constexpr int kMostBackward = 896;  // threads of an eight each, 7168 numbers, or of two

// The sum over the threads of a row; `scratch` as in row_sum. Two steps of shuffles: many warps. Rows wait
// for their own threads only (a row of one warp for none), so that one computes while another waits.
__device__ inline float wide_row_sum(float x, float* scratch) {
  x = warp_sum(x);
  const int warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  if (warps == 1) return x;
  float* mine = scratch + threadIdx.y * warps;
  if (lane == 0) mine[threadIdx.x / 32] = x;
  asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.y), "r"(blockDim.x) : "memory");
  return warp_sum(lane < warps ? mine[lane] : 0.0f);
}

// x and dy of a row in the registers of its threads, `each` eights apiece; zeros where there is none.
template <class T, bool wide, int each> struct RowPair {
  Packed<T> x[each], dy[each];
  float r;
  __device__ void load_row(const BackwardArgs<T>& a, int64_t t, int64_t end) {
    r = t < end ? a.scales[t] : 0.0f;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      x[i] = {}, dy[i] = {};
      if (t < end && begin_of(i) < a.x.cols) {
        x[i] = load<wide>(a.x.data + t * a.x.ld, begin_of(i), a.x.cols);
        dy[i] = load<wide>(a.dy.data + t * a.dy.ld, begin_of(i), a.x.cols);
      }
    }
  }
};

// A block takes a chunk of rows, blockDim.y at a time; sums of its blockDim.y rows are joined at the end.
template <class T, bool wide, int each, bool with_residual> __global__ void __launch_bounds__(kMostBackward)
    backward_kernel(const __grid_constant__ BackwardArgs<T> a) {
  __shared__ float scratch[2][kMostBackward / 32];
  extern __shared__ float joined[];  // [blockDim.y, blockDim.x * each * kEight] when blockDim.y > 1
  start();
  const int64_t d = a.x.cols, step = blockDim.y;
  const int64_t begin = blockIdx.x * a.rows_a_chunk, end = min(begin + a.rows_a_chunk, a.x.rows);
  // Rows under way beside the one that is worked on: as the registers allow.
  constexpr int kAhead = sizeof(T) == 2 && each == 1 ? 2 : sizeof(T) == 2 ? 1 : 0;
  RowPair<T, wide, each> rows[kAhead + 1];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) rows[k].load_row(a, begin + threadIdx.y + k * step, end);
  Eight sums[each] = {}, gain[each] = {};
#pragma unroll
  for (int i = 0; i < each; ++i)
    if (begin_of(i) < d) gain[i] = load_eight<wide>(a.gain, begin_of(i), d);
  int turn = 0;
  for (int64_t first = begin; first < end; first += step, turn = 1 - turn) {
    const int64_t t = first + threadIdx.y;
    const bool real = t < end;
    rows[kAhead].load_row(a, t + kAhead * step, end);
    Packed<T> residual[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      residual[i] = {};
      if (with_residual && real && begin_of(i) < d)
        residual[i] = load<wide>(a.residual.data + t * a.residual.ld, begin_of(i), d);
    }
    const RowPair<T, wide, each>& row = rows[0];
    const float r = row.r;
    float dot = 0;  // of g dy and n
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const Eight x = unpack(row.x[i]), dy = unpack(row.dy[i]);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const float product = dy.v[j] * x.v[j];
        sums[i].v[j] = fmaf(r, product, sums[i].v[j]);
        dot = fmaf(gain[i].v[j], product, dot);
      }
    }
    // Two rows of scratch in turn: the barrier inside separates this use from the one before the last.
    const float mean = wide_row_sum(r * dot, scratch[turn]) / float(d), along = r * r * mean;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int64_t at = begin_of(i);
      if (!real || at >= d) break;
      const Eight x = unpack(row.x[i]), dy = unpack(row.dy[i]), more = unpack(residual[i]);
      Eight out;
#pragma unroll
      for (int j = 0; j < kEight; ++j)
        out.v[j] = fmaf(r, gain[i].v[j] * dy.v[j], -along * x.v[j]) + (with_residual ? more.v[j] : -0.0f);
      store_eight<wide>(a.dx.data + t * a.dx.ld, at, d, out);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) rows[k] = rows[k + 1];
  }
  float* to = a.sums + blockIdx.x * d;
  if (blockDim.y > 1) {
    const int64_t width = int64_t(blockDim.x) * each * kEight;
#pragma unroll
    for (int i = 0; i < each; ++i)
#pragma unroll
      for (int j = 0; j < kEight; ++j) joined[threadIdx.y * width + begin_of(i) + j] = sums[i].v[j];
    __syncthreads();
    for (int64_t c = threadIdx.y * blockDim.x + threadIdx.x; c < d; c += blockDim.x * blockDim.y) {
      float sum = 0;
      for (int64_t y = 0; y < blockDim.y; ++y) sum += joined[y * width + c];
      to[c] = sum;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < each; ++i)
    if (begin_of(i) < d) store_eight<wide>(to, begin_of(i), d, sums[i]);
}

// As many chunks of rows as blocks run at once on a card of 132 multiprocessors, six for a thread: more threads
// with fewer each are done sooner.
constexpr int kMostChunks = 132, kRanges = 22, kOfRange = (kMostChunks + kRanges - 1) / kRanges;

// dgain[c] = or += the chunks in order. Block (32 columns, kRanges ranges of chunks).
__global__ void join_chunks(const float* sums, int chunks, int64_t cols, bool add, float* dgain) {
  start();
  __shared__ double parts[kRanges][33];
  const int64_t c = int64_t(blockIdx.x) * 32 + threadIdx.x;
  const int begin = int(threadIdx.y) * kOfRange;
  float its[kOfRange];
#pragma unroll
  for (int k = 0; k < kOfRange; ++k)
    its[k] = c < cols && begin + k < chunks ? sums[(begin + k) * cols + c] : 0.0f;
  double sum = 0;
#pragma unroll
  for (int k = 0; k < kOfRange; ++k) sum += double(its[k]);
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= cols) return;
  sum = add ? double(dgain[c]) : 0.0;
  for (int y = 0; y < kRanges; ++y) sum += parts[y][threadIdx.x];
  dgain[c] = float(sum);
}

// dx and the sums of chunks of rows; returns how many chunks there are.
int64_t portable_backward(const Queue& queue, const RmsNormBackward& n, float* sums) {
  const int64_t rows = n.x.rows, d = n.x.cols;
  if (rows == 0) return 0;
  const int each = eights(d) <= kMostBackward ? 1 : 2;
  const dim3 block = row_block(d, each, kMostBackward);
  const int64_t rows_a_chunk = std::max<int64_t>((rows + kMostChunks - 1) / kMostChunks, block.y);
  const int64_t chunks = (rows + rows_a_chunk - 1) / rows_a_chunk;
  const size_t joined = block.y > 1 ? sizeof(float) * block.x * block.y * size_t(each) * kEight : 0;
  with_act(n.x.dtype, [&](auto act) {
    using T = decltype(act);
    const BackwardArgs<T> args{.dy = n.dy.matrix<const T>(),
                               .x = n.x.matrix<const T>(),
                               .residual = n.residual ? n.residual.matrix<const T>() : Matrix<const T>{},
                               .dx = n.dx.matrix<T>(),
                               .gain = n.gain.vector<const float>().data,
                               .scales = n.r.vector<const float>().data,
                               .sums = sums,
                               .rows_a_chunk = rows_a_chunk};
    const auto run = [&](auto of_thread, auto residual, auto w) {
      const auto kernel = backward_kernel<T, w.value, of_thread.value, residual.value>;
      must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(joined)),
           "rmsnorm_backward");
      launch(queue, kernel, unsigned(chunks), block, joined, args);
    };
    with_width(are_wide({&n.x, &n.dy, &n.residual, &n.dx, &n.gain}), [&](auto w) {
      with_width(bool(n.residual), [&](auto residual) {
        if (each == 1) run(std::integral_constant<int, 1>{}, residual, w);
        else run(std::integral_constant<int, 2>{}, residual, w);
      });
    });
  });
  return chunks;
}

}  // namespace

void CudaBackend::rmsnorm_forward(const RmsNormForward& n) {
  check(n);
  require_no_f64("rmsnorm_forward", {&n.x, &n.y});
  if (n.x.rows == 0) return;
  const dim3 block = row_block(n.x.cols, kParts, 128);
  require_at_most("rmsnorm_forward", n.x.cols, int64_t(kMostThreads) * kParts * kEight, "numbers a row");
  select();
  if (n.quantized) return quantized_rmsnorm(queue_, context_->multiprocessors, n);
  const unsigned blocks = unsigned((n.x.rows + block.y - 1) / block.y);
  with_act(n.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(are_wide({&n.x, &n.y, &n.gain}), [&](auto wide) {
      launch(queue_, forward_kernel<T, wide.value>, blocks, block, 0, n.x.matrix<const T>(),
             n.gain.vector<const float>().data, float(n.eps), n.y.matrix<T>(), n.r.vector<float>().data);
    });
  });
  launched("rmsnorm_forward");
}

void CudaBackend::rmsnorm_backward(const RmsNormBackward& n) {
  check(n);
  require_no_f64("rmsnorm_backward", {&n.x, &n.dx});
  require_at_most("rmsnorm_backward", n.x.cols, 2 * int64_t(kMostBackward) * kEight, "numbers a row");
  CHECK(kMostChunks * n.x.cols * 4 <= kWorkspace);
  select();
  auto* sums = static_cast<float*>(workspace_);
  const int64_t chunks = kHopperProducts.runs_on(context_->major) && hopper::takes_rows(n)
                             ? hopper::rmsnorm_rows(queue_, n, kMostChunks, sums)
                             : portable_backward(queue_, n, sums);
  launch(queue_, join_chunks, unsigned((n.x.cols + 31) / 32), dim3(32, kRanges), 0, sums, int(chunks),
         n.x.cols, n.accumulate_gain == Accumulate::add, n.dgain.vector<float>().data);
  launched("rmsnorm_backward");
}

}  // namespace cachalot::cuda
