// Contract: backend/ops/rmsnorm.h. A row stays in the registers of its threads: forward moves x and y once,
// backward dy, x, residual and dx once. The gain's gradient sums the rows of a chunk in registers, then the
// chunks in order, in double; chunks are cut by the number of rows.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kParts = 4;           // eights of a row in the registers of a thread
constexpr int kMostThreads = 1024;  // forward: rows up to 32768
constexpr int kMostBackward = 448;  // backward holds more: rows up to 14336

// Threads for a row, as blockDim.x, and rows a block, as blockDim.y.
dim3 row_block(int64_t cols) {
  const int64_t threads = (eights(cols) + kParts - 1) / kParts;
  const auto x = unsigned((threads + 31) / 32 * 32);
  return dim3(x, std::max(1u, 128 / x));
}

// Where part i of this thread begins: neighbours read neighbours.
__device__ int64_t begin_of(int part) { return kEight * (int64_t(part) * blockDim.x + threadIdx.x); }

template <class T, bool wide> __global__ void __launch_bounds__(kMostThreads)
    forward_kernel(Matrix<const T> x, const float* gain, float eps, Matrix<T> y, float* scales) {
  __shared__ float scratch[kMostThreads / 32];
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

// x and dy of row t in the registers of its threads; zeros where there is none.
template <class T, bool wide> struct RowPair {
  Packed<T> x[kParts], dy[kParts];
  __device__ void load_row(const BackwardArgs<T>& a, int64_t t, int64_t end) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      x[i] = {}, dy[i] = {};
      if (t < end && begin_of(i) < a.x.cols) {
        x[i] = load<wide>(a.x.data + t * a.x.ld, begin_of(i), a.x.cols);
        dy[i] = load<wide>(a.dy.data + t * a.dy.ld, begin_of(i), a.x.cols);
      }
    }
  }
};

// A block takes a chunk of rows, blockDim.y at a time; sums of its blockDim.y rows are joined at the end. In
// bf16 the next rows are on their way while these are worked on; f32 has no registers left for that.
template <class T, bool wide> __global__ void __launch_bounds__(kMostBackward)
    backward_kernel(BackwardArgs<T> a) {
  __shared__ float scratch[2][kMostBackward / 32];
  extern __shared__ float joined[];  // [blockDim.y, blockDim.x * kParts * kEight] when blockDim.y > 1
  const int64_t d = a.x.cols;
  const int64_t begin = blockIdx.x * a.rows_a_chunk, end = min(begin + a.rows_a_chunk, a.x.rows);
  constexpr bool kAhead = sizeof(T) == 2;
  Eight sums[kParts] = {};
  RowPair<T, wide> row, next;
  if constexpr (kAhead) next.load_row(a, begin + threadIdx.y, end);
  int turn = 0;
  for (int64_t first = begin; first < end; first += blockDim.y, turn = 1 - turn) {
    const int64_t t = first + threadIdx.y;
    const bool real = t < end;
    Packed<T> residual[kParts];
    if constexpr (kAhead) {
      row = next;
      next.load_row(a, t + blockDim.y, end);
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        residual[i] = {};
        if (a.residual.data && real && begin_of(i) < d)
          residual[i] = load<wide>(a.residual.data + t * a.residual.ld, begin_of(i), d);
      }
    } else {
      row.load_row(a, t, end);
    }
    const float r = real ? a.scales[t] : 0.0f;
    float dot = 0;  // of g dy and n
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (begin_of(i) >= d) break;
      const Eight n = unpack(row.x[i]), z = unpack(row.dy[i]), g = load_eight<wide>(a.gain, begin_of(i), d);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const float product = z.v[j] * (n.v[j] * r);
        sums[i].v[j] += product;
        dot += g.v[j] * product;
      }
    }
    // Two rows of scratch in turn: the barrier inside separates this use from the one before the last.
    const float mean = row_sum(dot, scratch[turn]) / float(d);
    if (!real) continue;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int64_t at = begin_of(i);
      if (at >= d) break;
      const Eight n = unpack(row.x[i]), z = unpack(row.dy[i]), g = load_eight<wide>(a.gain, at, d);
      Eight out;
#pragma unroll
      for (int j = 0; j < kEight; ++j) out.v[j] = r * (g.v[j] * z.v[j] - n.v[j] * r * mean);
      if (a.residual.data) {
        if constexpr (!kAhead) residual[i] = load<wide>(a.residual.data + t * a.residual.ld, at, d);
        const Eight more = unpack(residual[i]);
#pragma unroll
        for (int j = 0; j < kEight; ++j) out.v[j] += more.v[j];
      }
      store_eight<wide>(a.dx.data + t * a.dx.ld, at, d, out);
    }
  }
  float* to = a.sums + blockIdx.x * d;
  if (blockDim.y > 1) {
    const int64_t width = int64_t(blockDim.x) * kParts * kEight;
#pragma unroll
    for (int i = 0; i < kParts; ++i)
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
  for (int i = 0; i < kParts; ++i)
    if (begin_of(i) < d) store_eight<wide>(to, begin_of(i), d, sums[i]);
}

// dgain[c] = or += the chunks in order. Block (32 columns, 16 ranges of chunks).
__global__ void join_chunks(const float* sums, int64_t chunks, int64_t cols, bool add, float* dgain) {
  __shared__ double parts[16][33];
  const int64_t c = int64_t(blockIdx.x) * 32 + threadIdx.x;
  const int64_t span = (chunks + 15) / 16, begin = threadIdx.y * span, end = min(begin + span, chunks);
  double sum = 0;
  if (c < cols) {
#pragma unroll 8
    for (int64_t k = begin; k < end; ++k) sum += double(sums[k * cols + c]);
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= cols) return;
  sum = add ? double(dgain[c]) : 0.0;
  for (int y = 0; y < 16; ++y) sum += parts[y][threadIdx.x];
  dgain[c] = float(sum);
}

}  // namespace

void CudaBackend::rmsnorm_forward(const RmsNormForward& n) {
  check(n);
  require_no_f64("rmsnorm_forward", {&n.x, &n.y});
  if (n.x.rows == 0) return;
  const dim3 block = row_block(n.x.cols);
  CHECK(block.x <= kMostThreads, "rmsnorm_forward: rows of up to 32768 on cuda, got " + n.x.describe());
  select();
  const unsigned blocks = unsigned((n.x.rows + block.y - 1) / block.y);
  with_act(n.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(are_wide({&n.x, &n.y, &n.gain}), [&](auto wide) {
      forward_kernel<T, wide.value>
          <<<blocks, block, 0, stream_>>>(n.x.matrix<const T>(), n.gain.vector<const float>().data,
                                          float(n.eps), n.y.matrix<T>(), n.r.vector<float>().data);
    });
  });
  launched("rmsnorm_forward");
}

void CudaBackend::rmsnorm_backward(const RmsNormBackward& n) {
  check(n);
  require_no_f64("rmsnorm_backward", {&n.x, &n.dx});
  const int64_t rows = n.x.rows, d = n.x.cols;
  const dim3 block = row_block(d);
  CHECK(block.x <= kMostBackward, "rmsnorm_backward: rows of up to 14336 on cuda, got " + n.x.describe());
  select();
  // About as many chunks of rows as blocks that are under way at once (16 warps a multiprocessor of 128).
  const int64_t most_chunks = 128 * std::max<int64_t>(1, 16 * 32 / (block.x * block.y));
  const int64_t rows_a_chunk = std::max<int64_t>((rows + most_chunks - 1) / most_chunks, block.y);
  const int64_t chunks = (rows + rows_a_chunk - 1) / rows_a_chunk;
  auto* sums = static_cast<float*>(workspace_);
  CHECK(chunks * d * 4 <= kWorkspace);
  const size_t joined = block.y > 1 ? sizeof(float) * block.x * block.y * kParts * kEight : 0;
  if (rows > 0)
    with_act(n.x.dtype, [&](auto act) {
      using T = decltype(act);
      BackwardArgs<T> args{.dy = n.dy.matrix<const T>(),
                           .x = n.x.matrix<const T>(),
                           .residual = n.residual ? n.residual.matrix<const T>() : Matrix<const T>{},
                           .dx = n.dx.matrix<T>(),
                           .gain = n.gain.vector<const float>().data,
                           .scales = n.r.vector<const float>().data,
                           .sums = sums,
                           .rows_a_chunk = rows_a_chunk};
      with_width(are_wide({&n.x, &n.dy, &n.residual, &n.dx, &n.gain}), [&](auto wide) {
        backward_kernel<T, wide.value><<<unsigned(chunks), block, joined, stream_>>>(args);
      });
    });
  join_chunks<<<unsigned((d + 31) / 32), dim3(32, 16), 0, stream_>>>(
      sums, chunks, d, n.accumulate_gain == Accumulate::add, n.dgain.vector<float>().data);
  launched("rmsnorm_backward");
}

}  // namespace cachalot::cuda
