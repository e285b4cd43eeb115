// The BF16 product for one tile shape: D = op(A) op(B), FP32 sums in the tensor cores, for experts.
//   A: [M, K], or [K, M] read as it lies (a_major mn) | B: [N, K], or [K, N] (b_major mn) | D [M, N]
//   forward y = x W^T: k, k | input gradient dx = dy W: k, mn | weight gradient dW = dy^T x: mn, mn
//
// The plan of fp8_gemm.cuh without scales and promotion: a copy warp that asks for 64 of K of A and B a
// stage, a note warp that says where tiles end, two warpgroups of 64 x 256 each that keep their sums in the
// accumulators and one product in flight.
//
// Where an expert's depth (its rows, in a weight gradient) ends inside a stage, the warpgroups overwrite the
// rest of the stage with zeros: what lies there belongs to the next expert, or to nobody and may be NaN.
#pragma once

#include "backend/cuda/hopper/store_tile.cuh"
#include "backend/cuda/hopper/tiles.cuh"
#include "backend/cuda/hopper/wgmma.cuh"

namespace cachalot::cuda::hopper {

struct Bf16Kernel {
  int columns = 256;  // of a tile; 128 rows, 64 a warpgroup
  int stages = 4;
  int share_m = 1, share_n = 1;
  int slots = 2;
  Major a_major = Major::k, b_major = Major::k;
  Ragged ragged = Ragged::rows;
  Out out = Out::bf16;

  static constexpr int kMath = 2, kDepth = 64;
  constexpr int tile_m() const { return 64 * kMath; }
  constexpr int tile_n() const { return columns; }
  constexpr int cluster() const { return share_m * share_n; }
  constexpr int threads() const { return 128 * kMath + 128; }
  constexpr int a_bytes() const { return tile_m() * 128; }
  constexpr int b_bytes() const { return tile_n() * 128; }
  constexpr int staging() const { return kMath * 4 * slots * 2048; }
  constexpr int shared() const { return stages * (a_bytes() + b_bytes() + 16 + 16) + staging(); }
};

struct Bf16Operands {
  TensorMap a = {},
            b = {};  // boxes of 128 bytes: of K (major k, then rows, then experts), or of M, N (major mn)
  OutMatrix out = {};
  TileGrid grid = {};
};

namespace bf16_product_parts {

enum : int { kStages = 1024, kEnd = kStages - 1 };  // the head of a note: as in fp8_gemm.cuh

template <Bf16Kernel K> struct Shared {
  static constexpr int kA = 0, kB = kA + K.stages * K.a_bytes(), kStaging = kB + K.stages * K.b_bytes(),
                       kNotes = kStaging + K.staging(), kFull = kNotes + K.stages * 16,
                       kEmpty = kFull + K.stages * 8;
};

template <Bf16Kernel K> struct Place {
  int rank = K.cluster() > 1 ? int(rank_in_cluster()) : 0;
  int m = K.share_m > 1 ? rank : 0, n = K.share_n > 1 ? rank : 0;
  __device__ int row(const Tile& t) const { return t.row + m * K.tile_m(); }
  __device__ int col(const Tile& t) const { return (t.unit_n * K.share_n + n) * K.tile_n(); }
};

template <Bf16Kernel K> using Walk = Tiles<K.ragged, K.tile_m() * K.share_m>;

// `rows` of M or N from `first` on, of the depth from k on; `part`: the expert's matrix. Among `share`
// blocks each loads a part for all.
template <Bf16Kernel K, Major J, int Rows, int Share>
__device__ __forceinline__ void load_operand(const TensorMap* map, Barrier* done, uint8_t* to, int first,
                                             int k, int part, int mine) {
  constexpr uint16_t kAll = uint16_t((1 << K.cluster()) - 1);
  constexpr int kRows = Rows / Share;
  if constexpr (J == Major::k) {
    first += mine * kRows, to += mine * kRows * 128;
    if constexpr (Share > 1) load_to_all(map, done, to, kAll, k, first, part);
    else load(map, done, to, k, first, part);
  } else {
#pragma unroll
    for (int i = 0; i < kRows / 64; ++i) {
      const int box = mine * (kRows / 64) + i;
      uint8_t* at = to + box * (K.kDepth * 128);
      if constexpr (Share > 1) load_to_all(map, done, at, kAll, first + box * 64, k, part);
      else load(map, done, at, first + box * 64, k, part);
    }
  }
}

template <Bf16Kernel K> __device__ void copy_warp(const Bf16Operands& o, uint8_t* memory) {
  using At = Shared<K>;
  Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
          *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
  const Place<K> place;
  const bool leader = threadIdx.x % 32 == 0;
  previous_kernel_done();
  Walk<K> walk(o.grid, int(blockIdx.x) / K.cluster(), int(gridDim.x) / K.cluster());
  Ring<K.stages> ring;
  for (Tile t; walk.next(t);) {
    const int row = place.row(t), col = place.col(t), part = K.ragged == Ragged::depth ? 0 : t.part;
    if (t.k >= t.k_end) {  // an expert without rows: no bytes, but a stage
      if (leader) wait(&empty[ring.stage], ring.parity ^ 1), arrive(&full[ring.stage]);
      ring.advance();
    }
    for (int k = t.k; k < t.k_end; k += K.kDepth, ring.advance()) {
      if (!leader) continue;
      Barrier* done = &full[ring.stage];
      wait(&empty[ring.stage], ring.parity ^ 1);
      arrive_expecting(done, uint32_t(K.a_bytes() + K.b_bytes()));
      load_operand<K, K.a_major, K.tile_m(), K.share_n>(
          &o.a, done, memory + At::kA + ring.stage * K.a_bytes(), row, k, 0, place.n);
      load_operand<K, K.b_major, K.tile_n(), K.share_m>(
          &o.b, done, memory + At::kB + ring.stage * K.b_bytes(), col, k, part, place.m);
    }
    __syncwarp();
  }
}

// One lane.
template <Bf16Kernel K> __device__ void note_warp(const Bf16Operands& o, uint8_t* memory) {
  using At = Shared<K>;
  Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
          *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
  const Place<K> place;
  previous_kernel_done();
  Walk<K> walk(o.grid, int(blockIdx.x) / K.cluster(), int(gridDim.x) / K.cluster());
  Ring<K.stages> ring;
  const auto note = [&](int4 head) {
    if (threadIdx.x % 32 == 0) {
      wait(&empty[ring.stage], ring.parity ^ 1);
      *reinterpret_cast<int4*>(memory + At::kNotes + ring.stage * 16) = head;
      arrive(&full[ring.stage]);
    }
    ring.advance();
  };
  for (Tile t; walk.next(t);) {
    // z: where the rows end that may be stored; for a ragged depth, how much of the last stage counts.
    const int rest = (t.k_end - t.k) % K.kDepth;
    const int blocks = (max(t.k_end - t.k, 0) + K.kDepth - 1) / K.kDepth;
    const int4 head{t.part + kStages * blocks, place.row(t),
                    K.ragged == Ragged::depth ? (rest ? rest : K.kDepth) : t.row_end, place.col(t)};
    for (int i = 0; i < max(blocks, 1); ++i) note(head);
  }
  // The copy warp has no part in the end.
  if (threadIdx.x % 32 == 0) wait(&empty[ring.stage], ring.parity ^ 1), arrive(&full[ring.stage]);
  note({kEnd, 0, 0, 0});
}

// The stage's depth from `from` on becomes zero, in boxes of 64 (of M or N) x 64 (depth) with rows of 128
// bytes.
__device__ __forceinline__ void clear_depth(uint8_t* operand, int boxes, int from) {
  const int thread = int(threadIdx.x) % 128, chunks = (64 - from) * 8;
  for (int i = thread; i < boxes * chunks; i += 128)
    *reinterpret_cast<uint4*>(operand + i / chunks * 8192 + from * 128 + i % chunks * 16) = uint4{0, 0, 0, 0};
}

template <Bf16Kernel K> __device__ void math(const Bf16Operands& o, uint8_t* memory) {
  using At = Shared<K>;
  constexpr int kShare = K.share_m * K.share_n;
  Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
          *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
  const int thread = int(threadIdx.x), lane = thread % 32, group = thread / 128;
  float sum[K.columns / 2];
#pragma unroll
  for (int i = 0; i < K.columns / 2; ++i) sum[i] = 0;
  Ring<K.stages> ring;
  const auto release = [&](uint32_t stage) {
    __syncwarp();
    if constexpr (kShare > 1) {
      if (lane < kShare) arrive_at_after_reading(&empty[stage], uint32_t(lane));
    } else {
      if (lane == 0) arrive(&empty[stage]);
    }
  };
  const auto issue = [&](uint32_t stage) {
    const uint8_t *a = memory + At::kA + stage * K.a_bytes() + group * 8192,
                  *b = memory + At::kB + stage * K.b_bytes();
    const uint64_t da = K.a_major == Major::k ? swizzled_tile(a) : swizzled_tile(a, 1024, 8192),
                   db = K.b_major == Major::k ? swizzled_tile(b) : swizzled_tile(b, 1024, 8192);
    constexpr int kStepA = K.a_major == Major::k ? 2 : 128, kStepB = K.b_major == Major::k ? 2 : 128;
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < K.kDepth / 16; ++k)
      Wgmma<K.columns>::template bf16_ss<K.a_major, K.b_major>(sum, da + k * kStepA, db + k * kStepB, 1);
    wgmma_commit();
  };
  for (;;) {
    wait(&full[ring.stage], ring.parity);
    const int4 head = *reinterpret_cast<const int4*>(memory + At::kNotes + ring.stage * 16);
    if (head.x == kEnd) break;
    int blocks = head.x / kStages;
    if (blocks == 0) {
      release(ring.stage);
      ring.advance();
    } else {
      // One product runs while the next is prepared.
      const bool cut = K.ragged == Ragged::depth && head.z < K.kDepth;
      uint32_t running = ring.stage;
      if (!(cut && blocks == 1)) {
        issue(running);
        ring.advance();
        for (blocks -= cut ? 1 : 0; blocks > 1; --blocks) {
          wait(&full[ring.stage], ring.parity);
          issue(ring.stage);
          wgmma_wait<1>();
          release(running);
          running = ring.stage;
          ring.advance();
        }
        wgmma_wait<0>();
        release(running);
      }
      if constexpr (K.ragged == Ragged::depth) {
        if (cut) {
          wait(&full[ring.stage], ring.parity);
          uint8_t *a = memory + At::kA + ring.stage * K.a_bytes(),
                  *b = memory + At::kB + ring.stage * K.b_bytes();
          clear_depth(a + group * 8192, 1, head.z);
          clear_depth(b + group * (K.columns / 128) * 8192, K.columns / 128, head.z);
          shared_writes_visible();
          meet(1, 256);
          issue(ring.stage);
          wgmma_wait<0>();
          release(ring.stage);
          ring.advance();
        }
      }
    }
    pin(sum);
    const int row = head.y + group * 64 + thread % 128 / 32 * 16;
    WarpStore<K.out, K.columns, K.slots>::run(o.out, memory + At::kStaging + thread / 32 * (K.slots * 2048),
                                              sum, row, head.z - row, K.ragged == Ragged::depth, head.w,
                                              K.ragged == Ragged::depth ? head.x % kStages : 0);
#pragma unroll
    for (int i = 0; i < K.columns / 2; ++i) sum[i] = 0;
  }
  if (lane == 0) wait_stores_read<0>();
}

}  // namespace bf16_product_parts

// Named: as of fp8_product.
template <class Named> __global__ void __launch_bounds__(Named::k.threads(), 1)
    bf16_product(const __grid_constant__ Bf16Operands o) {
  constexpr Bf16Kernel K = Named::k;
  extern __shared__ __align__(1024) uint8_t memory[];
  namespace parts = bf16_product_parts;
  using At = parts::Shared<K>;
  const int warp = int(threadIdx.x) / 32 - K.kMath * 4;
  if (warp == 0 && threadIdx.x % 32 == 0) {
    prefetch(&o.a), prefetch(&o.b), prefetch(&o.out.slab);
    Barrier *full = reinterpret_cast<Barrier*>(memory + At::kFull),
            *empty = reinterpret_cast<Barrier*>(memory + At::kEmpty);
    for (int i = 0; i < K.stages; ++i) {
      barrier_init(&full[i], 2);
      barrier_init(&empty[i], uint32_t(K.kMath * 4 * K.cluster()));
    }
    barrier_init_done();
  }
  if constexpr (K.cluster() > 1) cluster_meet();
  else __syncthreads();
  next_kernel_may_start();
  if (warp >= 0) {
    keep_registers<40>();
    if (warp == 0) parts::copy_warp<K>(o, memory);
    if (warp == 1) parts::note_warp<K>(o, memory);
  } else {
    take_registers<232>();
    parts::math<K>(o, memory);
  }
  if constexpr (K.cluster() > 1) __syncwarp(), cluster_meet();  // others may still write here
}

}  // namespace cachalot::cuda::hopper
