// Absorbed MLA decoding: latent_decode.h has the maths, the counts and the cut; here is one block's work.
//
// A tile's output, 64 rows x 512, stays in registers: two warpgroups hold 256 columns each ("left", "right").
// Tokens come in pairs of blocks, 64 tokens each, into two buffers. Both warpgroups need the probabilities of
// both blocks, but each computes only one block's:
//
//            left (warpgroup 0)                          right (warpgroup 1)
//            S0 = Q K0^T                                 S1 = Q K1^T, begun when S0's products are queued
//            m0 = max(m, S0), P0 = exp(S0 - m0)
//            P0, m0 -> shared memory            --->     O_right += P0 V0_right
//            O_left += P0 V0_left                        m1 = max(m0, S1), P1 = exp(S1 - m1)
//            O_left += P1 V1_left               <---     P1, m1 -> shared memory
//            next S0, queued behind it                   O_right += P1 V1_right
//
// so that one multiplies while the other takes exponentials. In step, both would take exponentials at the
// same time (6 % slower). K and V are the same shared memory: as K its rows are the columns of a product (64
// numbers contiguous along the sum), as V its rows are the sum (64 numbers contiguous along the columns); the
// tensor core reads either way. The 64 rotary columns are no values: when S0 is done, their 8 KB take P0.
//
// m need not be the largest score, only near it: it moves when a score exceeds it by a factor of 2^8, so that
// the outputs in registers are almost never rescaled. P up to 2^8 and its sum are f32 and bf16 like any
// other.
//
// Shared memory, 216 KB: Q and the two buffers, each nine chunks [64 rows][64 numbers], 128-byte swizzled. A
// third role feeds them: one thread and the copy engine (BF16), or a warpgroup that expands codes (FP8). Each
// chunk's arrival has its barrier; a buffer is given back in two groups, by the warpgroup that reads them
// last.
//
// A pair of blocks costs 2 x 36 products m64n64k16 and 4 x 4 of m64n256k16: 4352 clocks of the tensor cores,
// and 592 KB through shared memory, 4625 clocks at 128 bytes: the second is the nearer limit.
#include <algorithm>
#include <string>

#include "backend/cuda/hopper/latent_plan.cuh"
#include "backend/cuda/hopper/tensor_map.h"
#include "backend/cuda/hopper/tma.cuh"
#include "backend/cuda/hopper/wgmma.cuh"
#include "base/error.h"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kChunks = 9, kChunkBytes = 64 * 128, kTileBytes = kChunks * kChunkBytes, kRotary = 8;
constexpr float kNothing = -1e30f;  // "no score yet": finite, so that differences stay numbers
constexpr float kSlack = 8;         // powers of two by which a score may exceed m

struct Shared {
  uint8_t q[kTileBytes];
  uint8_t tokens[2][kTileBytes];
  float largest[2][kTileRows];          // m0, m1
  float sums[2][2][kTileRows];          // by unit's parity, warpgroup
  uint16_t scales[2][kBlockTokens][4];  // FP8: bf16 of 2^120 scale
  Barrier q_full, q_free;
  Barrier full[2][kChunks];
  Barrier left_free[2], right_free[2];
};

struct Args {
  LatentStep step;
  PlanView plan;
  const uint8_t* cache;
  bf16* o;
  float *lse, *piece_o, *piece_lse;
  float scale, scale2;  // scale2: for exponentials of two
};

// Chunks that a warpgroup gives back: buffer 0: left 0-3, right 4-8 (it reads P0). Buffer 1: left 0-3 and 8
// (it reads P1), right 4-7.
enum NamedBarrier : uint32_t {
  kScoresQueued = 1,
  kFirstReady,
  kSecondReady,
  kUnitDone,
  kLeftOnly,
  kRightOnly,
  kFeeders
};

// One piece of work: blocks [begin, end) of a sequence for this block's tile.
struct Unit {
  int sequence, begin, end, piece;
  SequenceShape shape;
};

// Whether the two blocks of a cluster work on neighbouring tiles of the same tokens. Each then fetches half
// of every chunk for both, which halves what the second-level cache must give.
template <LatentFormat F> __device__ __forceinline__ bool shares(const Args& a) {
  return F == LatentFormat::bf16 && a.plan.head().tiles % 2 == 0;
}

// Calls f(unit) for everything that the plan gives this block; the same for all roles, and for a sharing pair
// (its second tile may then be empty).
template <class F> __device__ __forceinline__ void for_each_unit(const Args& a, bool share, F&& f) {
  const PlanHead head = a.plan.head();
  for (int i = blockIdx.x; i < head.parts * head.tiles; i += gridDim.x) {
    const int tile = i % head.tiles;
    const Part part = a.plan.part(i / head.tiles);
    for (int s = part.begin_sequence; s <= part.end_sequence; ++s) {
      const SequenceShape shape = shape_of(a.step, s);
      if (tile - (share ? tile % 2 : 0) >= shape.tiles(int(a.step.heads))) continue;
      const int last = s == part.end_sequence ? part.end_block : shape.blocks();
      int begin = s == part.begin_sequence ? part.begin_block : 0,
          piece = s == part.begin_sequence ? part.first_piece : 0;
      do {
        const int end = last - begin > head.unit_blocks ? begin + head.unit_blocks : last;
        f(Unit{s, begin, end, piece++, shape}, tile);
        begin = end;
      } while (begin < last);
    }
  }
}

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ void store_blocks(uint32_t address, const uint32_t (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
}
// What a thread of a math warpgroup knows of its two rows, r and r + 8.
struct Rows {
  float largest[2], sum[2];
};

// Chunks that have a barrier of their own. Expanded codes come in halves, 0-3 and 4-7.
template <LatentFormat F> constexpr bool arrives_alone(int chunk) {
  return F == LatentFormat::bf16 || chunk % 4 == 0;
}

// S = Q K^T: chunk by chunk as they arrive. begun(): the first is under way; queued(): all are.
template <LatentFormat F, class Then, class Last>
__device__ __forceinline__ void multiply_keys(float (&s)[32], const uint8_t* q, const uint8_t* keys,
                                              Barrier* full, uint32_t parity, Then&& begun, Last&& queued) {
  const uint64_t a = swizzled_tile(q), b = swizzled_tile(keys);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (arrives_alone<F>(c)) wait(full + c, parity);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      Wgmma<64>::bf16_ss(s, a + c * (kChunkBytes / 16) + 2 * k, b + c * (kChunkBytes / 16) + 2 * k, c + k);
    wgmma_commit();
    if (c == 0) begun();
  }
  queued();
  wgmma_wait<0>();
  pin(s);
}

// O += P V, P from registers or from shared memory. Not waited for.
__device__ __forceinline__ void multiply_values(float (&o)[128], const uint32_t (&p)[4][4],
                                                const uint8_t* values) {
  const uint64_t b = swizzled_tile(values, 1024, kChunkBytes);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<256>::bf16_rs<Major::mn>(o, p[k], b + 128 * k, 1);
  wgmma_commit();
}
__device__ __forceinline__ void multiply_values(float (&o)[128], const uint8_t* p, const uint8_t* values) {
  const uint64_t a = swizzled_tile(p), b = swizzled_tile(values, 1024, kChunkBytes);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<256>::bf16_ss<Major::k, Major::mn>(o, a + 2 * k, b + 128 * k, 1);
  wgmma_commit();
}

// Makes m near the largest score, P = exp2(scale S - scale m) in place and as bf16, and adds P's sum. Returns
// by what older numbers shrink.
__device__ __forceinline__ void softmax(float (&s)[32], uint32_t (&p)[4][4], Rows& rows, float scale,
                                        float (&shrink)[2]) {
  float top[2], parts[4] = {s[0], s[1], s[2], s[3]};  // two chains a row
#pragma unroll
  for (int i = 4; i < 32; ++i) parts[i % 4] = fmaxf(parts[i % 4], s[i]);
  top[0] = fmaxf(parts[0], parts[1]), top[1] = fmaxf(parts[2], parts[3]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
    top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
    const float before = rows.largest[half];
    if ((top[half] - before) * scale > kSlack) rows.largest[half] = top[half];
    shrink[half] = exp2_of((before - rows.largest[half]) * scale);
    rows.sum[half] *= shrink[half];
    top[half] = rows.largest[half] * scale;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    s[i] = exp2_of(fmaf(s[i], scale, -top[i / 2 % 2]));
    parts[i % 4] = i < 4 ? s[i] : parts[i % 4] + s[i];
  }
  rows.sum[0] += parts[0] + parts[1], rows.sum[1] += parts[2] + parts[3];
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[k][i] = bf16_pair(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

__device__ __forceinline__ void shrink_rows(float (&o)[128], const float (&shrink)[2]) {
  if (!__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] *= shrink[i / 2 % 2];
}

// Takes over m from the other warpgroup.
__device__ __forceinline__ void follow(const float* largest, int row, Rows& rows, float scale,
                                       float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float now = largest[row + 8 * half];
    shrink[half] = exp2_of((rows.largest[half] - now) * scale);
    rows.largest[half] = now;
    rows.sum[half] *= shrink[half];
  }
}

// P to shared memory as the A of a product: rows of 128 bytes, swizzled.
__device__ __forceinline__ void publish(const uint32_t (&p)[4][4], const Rows& rows, uint8_t* to,
                                        float* largest, int warp, int lane) {
  const int row = 16 * warp + lane % 16;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    store_blocks(shared_address(to) + row * 128 + ((2 * k + lane / 16) ^ (row % 8)) * 16, p[k]);
  if (lane % 4 == 0) {
    largest[16 * warp + lane / 4] = rows.largest[0];
    largest[16 * warp + lane / 4 + 8] = rows.largest[1];
  }
  shared_writes_visible();
}

// Tokens of the block from `first` on that rows `row` and row + 8 of the sequence may not see.
__device__ __forceinline__ void hide(float (&s)[32], const SequenceShape& shape, int heads, int row,
                                     int first, int lane) {
  int visible[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = min((row + 8 * half) / heads, shape.queries - 1);
    visible[half] = shape.tokens - shape.queries + query + 1 - first - lane % 4 * 2;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (i / 4 * 8 + i % 2 >= visible[i / 2 % 2]) s[i] = -INFINITY;
}

// The cache rows behind a sequence's last token may hold NaN, which 0 x NaN would carry into the output.
template <LatentFormat F> __device__ __forceinline__ void clear_rows(uint8_t* tile, int first, Barrier* full,
                                                                     uint32_t parity, uint32_t id) {
#pragma unroll 1
  for (int c = 0; c < kChunks; c += arrives_alone<F>(1) ? 1 : 4) wait(full + c, parity);
  const int rest = (kBlockTokens - first) * 8;  // of 16 bytes, in each chunk
#pragma unroll 1
  for (int i = threadIdx.x % 128; i < kChunks * rest; i += 128)
    *reinterpret_cast<uint4*>(tile + i / rest * kChunkBytes + first * 128 + i % rest * 16) = uint4{};
  shared_writes_visible();
  meet(id, 128);
}

__device__ __forceinline__ void give_back(Barrier* b, int lane) {
  __syncwarp();
  if (lane == 0) arrive(b);
}
// To both blocks of a sharing pair: each writes into both. Twice to this one where there is none.
__device__ __forceinline__ void give_back(Barrier* b, int lane, bool share) {
  __syncwarp();
  if (lane == 0 || (lane == 1 && !share)) arrive(b);
  if (lane == 1 && share) arrive_at_after_reading(b, rank_in_cluster() ^ 1);
}

// One word in memory as a signal between blocks.
__device__ __forceinline__ void raise(int32_t* flag) {
  asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
}
__device__ __forceinline__ void wait_and_lower(int32_t* flag) {
  int32_t up;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(up) : "l"(flag) : "memory");
  while (up == 0);
  *flag = 0;
}

// A unit's output: 256 columns, the left or the right half. A sequence's only piece goes to its place; others
// go to memory, normalised, with their log-sum-exp. Of two pieces of a sequence that was cut evenly, the
// second is the beginning of the next part's work and long done when the first, the end of this part's, is:
// the first picks it up. More pieces are left to merge_kernel.
template <bool kRight> __device__ __forceinline__ void write_unit(const Args& a, const Unit& u, int tile,
                                                                  float (&o)[128], const Rows& rows,
                                                                  const float (&sum)[2], int row, int lane) {
  constexpr int kColumn = kRight ? kLatentWidth / 2 : 0;
  constexpr uint32_t kAlone = kRight ? kRightOnly : kLeftOnly;
  const int heads = int(a.step.heads), tiles = u.shape.tiles(heads), count = u.shape.queries * heads;
  const int32_t* const slots = a.plan.piece_slots() + u.sequence;
  const int slot = slots[0] + u.piece * tiles + tile, pieces = (slots[1] - slots[0]) / tiles;
  const bool two = pieces == 2 && a.plan.head().unit_blocks == kUncut,
             to_place = pieces == 0 || (two && u.piece == 0);
  if (tile >= tiles) return;  // a sharing pair's empty tile
  float scale[2], lse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    scale[half] = sum[half] > 0 ? 1 / sum[half] : 0;
    lse[half] = sum[half] > 0 ? rows.largest[half] * a.scale + logf(sum[half]) : -INFINITY;
  }
  if (two && u.piece == 0) {
    const int other = slot + tiles;
    int32_t* const flag = a.plan.flags(a.step.sequences) + 2 * other + kRight;
    if (threadIdx.x % 128 == 0) wait_and_lower(flag);
    meet(kAlone, 128);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = int64_t(other) * kTileRows + row + 8 * half;
      const float its = a.piece_lse[2 * at + kRight], top = fmaxf(its, lse[half]);
      const float mine = top > -INFINITY ? __expf(lse[half] - top) : 0,
                  theirs = top > -INFINITY ? __expf(its - top) : 0;
      const float over = top > -INFINITY ? 1 / (mine + theirs) : 0;
      if (tile * kTileRows + row + 8 * half >= count) continue;
      const float keep = scale[half] * mine * over, add = theirs * over;
      const float* from = a.piece_o + at * kLatentWidth + kColumn + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const float2 x = *reinterpret_cast<const float2*>(from + 8 * i);
        o[4 * i + 2 * half] = fmaf(add, x.x, o[4 * i + 2 * half] * keep);
        o[4 * i + 2 * half + 1] = fmaf(add, x.y, o[4 * i + 2 * half + 1] * keep);
      }
      scale[half] = 1;
      lse[half] = top > -INFINITY ? top + logf(mine + theirs) : -INFINITY;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int in_sequence = tile * kTileRows + row + 8 * half;
    if (in_sequence >= count) continue;
    const int64_t at = int64_t(u.shape.first_row) * heads + in_sequence;
    if (to_place) {
      bf16* to = a.o + at * kLatentWidth + kColumn + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 32; ++i)
        *reinterpret_cast<uint32_t*>(to + 8 * i) =
            bf16_pair(o[4 * i + 2 * half] * scale[half], o[4 * i + 2 * half + 1] * scale[half]);
      if (a.lse && !kRight && lane % 4 == 0) a.lse[at] = lse[half];
    } else {
      const int64_t piece_row = int64_t(slot) * kTileRows + row + 8 * half;
      float* to = a.piece_o + piece_row * kLatentWidth + kColumn + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 32; ++i)
        *reinterpret_cast<float2*>(to + 8 * i) =
            make_float2(o[4 * i + 2 * half] * scale[half], o[4 * i + 2 * half + 1] * scale[half]);
      if (lane % 4 == 0) a.piece_lse[2 * piece_row + kRight] = lse[half];
    }
  }
  if (two && u.piece == 1) {
    __threadfence();
    meet(kAlone, 128);
    if (threadIdx.x % 128 == 0) raise(a.plan.flags(a.step.sequences) + 2 * slot + kRight);
  }
}

// A math warpgroup: left (kRight = false) or right.
template <LatentFormat F, bool kRight>
__device__ __forceinline__ void attend(const Args& a, Shared& shared, bool share) {
  constexpr int kMine = kRight;  // my block of a pair
  constexpr int kFirstChunk = kRight ? 4 : 0;
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  uint8_t *const mine = shared.tokens[kMine], *const others = shared.tokens[1 - kMine];
  uint32_t parity[2] = {}, q_parity = 0;
  for_each_unit(a, share, [&](const Unit& u, int tile) {
    Rows rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) rows.largest[half] = kNothing, rows.sum[half] = 0;
    float o[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0;
    wait(&shared.q_full, q_parity);
    q_parity ^= 1;
    if (kRight && u.end - u.begin < 2) give_back(&shared.q_free, lane);

    float s[32], shrink[2];
    uint32_t p[4][4];
    const auto scores = [&](int block, auto&& begun, auto&& queued) {  // of my block of the pair
      const int first = (block + kMine) * kBlockTokens;
      if (u.shape.tokens < first + kBlockTokens)
        clear_rows<F>(mine, u.shape.tokens - first, shared.full[kMine], parity[kMine],
                      kRight ? kRightOnly : kLeftOnly);
      multiply_keys<F>(s, shared.q, mine, shared.full[kMine], parity[kMine], begun, queued);
      parity[kMine] ^= 1;
      if (block + 2 + kMine >= u.end) give_back(&shared.q_free, lane);
      if (u.shape.tokens - u.shape.queries + 1 < first + kBlockTokens)  // not every row sees all of it
        hide(s, u.shape, int(a.step.heads), tile * kTileRows + row, first, lane);
    };
    if constexpr (!kRight) {
      const auto announce = [&](int block) {
        if (block + 1 < u.end) pass_by(kScoresQueued, 256);
      };
      if (u.begin < u.end)
        scores(
            u.begin, [] {}, [&] { announce(u.begin); });
      else give_back(&shared.q_free, lane);
      for (int block = u.begin; block < u.end; block += 2) {
        const bool pair = block + 1 < u.end;
        softmax(s, p, rows, a.scale2, shrink);
        publish(p, rows, mine + kRotary * kChunkBytes, shared.largest[0], warp, lane);
        pass_by(kFirstReady, 256);
        shrink_rows(o, shrink);
        multiply_values(o, p, mine);
        wgmma_wait<0>();
        pin(o);
        give_back(&shared.left_free[0], lane, share);
        if (pair) {
          meet(kSecondReady, 256);
          follow(shared.largest[1], row, rows, a.scale2, shrink);
#pragma unroll
          for (int c = 0; c < 4; ++c)
            if (arrives_alone<F>(c)) wait(shared.full[1] + c, parity[1]);
          parity[1] ^= 1;
          shrink_rows(o, shrink);
          multiply_values(o, others + kRotary * kChunkBytes, others);
          if (block + 2 < u.end) {  // the next product waits in line behind this one
            scores(
                block + 2,
                [&] {
                  wgmma_wait<1>();
                  pin(o);
                  give_back(&shared.left_free[1], lane, share);
                },
                [&] { announce(block + 2); });
          } else {
            wgmma_wait<0>();
            pin(o);
            give_back(&shared.left_free[1], lane, share);
          }
        }
      }
    } else {
      for (int block = u.begin; block < u.end; block += 2) {
        const bool pair = block + 1 < u.end;
        if (pair) {
          meet(kScoresQueued, 256);
          scores(
              block, [] {}, [] {});
        }
        meet(kFirstReady, 256);
        follow(shared.largest[0], row, rows, a.scale2, shrink);
#pragma unroll
        for (int c = 4; c < 8; ++c)
          if (arrives_alone<F>(c)) wait(shared.full[0] + c, parity[0]);
        parity[0] ^= 1;
        shrink_rows(o, shrink);
        multiply_values(o, others + kRotary * kChunkBytes, others + kFirstChunk * kChunkBytes);
        if (pair) softmax(s, p, rows, a.scale2, shrink);
        wgmma_wait<0>();  // through by now
        pin(o);
        give_back(&shared.right_free[0], lane, share);
        if (pair) {
          publish(p, rows, mine + kRotary * kChunkBytes, shared.largest[1], warp, lane);
          pass_by(kSecondReady, 256);
          shrink_rows(o, shrink);
          multiply_values(o, p, mine + kFirstChunk * kChunkBytes);
          wgmma_wait<0>();
          pin(o);
          give_back(&shared.right_free[1], lane, share);
        }
      }
    }

    // The two halves of each row's sum: tokens of even and of odd blocks.
    float(*sums)[kTileRows] = shared.sums[q_parity];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.sum[half] += __shfl_xor_sync(~0u, rows.sum[half], 1);
      rows.sum[half] += __shfl_xor_sync(~0u, rows.sum[half], 2);
      if (lane % 4 == 0) sums[kMine][row + 8 * half] = rows.sum[half];
    }
    meet(kUnitDone, 256);
    const float sum[2] = {sums[0][row] + sums[1][row], sums[0][row + 8] + sums[1][row + 8]};
    write_unit<kRight>(a, u, tile, o, rows, sum, row, lane);
  });
}

// The pages of a sequence, 32 at a time in a warp's lanes.
struct Pages {
  const int32_t* table;
  int page_blocks, pages, base = -32, mine = 0;
  // First cache row of a block; rows outside of the cache are told, and read as row 0.
  __device__ __forceinline__ int slot(const Args& a, int block, int lane) {
    const int page = block / page_blocks;
    if (page - base >= 32 || page < base) {
      base = page / 32 * 32;
      mine = base + lane < pages ? table[base + lane] : 0;
    }
    const int64_t row =
        int64_t(__shfl_sync(~0u, mine, page - base)) * a.step.page_size + block % page_blocks * kBlockTokens;
    return a.step.faults.fine(FaultOf::latent_attention, row, a.step.slots - kBlockTokens + 1) ? int(row) : 0;
  }
};

__device__ __forceinline__ Pages pages_of(const Args& a, const Unit& u) {
  return {.table = a.step.page_table + u.sequence * a.step.table_ld,
          .page_blocks = int(a.step.page_size) / kBlockTokens,
          .pages = int((u.shape.tokens + a.step.page_size - 1) / a.step.page_size)};
}

__device__ __forceinline__ void load_queries(const Args& a, Shared& shared, const Unit& u, int tile,
                                             const TensorMap* latents, const TensorMap* ropes,
                                             uint32_t parity) {
  wait(&shared.q_free, parity);
  arrive_expecting(&shared.q_full, kTileBytes);
  const int first = int(u.shape.first_row * a.step.heads) + tile * kTileRows;
  for (int c = 0; c < kRotary; ++c) load(latents, &shared.q_full, shared.q + c * kChunkBytes, c * 64, first);
  load(ropes, &shared.q_full, shared.q + kRotary * kChunkBytes, 0, first);
}

// Feeds the warpgroups from the BF16 cache. One warp; lane 0 asks.
__device__ __forceinline__ void feed(const Args& a, Shared& shared, const TensorMap* latents,
                                     const TensorMap* ropes, const TensorMap* cache, bool share) {
  const int lane = threadIdx.x % 32;
  const uint32_t rank = rank_in_cluster();
  uint32_t free_parity[2] = {1, 1}, q_parity = 1;
  for_each_unit(a, share, [&](const Unit& u, int tile) {
    Pages pages = pages_of(a, u);
    if (lane == 0) load_queries(a, shared, u, tile, latents, ropes, q_parity);
    q_parity ^= 1;
    for (int block = u.begin; block < u.end; ++block) {
      const int b = (block - u.begin) % 2, slot = pages.slot(a, block, lane);
      if (lane == 0) {
        const auto load_chunk = [&](int c) {
          uint8_t* const to = shared.tokens[b] + c * kChunkBytes;
          Barrier* const done = &shared.full[b][c];
          arrive_expecting(done, kChunkBytes);
          if (share) {
            load_to_all(cache, done, to + rank * (kChunkBytes / 2), 3, c * 64, slot + int(rank) * 32,
                        Reuse::first_out);
          } else {
            load(cache, done, to, c * 64, slot, Reuse::first_out);
            load(cache, done, to + kChunkBytes / 2, c * 64, slot + 32, Reuse::first_out);
          }
        };
        wait(&shared.left_free[b], free_parity[b]);
        for (int c = 0; c < 4; ++c) load_chunk(c);
        if (b == 1) load_chunk(kRotary);
        wait(&shared.right_free[b], free_parity[b]);
        for (int c = 4; c < 8; ++c) load_chunk(c);
        if (b == 0) load_chunk(kRotary);
      }
      free_parity[b] ^= 1;
    }
    __syncwarp();
  });
}

// Feeds them from the FP8 cache: a warpgroup reads codes into registers, half a block ahead, and writes their
// numbers.
//
// E4M3's bits s eeee mmm, put at s 0000 eeee mmm 0000, are a bf16 of 2^-120 times the value (below the
// smallest normal number of either format too): shift, mask, and one multiplication by 2^120 scale, which is
// exact for a scale that is a power of two.
//   A thread has 16 codes of each row that it reads: rows 8 i + 2 warp + lane / 16, i = 0 ... 7, of the left
//   half
//   (columns 0 ... 255) and then of the right.
__device__ __forceinline__ uint32_t expand_pair(uint32_t codes, uint32_t scale) {  // codes in bytes 1 and 3
  const uint32_t bits = (codes >> 4 & 0x07F007F0u) | (codes & 0x80008000u);
  uint32_t x;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(x) : "r"(bits), "r"(scale));
  return x;
}
__device__ __forceinline__ uint4 expand(uint32_t low, uint32_t high, uint32_t scale) {  // 8 codes
  return make_uint4(
      expand_pair(__byte_perm(low, 0, 0x1404), scale), expand_pair(__byte_perm(low, 0, 0x3424), scale),
      expand_pair(__byte_perm(high, 0, 0x1404), scale), expand_pair(__byte_perm(high, 0, 0x3424), scale));
}
__device__ __forceinline__ uint4 load_once(const uint8_t* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}

__device__ __forceinline__ void expand_feed(const Args& a, Shared& shared, const TensorMap* latents,
                                            const TensorMap* ropes, const TensorMap* cache) {
  constexpr bool share = false;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int row = 2 * warp + lane / 16, column = lane % 16;  // of 16 codes
  // Two 16-byte chunks a row; neighbours in other 64-column chunks write them in the other order, so that
  // eight lanes meet eight banks of 16 bytes.
  const int chunk = column / 4, swap = chunk % 2;
  uint32_t free_parity[2] = {1, 1}, q_parity = 1;
  for_each_unit(a, share, [&](const Unit& u, int tile) {
    Pages pages = pages_of(a, u);
    if (thread == 0) load_queries(a, shared, u, tile, latents, ropes, q_parity);
    q_parity ^= 1;
    __syncwarp();
    uint4 codes[8];  // in flight: the next half. More would not fit the registers
    float scales[2];
    const uint8_t* from = a.cache;  // the block's first codes of this thread
    const auto read_half = [&](const uint8_t* block, int half) {
#pragma unroll
      for (int i = 0; i < 8; ++i) codes[i] = load_once(block + half * 256 + i * 8 * 656);
    };
    const auto read_scales = [&](int slot) {  // token thread / 2, two tiles
      const float* at = reinterpret_cast<const float*>(a.cache + (int64_t(slot) + thread / 2) * 656 + 512);
      scales[0] = at[thread % 2 * 2], scales[1] = at[thread % 2 * 2 + 1];
    };
    const auto codes_of = [&](int slot) { return a.cache + (int64_t(slot) + row) * 656 + column * 16; };
    int slot = 0;
    if (u.begin < u.end) {
      slot = pages.slot(a, u.begin, lane);
      from = codes_of(slot);
      read_half(from, 0);
      read_scales(slot);
    }
    for (int block = u.begin; block < u.end; ++block) {
      const int b = (block - u.begin) % 2;
      const bool more = block + 1 < u.end;
      const int next = more ? pages.slot(a, block + 1, lane) : slot;
      const uint8_t* const from_next =
          codes_of(next);  // the last block is asked for twice, the second time in vain
      const auto powers = [](float x) {
        return (__float_as_uint(x) + (120u << 23)) >> 16;
      };  // 2^120 x, as bf16
      *reinterpret_cast<uint32_t*>(&shared.scales[b][thread / 2][thread % 2 * 2]) =
          powers(scales[0]) | powers(scales[1]) << 16;
      meet(kFeeders, 128);
      read_scales(next);
      const auto write = [&](int half, int i, const uint4& c) {
        uint8_t* const to = shared.tokens[b] + (4 * half + chunk) * kChunkBytes + (8 * i + row) * 128;
        const uint32_t power = __byte_perm(shared.scales[b][8 * i + row][2 * half + column / 8], 0, 0x1010);
        const int at = column % 4 * 2 + swap;
        *reinterpret_cast<uint4*>(to + (at ^ row % 8) * 16) =
            expand(swap ? c.z : c.x, swap ? c.w : c.y, power);
        *reinterpret_cast<uint4*>(to + (at ^ 1 ^ row % 8) * 16) =
            expand(swap ? c.x : c.z, swap ? c.y : c.w, power);
      };
      const auto rotary = [&] {
        if (thread != 0) return;
        arrive_expecting(&shared.full[b][kRotary], kChunkBytes);
        load(cache, &shared.full[b][kRotary], shared.tokens[b] + kRotary * kChunkBytes, 0, slot,
             Reuse::first_out);
      };
      wait(&shared.left_free[b], free_parity[b]);
      if (b == 1) rotary();
#pragma unroll
      for (int i = 0; i < 8; ++i) write(0, i, codes[i]);
      read_half(from, 1);
      shared_writes_visible();
      give_back(&shared.full[b][0], lane);
      wait(&shared.right_free[b], free_parity[b]);
      if (b == 0) rotary();
#pragma unroll
      for (int i = 0; i < 8; ++i) write(1, i, codes[i]);
      read_half(from_next, 0);
      shared_writes_visible();
      give_back(&shared.full[b][4], lane);
      free_parity[b] ^= 1;
      slot = next, from = from_next;
    }
    __syncwarp();
  });
}

// Registers: a third of 168 each at the start, 504 to share out. Math needs 208 or wgmma is serialised.
template <LatentFormat F> constexpr int kMathRegisters = F == LatentFormat::fp8 ? 208 : 224;
template <LatentFormat F> constexpr int kFeedRegisters = 504 - 2 * kMathRegisters<F>;
constexpr int kThreads = 384;

template <LatentFormat F> __global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ Args a, const __grid_constant__ TensorMap latents,
                  const __grid_constant__ TensorMap ropes, const __grid_constant__ TensorMap cache) {
  constexpr bool kExpand = F == LatentFormat::fp8;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_free, 8);
    for (int b = 0; b < 2; ++b) {
      for (int c = 0; c < kChunks; ++c) barrier_init(&shared.full[b][c], kExpand && c != kRotary ? 4 : 1);
      barrier_init(&shared.left_free[b], 8);
      barrier_init(&shared.right_free[b], 8);
    }
    barrier_init_done();
    prefetch(&latents), prefetch(&ropes), prefetch(&cache);
  }
  __syncthreads();
  if constexpr (!kExpand) cluster_meet();
  start();
  const bool share = shares<F>(a);
  const int role = __shfl_sync(~0u, int(threadIdx.x) / 128, 0);
  if (role == 0) {
    take_registers<kMathRegisters<F>>();
    attend<F, false>(a, shared, share);
  } else if (role == 1) {
    take_registers<kMathRegisters<F>>();
    attend<F, true>(a, shared, share);
  } else {
    keep_registers<kFeedRegisters<F>>();
    if constexpr (kExpand) expand_feed(a, shared, &latents, &ropes, &cache);
    else if (threadIdx.x < 288) feed(a, shared, &latents, &ropes, &cache, share);
  }
  if constexpr (!kExpand) cluster_meet();  // the other block may still write here
}

// Merges the pieces of sequences that decode_kernel left: o = sum_i w_i o_i / sum_i w_i,  w_i = exp(lse_i -
// max). A warp reads a row of a piece, 16 columns a lane. Few pieces: a warp a row, eight rows a block. Many:
// a block a row; its eight warps take every eighth piece, and their sums are added in order.
constexpr int kMergeWarps = 8, kFewPieces = 8;
__global__ void __launch_bounds__(32 * kMergeWarps) merge_kernel(const __grid_constant__ Args a) {
  start();
  __shared__ float4 parts[kMergeWarps][4][32];
  __shared__ float part_sums[kMergeWarps];
  const PlanHead head = a.plan.head();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, heads = int(a.step.heads),
            at_once = head.most_pieces <= kFewPieces ? kMergeWarps : 1,
            groups = head.tiles * kTileRows / at_once;
  for (int item = blockIdx.x; item < head.merge_count * groups; item += gridDim.x) {
    const int sequence = a.plan.merged_sequences(a.step.sequences)[item / groups];
    const SequenceShape shape = shape_of(a.step, sequence);
    const int tiles = shape.tiles(heads), slot = a.plan.piece_slots()[sequence],
              pieces = (a.plan.piece_slots()[sequence + 1] - slot) / tiles;
    const int64_t step = tiles * kTileRows;
    const bool few = pieces <= kFewPieces;  // how a row is summed depends on its own pieces only
    if (few && warp >= at_once) continue;
    const int row = item % groups * at_once + (few ? warp : 0);
    if (row >= shape.queries * heads) continue;
    const int64_t first = int64_t(slot + row / kTileRows) * kTileRows + row % kTileRows;
    float largest = -INFINITY, sum = 0;
    for (int j = lane; j < pieces; j += 32) largest = fmaxf(largest, a.piece_lse[2 * (first + j * step)]);
    for (int d = 1; d < 32; d *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    float4 o[4] = {};
    const int from = few ? 0 : warp, every = few ? 1 : kMergeWarps;
    for (int base = from; base < pieces; base += 32 * every) {
      const int mine = base + lane * every, count = min(32, (pieces - base + every - 1) / every);
      const float weight =
          mine < pieces && largest > -INFINITY ? __expf(a.piece_lse[2 * (first + mine * step)] - largest) : 0;
#pragma unroll 4
      for (int j = 0; j < count; ++j) {
        const float4* piece =
            reinterpret_cast<const float4*>(a.piece_o + (first + (base + j * every) * step) * kLatentWidth);
        const float w = __shfl_sync(~0u, weight, j);
        sum += w;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4 x = piece[lane + 32 * i];
          o[i].x = fmaf(w, x.x, o[i].x), o[i].y = fmaf(w, x.y, o[i].y);
          o[i].z = fmaf(w, x.z, o[i].z), o[i].w = fmaf(w, x.w, o[i].w);
        }
      }
    }
    if (!few) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i) parts[warp][i][lane] = o[i];
      if (lane == 0) part_sums[warp] = sum;
      __syncthreads();
      sum = 0, o[0] = float4{};
      for (int w = 0; w < kMergeWarps && warp < 4; ++w) {  // this warp's quarter of the columns
        const float4 x = parts[w][warp][lane];
        o[0].x += x.x, o[0].y += x.y, o[0].z += x.z, o[0].w += x.w, sum += part_sums[w];
      }
    }
    const float over = sum > 0 ? 1 / sum : 0;
    const int64_t at = int64_t(shape.first_row) * heads + row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!few && (i > 0 || warp >= 4)) break;
      *reinterpret_cast<uint2*>(a.o + at * kLatentWidth + 4 * (lane + 32 * (few ? i : warp))) =
          make_uint2(bf16_pair(o[i].x * over, o[i].y * over), bf16_pair(o[i].z * over, o[i].w * over));
    }
    if (a.lse && lane == 0 && (few || warp == 0)) a.lse[at] = sum > 0 ? largest + logf(sum) : -INFINITY;
  }
}

void must(cudaError_t code) {
  if (code != cudaSuccess)
    throw Error(std::string("latent attention: CUDA says \"") + cudaGetErrorString(code) + "\"");
}

}  // namespace

void latent_decode(const Queue& queue, const LatentDecode& d) {
  const LatentStep& s = d.step;
  CHECK(s.page_size % kBlockTokens == 0 && s.rows > 0 && s.sequences > 0);
  const int64_t rows = s.rows * s.heads;
  const TensorMap latents = tensor_map({.data = d.q_latent,
                                        .size = {kLatentWidth, rows},
                                        .stride = {0, 2 * kLatentWidth},
                                        .box = {64, kTileRows}});
  const TensorMap ropes = tensor_map({.data = d.q_rope,
                                      .size = {kRopeWidth, rows},
                                      .stride = {0, 2 * d.q_rope_stride},
                                      .box = {64, kTileRows}});
  // Of FP8 tokens the copy engine brings only the rotary numbers.
  const bool fp8 = d.format == LatentFormat::fp8;
  const TensorMap cache = tensor_map({.data = static_cast<const uint8_t*>(d.cache) + (fp8 ? 528 : 0),
                                      .size = {fp8 ? kRopeWidth : kLatentWidth + kRopeWidth, s.slots},
                                      .stride = {0, bytes_of_token(d.format)},
                                      .box = {64, fp8 ? kBlockTokens : kBlockTokens / 2}});
  float* piece_o = static_cast<float*>(d.pieces);
  const int64_t piece_rows = piece_bytes(s) / (4 * (kLatentWidth + 2));
  const Args a{.step = s,
               .plan = {const_cast<int32_t*>(d.plan)},
               .cache = static_cast<const uint8_t*>(d.cache),
               .o = d.o_latent,
               .lse = d.lse,
               .piece_o = piece_o,
               .piece_lse = piece_o + piece_rows * kLatentWidth,
               .scale = d.scale,
               .scale2 = d.scale * 1.4426950408889634f};
  const auto run = [&](auto kernel, unsigned cluster) {
    must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared))));
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {cluster, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = unsigned(s.multiprocessors) / cluster * cluster;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = sizeof(Shared);
    config.stream = queue.stream;
    config.attrs = attributes;
    config.numAttrs = queue.overlap ? 2 : 1;
    must(cudaLaunchKernelEx(&config, kernel, a, latents, ropes, cache));
  };
  if (fp8) run(decode_kernel<LatentFormat::fp8>, 1);
  else run(decode_kernel<LatentFormat::bf16>, 2);
  launch(queue, merge_kernel, unsigned(std::min<int64_t>(rows, 16 * s.multiprocessors)), 32 * kMergeWarps, 0,
         a);
  must(cudaGetLastError());
}

}  // namespace cachalot::cuda::hopper
