// Contract: backend/ops/route.h, few rows and up to 64 experts. A cluster of 8 blocks owns up to four rows: a warp an
// expert, whose row of the router is in registers before the kernel before has ended; the logits are pushed to the
// first block, where a warp a row chooses. Sums in the order of norm_gemm.cu: the same bits.
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
template <int pieces> __global__ void __launch_bounds__(32 * kWarps)
    route_kernel(const __grid_constant__ NormGemm g, const GateArgs gate) {
  __shared__ float logits[kRowsACluster][kExperts];
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
  load_pieces(static_cast<const float*>(g.gain.data), k, gain);
  if (rank == 0) load_few(gate.bias, kEach * lane, gate.experts, bias);
  if (rank == 0 && threadIdx.x == 0) {
    barrier_init(&all, 1);
    barrier_init_done();
    arrive_expecting(&all, uint32_t(rows * gate.experts * int(sizeof(float))));
  }
  __syncthreads();
  cluster_arrive_relaxed();
  wait_for_earlier();
  const auto row = [&](int i) { return static_cast<const bf16*>(g.x.data) + (begin + i) * g.x.ld; };
  // The last row of warps has the fewest others to wait for: it writes y.
  const bool writes = rank == kCluster - 1 && warp == kWarps - 1;
  Packed<bf16> next[pieces];
  load_pieces(row(0), k, next);
  cluster_wait();
  for (int i = 0; i < rows; ++i) {
    Packed<bf16> x[pieces];
#pragma unroll
    for (int p = 0; p < pieces; ++p) x[p] = next[p];
    if (i + 1 < rows) load_pieces(row(i + 1), k, next);
    float r;
    normalise(x, gain, k, g.eps, r);
    if (real) {
      const float sum = warp_sum(dot(x, w));
      if (lane == 0) push(address_in(&logits[i][expert], 0), address_in(&all, 0), sum);
    }
    if (writes) {
#pragma unroll
      for (int p = 0; p < pieces; ++p)
        if (8 * lane + kPieceStep * p < k)
          store<true>(static_cast<bf16*>(g.y.data) + (begin + i) * g.y.ld, 8 * lane + kPieceStep * p, k,
                      x[p]);
    }
  }
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
