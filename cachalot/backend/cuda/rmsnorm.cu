// Contract: backend/ops/rmsnorm.h. A row stays in the registers of its threads: forward moves x and y once,
// backward dy, x, residual and dx once, and copies the rows that come next into shared memory meanwhile. The
// gain's gradient sums the rows of a chunk in registers, then the chunks in order, in double; chunks are cut by
// the number of rows.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
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
constexpr size_t kMostRing = 200 << 10, kMostRingAmpere = 160 << 10;  // bytes of shared memory

// The sum over the threads of a row; `scratch` as in row_sum. Two steps of shuffles: many warps. Rows wait for
// their own threads only (a row of one warp for none), so that one computes while another waits.
__device__ inline float wide_row_sum(float x, float* scratch) {
  x = warp_sum(x);
  const int warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  if (warps == 1) return x;
  float* mine = scratch + threadIdx.y * warps;
  if (lane == 0) mine[threadIdx.x / 32] = x;
  asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.y), "r"(blockDim.x) : "memory");
  return warp_sum(lane < warps ? mine[lane] : 0.0f);
}

// A thread's part of the rows of a block's chunk, copied by itself, for itself, into shared memory: the next row is
// on its way while one is worked on, and nobody waits for anybody else. `ahead` false: read where it lies.
template <class T, bool wide, int each, bool with_residual, bool ahead> struct Rows {
  enum Which { kX, kDy, kResidual };
  const T* next[3];  // of the row that is asked for next
  int64_t step[3];
  Packed<T>* ring;  // [2, tensors, each, threads]
  int threads;

  __device__ Packed<T>* place(int stage, int which, int i) const {
    return ring + ((stage * (with_residual ? 3 : 2) + which) * each + i) * threads;
  }
  __device__ void ask(int stage, bool real, const bool (&inside)[each]) {
#pragma unroll
    for (int k = 0; k < (with_residual ? 3 : 2); ++k) {
#pragma unroll
      for (int i = 0; i < each; ++i)
        if (ahead && real && inside[i]) copy_ahead(place(stage, k, i), next[k] + i * kEight * blockDim.x);
      next[k] += step[k];
    }
    if constexpr (ahead) asm volatile("cp.async.commit_group;" ::: "memory");
  }
  __device__ void wait_for_older() const {
    if constexpr (ahead) asm volatile("cp.async.wait_group 1;" ::: "memory");
  }
  // Of the row that was asked for before the last one.
  __device__ Packed<T> get(int stage, int which, int i, int64_t left) const {
    if constexpr (ahead) return *place(stage, which, i);
    else return load<wide>(next[which] - 2 * step[which] + i * kEight * blockDim.x, 0, left);
  }
  __device__ static void copy_ahead(Packed<T>* to, const T* from) {
#pragma unroll
    for (int k = 0; k < int(sizeof(Packed<T>)); k += 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       uint32_t(__cvta_generic_to_shared(reinterpret_cast<char*>(to) + k))),
                   "l"(reinterpret_cast<const char*>(from) + k)
                   : "memory");
  }
};

// A block takes a chunk of rows, blockDim.y at a time; sums of its blockDim.y rows are joined at the end.
template <class T, bool wide, int each, bool with_residual, bool ahead>
__global__ void __launch_bounds__(kMostBackward) backward_kernel(const __grid_constant__ BackwardArgs<T> a) {
  __shared__ float scratch[2][kMostBackward / 32];
  extern __shared__ __align__(16) uint8_t memory[];  // the ring; then what is joined
  start();
  const int64_t d = a.x.cols, step = blockDim.y, at = begin_of(0);
  const int64_t begin = blockIdx.x * a.rows_a_chunk, end = min(begin + a.rows_a_chunk, a.x.rows);
  int64_t t = begin + threadIdx.y;
  Rows<T, wide, each, with_residual, ahead> rows{
      {a.x.data + t * a.x.ld + at, a.dy.data + t * a.dy.ld + at, a.residual.data + t * a.residual.ld + at},
      {step * a.x.ld, step * a.dy.ld, step * a.residual.ld},
      reinterpret_cast<Packed<T>*>(memory) + threadIdx.y * blockDim.x + threadIdx.x,
      int(blockDim.x * blockDim.y)};
  bool inside[each];  // of the row's columns
#pragma unroll
  for (int i = 0; i < each; ++i) inside[i] = begin_of(i) < d;
  rows.ask(0, t < end, inside);
  T* out = a.dx.data + t * a.dx.ld + at;
  const auto scale_of = [&](int64_t row) { return row < end ? a.scales[row] : 0.0f; };
  float next_scale = scale_of(t);
  Eight sums[each] = {}, gain[each] = {};
#pragma unroll
  for (int i = 0; i < each; ++i)
    if (inside[i]) gain[i] = load_eight<wide>(a.gain, begin_of(i), d);
  for (int turn = 0; t < end; t += step, turn = 1 - turn) {
    rows.ask(1 - turn, t + step < end, inside);
    const float r = next_scale;
    next_scale = scale_of(t + step);
    rows.wait_for_older();
    float dot = 0;  // of g dy and n
#pragma unroll
    for (int i = 0; i < each; ++i) {
      if (!inside[i]) continue;
      const Eight x = unpack(rows.get(turn, rows.kX, i, d - begin_of(i))),
                  dy = unpack(rows.get(turn, rows.kDy, i, d - begin_of(i)));
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
      if (!inside[i]) continue;
      const Eight x = unpack(rows.get(turn, rows.kX, i, d - begin_of(i))),
                  dy = unpack(rows.get(turn, rows.kDy, i, d - begin_of(i)));
      Eight y;
#pragma unroll
      for (int j = 0; j < kEight; ++j) y.v[j] = fmaf(r, gain[i].v[j] * dy.v[j], -along * x.v[j]);
      if constexpr (with_residual) {
        const Eight more = unpack(rows.get(turn, rows.kResidual, i, d - begin_of(i)));
#pragma unroll
        for (int j = 0; j < kEight; ++j) y.v[j] += more.v[j];
      }
      store_eight<wide>(out + (begin_of(i) - at), 0, d - begin_of(i), y);
    }
    out += step * a.dx.ld;
  }
  float* to = a.sums + blockIdx.x * d;
  if (blockDim.y > 1) {
    auto* joined = reinterpret_cast<float*>(memory);  // [blockDim.y, blockDim.x * each * kEight]
    const int64_t width = int64_t(blockDim.x) * each * kEight;
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();  // the ring has been left by all
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

// dgain[c] = or += the chunks in order. Block (32 columns, 16 ranges of chunks).
__global__ void join_chunks(const float* sums, int64_t chunks, int64_t cols, bool add, float* dgain) {
  start();
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
  const dim3 block = row_block(n.x.cols, kParts, 128);
  CHECK(block.x <= kMostThreads, "rmsnorm_forward: rows of up to 32768 on cuda, got " + n.x.describe());
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
  const int64_t rows = n.x.rows, d = n.x.cols;
  const int each = eights(d) <= kMostBackward / 2 ? 1 : 2;  // two rows at once, or more, of up to 7168
  const dim3 block = row_block(d, each, kMostBackward);
  CHECK(block.x <= kMostBackward, "rmsnorm_backward: rows of up to 14336 on cuda, got " + n.x.describe());
  select();
  // As many chunks of rows as blocks run at once on a card of 132 multiprocessors.
  constexpr int64_t kMostChunks = 132;
  const int64_t rows_a_chunk = std::max<int64_t>((rows + kMostChunks - 1) / kMostChunks, block.y);
  const int64_t chunks = (rows + rows_a_chunk - 1) / rows_a_chunk;
  auto* sums = static_cast<float*>(workspace_);
  CHECK(chunks * d * 4 <= kWorkspace);
  const size_t joined = block.y > 1 ? sizeof(float) * block.x * block.y * size_t(each) * kEight : 0;
  if (rows > 0)
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
      const bool wide = are_wide({&n.x, &n.dy, &n.residual, &n.dx, &n.gain});
      const auto run = [&](auto of_thread, auto residual) {
        constexpr int kEach = of_thread.value;
        constexpr bool kResidual = residual.value;
        const size_t ring = sizeof(Packed<T>) * block.x * block.y * kEach * 2 * (kResidual ? 3 : 2);
        const size_t most = context_->major >= 9 ? kMostRing : kMostRingAmpere;
        const auto queue = [&](const auto kernel, size_t shared) {
          must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
               "rmsnorm_backward");
          launch(queue_, kernel, unsigned(chunks), block, shared, args);
        };
        if (wide && ring <= most) {
          queue(backward_kernel<T, true, kEach, kResidual, true>, std::max(ring, joined));
        } else {
          with_width(wide, [&](auto w) { queue(backward_kernel<T, w.value, kEach, kResidual, false>, joined); });
        }
      };
      with_width(bool(n.residual), [&](auto residual) {
        if (each == 1) run(std::integral_constant<int, 1>{}, residual);
        else run(std::integral_constant<int, 2>{}, residual);
      });
    });
  launch(queue_, join_chunks, unsigned((d + 31) / 32), dim3(32, 16), 0, sums, chunks, d,
         n.accumulate_gain == Accumulate::add, n.dgain.vector<float>().data);
  launched("rmsnorm_backward");
}

}  // namespace cachalot::cuda
