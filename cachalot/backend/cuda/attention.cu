// Contract: backend/ops/attention.h. The plain kernels take any format, alignment and head size up to
// kWidest; attention_mma.cu what the tensor cores take; hopper/ V3's head sizes on a card of that generation.
//
// Blocks of kRows queries against blocks of kRows keys with running maxima and sums (Milakov & Gimelshein,
// arXiv:1805.02867; Dao et al., arXiv:2205.14135). Blocks of keys are counted from the sequence's first key,
// so a query's bits do not depend on the queries beside it. The backward is two kernels, one over blocks of
// queries for dq and one over blocks of keys for dkv: every sum has one owner and one order, no atomics. The
// shares of dk_rope are kept a head and added in order of heads.
//
// Eight neighbouring threads own a row of the block: each every eighth column.
#include <algorithm>
#include <string>

#include "backend/cuda/attention.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/attention_hopper.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kRows = 32, kThreads = 256, kLanes = kThreads / kRows, kWidest = 256;
constexpr int kColumns = kWidest / kLanes, kScores = kRows / kLanes;

__device__ inline float sum_of_row(float x) {
  for (int step = 1; step < kLanes; step *= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
__device__ inline float largest_of_row(float x) {
  for (int step = 1; step < kLanes; step *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// Rows [row, row + count) of columns [col, col + cols) into shared memory, zeros behind them.
__device__ void load_block(const Tensor& t, int64_t row, int64_t count, int64_t col, int cols, float factor,
                           float* to, int ld) {
  for (int i = threadIdx.x; i < kRows * cols; i += kThreads) {
    const int r = i / cols, c = i % cols;
    to[r * ld + c] = r < count ? factor * load_number(t, row + r, col + c) : 0;
  }
}

__device__ void load_keys(const AttentionShape& a, const Tensor& kv, const Tensor& k_rope, int64_t row,
                          int64_t count, int64_t h, float* to, int ld) {
  load_block(kv, row, count, h * (a.nope + a.value), int(a.nope), 1, to, ld);
  load_block(k_rope, row, count, 0, int(a.rope), 1, to + a.nope, ld);
}

__device__ inline float dot(const float* a, const float* b, int n) {
  float even = 0, odd = 0;
  int i = 0;
  for (; i + 1 < n; i += 2) even = fmaf(a[i], b[i], even), odd = fmaf(a[i + 1], b[i + 1], odd);
  if (i < n) even = fmaf(a[i], b[i], even);
  return even + odd;
}

// out[j] += sum_c p[c] m[c][lane + 8 j] over the kRows rows of m.
__device__ inline void add_product(const float* p, const float* m, int ld, int cols, int lane,
                                   float (&out)[kColumns]) {
  for (int c = 0; c < kRows; ++c) {
    const float x = p[c];
    const float* row = m + c * ld + lane;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (lane + j * kLanes < cols) out[j] = fmaf(x, row[j * kLanes], out[j]);
  }
}

__device__ Piece shared_piece(const AttentionShape& shape, int64_t q_rows, int64_t k_rows, bool of_queries,
                              const Faults& faults, FaultOf op) {
  __shared__ Piece piece;
  if (threadIdx.x < 32) {
    const Piece found = find_piece(shape, q_rows, k_rows, of_queries, kRows, blockIdx.x, faults, op);
    if (threadIdx.x == 0) piece = found;
  }
  __syncthreads();
  return piece;
}

__global__ void __launch_bounds__(kThreads)
    forward(const __grid_constant__ AttentionForward a, const Faults faults) {
  extern __shared__ float memory[];
  const AttentionShape& shape = a.shape;
  const Piece s = shared_piece(shape, a.q.rows, a.kv.rows, true, faults, FaultOf::attention_forward);
  if (s.none) return;
  const int width = int(shape.nope + shape.rope), value = int(shape.value), ld = width + 1, v_ld = value + 1;
  float *q = memory, *k = q + kRows * ld, *v = k + kRows * ld, *p = v + kRows * v_ld;
  const int64_t h = blockIdx.y, n = min(int64_t(kRows), s.queries - s.first);
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t visible = s.visible(s.first + row);
  load_block(a.q, s.q + s.first, n, h * width, width, float(shape.scale), q, ld);
  float o[kColumns] = {}, largest = -INFINITY, sum = 0;
  for (int64_t key = 0; key < s.visible(s.first + n - 1); key += kRows) {
    __syncthreads();
    const int64_t keys = min(int64_t(kRows), s.keys - key);
    load_keys(shape, a.kv, a.k_rope, s.k + key, keys, h, k, ld);
    load_block(a.kv, s.k + key, keys, h * (shape.nope + value) + shape.nope, value, 1, v, v_ld);
    __syncthreads();
    float score[kScores], top = largest;
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const int c = lane + j * kLanes;
      score[j] = key + c < visible ? dot(q + row * ld, k + c * ld, width) : -INFINITY;
      top = fmaxf(top, score[j]);
    }
    top = largest_of_row(top);
    const float shrink = expf(largest - top);
    float part = 0;
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const float x = expf(score[j] - top);
      p[row * (kRows + 1) + lane + j * kLanes] = x;
      part += x;
    }
    sum = sum * shrink + sum_of_row(part);
    largest = top;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) o[j] *= shrink;
    __syncwarp();  // the eight threads of a row are in one warp
    add_product(p + row * (kRows + 1), v, v_ld, value, lane, o);
  }
  if (row >= n) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (lane + j * kLanes < value)
      store_number(a.o, s.q + s.first + row, h * value + lane + j * kLanes, o[j] / sum);
  if (lane == 0)
    static_cast<float*>(a.lse.data)[(s.q + s.first + row) * shape.heads + h] = largest + logf(sum);
}

// D_i = d_o_i . o_i, a warp a row and head.
__global__ void row_sums(const __grid_constant__ AttentionBackward a, float* d) {
  const int64_t heads = a.shape.heads, value = a.shape.value, rows = a.o.rows * heads;
  const int lane = threadIdx.x % 32;
  for (int64_t i = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / 32; i < rows;
       i += int64_t(gridDim.x) * blockDim.x / 32) {
    float sum = 0;
    for (int64_t c = lane; c < value; c += 32) {
      const int64_t col = i % heads * value + c;
      sum = fmaf(load_number(a.o, i / heads, col), load_number(a.d_o, i / heads, col), sum);
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) d[i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    backward_queries(const __grid_constant__ AttentionBackward a, const float* d, const Faults faults) {
  extern __shared__ float memory[];
  const AttentionShape& shape = a.shape;
  const Piece s = shared_piece(shape, a.q.rows, a.kv.rows, true, faults, FaultOf::attention_backward);
  if (s.none) return;
  const int width = int(shape.nope + shape.rope), value = int(shape.value), ld = width + 1, v_ld = value + 1;
  float *q = memory, *k = q + kRows * ld, *v = k + kRows * ld, *d_o = v + kRows * v_ld,
        *ds = d_o + kRows * v_ld;
  const int64_t h = blockIdx.y, n = min(int64_t(kRows), s.queries - s.first);
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t visible = row < n ? s.visible(s.first + row) : 0,
                at = (s.q + s.first + row) * shape.heads + h;
  const float lse = row < n ? static_cast<const float*>(a.lse.data)[at] : 0, mean = row < n ? d[at] : 0;
  load_block(a.q, s.q + s.first, n, h * width, width, float(shape.scale), q, ld);
  load_block(a.d_o, s.q + s.first, n, h * value, value, 1, d_o, v_ld);
  float dq[kColumns] = {};
  for (int64_t key = 0; key < s.visible(s.first + n - 1); key += kRows) {
    __syncthreads();
    const int64_t keys = min(int64_t(kRows), s.keys - key);
    load_keys(shape, a.kv, a.k_rope, s.k + key, keys, h, k, ld);
    load_block(a.kv, s.k + key, keys, h * (shape.nope + value) + shape.nope, value, 1, v, v_ld);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const int c = lane + j * kLanes;
      float x = 0;
      if (key + c < visible)
        x = expf(dot(q + row * ld, k + c * ld, width) - lse) *
            (dot(d_o + row * v_ld, v + c * v_ld, value) - mean);
      ds[row * (kRows + 1) + c] = x;
    }
    __syncwarp();
    add_product(ds + row * (kRows + 1), k, ld, width, lane, dq);
  }
  if (row >= n) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (lane + j * kLanes < width)
      store_number(a.dq, s.q + s.first + row, h * width + lane + j * kLanes, float(shape.scale) * dq[j]);
}

// blockIdx.y counts heads from first_head.
__global__ void __launch_bounds__(kThreads)
    backward_keys(const __grid_constant__ AttentionBackward a, const BackwardMemory buffers,
                  int64_t first_head, const Faults faults) {
  extern __shared__ float memory[];
  const AttentionShape& shape = a.shape;
  const Piece s = shared_piece(shape, a.q.rows, a.kv.rows, false, faults, FaultOf::attention_backward);
  if (s.none) return;
  const int width = int(shape.nope + shape.rope), value = int(shape.value), ld = width + 1, v_ld = value + 1;
  float *k = memory, *q = k + kRows * ld, *v = q + kRows * ld, *d_o = v + kRows * v_ld,
        *p = d_o + kRows * v_ld, *ds = p + kRows * (kRows + 1);
  const int64_t h = first_head + blockIdx.y, n = min(int64_t(kRows), s.keys - s.first);
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  load_keys(shape, a.kv, a.k_rope, s.k + s.first, n, h, k, ld);
  load_block(a.kv, s.k + s.first, n, h * (shape.nope + value) + shape.nope, value, 1, v, v_ld);
  float dk[kColumns] = {}, dv[kColumns] = {};
  // The first query that sees a key of this block, rounded down to a block of queries.
  const int64_t begin = max(int64_t(0), s.first - (s.keys - s.queries)) / kRows * kRows;
  for (int64_t first = begin; first < s.queries; first += kRows) {
    __syncthreads();
    const int64_t queries = min(int64_t(kRows), s.queries - first);
    load_block(a.q, s.q + first, queries, h * width, width, float(shape.scale), q, ld);
    load_block(a.d_o, s.q + first, queries, h * value, value, 1, d_o, v_ld);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const int c = lane + j * kLanes;
      float x = 0, dx = 0;
      if (c < queries && row < n && s.first + row < s.visible(first + c)) {
        const int64_t at = (s.q + first + c) * shape.heads + h;
        x = expf(dot(k + row * ld, q + c * ld, width) - static_cast<const float*>(a.lse.data)[at]);
        dx = x * (dot(v + row * v_ld, d_o + c * v_ld, value) - buffers.d[at]);
      }
      p[row * (kRows + 1) + c] = x;
      ds[row * (kRows + 1) + c] = dx;
    }
    __syncwarp();
    add_product(p + row * (kRows + 1), d_o, v_ld, value, lane, dv);
    add_product(ds + row * (kRows + 1), q, ld, width, lane, dk);  // q carries the scale
  }
  if (row >= n) return;
  const int64_t to = s.k + s.first + row, col = h * (shape.nope + value);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int c = lane + j * kLanes;
    if (c < shape.nope) store_number(a.dkv, to, col + c, dk[j]);
    else if (c < width)
      buffers.shares[(int64_t(blockIdx.y) * a.kv.rows + to) * shape.rope + c - shape.nope] = dk[j];
    if (c < value) store_number(a.dkv, to, col + shape.nope + c, dv[j]);
  }
}

// total (of the groups of heads before) + the shares of this group, in order of heads; the last group stores.
__global__ void add_shares(const float* shares, int64_t heads, float* total, bool first, bool last,
                           const __grid_constant__ Tensor dk_rope) {
  const int64_t n = dk_rope.rows * dk_rope.cols;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    float sum = first ? 0 : total[i];
    for (int64_t h = 0; h < heads; ++h) sum += shares[h * n + i];
    if (last) store_number(dk_rope, i / dk_rope.cols, i % dk_rope.cols, sum);
    else total[i] = sum;
  }
}

// Zeros in the rows that no sequence has: those before the first one's and behind the last one's. Runs after
// add_shares, whose sums there are of nothing. Block (rows, tensors); where every row has a sequence, as in
// training, nothing is touched.
struct Gradients {
  Tensor of[3];              // dq, dkv, dk_rope
  const int32_t* starts[3];  // [sequences + 1]
};
constexpr unsigned kClearBlocks = 64;
__global__ void clear_rows(const __grid_constant__ Gradients a, int64_t sequences) {
  start();
  const Tensor& t = a.of[blockIdx.y];
  const int64_t first = min(max(int64_t(a.starts[blockIdx.y][0]), int64_t(0)), t.rows),
                end = min(max(int64_t(a.starts[blockIdx.y][sequences]), int64_t(0)), t.rows);
  for (int64_t i = blockIdx.x; i < first + t.rows - end; i += gridDim.x)
    for (int64_t c = threadIdx.x; c < t.cols; c += blockDim.x)
      store_number(t, i < first ? i : end + i - first, c, 0);
}

unsigned blocks_for(int64_t n) { return unsigned(std::clamp<int64_t>((n + 255) / 256, 1, 2048)); }

void require_narrow(const AttentionShape& shape) {
  if (shape.nope + shape.rope <= kWidest && shape.value <= kWidest) return;
  throw Error("attention on CUDA: heads of " + std::to_string(shape.nope + shape.rope) + " and " +
              std::to_string(shape.value) + " numbers; the kernels take up to " + std::to_string(kWidest))
      .hint("use the device cpu for this model");
}

template <class Kernel> void allow_memory(Kernel* kernel, int64_t bytes) {
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
       "attention: shared memory");
}

void portable_forward(const AttentionCall& call, const AttentionForward& a) {
  const AttentionShape& shape = a.shape;
  if (mma_takes(a)) return mma_forward(call, a);
  require_narrow(shape);
  const int64_t bytes = 4 * kRows * (2 * (shape.nope + shape.rope + 1) + shape.value + 1 + kRows + 1);
  allow_memory(forward, bytes);
  const dim3 grid(unsigned(a.q.rows / kRows + shape.sequences), unsigned(shape.heads));
  forward<<<grid, kThreads, size_t(bytes), call.stream>>>(a, call.faults);
  launched("attention_forward");
}

void portable_backward(const AttentionCall& call, const AttentionBackward& a, uint8_t* memory,
                       int64_t bytes_there) {
  const AttentionShape& shape = a.shape;
  const bool mma = mma_takes(a);
  if (!mma) require_narrow(shape);
  const auto rounded = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const int64_t share = a.kv.rows * shape.rope;  // numbers of one head's share of dk_rope
  const int64_t fixed = rounded(4 * a.q.rows * shape.heads) + rounded(4 * share);
  const int64_t group = share == 0 ? shape.heads : std::min(shape.heads, (bytes_there - fixed) / (4 * share));
  if (group < 1)
    throw Error("attention on CUDA: " + std::to_string(a.kv.rows) +
                " keys at once are more than the backward's " + "workspace takes")
        .hint("lower --train.micro_batch or --train.seq_len");
  const BackwardMemory buffers{.d = reinterpret_cast<float*>(memory),
                               .shares = reinterpret_cast<float*>(memory + fixed)};
  float* total = reinterpret_cast<float*>(memory + rounded(4 * a.q.rows * shape.heads));
  const int64_t width = shape.nope + shape.rope;
  const int64_t bytes = 4 * kRows * (2 * (width + 1) + 2 * (shape.value + 1) + 2 * (kRows + 1));

  if (a.q.rows > 0) {
    row_sums<<<blocks_for(32 * a.q.rows * shape.heads), 256, 0, call.stream>>>(a, buffers.d);
    launched("attention_backward: row sums");
  }
  if (a.q.rows > 0 && shape.sequences > 0) {
    if (mma) {
      mma_backward_queries(call, a, buffers);
    } else {
      allow_memory(backward_queries, bytes);
      const dim3 grid(unsigned(a.q.rows / kRows + shape.sequences), unsigned(shape.heads));
      backward_queries<<<grid, kThreads, size_t(bytes), call.stream>>>(a, buffers.d, call.faults);
      launched("attention_backward: dq");
    }
  }
  for (int64_t first = 0; first < shape.heads && a.kv.rows > 0; first += group) {
    const int64_t count = std::min(group, shape.heads - first);
    if (shape.sequences > 0) {
      if (mma) {
        mma_backward_keys(call, a, buffers, first, count);
      } else {
        allow_memory(backward_keys, bytes);
        const dim3 grid(unsigned(a.kv.rows / kRows + shape.sequences), unsigned(count));
        backward_keys<<<grid, kThreads, size_t(bytes), call.stream>>>(a, buffers, first, call.faults);
        launched("attention_backward: dkv");
      }
    }
    if (share > 0) {
      add_shares<<<blocks_for(share), 256, 0, call.stream>>>(buffers.shares, count, total, first == 0,
                                                             first + count == shape.heads, a.dk_rope);
      launched("attention_backward: dk_rope");
    }
  }
}

}  // namespace

void CudaBackend::attention_forward(const AttentionForward& a) {
  check(a);
  require_no_f64("attention_forward", {&a.q, &a.o});
  select();
  if (a.q.rows == 0 || a.shape.sequences == 0) return;
  if (kHopperAttention.runs_on(context_->major) &&
      hopper::attention_forward({.stream = stream_,
                                 .multiprocessors = context_->multiprocessors,
                                 .faults = faults_,
                                 .ticket = counters_},
                                a))
    return;
  portable_forward({stream_, faults_}, a);
}

void CudaBackend::attention_backward(const AttentionBackward& a) {
  check(a);
  require_no_f64("attention_backward", {&a.q, &a.dq});
  select();
  const bool done = kHopperAttention.runs_on(context_->major) &&
                    hopper::attention_backward({.stream = stream_,
                                                .multiprocessors = context_->multiprocessors,
                                                .faults = faults_,
                                                .ticket = counters_},
                                               a, workspace_, kWorkspace);
  if (!done) portable_backward({stream_, faults_}, a, static_cast<uint8_t*>(workspace_), kWorkspace);
  const auto* q_starts = static_cast<const int32_t*>(a.shape.q_starts.data);
  const auto* k_starts = static_cast<const int32_t*>(a.shape.k_starts.data);
  launch(queue_, clear_rows, dim3(kClearBlocks, 3), 256, 0,
         Gradients{.of = {a.dq, a.dkv, a.dk_rope}, .starts = {q_starts, k_starts, k_starts}},
         a.shape.sequences);
  launched("attention_backward: rows of no sequence");
}

}  // namespace cachalot::cuda
