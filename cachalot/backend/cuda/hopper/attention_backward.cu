// The backward of backend/ops/attention.h on Hopper. With P = exp(scale q k^T - lse), D_i = d_o_i . o_i:
//
//   dS = P (d_o v^T - D)     dv = P^T d_o     dk = scale dS^T q     dq = scale dS k
//
//   FLOPs  five products, 2 H (3 * 192 + 2 * 128) a visible pair: S^2 H 832, 2.6 times the forward's.
//   Bytes  some 2 KB a token and head once (q, kv, o, d_o, dq, dkv): a tenth of the time at S = 4096.
//
// What decides the form are registers. A block of the grid owns 128 keys of one head and keeps dk (192
// columns) and dv (128) in registers while queries pass by, 64 at a time: 160 of the 240 that a thread can
// have, with 64 keys for each of two warpgroups. S, dP and dq take the rest by turns:
//
//   S^T  = k q^T     64 x 64, K = 192   32 registers, then P^T, rounded to bf16, as a left operand
//   dP^T = v d_o^T   64 x 64, K = 128   32, then dS^T = P^T (dP^T - D), rounded, also to shared memory
//   dv  += P^T d_o   64 x 128, K = 64   left operand in registers
//   dk  += dS^T q    64 x 192, K = 64   left operand in registers
//   dq   = dS k      64 x 96, K = 128   48; each warpgroup takes half of the columns and all 128 keys
//
// Products with transposed operands read the same tiles: the matrix instruction takes both orders. Keys lie
// in rows of 64 bytes, so that half of their 192 columns are whole boxes. dq of a step is multiplied one step
// late, so that no warpgroup waits for the other's dS; while one makes exponentials the other multiplies.
//
// dq is summed over blocks of the grid in one order: from the last tile of keys that a query sees down to the
// first, head after head. Tiles are drawn in that same order, so each starts two steps behind the one that it
// follows and rarely waits. Flags count who has added (backward_turns, backward_sums). The first stores, the
// following add (in the second-level cache, where a ring of heads' sums stays), the last takes the sum,
// rounds it and writes dq: no clearing before, no pass behind. dk_rope is summed over heads in the same way.
// A tile waits only for tiles that were drawn before it: there is no deadlock, whatever the number of blocks.
//
// Measured (H200, 22 November 2026, S = 16384, H = 128, 2.5 times the forward's FLOPs; cuDNN 470 TFLOP/s):
//   the threads add dq themselves                              512   waiting for turns: nothing to be seen
//   without adding                                             655   the sums cost a fifth
//   two thirds of dq by the copy engine                        536
//   all of dq, fences with the reader, waits under products    558
//   pairs of blocks that exchange halves of dq first           462   half of the additions, but waits
// What bounds it is shared memory: products read 320 KB a step, copies and dq move 150 KB more: 3,800 cycles
// of the 4,450 that a step takes; the tensor cores need 3,330.
#include "backend/cuda/hopper/attention_launch.h"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kQueries = 64, kKeys = 128;  // of a step; of a block's sums
constexpr int kKeyBox = 32;  // columns of a copy of keys: 64 bytes, so that 96 columns are whole boxes

// Bytes between blocks of the grid (all in the caller's memory):
//   flags   [ring, query blocks] how many have added to this block of dq; [key blocks] the same of dk_rope
//   rows    [heads, query blocks, 2, 64]     lse in powers of two, D
//   rope    [key blocks, 128, 64]  sum over heads so far
//   queries [ring, query blocks, 64, 192]  sum over blocks of keys so far
// A sequence's blocks of 64 (128) rows begin at block number start / 64 + its own number: no two overlap.
struct BackwardArguments {
  Sequences sequences;
  int32_t heads, ring, query_blocks, key_blocks;
  float scale;
  uint32_t *query_flags, *rope_flags;
  const float* rows;
  float *rope, *queries;
  bf16 *dq, *dkv, *dk_rope;
  int64_t dq_ld, dkv_ld, dk_rope_ld;
  uint32_t* ticket;
};

struct BackwardTile : AttentionTile {
  int32_t blocks;       // the number of its sequence's first block of dq's sums
  uint32_t generation;  // how often those blocks were used before
};

constexpr int kBackwardThreads = 384, kCopyRegisters = 24, kMathRegisters = 240;
constexpr int kStages = 2;  // of every ring

struct BackwardShared {
  alignas(1024) uint8_t k[kWide / kKeyBox][kKeys * 64];
  alignas(1024) uint8_t v[kValue / kBox][kKeys * 128];
  alignas(1024) uint8_t q[kStages][kWide / kBox][kQueries * 128];
  alignas(1024) uint8_t d_o[kStages][kValue / kBox][kQueries * 128];
  alignas(1024) uint8_t ds[kStages][kKeys * 128];  // dS^T: rows are keys
  alignas(1024) float dq[kQueries * kWide / 2];    // one warpgroup's share, on its way to the sums; in turns
  alignas(128) float rows[kStages][2][kQueries];   // lse, D
  Barrier kv_full, kv_empty, q_full[kStages], q_empty[kStages], o_full[kStages], o_empty[kStages],
      ds_full[kStages], ds_empty[kStages], turn_come[2], turn_over[2][2], dq_mine[2], tile_full[2],
      tile_empty[2];
  BackwardTile tile[2];
};

// The steps of a tile of keys: blocks of 64 queries from the first that sees one of its keys.
struct Steps {
  int32_t begin, end;
};
__device__ __forceinline__ Steps steps_of(const AttentionTile& t) {
  return {max(0, t.first - (t.keys - t.queries)) / kQueries, (t.queries + kQueries - 1) / kQueries};
}
// How many tiles of keys see block `step` of queries; the first to add is the last of them.
__device__ __forceinline__ int32_t adders_of(const AttentionTile& t, int32_t step) {
  return (t.visible(min(step * kQueries + kQueries, t.queries) - 1) - 1) / kKeys + 1;
}
__device__ __forceinline__ int32_t query_block(const AttentionTile& t, int32_t step) {
  return (t.q >> 6) + t.sequence + step;
}
__device__ __forceinline__ int32_t key_block(const AttentionTile& t) {
  return (t.k >> 7) + t.sequence + t.first / kKeys;
}

// D_i = d_o_i . o_i and lse, in blocks of 64 rows as the copies want them; rows behind a sequence's end get a
// probability of 2^-inf. One warp a head, half a warp a row.
__global__ void __launch_bounds__(256)
    row_sums_kernel(const __grid_constant__ BackwardArguments a, const bf16* o, int64_t o_ld, const bf16* d_o,
                    int64_t d_o_ld, const float* lse, float* rows) {
  __shared__ AttentionTile shared;
  if (threadIdx.x < 32) {
    const int32_t tiles = count_tiles(a.sequences, true, kQueries);
    AttentionTile t;
    t.head = -1;
    if (int32_t(blockIdx.x) < tiles) t = find_tile(a.sequences, true, kQueries, int32_t(blockIdx.x), 0);
    if (threadIdx.x == 0) shared = t;
  }
  __syncthreads();
  const AttentionTile t = shared;
  const int32_t head = int32_t(blockIdx.y) * 8 + int32_t(threadIdx.x / 32);
  if (t.head < 0 || head >= a.heads) return;
  const int lane = threadIdx.x % 32, part = lane % 16;
  float* to = rows + (int64_t(head) * a.query_blocks + query_block(t, t.first / kQueries)) * 2 * kQueries;
#pragma unroll 4
  for (int r = lane / 16; r < kQueries; r += 2) {
    const int32_t i = t.first + r;
    float sum = 0;
    if (i < t.queries) {
      const uint4 x = *reinterpret_cast<const uint4*>(o + (t.q + i) * o_ld + head * kValue + part * 8);
      const uint4 y = *reinterpret_cast<const uint4*>(d_o + (t.q + i) * d_o_ld + head * kValue + part * 8);
      const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum = fmaf(__uint_as_float(xs[j] << 16), __uint_as_float(ys[j] << 16), sum);
        sum = fmaf(__uint_as_float(xs[j] & 0xFFFF0000u), __uint_as_float(ys[j] & 0xFFFF0000u), sum);
      }
    }
#pragma unroll
    for (int step = 1; step < 16; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (part == 0) {
      to[r] = i < t.queries ? kLog2E * lse[int64_t(t.q + i) * a.heads + head] : INFINITY;
      to[kQueries + r] = sum;
    }
  }
}

__device__ inline void backward_copies(BackwardShared& shared, const BackwardArguments& a,
                                       const TensorMap* q_map, const TensorMap* k_map,
                                       const TensorMap* rope_map, const TensorMap* v_map,
                                       const TensorMap* d_o_map) {
  const bool leader = threadIdx.x % 32 == 0;
  const int32_t tiles = count_tiles(a.sequences, false, kKeys), total = tiles * a.heads;
  Ring<2> slot;
  Ring<kStages> in;
  for (uint32_t round = 0;; ++round) {
    uint32_t ticket = 0;
    if (leader) ticket = atomicAdd(a.ticket, 1);
    ticket = __shfl_sync(~0u, ticket, 0);
    if (leader && ticket == uint32_t(total) + gridDim.x - 1) *a.ticket = 0;  // the last draw of all blocks
    BackwardTile t;
    t.head = -1;
    if (ticket < uint32_t(total)) {
      static_cast<AttentionTile&>(t) =
          find_tile(a.sequences, false, kKeys, tiles - 1 - int32_t(ticket % uint32_t(tiles)),
                    int32_t(ticket / uint32_t(tiles)));
      t.blocks = t.head % a.ring * a.query_blocks + query_block(t, 0);
      t.generation = uint32_t(t.head / a.ring);
    }
    if (leader) {
      wait(&shared.tile_empty[slot.stage], slot.parity ^ 1);
      shared.tile[slot.stage] = t;
      arrive(&shared.tile_full[slot.stage]);
    }
    slot.advance();
    if (t.head < 0) return;
    if (leader) {
      const int32_t row = t.k + t.first, col = t.head * (kNope + kValue);
      wait(&shared.kv_empty, ~round & 1);
      arrive_expecting(&shared.kv_full, sizeof shared.k + sizeof shared.v);
      for (int box = 0; box < kNope / kKeyBox; ++box)
        load(k_map, &shared.kv_full, shared.k[box], col + box * kKeyBox, row);
      for (int box = 0; box < kRope / kKeyBox; ++box)
        load(rope_map, &shared.kv_full, shared.k[kNope / kKeyBox + box], box * kKeyBox, row);
      for (int box = 0; box < kValue / kBox; ++box)
        load(v_map, &shared.kv_full, shared.v[box], col + kNope + box * kBox, row);
      const Steps steps = steps_of(t);
      for (int32_t i = steps.begin; i < steps.end; ++i) {
        const int32_t q_row = t.q + i * kQueries;
        wait(&shared.q_empty[in.stage], in.parity ^ 1);
        Barrier* full = &shared.q_full[in.stage];
        arrive_expecting(full, sizeof shared.q[0] + sizeof shared.rows[0]);
        for (int box = 0; box < kWide / kBox; ++box)
          load(q_map, full, shared.q[in.stage][box], t.head * kWide + box * kBox, q_row);
        load_bytes(a.rows + (int64_t(t.head) * a.query_blocks + query_block(t, i)) * 2 * kQueries, full,
                   shared.rows[in.stage], sizeof shared.rows[0]);
        wait(&shared.o_empty[in.stage], in.parity ^ 1);
        full = &shared.o_full[in.stage];
        arrive_expecting(full, sizeof shared.d_o[0]);
        for (int box = 0; box < kValue / kBox; ++box)
          load(d_o_map, full, shared.d_o[in.stage][box], t.head * kValue + box * kBox, q_row);
        in.advance();
      }
    }
    __syncwarp();
  }
}

// As swizzled_tile, with rows of 64 bytes: an atom is 512.
__device__ __forceinline__ uint64_t narrow_tile(const void* tile, uint32_t wide_stride = 16) {
  return swizzled_tile(tile, 512, wide_stride) + (uint64_t(1) << 62);
}

__device__ __forceinline__ uint32_t read_flag(const uint32_t* p) {
  uint32_t x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
// Contiguous floats from shared memory: over, or added to, what is there. Both on 16 bytes.
__device__ __forceinline__ void store_bytes(float* to, const float* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void add_bytes(float* to, const float* from, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

// Sums over blocks of the grid are taken in one order, which flags keep: a flag counts the warpgroups that
// have added to a block of dq (of dk_rope). One thread waits until it is this tile's turn ...
__device__ inline void backward_turns(BackwardShared& shared, const BackwardArguments& a) {
  Ring<2> slot, turn;
  const auto await = [&](const uint32_t* flag, uint32_t tiles_before) {
    wait(&shared.turn_over[turn.stage][0], turn.parity ^ 1);
    wait(&shared.turn_over[turn.stage][1], turn.parity ^ 1);
    while (read_flag(flag) != 2 * tiles_before) {
    }
    arrive(&shared.turn_come[turn.stage]);
    turn.advance();
  };
  for (;;) {
    wait(&shared.tile_full[slot.stage], slot.parity);
    const BackwardTile t = shared.tile[slot.stage];
    arrive(&shared.tile_empty[slot.stage]);
    slot.advance();
    if (t.head < 0) return;
    const Steps steps = steps_of(t);
    for (int32_t i = steps.begin; i < steps.end; ++i) {
      const uint32_t adders = uint32_t(adders_of(t, i));
      await(a.query_flags + t.blocks + i, t.generation * adders + adders - 1 - uint32_t(t.first / kKeys));
    }
    await(a.rope_flags + key_block(t), uint32_t(t.head));
  }
}

// ... and for each warpgroup one has the copy engine add what the warpgroup left in shared memory, and sets
// the flag when all of its sums are where the next tile will find them.
__device__ inline void backward_sums(BackwardShared& shared, const BackwardArguments& a, int group) {
  Ring<2> slot, turn;
  const auto finish = [&](uint32_t* flag) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(flag) : "memory");
    turn.advance();
  };
  for (;;) {
    wait(&shared.tile_full[slot.stage], slot.parity);
    const BackwardTile t = shared.tile[slot.stage];
    arrive(&shared.tile_empty[slot.stage]);
    slot.advance();
    if (t.head < 0) return;
    const Steps steps = steps_of(t);
    for (int32_t i = steps.begin; i < steps.end; ++i) {
      wait(&shared.turn_over[turn.stage][group], turn.parity);
      shared_writes_visible();
      if (t.first > 0) {
        float* to = a.queries + int64_t(t.blocks + i) * (kQueries * kWide) + group * (kQueries * kWide / 2);
        if (t.first / kKeys == adders_of(t, i) - 1) store_bytes(to, shared.dq, sizeof shared.dq);
        else add_bytes(to, shared.dq, sizeof shared.dq);
        commit_stores();
        wait_stores_read<0>();
      }
      arrive(&shared.dq_mine[group ^ 1]);  // the buffer is the other warpgroup's
      wait_stores<0>();
      finish(a.query_flags + t.blocks + i);
    }
    wait(&shared.turn_over[turn.stage][group], turn.parity);
    finish(a.rope_flags + key_block(t));
  }
}

__device__ __forceinline__ void add(float* to, float x, float y, float z, float w) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x), "f"(y), "f"(z),
               "f"(w)
               : "memory");
}
__device__ __forceinline__ void store_blocks(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                             uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

// x += the sum at `to`, which lies as the threads hold it.
template <int Count> __device__ __forceinline__ void take_sum(float (&x)[Count], const float* to) {
  to += threadIdx.x % 128 * 4;
  asm volatile("fence.proxy.async.global;" ::: "memory");  // the copy engine wrote it
#pragma unroll
  for (int i = 0; i < Count; i += 4) {
    const float4 y = __ldcg(reinterpret_cast<const float4*>(to + i * 128));
    x[i] += y.x, x[i + 1] += y.y, x[i + 2] += y.z, x[i + 3] += y.w;
  }
  pin(x);  // read before the turn is over
}
// The first stores, the others add.
template <int Count>
__device__ __forceinline__ void give_sum(const float (&x)[Count], float* to, bool first) {
  to += threadIdx.x % 128 * 4;
#pragma unroll
  for (int i = 0; i < Count; i += 4) {
    if (first) __stcg(reinterpret_cast<float4*>(to + i * 128), float4{x[i], x[i + 1], x[i + 2], x[i + 3]});
    else add(to + i * 128, x[i], x[i + 1], x[i + 2], x[i + 3]);
  }
}

// An accumulator of 8 Tiles columns, rounded; `to` is its upper row, `there` says which of the two rows
// exist.
template <int Tiles, int Count>
__device__ __forceinline__ void store_rounded(const float (&x)[Count], int first, float scale, bf16* to,
                                              int64_t ld, bool upper, bool lower) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < Tiles; j += 4) {
      uint32_t y[4];
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const int at = 4 * (first + j + l) + 2 * half;
        y[l] = pack(scale * x[at], scale * x[at + 1]);
      }
      exchange(y);
      if (half ? lower : upper)
        *reinterpret_cast<uint4*>(to + half * 8 * ld + 8 * j + threadIdx.x % 4 * 8) =
            uint4{y[0], y[1], y[2], y[3]};
    }
}

__device__ inline void backward_products(BackwardShared& shared, const BackwardArguments& a) {
  const int group = __shfl_sync(~0u, int(threadIdx.x / 128) - 1, 0);  // told to be the same in a warp
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int pair = lane % 4 * 2, row = warp * 16 + lane / 4;  // of the warpgroup's 64; also row + 8
  const bool leader = lane == 0;
  const float scale = a.scale * kLog2E;
  // All rings have two stages. What is in registers beside the sums is dear: two counters tell all of them.
  const auto stage = [](uint32_t n) { return n & 1; };
  const auto parity = [](uint32_t n) { return n >> 1 & 1; };
  uint32_t n = 0;  // steps so far, of all tiles
  const uint64_t k = narrow_tile(shared.k[0] + group * 64 * 64);
  const uint64_t v = swizzled_tile(shared.v[0] + group * 64 * 128);
  const uint64_t k_half = narrow_tile(shared.k[group * 3], kKeys * 64);  // the columns of dq it multiplies
  const uint32_t ds_address = shared_address(shared.ds[0] + (group * 64 + warp * 16 + lane % 16) * 128);

  for (uint32_t round = 0;; ++round) {
    wait(&shared.tile_full[stage(round)], parity(round));
    const BackwardTile& t = shared.tile[stage(round)];  // read again where it is needed
    if (t.head < 0) break;

    float dk[kWide / 2], dv[kValue / 2];
#pragma unroll
    for (int i = 0; i < kWide / 2; ++i) dk[i] = 0;
#pragma unroll
    for (int i = 0; i < kValue / 2; ++i) dv[i] = 0;
    wait(&shared.kv_full, round & 1);
    if (t.first + kKeys > t.keys) {
      clear_rows<64>(shared.k[0], 6, kKeys * 64, t.keys - t.first, kKeys, 1 + group);
      clear_rows<128>(shared.v[0], 2, kKeys * 128, t.keys - t.first, kKeys, 1 + group);
    }

    // dq of block `i`: this tile's share, multiplied and given.
    const auto share_of_queries = [&](int32_t i, uint32_t at) {  // step `at` of all
      float dq[kWide / 4];
      wait(&shared.ds_full[stage(at)], parity(at));
      shared_writes_visible();  // those of other threads, too: they came before their arrival
      const uint64_t ds = swizzled_tile(shared.ds[stage(at)]);
      wgmma_begin();
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step)
        Wgmma<kWide / 2>::bf16_ss<Major::mn, Major::mn>(dq, ds + step * (2 * 1024 >> 4),
                                                        k_half + step * (2 * 512 >> 4), step > 0);
      wgmma_commit();
      const bool first = t.first / kKeys == adders_of(t, i) - 1, last = t.first == 0;
      wait(&shared.dq_mine[group], (at & 1) ^ 1 ^ group);
      wait(&shared.turn_come[stage(at + round)], parity(at + round));
      wgmma_wait<0>();
      pin(dq);
      if (leader) arrive(&shared.ds_empty[stage(at)]);
      float* sum = a.queries + int64_t(t.blocks + i) * (kQueries * kWide) + group * (kQueries * kWide / 2);
      if (!last) {
#pragma unroll
        for (int j = 0; j < kWide / 4; j += 4)
          *reinterpret_cast<float4*>(shared.dq + threadIdx.x % 128 * 4 + j * 128) =
              float4{dq[j], dq[j + 1], dq[j + 2], dq[j + 3]};
      } else if (!first) {
        take_sum(dq, sum);
      }
      __syncwarp();
      if (leader) arrive(&shared.turn_over[stage(at + round)][group]);
      if (last) {
        const int32_t query = i * kQueries + row;
        bf16* out = a.dq + int64_t(t.q + query) * a.dq_ld + t.head * kWide + group * (kWide / 2);
        store_rounded<kWide / 16>(dq, 0, a.scale, out, a.dq_ld, query < t.queries, query + 8 < t.queries);
      }
    };

    const auto step = [&](int32_t i, bool masked) {
      float s[32], dp[32];
      uint32_t p[16], ds[16];
      wait(&shared.q_full[stage(n)], parity(n));
      if (masked && (i + 1) * kQueries > t.queries) {
        wait(&shared.o_full[stage(n)], parity(n));
        clear_rows<128>(shared.q[stage(n)][0], 3, kQueries * 128, t.queries - i * kQueries, kQueries,
                        1 + group);
        clear_rows<128>(shared.d_o[stage(n)][0], 2, kQueries * 128, t.queries - i * kQueries, kQueries,
                        1 + group);
      }
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < kWide / 16; ++j)
        Wgmma<64>::bf16_ss(s, k + j / 2 * (kKeys * 64 >> 4) + 2 * (j % 2),
                           swizzled_tile(shared.q[stage(n)][j / 4]) + 2 * (j % 4), j > 0);
      wgmma_commit();
      const float* rows = shared.rows[stage(n)][0] + pair;
      float2 lse[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) lse[j] = *reinterpret_cast<const float2*>(rows + 8 * j);
      wgmma_wait<0>();
      pin(s);
      if (masked) {  // the first query that sees this thread's keys, as a column of the block
        const int32_t upper = t.first + group * 64 + row - (t.keys - t.queries) - i * kQueries;
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int l = 0; l < 2; ++l) {
            if (8 * j + pair + l < upper) s[4 * j + l] = -INFINITY;
            if (8 * j + pair + l < upper + 8) s[4 * j + 2 + l] = -INFINITY;
          }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float x = lse[j].x, y = lse[j].y;
        p[2 * j] = pack(exp2_fast(fmaf(s[4 * j], scale, -x)), exp2_fast(fmaf(s[4 * j + 1], scale, -y)));
        p[2 * j + 1] =
            pack(exp2_fast(fmaf(s[4 * j + 2], scale, -x)), exp2_fast(fmaf(s[4 * j + 3], scale, -y)));
      }
      wait(&shared.o_full[stage(n)], parity(n));
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < kValue / 16; ++j)
        Wgmma<64>::bf16_ss(dp, v + j / 4 * (kKeys * 128 >> 4) + 2 * (j % 4),
                           swizzled_tile(shared.d_o[stage(n)][j / 4]) + 2 * (j % 4), j > 0);
      wgmma_commit();
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t x[4] = {p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3]};
        Wgmma<kValue>::bf16_rs<Major::mn>(
            dv, x, swizzled_tile(shared.d_o[stage(n)][0], 1024, kQueries * 128) + j * 128, 1);
      }
      wgmma_commit();
      wgmma_wait<1>();
      pin(dp);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 d = *reinterpret_cast<const float2*>(rows + kQueries + 8 * j);
        const auto low = [](uint32_t x) { return __uint_as_float(x << 16); };
        const auto high = [](uint32_t x) { return __uint_as_float(x & 0xFFFF0000u); };
        ds[2 * j] = pack(low(p[2 * j]) * (dp[4 * j] - d.x), high(p[2 * j]) * (dp[4 * j + 1] - d.y));
        ds[2 * j + 1] =
            pack(low(p[2 * j + 1]) * (dp[4 * j + 2] - d.x), high(p[2 * j + 1]) * (dp[4 * j + 3] - d.y));
      }
      wait(&shared.ds_empty[stage(n)], parity(n) ^ 1);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        store_blocks(ds_address + stage(n) * (kKeys * 128) + ((2 * j + lane / 16) ^ lane % 8) * 16, ds[4 * j],
                     ds[4 * j + 1], ds[4 * j + 2], ds[4 * j + 3]);
      __syncwarp();
      if (leader) arrive(&shared.ds_full[stage(n)]);
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t x[4] = {ds[4 * j], ds[4 * j + 1], ds[4 * j + 2], ds[4 * j + 3]};
        Wgmma<kWide>::bf16_rs<Major::mn>(
            dk, x, swizzled_tile(shared.q[stage(n)][0], 1024, kQueries * 128) + j * 128, 1);
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin(dv), pin(dk);
      if (leader) arrive(&shared.q_empty[stage(n)]), arrive(&shared.o_empty[stage(n)]);
    };

    const int32_t begin = steps_of(t).begin, end = steps_of(t).end;
    // From block `whole` to `cut` of queries nothing needs a mask.
    const int32_t cut = t.first + kKeys > t.keys ? 0 : t.queries / kQueries;
    const int32_t whole = (t.first + kKeys - 1 - (t.keys - t.queries) + kQueries - 1) / kQueries;
    for (int32_t i = begin; i < end; ++i, ++n) {
      step(i, i < whole || i >= cut);
      if (i > begin) share_of_queries(i - 1, n - 1);
    }
    if (end > begin) share_of_queries(end - 1, n - 1);
    if (leader) arrive(&shared.kv_empty);

    const int32_t key = t.first + group * 64 + row;
    const bool upper = key < t.keys, lower = key + 8 < t.keys;
    bf16* out = a.dkv + int64_t(t.k + key) * a.dkv_ld + t.head * (kNope + kValue);
    store_rounded<kValue / 8>(dv, 0, 1, out + kNope, a.dkv_ld, upper, lower);
    store_rounded<kNope / 8>(dk, 0, a.scale, out, a.dkv_ld, upper, lower);
    float rope[kRope / 2];
#pragma unroll
    for (int i = 0; i < kRope / 2; ++i) rope[i] = dk[kNope / 2 + i];
    const bool last = t.head == a.heads - 1;
    wait(&shared.turn_come[stage(n + round)], parity(n + round));
    float* sum = a.rope + int64_t(key_block(t)) * kKeys * kRope + group * (64 * kRope);
    if (!last) give_sum(rope, sum, t.head == 0);
    else if (t.head > 0) take_sum(rope, sum);
    __syncwarp();
    if (leader) arrive(&shared.turn_over[stage(n + round)][group]);
    if (last)
      store_rounded<kRope / 8>(rope, 0, a.scale, a.dk_rope + int64_t(t.k + key) * a.dk_rope_ld, a.dk_rope_ld,
                               upper, lower);
    arrive(&shared.tile_empty[stage(round)]);
  }
}

__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_kernel(const __grid_constant__ BackwardArguments a, const __grid_constant__ TensorMap q_map,
                    const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap rope_map,
                    const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap d_o_map) {
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<BackwardShared*>(memory);
  if (threadIdx.x == 0) {
    constexpr uint32_t kWarps = 8;
    barrier_init(&shared.kv_full, 1), barrier_init(&shared.kv_empty, kWarps);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.q_full[i], 1), barrier_init(&shared.q_empty[i], kWarps);
      barrier_init(&shared.o_full[i], 1), barrier_init(&shared.o_empty[i], kWarps);
    }
    for (int i = 0; i < kStages; ++i)
      barrier_init(&shared.ds_full[i], kWarps), barrier_init(&shared.ds_empty[i], kWarps);
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared.turn_come[i], 1), barrier_init(&shared.dq_mine[i], 1);
      barrier_init(&shared.turn_over[i][0], 4), barrier_init(&shared.turn_over[i][1], 4);
      barrier_init(&shared.tile_full[i], 1), barrier_init(&shared.tile_empty[i], 256 + 3);
    }
    barrier_init_done();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    keep_registers<kCopyRegisters>();
    if (threadIdx.x < 32) backward_copies(shared, a, &q_map, &k_map, &rope_map, &v_map, &d_o_map);
    else if (threadIdx.x == 32) backward_turns(shared, a);
    else if (threadIdx.x == 64 || threadIdx.x == 96) backward_sums(shared, a, int(threadIdx.x / 32) - 2);
  } else {
    take_registers<kMathRegisters>();
    backward_products(shared, a);
  }
}

// Where things lie in the caller's memory; ring 0: too little of it.
struct BackwardMemory {
  int64_t rows, rope, queries;  // offsets; the flags come first
  int32_t ring, query_blocks, key_blocks;
};
inline BackwardMemory lay_out(const AttentionBackward& a, int64_t bytes) {
  constexpr int64_t kMostHeads = 24;  // more would not stay in the second-level cache
  const auto rounded = [](int64_t n) { return (n + 1023) / 1024 * 1024; };
  BackwardMemory m{};
  const int64_t query_blocks = a.q.rows / kQueries + a.shape.sequences + 1,
                key_blocks = a.kv.rows / kKeys + a.shape.sequences + 1;
  m.query_blocks = int32_t(query_blocks), m.key_blocks = int32_t(key_blocks);
  m.rows = rounded(4 * (kMostHeads * query_blocks + key_blocks));
  m.rope = m.rows + rounded(a.shape.heads * query_blocks * 2 * kQueries * 4);
  m.queries = m.rope + key_blocks * kKeys * kRope * 4;
  const int64_t head = query_blocks * kQueries * kWide * 4;
  m.ring = int32_t(std::clamp<int64_t>((bytes - m.queries) / head, 0, std::min(kMostHeads, a.shape.heads)));
  return m;
}

void launch_backward(const AttentionCall& call, const AttentionBackward& a, uint8_t* memory, int64_t bytes) {
  const BackwardMemory m = lay_out(a, bytes);
  uint32_t* flags = reinterpret_cast<uint32_t*>(memory);
  float* rows = reinterpret_cast<float*>(memory + m.rows);
  const BackwardArguments arguments{
      .sequences = sequences_of(call, a.shape, a.q.rows, a.kv.rows, FaultOf::attention_backward),
      .heads = int32_t(a.shape.heads),
      .ring = m.ring,
      .query_blocks = m.query_blocks,
      .key_blocks = m.key_blocks,
      .scale = float(a.shape.scale),
      .query_flags = flags,
      .rope_flags = flags + int64_t(m.ring) * m.query_blocks,
      .rows = rows,
      .rope = reinterpret_cast<float*>(memory + m.rope),
      .queries = reinterpret_cast<float*>(memory + m.queries),
      .dq = static_cast<bf16*>(a.dq.data),
      .dkv = static_cast<bf16*>(a.dkv.data),
      .dk_rope = static_cast<bf16*>(a.dk_rope.data),
      .dq_ld = a.dq.ld,
      .dkv_ld = a.dkv.ld,
      .dk_rope_ld = a.dk_rope.ld,
      .ticket = call.ticket};
  launched(cudaMemsetAsync(flags, 0, size_t(m.rows), call.stream), "attention_backward: flags");
  if (a.q.rows > 0) {
    const dim3 grid(unsigned(a.q.rows / kQueries + a.shape.sequences), unsigned((a.shape.heads + 7) / 8));
    row_sums_kernel<<<grid, 256, 0, call.stream>>>(arguments, static_cast<const bf16*>(a.o.data), a.o.ld,
                                                   static_cast<const bf16*>(a.d_o.data), a.d_o.ld,
                                                   static_cast<const float*>(a.lse.data), rows);
    launched(cudaGetLastError(), "attention_backward: row sums");
  }
  const int64_t tiles = (a.kv.rows / kKeys + a.shape.sequences) * a.shape.heads;
  launched(cudaFuncSetAttribute(backward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                int(sizeof(BackwardShared))),
           "attention_backward: shared memory");
  backward_kernel<<<unsigned(std::min<int64_t>(call.multiprocessors, tiles)), kBackwardThreads,
                    sizeof(BackwardShared), call.stream>>>(
      arguments, boxes_of(a.q, kQueries), boxes_of(a.kv, kKeys, kKeyBox), boxes_of(a.k_rope, kKeys, kKeyBox),
      boxes_of(a.kv, kKeys), boxes_of(a.d_o, kQueries));
  launched(cudaGetLastError(), "attention_backward");
}

}  // namespace

bool attention_backward(const AttentionCall& call, const AttentionBackward& a, void* memory, int64_t bytes) {
  if (!takes(a.shape) || a.q.rows == 0 || a.kv.rows == 0 || a.shape.sequences == 0) return false;
  for (const Tensor* t : {&a.q, &a.kv, &a.k_rope, &a.o, &a.d_o, &a.dq, &a.dkv, &a.dk_rope})
    if (!takes(*t)) return false;
  if (lay_out(a, bytes).ring == 0) return false;
  launch_backward(call, a, static_cast<uint8_t*>(memory), bytes);
  return true;
}

}  // namespace cachalot::cuda::hopper
