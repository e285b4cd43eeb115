// The FP8 product for one tile shape: D = A B^T with fine-grained scales, sums promoted every 128 of K.
//   D(m, n) = sum_b scale_a(m, b) scale_b(n, b) sum_{k in block b of 128} A(m, k) B(n, k)
//   A [M, K] e4m3, one scale a row and 128 of K | B [N, K] e4m3, one scale a 128 x 128 block (a weight) or a
//   row and 128 of K (weight gradient) | D bf16 or f32.  DeepSeek-V3 report, arXiv:2412.19437, sec. 3.3.2
//
// Who does what in a block (threads: `math` warpgroups, then four warps of which two work):
//   copy warp   asks the copy engine for the next 128 of K of A, B and their scales, a ring of `stages` ahead
//   note warp   beside each stage: the weight's scales, whether a tile ends here and where it goes
//   math        4 wgmma of K = 32 into `acc`, then sum += scale_a scale_b acc in FP32. Meanwhile the tensor
//               cores work for another warpgroup (`turns`: products of two warpgroups that run at the same
//               time end at the same time, and then nobody multiplies), or for this one's second `acc`
//               (`overlap`). A tile done: convert and store; with `lag`, one warpgroup stores while the other
//               multiplies
// Per stage a barrier "full" (both warps and the bytes) and one "empty" (all math warps). Nobody else
// synchronises: the copies of the next tile run while this one is promoted and stored.
//
// Sharing: blocks of a cluster that work on neighbouring tiles each load a part of the operand they have in
// common and multicast it, which saves L2 reads: share_n blocks side by side have A in common, share_m blocks
// one below the other B.
// Splits: a cluster can cut K among its blocks (few tiles, long K). At the end each block is sent
// everybody's sums of its share of the columns, into its shared memory, and adds them in the order of K: no
// atomics, same bits.
// Early: where the caller says that B is not the work of the kernel before, its first stages are asked for
// while that kernel still runs: between small products, memory does not rest.
#pragma once

#include <type_traits>

#include "backend/cuda/hopper/fp8_kernel.h"
#include "backend/cuda/hopper/store_tile.cuh"
#include "backend/cuda/hopper/tiles.cuh"
#include "backend/cuda/hopper/wgmma.cuh"

namespace cachalot::cuda::hopper {

struct Fp8Operands {
  TensorMap a = {}, b = {}, a_scales = {}, b_scales = {};
  OutMatrix out = {};
  TileGrid grid = {};
  // Scales of blocks: row g of all of B has those of row g / part_rows * ceil(part_rows / 128) + g %
  // part_rows / 128.
  const float* b_block_scales = nullptr;
  int b_scale_ld = 0, b_part_rows = 1, b_first_row = 0;
  int b_rows = 0;  // of an expert's matrix (N)
  int rows = 0;    // of D
  bool early = false;
};

namespace fp8 {

// The head of a note: {expert + 1024 * stages of the tile, first row, end of the expert's rows, first
// column}; the end: expert kEnd.
enum : int { kStages = 1024, kEnd = kStages - 1 };

template <Fp8Kernel K> struct Shared {
  static constexpr int kA = 0, kB = kA + K.stages * K.a_bytes(), kStaging = kB + K.stages * K.b_bytes(),
                       kScalesA = kStaging + K.staging(), kScalesB = kScalesA + K.stages * K.a_scale_bytes(),
                       kNotes = kScalesB + K.stages * K.b_scale_bytes(),
                       kFull = kNotes + K.stages * K.note_bytes(), kEmpty = kFull + K.stages * 8,
                       kSums = kEmpty + K.stages * 8;
};

// Where a block stands in its cluster: ranks are split-major, blocks that share next to each other.
template <Fp8Kernel K> struct Place {
  uint32_t rank = K.cluster() > 1 ? rank_in_cluster() : 0;
  static constexpr int kShare = K.share_m * K.share_n;
  int split = int(rank) / kShare, index = int(rank) % kShare;
  int m = K.share_m > 1 ? index : 0, n = K.share_n > 1 ? index : 0;

  // The part of K that is this block's.
  __device__ void cut(Tile& t) const {
    if constexpr (K.splits > 1) {
      const int blocks = (t.k_end - t.k + kDepth - 1) / kDepth;
      if (split + 1 < K.splits) t.k_end = t.k + blocks * (split + 1) / K.splits * kDepth;
      t.k += blocks * split / K.splits * kDepth;
    }
  }
  __device__ int row(const Tile& t) const { return t.row + m * K.tile_m(); }
  __device__ int col(const Tile& t) const { return (t.unit_n * K.share_n + n) * K.tile_n(); }
};

template <Fp8Kernel K> using Walk = Tiles<K.ragged, K.tile_m() * K.share_m>;

template <Fp8Kernel K> __device__ void copy_warp(const Fp8Operands& o, uint8_t* memory) {
  using At = Shared<K>;
  Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
          *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
  const Place<K> place;
  const bool leader = threadIdx.x % 32 == 0;
  constexpr uint32_t kBytes =
      uint32_t(K.a_bytes() + K.b_bytes() + K.a_scale_box() * 4 + (K.row_scales() ? K.tile_n() * 4 : 0));
  const uint16_t mates = uint16_t(((1 << Place<K>::kShare) - 1) << (place.split * Place<K>::kShare));
  constexpr Reuse kReuse = K.streams_out ? Reuse::last_out : Reuse::normal;
  const auto copy_a = [&](uint32_t stage, int row, int k) {
    uint8_t* a = memory + At::kA + stage * K.a_bytes();
    if constexpr (K.share_n > 1) {
      constexpr int kRows = K.tile_m() / K.share_n;
      load_to_all(&o.a, &full[stage], a + place.n * kRows * kDepth, mates, k, row + place.n * kRows, kReuse);
    } else {
      load(&o.a, &full[stage], a, k, row, kReuse);
    }
    load(&o.a_scales, &full[stage], memory + At::kScalesA + stage * K.a_scale_bytes(), row / 4 * 4,
         k / kDepth);
  };
  const auto copy_b = [&](uint32_t stage, int row, int k) {
    uint8_t* b = memory + At::kB + stage * K.b_bytes();
    if constexpr (K.share_m > 1) {
      constexpr int kRows = K.tile_n() / K.share_m;
      load_to_all(&o.b, &full[stage], b + place.m * kRows * kDepth, mates, k, row + place.m * kRows, kReuse);
    } else {
      load(&o.b, &full[stage], b, k, row, kReuse);
    }
    if constexpr (K.row_scales())
      load(&o.b_scales, &full[stage], memory + At::kScalesB + stage * K.b_scale_bytes(), row, k / kDepth);
  };

  if (K.ragged != Ragged::none || !o.early) previous_kernel_done();
  Walk<K> walk(o.grid, int(blockIdx.x) / K.cluster(), int(gridDim.x) / K.cluster());
  Ring<K.stages> ring;
  bool early = K.ragged == Ragged::none && o.early;
  for (Tile t; walk.next(t);) {
    place.cut(t);
    const int row = place.row(t), col = place.col(t);
    const int b_row = (K.ragged == Ragged::depth ? 0 : t.part * o.b_rows) + col;
    if (t.k >= t.k_end) {  // an expert without rows: no bytes, but a stage
      if (leader) wait(&empty[ring.stage], ring.parity ^ 1), arrive(&full[ring.stage]);
      ring.advance();
    }
    if (early) {  // the ring is empty
      const int stages = min(K.stages, (t.k_end - t.k + kDepth - 1) / kDepth);
      for (int i = 0; i < stages && leader; ++i)
        arrive_expecting(&full[i], kBytes), copy_b(uint32_t(i), b_row, t.k + i * kDepth);
      previous_kernel_done();
      for (int i = 0; i < stages; ++i, t.k += kDepth, ring.advance())
        if (leader) copy_a(uint32_t(i), row, t.k);
      early = false;
    }
    for (; t.k < t.k_end; t.k += kDepth, ring.advance()) {
      if (!leader) continue;
      wait(&empty[ring.stage], ring.parity ^ 1);
      arrive_expecting(&full[ring.stage], kBytes);
      copy_a(ring.stage, row, t.k), copy_b(ring.stage, b_row, t.k);
    }
    __syncwarp();
  }
}

template <Fp8Kernel K> __device__ void note_warp(const Fp8Operands& o, uint8_t* memory) {
  using At = Shared<K>;
  Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
          *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
  const Place<K> place;
  const int lane = int(threadIdx.x % 32);
  if (K.ragged != Ragged::none || !o.early) previous_kernel_done();
  Walk<K> walk(o.grid, int(blockIdx.x) / K.cluster(), int(gridDim.x) / K.cluster());
  Ring<K.stages> ring;
  const auto note = [&](int4 head, float scale) {
    uint8_t* to = memory + At::kNotes + ring.stage * K.note_bytes();
    wait(&empty[ring.stage], ring.parity ^ 1);
    if (lane == 0) *reinterpret_cast<int4*>(to) = head;
    if (!K.row_scales() && lane < K.groups()) reinterpret_cast<float*>(to + 16)[lane] = scale;
    __syncwarp();
    if (lane == 0) arrive(&full[ring.stage]);
    ring.advance();
  };
  for (Tile t; walk.next(t);) {
    place.cut(t);
    const int col = place.col(t), blocks = max(0, t.k_end - t.k + kDepth - 1) / kDepth;
    const int4 head{t.part + kStages * blocks, place.row(t), t.row_end, col};
    const float* scales = nullptr;
    if constexpr (!K.row_scales()) {
      const int row = o.b_first_row + t.part * o.b_rows + min(col + lane * K.group(), o.b_rows - 1);
      const int block = row / o.b_part_rows * ((o.b_part_rows + 127) / 128) + row % o.b_part_rows / 128;
      scales = o.b_block_scales + int64_t(block) * o.b_scale_ld;
    }
    const auto read = [&](int k) {
      return !K.row_scales() && lane < K.groups() && k < t.k_end ? __ldg(scales + k / kDepth) : 0.0f;
    };
    if (blocks == 0) note(head, 0);
    float next = 0;
    for (float scale = read(t.k); t.k < t.k_end; t.k += kDepth, scale = next) {
      next = read(t.k + kDepth);
      note(head, scale);
    }
  }
  // The copy warp has no part in the end.
  if (lane == 0) wait(&empty[ring.stage], ring.parity ^ 1), arrive(&full[ring.stage]);
  note({kEnd, 0, 0, 0}, 0);
}

// Each block of the cluster adds a share of the columns of all.
template <Fp8Kernel K> __device__ void add_splits(const OutMatrix& out, int rows, uint8_t* memory,
                                                  const float (&sum)[K.width() / 2], const Place<K>& place,
                                                  int row, int col) {
  constexpr int kGroups = K.width() / 8, kEach = (kGroups + K.splits - 1) / K.splits, kMath = K.math() * 128;
  const int thread = int(threadIdx.x);
  Barrier* arrived = reinterpret_cast<Barrier*>(memory + Shared<K>::kSums);
  const int mine = max(0, min(kEach, kGroups - place.split * kEach));  // groups of 8 columns
  if (thread == 0) arrive_expecting(arrived, uint32_t(mine * K.splits * kMath * 16));
  cluster_meet();  // nobody reads a ring any more: memory [split, kEach, thread] for what comes
#pragma unroll
  for (int s = 0; s < K.splits; ++s) {
    const uint32_t to_rank = uint32_t(s * Place<K>::kShare + place.index);
    const uint32_t to = address_in(memory + ((place.split * kEach) * kMath + thread) * 16, to_rank),
                   barrier = address_in(arrived, to_rank);
#pragma unroll
    for (int i = s * kEach; i < kGroups && i < (s + 1) * kEach; ++i)
      push(to + (i - s * kEach) * kMath * 16, barrier, sum[4 * i], sum[4 * i + 1], sum[4 * i + 2],
           sum[4 * i + 3]);
  }
  wait(arrived, 0);
  for (int i = 0; i < mine; ++i) {
    float4 total{0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < K.splits; ++s) {
      const float4 part = reinterpret_cast<const float4*>(memory)[(s * kEach + i) * kMath + thread];
      total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
    }
    const int c = col + (place.split * kEach + i) * 8 + thread % 4 * 2,
              r = row + thread % 128 / 32 * 16 + thread % 32 / 4;
    if (c >= out.cols) continue;
    if constexpr (K.out == Out::bf16) {
      uint32_t* to = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(out.data) + r * out.ld + c);
      if (r < rows) *to = pack_bf16(total.x, total.y);
      if (r + 8 < rows) to[4 * out.ld] = pack_bf16(total.z, total.w);
    } else {
      float2* to = reinterpret_cast<float2*>(static_cast<float*>(out.data) + r * out.ld + c);
      const auto put = [&](float2* p, float x, float y) {
        if (out.add) x += p->x, y += p->y;
        *p = {x, y};
      };
      if (r < rows) put(to, total.x, total.y);
      if (r + 8 < rows) put(to + 4 * out.ld, total.z, total.w);
    }
  }
}

template <Fp8Kernel K> __device__ void math(const Fp8Operands& o, uint8_t* memory) {
  using At = Shared<K>;
  Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
          *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
  const Place<K> place;
  const int thread = int(threadIdx.x), lane = thread % 32, group = thread / 128;
  const int warp_row = group / K.math_n * 64 + thread % 128 / 32 * 16;  // in the tile
  const int group_col = group % K.math_n * K.width();
  constexpr int kShare = Place<K>::kShare, W = K.columns;
  constexpr bool kRagged = K.ragged_rows();

  float sum[K.width() / 2], acc[K.overlap ? 2 : 1][W / 2];
#pragma unroll
  for (int i = 0; i < K.width() / 2; ++i) sum[i] = 0;

  const auto release = [&](uint32_t stage) {
    __syncwarp();
    if constexpr (kShare > 1) {
      if (lane < kShare) arrive_at_after_reading(&empty[stage], uint32_t(place.split * kShare + lane));
    } else {
      if (lane == 0) arrive(&empty[stage]);
    }
  };
  const auto store = [&](int4 head) {
    if constexpr (K.splits == 1) {
      const int row = head.y + warp_row, part = head.x % kStages;
      WarpStore<K.out, K.width(), K.slots, K.add, K.streams_out>::run(
          o.out, memory + At::kStaging + thread / 32 * (K.slot_slabs() * 2048), sum, row, head.z - row,
          !kRagged, head.w + group_col, K.ragged == Ragged::depth ? part : 0);
#pragma unroll
      for (int i = 0; i < K.width() / 2; ++i) sum[i] = 0;
    }
  };
  // Four wgmma: this pass' columns of 128 of K. `turn`: in this warpgroup's turn, and then the other's.
  const auto issue = [&](auto buffer, auto pass, uint32_t stage, bool turn) {
    const uint64_t a = swizzled_tile(memory + At::kA + stage * K.a_bytes() + group / K.math_n * 64 * kDepth),
                   b = swizzled_tile(memory + At::kB + stage * K.b_bytes() + (group_col + pass * W) * kDepth);
    if (K.turns && turn) meet(uint32_t(1 + group), 256);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<W>::e4m3_ss(acc[buffer], a + 2 * k, b + 2 * k, k > 0);
      if (K.turns && k == K.hand_over) wgmma_commit();
    }
    wgmma_commit();
    if (K.turns && turn) {
      wgmma_wait<1>();
      pass_by(uint32_t(1 + (group + 1) % K.math()), 256);
    }
  };
  // sum += scale_a scale_b acc, once the product is there; `later`: products in flight behind it.
  const auto promote = [&](auto buffer, auto pass, auto later, uint32_t stage, int row) {
    const uint8_t* note = memory + At::kNotes + stage * K.note_bytes();
    const float* a_scale = reinterpret_cast<const float*>(memory + At::kScalesA + stage * K.a_scale_bytes()) +
                           warp_row + lane / 4 + (kRagged ? row % 4 : 0);
    const float a0 = a_scale[0], a1 = a_scale[8];
    float* s = sum + pass * (W / 2);
    float(&d)[W / 2] = acc[buffer];
    constexpr bool kLastPass = pass == K.passes - 1;
    if constexpr (K.row_scales()) {
      const float* b_scale =
          reinterpret_cast<const float*>(memory + At::kScalesB + stage * K.b_scale_bytes()) + group_col +
          pass * W + lane % 4 * 2;
      wgmma_wait<later>();
      pin(d);
#pragma unroll
      for (int i = 0; i < W / 8; ++i) {
        const float2 b = *reinterpret_cast<const float2*>(b_scale + 8 * i);
        s[4 * i] += a0 * d[4 * i] * b.x, s[4 * i + 1] += a0 * d[4 * i + 1] * b.y;
        s[4 * i + 2] += a1 * d[4 * i + 2] * b.x, s[4 * i + 3] += a1 * d[4 * i + 3] * b.y;
      }
      if (kLastPass) release(stage);
    } else {
      constexpr int kScales = K.aligned ? 1 : W / K.group();
      const float* b_scale = reinterpret_cast<const float*>(note + 16);
      float scales[kScales];
#pragma unroll
      for (int i = 0; i < kScales; ++i)
        scales[i] = b_scale[K.aligned ? (K.groups() > 1 ? (group_col + pass * W) / 128 : 0)
                                      : (group_col + pass * W) / K.group() + i];
      wgmma_wait<later>();
      pin(d);
      if (kLastPass) release(stage);
      float s0 = a0 * scales[0], s1 = a1 * scales[0];
#pragma unroll
      for (int i = 0; i < W / 8; ++i) {
        if constexpr (!K.aligned) {
          constexpr int kEach = K.group() / 8;
          if (i % kEach == 0) s0 = a0 * scales[i / kEach], s1 = a1 * scales[i / kEach];
        }
        s[4 * i] += s0 * d[4 * i], s[4 * i + 1] += s0 * d[4 * i + 1];
        s[4 * i + 2] += s1 * d[4 * i + 2], s[4 * i + 3] += s1 * d[4 * i + 3];
      }
    }
    if constexpr (K.turns) {  // before the next turn is taken, not during it
#pragma unroll
      for (int i = 0; i < W / 2; ++i) asm volatile("" : "+f"(s[i])::"memory");
    }
  };
  constexpr std::integral_constant<int, 0> k0{};
  constexpr std::integral_constant<int, 1> k1{};

  if constexpr (K.add) previous_kernel_done();
  Ring<K.stages> ring;
  int4 head;
  if (K.turns && group == K.math() - 1) pass_by(1, 256);
  for (;;) {
    wait(&full[ring.stage], ring.parity);
    const int4 next = *reinterpret_cast<const int4*>(memory + At::kNotes + ring.stage * K.note_bytes());
    if (next.x == kEnd) break;
    head = next;
    int blocks = head.x / kStages;
    const int row = head.y;
    if constexpr (K.add)
      fetch_stored<K.width() / 64>(o.out, row + warp_row + lane % 16, head.w + group_col + lane / 16 * 64);
    // The next stage, once it is there; returns the one that was current.
    const auto step = [&] {
      const uint32_t stage = ring.stage;
      ring.advance();
      return stage;
    };
    if (blocks == 0) {
      release(step());
    } else if constexpr (!K.overlap) {
      const auto run = [&](int count, bool turn) {  // stages
        for (; count > 0; --count) {
          wait(&full[ring.stage], ring.parity);
          const uint32_t stage = step();
          issue(k0, k0, stage, turn), promote(k0, k0, k0, stage, row);
          if constexpr (K.passes > 1) issue(k0, k1, stage, turn), promote(k0, k1, k0, stage, row);
        }
      };
      const int alone = min(K.lag, blocks);  // without the other: first ahead of it, then behind
      if (K.lag > 0 && group == 0) run(alone, false);
      run(blocks - alone, true);
      if (K.lag > 0 && group > 0) run(alone, false);
    } else if constexpr (K.passes > 1) {
      for (; blocks > 0; --blocks) {
        wait(&full[ring.stage], ring.parity);
        const uint32_t stage = step();
        issue(k0, k0, stage, true), issue(k1, k1, stage, true);
        promote(k0, k0, k1, stage, row), promote(k1, k1, k0, stage, row);
      }
    } else {
      if (blocks % 2) {
        const uint32_t stage = step();
        issue(k0, k0, stage, true), promote(k0, k0, k0, stage, row);
      }
      for (; blocks > 1; blocks -= 2) {
        wait(&full[ring.stage], ring.parity);
        const uint32_t even = step();
        issue(k0, k0, even, true);
        wait(&full[ring.stage], ring.parity);
        const uint32_t odd = step();
        issue(k1, k0, odd, true);
        promote(k0, k0, k1, even, row), promote(k1, k0, k0, odd, row);
      }
    }
    store(head);
  }
  if constexpr (K.splits > 1)
    add_splits<K>(o.out, o.rows, memory, sum, place, head.y + group / K.math_n * 64, head.w + group_col);
  else if (lane == 0) wait_stores_read<0>();
}

}  // namespace fp8

// Named: a struct with `static constexpr Fp8Kernel k` (nvcc 13 cannot name a kernel after a value of a
// class).
template <class Named> __global__ void __launch_bounds__(Named::k.threads(), Named::k.blocks_per_sm)
    fp8_product(const __grid_constant__ Fp8Operands o) {
  constexpr Fp8Kernel K = Named::k;
  extern __shared__ __align__(1024) uint8_t memory[];
  using At = fp8::Shared<K>;
  const int warp = int(threadIdx.x) / 32 - K.math() * 4;
  if (warp == 0 && threadIdx.x % 32 == 0) {
    prefetch(&o.a), prefetch(&o.b), prefetch(&o.a_scales), prefetch(&o.out.slab);
    Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
            *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
    for (int i = 0; i < K.stages; ++i) {
      barrier_init(&full[i], 2);
      barrier_init(&empty[i], uint32_t(K.math() * 4 * K.share_m * K.share_n));
    }
    barrier_init(reinterpret_cast<Barrier*>(memory + At::kSums), 1);
    barrier_init_done();
  }
  if constexpr (K.cluster() > 1) cluster_meet();
  else __syncthreads();
  next_kernel_may_start();

  // Registers: what the loaders do not need goes to the sums.
  constexpr int kEntry = 65536 / K.blocks_per_sm / K.threads() / 8 * 8, kLoader = K.math() > 2 ? 32 : 40;
  constexpr int kMath = (kEntry * K.threads() - kLoader * 128) / (K.math() * 128) / 8 * 8;
  if (warp >= 0) {
    if constexpr (kEntry < 255) keep_registers<kLoader>();
    if (warp == 0) fp8::copy_warp<K>(o, memory);
    if (warp == 1) fp8::note_warp<K>(o, memory);
    if constexpr (K.splits > 1) __syncwarp(), cluster_meet();
  } else {
    if constexpr (kEntry < 255) take_registers<(kMath < 240 ? kMath : 240)>();
    fp8::math<K>(o, memory);
  }
  if constexpr (K.share_m * K.share_n > 1) __syncwarp(), cluster_meet();  // others may still arrive here
}

}  // namespace cachalot::cuda::hopper
