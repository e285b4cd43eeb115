// Contract: backend/ops/latent_query.h, few rows of V3's heads (128 + 64 numbers, latents of 512).
//
// A cluster of 8 blocks owns one head of one token. Block r makes 16 of the head's 128 plain numbers and 8 of its 64
// rotary ones, a warp three rows of W; the plain ones are pushed into all eight shared memories, and then block r
// makes columns 64 r ... of the query in the latent. Both slices of the weights, 24 KB and 16 KB a block, are in
// registers before the kernel before has ended. One more block a token appends to the cache. Sums in the order of
// norm_gemm.cu and skinny_products.cu: the same bits.
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/decoding.cuh"
#include "backend/cuda/hopper/decoding.h"
#include "backend/cuda/latent_append.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kThreads = 256, kWarps = 8, kCluster = kDecodingCluster, kPlain = 128, kRotary = 64,
              kLatent = 512, kPieces = 2;
constexpr int kHead = kPlain + kRotary, kMyPlain = kPlain / kCluster, kMyRotary = kRotary / kCluster,
              kRows = (kMyPlain + kMyRotary) / kWarps;
constexpr int kColumns = kLatent / kCluster, kParts = kColumns / kEight, kGroups = kThreads / kParts,
              kTimes = kPlain / kGroups;
constexpr int64_t kMostRows = 4, kMostHeads = 16;
static_assert(kThreads == kAppendThreads && kRows == 3 && kTimes == 4);

// Grid: blocks of a cluster; heads, then the one that appends; tokens.
__global__ void __launch_bounds__(kThreads)
    query_kernel(const __grid_constant__ LatentQuery q, const Faults faults) {
  __shared__ float plain[kPlain];
  __shared__ float sums[kWarps][kColumns];
  __shared__ Barrier all;
  let_next_start();
  const int rank = int(blockIdx.x), head = int(blockIdx.y), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t t = blockIdx.z, k = q.project.x.cols;
  if (head == int(q.append.heads)) {
    if (rank == 0) append_row(q.append, faults, t);
    return;
  }
  // Row i of the warp: its number among the head's. The lower warps have a rotary pair and a plain one each.
  const bool turns = warp < 4;
  const auto number = [&](int i) {
    if (turns) return i < 2 ? kPlain + kMyRotary * rank + 2 * warp + i : kMyPlain * rank + warp;
    return kMyPlain * rank + 4 + 3 * (warp - 4) + i;
  };
  const auto* rows = static_cast<const bf16*>(q.project.w.data) + int64_t(head) * kHead * q.project.w.ld;
  Packed<bf16> w[kRows][kPieces], slab[kTimes];
#pragma unroll
  for (int i = 0; i < kRows; ++i) load_pieces(rows + number(i) * q.project.w.ld, k, w[i]);
  Packed<float> gain[kPieces];
  load_pieces(static_cast<const float*>(q.project.gain.data), k, gain);
  const int part = threadIdx.x % kParts, group = threadIdx.x / kParts;
  const auto* absorbing = static_cast<const bf16*>(q.absorb.w.data) +
                          (q.absorb.w_first + head * q.absorb.w_stride) * q.absorb.w.ld + kColumns * rank +
                          kEight * part;
#pragma unroll
  for (int i = 0; i < kTimes; ++i)
    slab[i] = load<true>(absorbing + (group + kGroups * i) * q.absorb.w.ld, 0, kEight);
  if (threadIdx.x == 0) {
    barrier_init(&all, 1);
    barrier_init_done();
    arrive_expecting(&all, kPlain * sizeof(float));
  }
  __syncthreads();
  cluster_arrive_relaxed();
  wait_for_earlier();
  const int64_t position = static_cast<const int32_t*>(q.append.positions.data)[t];
  Packed<bf16> x[kPieces];
  load_pieces(static_cast<const bf16*>(q.project.x.data) + t * q.project.x.ld, k, x);
  const bool fine = !turns || faults.fine(FaultOf::rope, position, q.append.cos.rows);
  const Turn turn(q.append, turns && fine ? position : 0, kMyRotary / 2 * rank + warp % 4);
  float r;
  normalise(x, gain, k, q.project.eps, r);
  float made[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) made[i] = dot(x, w[i]);
#pragma unroll
  for (int i = 0; i < kRows; ++i) made[i] = float(bf16(warp_sum(made[i])));
  cluster_wait();  // everybody's barrier is there
  if (lane < kRows * kCluster) {
    const int i = lane / kCluster, to = lane % kCluster;
    if (!turns || i == 2)
      push(address_in(plain + number(i), uint32_t(to)), address_in(&all, uint32_t(to)),
           i == 0   ? made[0]
           : i == 1 ? made[1]
                    : made[2]);
  }
  if (turns && lane == 0 && fine) {
    turn(made[0], made[1]);
    bf16* to = static_cast<bf16*>(q.append.q.data) + t * q.append.q.ld + head * q.append.q_stride +
               q.append.q_offset + kMyRotary * rank + 2 * warp;
    to[0] = bf16(made[0]), to[1] = bf16(made[1]);
  }
  wait_cluster(&all, 0);
  float sum[kEight] = {};
#pragma unroll
  for (int i = 0; i < kTimes; ++i) {
    const float by = plain[group + kGroups * i];
    const Eight y = unpack(slab[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) sum[j] = fmaf(by, y.v[j], sum[j]);
  }
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    sum[j] += __shfl_xor_sync(kAll, sum[j], 8);
    sum[j] += __shfl_xor_sync(kAll, sum[j], 16);
    if (lane < kParts) sums[warp][kEight * part + j] = sum[j];
  }
  __syncthreads();
  if (threadIdx.x >= kColumns) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += sums[i][threadIdx.x];
  static_cast<bf16*>(
      q.absorb.y.data)[t * q.absorb.y.ld + head * q.absorb.y_stride + kColumns * rank + threadIdx.x] =
      bf16(total);
}

bool fits(const LatentQuery& q) {
  const NormGemm& p = q.project;
  const LatentAppend& a = q.append;
  const HeadGemm& h = q.absorb;
  const auto wide = [](const Tensor& t) { return t.dtype == DType::bf16 && is_wide(t); };
  return p.x.rows <= kMostRows && a.heads <= kMostHeads && p.x.cols <= kPieces * kPieceStep && wide(p.x) &&
         wide(p.w) && is_wide(p.gain) && wide(h.w) && p.c.dtype == DType::bf16 && h.y.dtype == DType::bf16 &&
         a.latent == kLatent && a.rope == kRotary && h.w.cols == kLatent && h.w_rows == kPlain &&
         a.q_offset == kPlain && a.q_stride == kHead && p.w.rows == a.heads * kHead;
}

}  // namespace

bool query_few(const Queue& queue, const LatentQuery& q, const Faults& faults) {
  if (!fits(q)) return false;
  launch_clusters(queue, "latent_query", query_kernel,
                  dim3(kCluster, unsigned(q.append.heads + 1), unsigned(q.project.x.rows)), kThreads, q,
                  faults);
  return true;
}

}  // namespace cachalot::cuda::hopper
