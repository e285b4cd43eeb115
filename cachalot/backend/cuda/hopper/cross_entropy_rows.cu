// A row is read once, stays in the registers of a cluster while its sum is made, and is written once: 8 bytes
// a logit with the gradient, 4 without. Every block of a cluster holds a slice, 32 logits a thread; the next
// row is on its way into shared memory meanwhile, and a second block of the multiprocessor works while this
// one waits for the others of its cluster. Without the gradient nobody waits: blocks take slices, and a warp
// joins a row's.
//
// e = exp(x - its warp's largest) is made once. Of each slice the largest logit and the sum of its e are
// told, and joined in the order of the slices, so that all find the same bits, with the gradient and without:
//   gradient = e exp(warp's largest - largest) scale / sum, but for the target
// What the target's probability lacks to 1 is summed from the others, not subtracted, so that a confident
// model keeps its small gradients. A thread's sum is float, those of warps and blocks double.
#include "backend/cuda/hopper/cross_entropy_rows.h"

#include <algorithm>

#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/hopper/tma.cuh"
#include "backend/cuda/reduce.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kFours = 8;
constexpr int64_t kSlice = 4 * kThreads * kFours;  // logits of a block
constexpr int kMostBlocks = 8;                     // of a cluster
constexpr int kRing = kSlice * 4;                  // bytes
constexpr int kWarpPart = 4 * 32 * kFours;         // logits of a warp

struct Args {
  Matrix<float> logits;
  const int32_t* targets;
  float* loss;
  double scale;
  int slices;
  int64_t width;  // of a slice
  void* out;      // the gradient: f32 or bf16, rows out_ld apart
  int64_t out_ld;
  Faults faults;
};

// Of a slice. `at_target`: the target's logit, in the slice that holds it.
struct alignas(16) Found {
  float largest, at_target;
  double others;  // sum of exp(logit - largest) without the target's
};
struct RowEnd {  // gradient = exp(logit - largest) factor, but for the target
  float largest, factor, at_target;
  int real;
};

// What warps have found of a slice, two slices in turn.
struct OfWarps {
  float largest[2][kWarps];
  double others[2][kWarps];
  float at_target[2];
};
struct Shared {
  OfWarps warps;
  Barrier told[2], here[kWarps];
  Found mail[2][kMostBlocks];
  RowEnd end;
};

// its exp(from - to), nothing where there is nothing: no part of a row but -inf; NaN stays.
__device__ double under(double its, float from, float to) {
  return its == 0 ? 0.0 : its * double(expf(from - to));
}

// This thread's logits of a slice, of which each warp has kWarpPart side by side: four k begins at kWarpPart
// warp + 4 lane + 128 k. The copy engine brings a warp's part into shared memory ahead of time; only the warp
// waits for it, and asks for the next when all its lanes have theirs in registers.
struct OfThread {
  float4 x[kFours];
  float largest;  // of the warp
  bool holds_target;

  __device__ static int first() { return kWarpPart * (int(threadIdx.x) / 32) + 4 * (int(threadIdx.x) % 32); }
  __device__ static int length(const Args& a, int64_t begin) {
    return int(max(int64_t(0), min(a.width, a.logits.cols - begin)));
  }
  // One lane of the warp: its part of a slice.
  __device__ static void ask(const Args& a, int64_t row, int slice, float* ring, Barrier* here) {
    const int64_t begin = slice * a.width;
    const int at = kWarpPart * (int(threadIdx.x) / 32);
    const int bytes = 4 * max(0, min(kWarpPart, length(a, begin) - at));
    arrive_expecting(here, uint32_t(bytes));
    if (bytes > 0)
      load_bytes(a.logits.data + row * a.logits.ld + begin + at, here, ring + at, uint32_t(bytes));
  }
  __device__ void take(int n, const float* ring, Barrier* here, uint32_t parity) {
    wait(here, parity);
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      x[k] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (first() + 128 * k < n) x[k] = *reinterpret_cast<const float4*>(ring + first() + 128 * k);
    }
    __syncwarp();
  }
  // x = exp(x - largest), nothing for the target, which is at `here` of the slice.
  __device__ void exponentials(int64_t here, int n, OfWarps& warps, int turn) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    largest = -INFINITY;
#pragma unroll
    for (int k = 0; k < kFours; ++k)
      largest = fmaxf(largest, fmaxf(fmaxf(x[k].x, x[k].y), fmaxf(x[k].z, x[k].w)));
    largest = warp_max(largest);
    holds_target = here >= 0 && here < n && int(here) / kWarpPart == warp && int(here) / 4 % 32 == lane;
    if (holds_target) {
#pragma unroll
      for (int k = 0; k < kFours; ++k) {
        const auto leave = [&](float& logit, int j) {
          if (int(here) != first() + 128 * k + j) return;
          warps.at_target[turn] = logit;
          logit = -INFINITY;
        };
        leave(x[k].x, 0), leave(x[k].y, 1), leave(x[k].z, 2), leave(x[k].w, 3);
      }
    }
    const float shift = largest == -INFINITY ? 0.0f : largest;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      x[k] = {expf(x[k].x - shift), expf(x[k].y - shift), expf(x[k].z - shift), expf(x[k].w - shift)};
      sum += (x[k].x + x[k].y) + (x[k].z + x[k].w);
    }
    const double others = warp_sum(double(sum));
    if (lane == 0) warps.largest[turn][warp] = largest, warps.others[turn][warp] = others;
  }
};

// One warp: the warps of a slice, and the slices of a row, of which lane k has the k-th.
__device__ Found join_warps(const OfWarps& warps, int turn) {
  const int lane = int(threadIdx.x) % 32;
  const float its = lane < kWarps ? warps.largest[turn][lane] : -INFINITY, most = warp_max(its);
  const double all = warp_sum(under(lane < kWarps ? warps.others[turn][lane] : 0.0, its, most));
  return {most, warps.at_target[turn], all};
}
struct Joined {
  float largest;
  double others, distance, sum;  // of the target from the largest; exp(-distance) + others
  bool real;
  __device__ float loss() const {
    return !real ? 0.0f : float((distance == 0 ? log1p(others) : log(sum)) + distance);
  }
};
__device__ Joined join_slices(const Args& a, const Found& found, int32_t target) {
  const int lane = int(threadIdx.x) % 32;
  Joined j;
  j.largest = warp_max(lane < a.slices ? found.largest : -INFINITY);
  j.others = warp_sum(under(lane < a.slices ? found.others : 0.0, found.largest, j.largest));
  j.real = target >= 0 && a.faults.fine(FaultOf::cross_entropy, target, a.logits.cols);
  const float at_target = __shfl_sync(kAll, found.at_target, j.real ? int(target / a.width) : 0);
  j.distance = j.real ? double(j.largest) - double(at_target) : 0.0;
  j.sum = exp(-j.distance) + j.others;
  return j;
}

__global__ void __launch_bounds__(kThreads, 2) slices_kernel(const __grid_constant__ Args a, Found* found) {
  extern __shared__ __align__(128) float ring[];  // a slice
  __shared__ OfWarps warps;
  __shared__ Barrier here[kWarps];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  if (lane == 0) {
    barrier_init(&here[warp], 1);
    barrier_init_done();
    shared_writes_visible();
  }
  __syncwarp();
  start();
  const int64_t all = a.logits.rows * a.slices;
  int64_t i = blockIdx.x;
  uint32_t parity = 0;
  if (i < all && lane == 0) OfThread::ask(a, i / a.slices, int(i % a.slices), ring, &here[warp]);
  for (int turn = 0; i < all; i += gridDim.x, turn = 1 - turn, parity ^= 1) {
    const int64_t row = i / a.slices, begin = i % a.slices * a.width, next = i + gridDim.x;
    const int n = OfThread::length(a, begin);
    const int32_t target = a.targets[row];
    OfThread mine;
    mine.take(n, ring, &here[warp], parity);
    if (next < all && lane == 0) OfThread::ask(a, next / a.slices, int(next % a.slices), ring, &here[warp]);
    mine.exponentials(target - begin, n, warps, turn);
    __syncthreads();
    if (threadIdx.x < 32) {
      const Found its = join_warps(warps, turn);
      if (threadIdx.x == 0) found[i] = its;
    }
  }
}

// A warp a row.
__global__ void loss_kernel(const __grid_constant__ Args a, const Found* found) {
  start();
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= a.logits.rows) return;
  const int lane = int(threadIdx.x) % 32;
  const Joined j = join_slices(a, found[row * a.slices + min(lane, a.slices - 1)], a.targets[row]);
  if (lane == 0) a.loss[row] = j.loss();
}

__device__ void write_four(float* to, float a, float b, float c, float d) {
  __stcs(reinterpret_cast<float4*>(to), float4{a, b, c, d});
}
__device__ void write_four(bf16* to, float a, float b, float c, float d) {
  uint2 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed.x) : "f"(b), "f"(a));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed.y) : "f"(d), "f"(c));
  __stcs(reinterpret_cast<uint2*>(to), packed);
}

template <class To> __global__ void __launch_bounds__(kThreads, 2)
    gradient_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) float ring[];  // a slice
  __shared__ Shared s;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, rank = int(rank_in_cluster());
  if (threadIdx.x == 0) {
    for (Barrier& b : s.told) barrier_init(&b, 1);
    for (Barrier& b : s.here) barrier_init(&b, 1);
    barrier_init_done();
    shared_writes_visible();
  }
  __syncthreads();
  cluster_meet();
  start();

  const int64_t rows = a.logits.rows, step = gridDim.x / unsigned(a.slices), begin = rank * a.width;
  const int n = OfThread::length(a, begin), first = OfThread::first();
  int64_t row = blockIdx.x / unsigned(a.slices);
  if (row < rows && lane == 0) OfThread::ask(a, row, rank, ring, &s.here[warp]);
  int32_t next_target = row < rows ? a.targets[row] : 0;
  int turn = 0;
  uint32_t parity = 0, parity_here = 0;
  for (; row < rows; row += step, parity_here ^= 1) {
    OfThread mine;
    mine.take(n, ring, &s.here[warp], parity_here);
    const int32_t target = next_target;
    if (row + step < rows) {
      if (lane == 0) OfThread::ask(a, row + step, rank, ring, &s.here[warp]);
      next_target = a.targets[row + step];
    }
    mine.exponentials(target - begin, n, s.warps, turn);
    __syncthreads();
    if (threadIdx.x < 32) {
      const Found its = join_warps(s.warps, turn);
      if (a.slices > 1) {
        if (lane == 0) arrive_expecting(&s.told[turn], uint32_t(a.slices) * sizeof(Found));
        if (lane < a.slices)
          push(address_in(&s.mail[turn][rank], uint32_t(lane)), address_in(&s.told[turn], uint32_t(lane)),
               its.largest, its.at_target, __int_as_float(__double2loint(its.others)),
               __int_as_float(__double2hiint(its.others)));
        wait_cluster(&s.told[turn], parity);
      }
      const Joined j = join_slices(a, a.slices > 1 ? s.mail[turn][min(lane, a.slices - 1)] : its, target);
      if (lane == 0) {
        s.end = {.largest = j.largest,
                 .factor = float(a.scale / j.sum),
                 .at_target = float(-a.scale * (j.others / j.sum)),
                 .real = j.real};
        if (rank == int(row % a.slices)) a.loss[row] = j.loss();
      }
    }
    __syncthreads();
    const RowEnd end = s.end;
    const float factor = mine.largest == -INFINITY ? 0.0f : expf(mine.largest - end.largest) * end.factor;
    To* out = static_cast<To*>(a.out) + row * a.out_ld + begin + first;
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      if (first + 128 * k >= n) continue;
      const float4 x = mine.x[k];
      if (end.real) write_four(out + 128 * k, x.x * factor, x.y * factor, x.z * factor, x.w * factor);
      else write_four(out + 128 * k, 0, 0, 0, 0);
    }
    if (mine.holds_target && end.real) out[target - begin - first] = To(end.at_target);
    if (turn == 1) parity ^= 1;
    turn = 1 - turn;
  }
  cluster_meet();  // nobody leaves before all have been told
}

struct Launch {
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};

  Launch(const Queue& queue, int64_t clusters, int blocks) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = unsigned(blocks);
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(unsigned(clusters * blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kRing;
    config.stream = queue.stream;
    config.attrs = attributes;
    config.numAttrs = queue.overlap ? 2 : 1;
  }
  Launch(const Launch&) = delete;
};

}  // namespace

bool takes_rows(const CrossEntropy& e) {
  const auto in_fours = [](const Tensor& t) {
    return t.cols % 4 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows == 1 || t.ld % 4 == 0);
  };
  return e.logits.cols <= kMostBlocks * kSlice && in_fours(e.logits) && (!e.dlogits || in_fours(e.dlogits));
}

int64_t cross_entropy_workspace(const CrossEntropy& e) {
  return e.gradient ? 0 : e.logits.rows * kMostBlocks * int64_t(sizeof(Found));
}

void cross_entropy_rows(const Queue& queue, int multiprocessors, void* workspace, const CrossEntropy& e,
                        const Faults& faults) {
  const int64_t rows = e.logits.rows, cols = e.logits.cols;
  const Tensor& out = e.dlogits ? e.dlogits : e.logits;
  int slices = 1;
  while (slices * kSlice < cols) slices *= 2;
  const Args args{.logits = e.logits.matrix<float>(),
                  .targets = e.targets.vector<const int32_t>().data,
                  .loss = e.loss.vector<float>().data,
                  .scale = e.scale,
                  .slices = slices,
                  .width = (cols + 4 * slices - 1) / (4 * slices) * 4,
                  .out = out.data,
                  .out_ld = out.ld,
                  .faults = faults};
  const auto kernel = out.dtype == DType::bf16 ? gradient_kernel<bf16> : gradient_kernel<float>;
  cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRing);
  if (code == cudaSuccess && !e.gradient) {
    code = cudaFuncSetAttribute(slices_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRing);
    auto* found = static_cast<Found*>(workspace);
    const int64_t blocks = std::min<int64_t>(rows * slices, 2 * multiprocessors);
    launch(queue, slices_kernel, unsigned(blocks), kThreads, size_t(kRing), args, found);
    constexpr int kRowsABlock = 4;
    launch(queue, loss_kernel, unsigned((rows + kRowsABlock - 1) / kRowsABlock), 32 * kRowsABlock, 0, args,
           found);
    code = cudaGetLastError();
  } else {
    int room = 0;  // clusters at a time: multiprocessors come in groups that clusters do not span
    if (code == cudaSuccess) {
      const Launch probe(queue, 2 * multiprocessors / slices, slices);
      code = cudaOccupancyMaxActiveClusters(&room, kernel, &probe.config);
    }
    if (code == cudaSuccess) {
      const Launch all(queue, std::clamp<int64_t>(room, 1, rows), slices);
      code = cudaLaunchKernelEx(&all.config, kernel, args);
    }
  }
  launched(code, "cross_entropy");
}

}  // namespace cachalot::cuda::hopper
