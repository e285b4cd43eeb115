// A block takes row after row, those that all blocks take at a time side by side; of short rows several, each
// with threads of its own, a team. Three rows of a team are on their way into shared memory: the copy engine
// needs no registers. What the threads need of the row they work on they read from there once, so that its
// place can be asked for again at the barrier that makes the row's sum.
#include "backend/cuda/hopper/rmsnorm_rows.h"

#include "backend/cuda/convert.cuh"
#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/reduce.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kMostThreads = 896, kMostTeams = kMostThreads / 32;  // threads of eight numbers each
constexpr int kStages = 3;

struct Args {
  Matrix<const bf16> dy, x;
  Matrix<bf16> dx;
  const float *gain, *scales;
  float* sums;  // [blocks, cols]
};

// Bytes of global memory into shared memory, counted by `done`: a multiple of 16 between addresses that are.
__device__ inline void bring(uint4* to, const bf16* from, uint32_t bytes, Barrier* done) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(done))
      : "memory");
}

__device__ inline Eight unpack(const uint4& p) {
  return cuda::unpack(reinterpret_cast<const Packed<bf16>&>(p));
}

// Block (a team's threads, teams). A thread has eight numbers of a row.
__global__ void __launch_bounds__(kMostThreads, 1) rows_kernel(const __grid_constant__ Args a) {
  extern __shared__ uint4 ring[];  // [team][stage][x, dy][thread]
  __shared__ Barrier arrived[kMostTeams][kStages];
  __shared__ float parts[2][kMostTeams];  // of a row's sum, each warp's; two in turn
  const int team = int(threadIdx.y), threads = int(blockDim.x), warps = threads / 32,
            warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const bool leads = threadIdx.x == 0;
  if (leads) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) barrier_init(&arrived[team][s], 1);
    barrier_init_done();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  start();
  const int step = int(gridDim.x * blockDim.y), rows = int(a.x.rows);
  uint4* mine = ring + team * kStages * 2 * threads;
  const auto ask = [&](int t, int stage) {
    if (t >= rows) return;
    const uint32_t bytes = uint32_t(threads) * 16;
    Barrier* done = &arrived[team][stage];
    uint4* to = mine + stage * 2 * threads;
    arrive_expecting(done, 2 * bytes);
    bring(to, a.x.data + t * a.x.ld, bytes, done);
    bring(to + threads, a.dy.data + t * a.dy.ld, bytes, done);
  };
  int t = int(blockIdx.x * blockDim.y) + team;
  if (leads)
#pragma unroll
    for (int s = 0; s < kStages; ++s) ask(t + s * step, s);
  float next = t < rows ? a.scales[t] : 0.0f;
  const int begin = kEight * int(threadIdx.x);
  const Eight gain = load_eight<true>(a.gain, begin, a.x.cols);
  Eight sums = {};
  const float over = 1.0f / float(a.x.cols);
  Ring<kStages> at;
  for (int turn = 0; t < rows; t += step, turn = 1 - turn) {
    const float r = next;
    if (t + step < rows) next = a.scales[t + step];
    wait(&arrived[team][at.stage], at.parity);
    const uint4* from = mine + int(at.stage) * 2 * threads + threadIdx.x;
    Eight n = unpack(from[0]), dy = unpack(from[threads]);
    float dot = 0;  // of g dy and n
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      n.v[j] *= r;
      sums.v[j] = fmaf(dy.v[j], n.v[j], sums.v[j]);
      dy.v[j] *= gain.v[j];
      dot = fmaf(dy.v[j], n.v[j], dot);
    }
    dot = warp_sum(dot);
    if (warps > 1) {
      float* its = &parts[turn][team * warps];
      if (lane == 0) its[warp] = dot;
      meet(uint32_t(1 + team), uint32_t(threads));
      dot = warp_sum(lane < warps ? its[lane] : 0.0f);
    } else {
      __syncwarp();
    }
    if (leads) ask(t + kStages * step, int(at.stage));  // all have theirs in registers
    at.advance();
    const float mean = dot * over;
    Eight dx;
#pragma unroll
    for (int j = 0; j < kEight; ++j) dx.v[j] = r * fmaf(-mean, n.v[j], dy.v[j]);
    store_eight<true>(a.dx.data + t * a.dx.ld, begin, a.x.cols, dx);
  }
  float* to = a.sums + blockIdx.x * a.x.cols;
  if (blockDim.y == 1) return store_eight<true>(to, begin, a.x.cols, sums);
  __syncthreads();                                // the ring has been read
  auto* joined = reinterpret_cast<float*>(ring);  // [team, cols]
  const int cols = int(a.x.cols);
  store_eight<true>(joined + team * cols, begin, cols, sums);
  __syncthreads();
  for (int c = team * threads + int(threadIdx.x); c < cols; c += threads * int(blockDim.y)) {
    float sum = 0;
    for (int y = 0; y < int(blockDim.y); ++y) sum += joined[y * cols + c];
    to[c] = sum;
  }
}

}  // namespace

bool takes_rows(const RmsNormBackward& n) {
  return !n.residual && n.x.dtype == DType::bf16 && n.x.size() > 0 && n.x.rows < 1 << 30 &&
         n.x.cols % (32 * kEight) == 0 && n.x.cols <= kMostThreads * kEight &&
         are_wide({&n.x, &n.dy, &n.dx, &n.gain});
}

int64_t rmsnorm_rows(const Queue& queue, const RmsNormBackward& n, int64_t most, float* sums) {
  const int64_t rows = n.x.rows, cols = n.x.cols;
  const auto threads = unsigned(cols / kEight);
  const dim3 block(threads, kMostThreads / threads);
  // Of few turns none is short, so that there are fewer sums to join; else all multiprocessors take part.
  const int64_t turns = (rows + most * block.y - 1) / (most * block.y),
                blocks = turns > 4 ? most : (rows + turns * block.y - 1) / (turns * block.y);
  const size_t bytes = size_t(block.y) * size_t(cols) * sizeof(bf16) * 2 * kStages;
  launched(cudaFuncSetAttribute(rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
           "rmsnorm_backward: shared memory");
  launch(queue, rows_kernel, unsigned(blocks), block, bytes,
         Args{.dy = n.dy.matrix<const bf16>(),
              .x = n.x.matrix<const bf16>(),
              .dx = n.dx.matrix<bf16>(),
              .gain = n.gain.vector<const float>().data,
              .scales = n.r.vector<const float>().data,
              .sums = sums});
  return blocks;
}

}  // namespace cachalot::cuda::hopper
