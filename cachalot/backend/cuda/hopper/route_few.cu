// Contract: backend/ops/route.h, few rows and up to 64 experts. A cluster of 8 blocks owns up to four rows: in
// every block a warp a row normalises it, then a warp an expert, whose row of the router is in registers before the
// kernel before has ended, multiplies all of them; the logits are pushed to the first block, where a warp a row
// chooses. Registers for two blocks a multiprocessor: 128 rows run at a time. Sums in the order of norm_gemm.cu: the
// same bits.
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/gate.cuh"
#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/decoding.cuh"
#include "backend/cuda/hopper/decoding.h"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kWarps = 8, kCluster = kDecodingCluster, kExperts = kWarps * kCluster, kEach = kExperts / 32,
              kRowsACluster = 4;
constexpr int64_t kMostRows = 256;

// Grid: blocks of a cluster, groups of rows.
template <int pieces> __global__ void __launch_bounds__(32 * kWarps, 2)
    route_kernel(const __grid_constant__ NormGemm g, const GateArgs gate) {
  __shared__ float logits[kRowsACluster][kExperts];
  __shared__ Packed<bf16> normed[kRowsACluster][32 * pieces];
  __shared__ GateMemory<kEach> memory[kRowsACluster];
  __shared__ Barrier all;
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = int(blockIdx.x),
            expert = rank * kWarps + warp;
  const int64_t k = g.x.cols, begin = int64_t(blockIdx.y) * kRowsACluster;
  const int rows = int(min(int64_t(kRowsACluster), g.x.rows - begin));
  const bool real = expert < gate.experts;
  Packed<float> w[pieces], gain[pieces];
  float bias[kEach] = {};
  if (real) load_pieces(static_cast<const float*>(g.w.data) + expert * g.w.ld, k, w);
  if (warp < rows) load_pieces(static_cast<const float*>(g.gain.data), k, gain);
  if (rank == 0) load_few(gate.bias, kEach * lane, gate.experts, bias);
  if (rank == 0 && threadIdx.x == 0) {
    barrier_init(&all, 1);
    barrier_init_done();
    arrive_expecting(&all, uint32_t(rows * gate.experts * int(sizeof(float))));
  }
  __syncthreads();
  cluster_arrive_relaxed();
  wait_for_earlier();
  if (warp < rows) {  // a warp a row
    Packed<bf16> x[pieces];
    load_pieces(static_cast<const bf16*>(g.x.data) + (begin + warp) * g.x.ld, k, x);
    float r;
    normalise(x, gain, k, g.eps, r);
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      normed[warp][lane + 32 * p] = x[p];
      if (rank == kCluster - 1 && 8 * lane + kPieceStep * p < k)  // which has the fewest others to wait for
        store<true>(static_cast<bf16*>(g.y.data) + (begin + warp) * g.y.ld, 8 * lane + kPieceStep * p, k,
                    x[p]);
    }
  }
  __syncthreads();
  float sums[kRowsACluster] = {};
  if (real)
#pragma unroll
    for (int i = 0; i < kRowsACluster; ++i) {
      if (i >= rows) break;
      Packed<bf16> x[pieces];
#pragma unroll
      for (int p = 0; p < pieces; ++p) x[p] = normed[i][lane + 32 * p];
      sums[i] = dot(x, w);
    }
#pragma unroll
  for (int i = 0; i < kRowsACluster; ++i) sums[i] = warp_sum(sums[i]);
  cluster_wait();
  if (real && lane == 0)
#pragma unroll
    for (int i = 0; i < kRowsACluster; ++i)
      if (i < rows) push(address_in(&logits[i][expert], 0), address_in(&all, 0), sums[i]);
  if (rank > 0 || warp >= rows) return;
  wait_cluster(&all, 0);
  float score[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    score[i] = kEach * lane + i < gate.experts ? logits[warp][kEach * lane + i] : 0;
  gate_token<kEach>(gate, begin + warp, score, bias, memory[warp]);
}

}  // namespace

bool route_few(const Queue& queue, const Route& r, const Faults& faults) {
  const NormGemm& g = r.project;
  const GateForward& c = r.choose;
  const int64_t experts = c.logits.cols, in_group = experts / c.groups;
  if (g.x.rows > kMostRows || experts > kExperts || (in_group & (in_group - 1)) != 0 ||
      g.x.dtype != DType::bf16 || g.w.dtype != DType::f32 || g.x.cols > 4 * kPieceStep ||
      !are_wide({&g.x, &g.y, &g.gain, &g.w}) || c.weights.ld != c.weights.cols ||
      c.weights.dtype != DType::f32)
    return false;
  const GateArgs gate{.logits = nullptr,
                      .bias = static_cast<const float*>(c.bias.data),
                      .scores = nullptr,
                      .weights = static_cast<float*>(c.weights.data),
                      .indices = static_cast<int32_t*>(c.indices.data),
                      .counts = nullptr,
                      .tokens = g.x.rows,
                      .experts = int(experts),
                      .groups = int(c.groups),
                      .topk_groups = int(c.topk_groups),
                      .chosen = int(c.indices.cols),
                      .normalise = c.normalise,
                      .replay = false,
                      .count = false,
                      .scale = c.scale,
                      .faults = faults};
  launch_clusters(queue, "route", g.x.cols <= 2 * kPieceStep ? route_kernel<2> : route_kernel<4>,
                  dim3(kCluster, unsigned((g.x.rows + kRowsACluster - 1) / kRowsACluster)), 32 * kWarps, g,
                  gate);
  return true;
}

}  // namespace cachalot::cuda::hopper
