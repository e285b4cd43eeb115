// The forward of backend/ops/attention.h on Hopper: o = softmax(scale q k^T) v, causal, and its log-sum-exp.
//
//   FLOPs  2 H (192 + 128) a visible pair: S^2 H 320 for S queries on S keys.
//   Bytes  q, o 640 H T and kv, k_rope 512 H R + 128 R once: at S = 4096, H = 128 a tenth of the time. From
//          the second-level cache keys and values come once for every 128 queries.
//   Exponentials  one a pair beside 320 multiply-adds. A multiprocessor makes 16 of them a cycle, and 2,048
//          multiply-adds: they take 40 % of the time of the products, and must run beside them, not between.
//
// A block of the grid has three warpgroups. One block fills a multiprocessor, and draws tiles of 128 queries
// of one head until there are none.
//   copies    one warp; fetches the next tile and asks the copy engine for queries, keys and values, two
//             buffers of 128 keys ahead. Gives its registers to the others.
//   products  two warpgroups of 64 queries each. Scores S = q k^T (64 x 128, K = 192, from shared memory)
//             come out in registers as the left operand of the next product wants them: rounded to bf16 they
//             multiply v where they are. o (64 x 128) stays in registers over all keys.
//
//   Warpgroup 0:  [S_1 | P_0 V_0] softmax_1      [S_2 | P_1 V_1] softmax_2 ...
//   Warpgroup 1:       softmax_0      [S_1 | P_0 V_0] softmax_1      [S_2 | ...
// Named barriers give the tensor cores to one warpgroup at a time: while it multiplies, the other makes
// exponentials. Within a turn the next scores are queued before this block's values, so that a softmax begins
// while the values still multiply. (The idea is FlashAttention-3's, arXiv:2407.08608.)
//
// Softmax keeps a reference a row (see Softmax) and powers of two; sums are float. Keys are taken from the
// last block that a query sees to the first, blocks counted from the sequence's first key: a query's bits
// depend on nothing but its own row and keys.
//
// A tile may read rows behind its sequence's end. Such scores are masked, such values cleared, such queries
// not stored.
#include "backend/cuda/hopper/attention_launch.h"

namespace cachalot::cuda::hopper {

namespace {

template <int Keys, int KStages, int VStages> struct ForwardCut {
  static constexpr int kRows = 128;  // queries of a tile, 64 for each of two warpgroups
  static constexpr int kKeys = Keys, kKStages = KStages, kVStages = VStages, kThreads = 384;
  static constexpr int kCopyRegisters = 40, kMathRegisters = 232;
  static_assert(Keys % 16 == 0);
};

template <class Cut> struct ForwardShared {
  alignas(1024) uint8_t q[kWide / kBox][Cut::kRows * 128];
  alignas(1024) uint8_t k[Cut::kKStages][kWide / kBox][Cut::kKeys * 128];
  alignas(1024) uint8_t v[Cut::kVStages][kValue / kBox][Cut::kKeys * 128];
  Barrier q_full, q_empty, k_full[Cut::kKStages], k_empty[Cut::kKStages], v_full[Cut::kVStages],
      v_empty[Cut::kVStages], tile_full[2], tile_empty[2];
  AttentionTile tile[2];
};

struct ForwardArguments {
  Sequences sequences;
  int32_t heads;
  float scale;
  bf16* o;
  int64_t o_ld;
  float* lse;  // [T, heads]
  uint32_t* ticket;
};

// One warp fetches the tiles of work and asks for the copies. Longest first inside a head; all blocks work on
// neighbouring heads, whose keys stay in the second-level cache.
template <class Cut> __device__ inline void forward_copies(ForwardShared<Cut>& shared,
                                                           const ForwardArguments& a, const TensorMap* q_map,
                                                           const TensorMap* kv_map,
                                                           const TensorMap* rope_map) {
  const bool leader = threadIdx.x % 32 == 0;
  const int32_t tiles = count_tiles(a.sequences, true, Cut::kRows), total = tiles * a.heads;
  Ring<2> slot;
  Ring<Cut::kKStages> k;
  Ring<Cut::kVStages> v;
  for (uint32_t round = 0;; ++round) {
    uint32_t ticket = 0;
    if (leader) ticket = atomicAdd(a.ticket, 1);
    ticket = __shfl_sync(~0u, ticket, 0);
    // Each block draws one ticket too many; the last of them leaves the counter as it was.
    if (leader && ticket == uint32_t(total) + gridDim.x - 1) *a.ticket = 0;
    AttentionTile t;
    t.head = -1;
    if (ticket < uint32_t(total))
      t = find_tile(a.sequences, true, Cut::kRows, tiles - 1 - int32_t(ticket % uint32_t(tiles)),
                    int32_t(ticket / uint32_t(tiles)));
    if (leader) {
      wait(&shared.tile_empty[slot.stage], slot.parity ^ 1);
      shared.tile[slot.stage] = t;
      arrive(&shared.tile_full[slot.stage]);
    }
    slot.advance();
    if (t.head < 0) return;
    if (leader) {
      wait(&shared.q_empty, ~round & 1);
      arrive_expecting(&shared.q_full, sizeof shared.q);
      for (int box = 0; box < kWide / kBox; ++box)
        load(q_map, &shared.q_full, shared.q[box], t.head * kWide + box * kBox, t.q + t.first);
      const int32_t end = t.visible(min(t.first + Cut::kRows, t.queries) - 1);
      for (int32_t block = (end - 1) / Cut::kKeys; block >= 0; --block) {
        const int32_t row = t.k + block * Cut::kKeys, col = t.head * (kNope + kValue);
        wait(&shared.k_empty[k.stage], k.parity ^ 1);
        Barrier* full = &shared.k_full[k.stage];
        arrive_expecting(full, sizeof shared.k[0]);
        load(kv_map, full, shared.k[k.stage][0], col, row);
        load(kv_map, full, shared.k[k.stage][1], col + kBox, row);
        load(rope_map, full, shared.k[k.stage][2], 0, row);
        k.advance();
        wait(&shared.v_empty[v.stage], v.parity ^ 1);
        full = &shared.v_full[v.stage];
        arrive_expecting(full, sizeof shared.v[0]);
        load(kv_map, full, shared.v[v.stage][0], col + kNope, row);
        load(kv_map, full, shared.v[v.stage][1], col + kNope + kBox, row);
        v.advance();
      }
    }
    __syncwarp();
  }
}

// The running softmax of the two rows that a thread holds (Milakov & Gimelshein, arXiv:1805.02867).
template <int Keys> struct Softmax {
  // What probabilities are relative to: a score (not scaled) that no score so far exceeds by more than kSlack
  // powers of two. Sums relative to it are as exact as to the largest, and most blocks then leave it, and the
  // sums, as they are. Each row decides for itself: its bits do not depend on its neighbours.
  static constexpr float kSlack = 8;
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of this thread's columns

  // Scores become probabilities relative to the new tops. Returns what earlier sums are to be multiplied by.
  // `masked`: a row may have no visible key so far, and no largest score.
  __device__ __forceinline__ void take(float (&s)[Keys / 2], float scale, bool masked, float (&shrink)[2]) {
    float largest[2] = {top[0], top[1]};
#pragma unroll
    for (int i = 0; i < Keys / 2; i += 4) {
      largest[0] = fmaxf(largest[0], fmaxf(s[i], s[i + 1]));
      largest[1] = fmaxf(largest[1], fmaxf(s[i + 2], s[i + 3]));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 1));
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(~0u, largest[half], 2));
      if ((largest[half] - top[half]) * scale <= kSlack) largest[half] = top[half];  // false for -inf
      const float base = masked && largest[half] == -INFINITY ? 0 : largest[half] * scale;
      shrink[half] = exp2_fast(fmaf(top[half], scale, -base));
      if (largest[half] == top[half]) shrink[half] = 1;
      top[half] = largest[half];
      float part = 0;
#pragma unroll
      for (int i = 2 * half; i < Keys / 2; i += 4) {
        s[i] = exp2_fast(fmaf(s[i], scale, -base));
        s[i + 1] = exp2_fast(fmaf(s[i + 1], scale, -base));
        part += s[i] + s[i + 1];
      }
      sum[half] = fmaf(sum[half], shrink[half], part);
    }
  }
};

template <int Keys> __device__ __forceinline__ void mask(float (&s)[Keys / 2], int32_t low, int32_t high) {
  const int32_t col = threadIdx.x % 4 * 2;  // low, high: visible keys of this block
#pragma unroll
  for (int i = 0; i < Keys / 8; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (8 * i + j + col >= low) s[4 * i + j] = -INFINITY;
      if (8 * i + j + col >= high) s[4 * i + 2 + j] = -INFINITY;
    }
}

template <class Cut>
__device__ __forceinline__ void multiply_scores(float (&s)[Cut::kKeys / 2], uint64_t q, uint64_t k) {
#pragma unroll
  for (int box = 0; box < kWide / kBox; ++box)
#pragma unroll
    for (int step = 0; step < 4; ++step)
      Wgmma<Cut::kKeys>::bf16_ss(s, q + box * (Cut::kRows * 128 >> 4) + 2 * step,
                                 k + box * (Cut::kKeys * 128 >> 4) + 2 * step, box + step > 0);
}

template <int Keys> __device__ __forceinline__ void multiply_values(float (&o)[kValue / 2],
                                                                    const uint32_t (&p)[Keys / 4],
                                                                    uint64_t v) {
#pragma unroll
  for (int step = 0; step < Keys / 16; ++step) {
    const uint32_t a[4] = {p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3]};
    Wgmma<kValue>::template bf16_rs<Major::mn>(o, a, v + step * (2 * 1024 >> 4), 1);
  }
}

template <class Cut>
__device__ inline void forward_products(ForwardShared<Cut>& shared, const ForwardArguments& a) {
  constexpr int kKeys = Cut::kKeys;
  const int group = int(threadIdx.x / 128) - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool leader = lane == 0;  // of the warp: tells the copies when a buffer is free
  const float scale = a.scale * kLog2E;
  const uint64_t q = swizzled_tile(shared.q[0] + group * 64 * 128);
  Ring<2> slot;
  Ring<Cut::kKStages> k;
  Ring<Cut::kVStages> v;
  if (group == 1) pass_by(1, 256);  // the first turn is group 0's
  for (uint32_t round = 0;; ++round) {
    wait(&shared.tile_full[slot.stage], slot.parity);
    const AttentionTile t = shared.tile[slot.stage];
    arrive(&shared.tile_empty[slot.stage]);
    slot.advance();
    if (t.head < 0) break;

    const int32_t first = t.first + group * 64, row = first + warp * 16 + lane / 4;  // also row + 8
    const int32_t tile_end = t.visible(min(t.first + Cut::kRows, t.queries) - 1);
    const int32_t begin = t.visible(first);  // keys that all rows of the group see
    int32_t block = (tile_end - 1) / kKeys;
    const int32_t behind = t.keys - block * kKeys;  // the first row of this block behind the sequence's end
    bool cut = behind < kKeys;                      // the next block of values has such rows
    wait(&shared.q_full, round & 1);

    float o[kValue / 2];
#pragma unroll
    for (int i = 0; i < kValue / 2; ++i) o[i] = 0;
    Softmax<kKeys> softmax;
    float s[kKeys / 2];
    uint32_t p[kKeys / 4];

    const auto queue_scores = [&] {
      wgmma_begin();
      multiply_scores<Cut>(s, q, swizzled_tile(shared.k[k.stage][0]));
      wgmma_commit();
    };
    const auto queue_values = [&] {
      if (cut) clear_rows<128>(shared.v[v.stage][0], kValue / kBox, kKeys * 128, behind, kKeys, 3 + group);
      cut = false;
      wgmma_begin();
      multiply_values<kKeys>(o, p, swizzled_tile(shared.v[v.stage][0], 1024, kKeys * 128));
      wgmma_commit();
    };
    const auto pack_probabilities = [&] {
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) p[i] = pack(s[2 * i], s[2 * i + 1]);
    };

    const auto values_done = [&] {
      wgmma_wait<0>();
      pin(o);
      if (leader) arrive(&shared.v_empty[v.stage]);
      v.advance();
    };
    float shrink[2];
    const auto take_scores = [&](bool masked) {
      pin(s);
      if (leader) arrive(&shared.k_empty[k.stage]);
      k.advance();
      if (block == 0 && leader) arrive(&shared.q_empty);
      if (masked) mask<kKeys>(s, t.visible(row) - block * kKeys, t.visible(row + 8) - block * kKeys);
      softmax.take(s, scale, masked, shrink);
    };

    // The first block: there are no values to multiply yet.
    wait(&shared.k_full[k.stage], k.parity);
    meet(1 + group, 256);
    queue_scores();
    pass_by(2 - group, 256);
    wgmma_wait<0>();
    take_scores(true);
    pack_probabilities();

    const auto step = [&](bool masked) {
      wait(&shared.k_full[k.stage], k.parity);
      meet(1 + group, 256);
      queue_scores();
      wait(&shared.v_full[v.stage], v.parity);
      queue_values();
      pass_by(2 - group, 256);
      wgmma_wait<1>();
      take_scores(masked);
      values_done();
      pack_probabilities();
      if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int i = 0; i < kValue / 2; i += 4)
          o[i] *= shrink[0], o[i + 1] *= shrink[0], o[i + 2] *= shrink[1], o[i + 3] *= shrink[1];
      }
    };
    for (--block; block >= 0 && (block + 1) * kKeys > begin; --block) step(true);
    for (; block >= 0; --block) step(false);

    wait(&shared.v_full[v.stage], v.parity);
    queue_values();
    values_done();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float inverse = 1 / sum;
      const int32_t i = row + 8 * half;
      const bool there = i < t.queries;
      bf16* to = a.o + int64_t(t.q + i) * a.o_ld + t.head * kValue + lane % 4 * 8;
#pragma unroll
      for (int j = 0; j < kValue / 32; ++j) {
        uint32_t x[4];
#pragma unroll
        for (int l = 0; l < 4; ++l)
          x[l] = pack(o[16 * j + 4 * l + 2 * half] * inverse, o[16 * j + 4 * l + 2 * half + 1] * inverse);
        exchange(x);
        if (there) *reinterpret_cast<uint4*>(to + 32 * j) = uint4{x[0], x[1], x[2], x[3]};
      }
      if (there && lane % 4 == 0)
        a.lse[int64_t(t.q + i) * a.heads + t.head] = kLn2 * (softmax.top[half] * scale + __log2f(sum));
    }
  }
  if (group == 0) meet(1, 256);  // the turn that group 1 gave last
}

template <class Cut> __global__ void __launch_bounds__(Cut::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardArguments a, const __grid_constant__ TensorMap q_map,
                   const __grid_constant__ TensorMap kv_map, const __grid_constant__ TensorMap rope_map) {
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<ForwardShared<Cut>*>(memory);
  if (threadIdx.x == 0) {
    constexpr uint32_t kWarps = 8;
    barrier_init(&shared.q_full, 1), barrier_init(&shared.q_empty, kWarps);
    for (int i = 0; i < Cut::kKStages; ++i)
      barrier_init(&shared.k_full[i], 1), barrier_init(&shared.k_empty[i], kWarps);
    for (int i = 0; i < Cut::kVStages; ++i)
      barrier_init(&shared.v_full[i], 1), barrier_init(&shared.v_empty[i], kWarps);
    for (int i = 0; i < 2; ++i)
      barrier_init(&shared.tile_full[i], 1), barrier_init(&shared.tile_empty[i], 256);
    barrier_init_done();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    keep_registers<Cut::kCopyRegisters>();
    if (threadIdx.x < 32) forward_copies<Cut>(shared, a, &q_map, &kv_map, &rope_map);
  } else {
    take_registers<Cut::kMathRegisters>();
    forward_products<Cut>(shared, a);
  }
}

template <class Cut> void launch_forward(const AttentionCall& call, const AttentionForward& a) {
  const ForwardArguments arguments{
      .sequences = sequences_of(call, a.shape, a.q.rows, a.kv.rows, FaultOf::attention_forward),
      .heads = int32_t(a.shape.heads),
      .scale = float(a.shape.scale),
      .o = static_cast<bf16*>(a.o.data),
      .o_ld = a.o.ld,
      .lse = static_cast<float*>(a.lse.data),
      .ticket = call.ticket};
  const int64_t tiles = (a.q.rows / Cut::kRows + a.shape.sequences) * a.shape.heads;
  launched(cudaFuncSetAttribute(forward_kernel<Cut>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                int(sizeof(ForwardShared<Cut>))),
           "attention_forward: shared memory");
  forward_kernel<Cut><<<unsigned(std::min<int64_t>(call.multiprocessors, tiles)), Cut::kThreads,
                        sizeof(ForwardShared<Cut>), call.stream>>>(
      arguments, boxes_of(a.q, Cut::kRows), boxes_of(a.kv, Cut::kKeys), boxes_of(a.k_rope, Cut::kKeys));
  launched(cudaGetLastError(), "attention_forward");
}

// TFLOP/s at S = 4096 / 16384, H = 128, before the softmax kept its reference (H200, 22 November 2026; cuDNN
// 9.19 in the same run 612 / 596): 128 keys 707 / 690, without turns 643 / 653, without overlap 683 / 650;
// 112 keys 683 / 674, 96 keys 668 / 660, 80 keys 644 / 649, 160 keys with one buffer of values 548 / 561;
// three warpgroups of 160 registers 555 to 658. With the reference: 710 / 717.
using Chosen = ForwardCut<128, 2, 2>;

}  // namespace

bool attention_forward(const AttentionCall& call, const AttentionForward& a) {
  if (a.q.rows == 0 || a.kv.rows == 0 || a.shape.sequences == 0) return false;
  if (!takes(a.shape) || !takes(a.q) || !takes(a.kv) || !takes(a.k_rope) || !takes(a.o)) return false;
  launch_forward<Chosen>(call, a);
  return true;
}

}  // namespace cachalot::cuda::hopper
