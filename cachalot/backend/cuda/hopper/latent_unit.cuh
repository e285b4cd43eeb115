// What the kernels of absorbed MLA decoding have in common: units of work, masks. latent_decode.h has the
// maths and the cut.
#pragma once

#include "backend/cuda/hopper/latent_plan.cuh"
#include "backend/cuda/hopper/tma.cuh"
#include "backend/cuda/hopper/wgmma.cuh"

namespace cachalot::cuda::hopper {

constexpr int kChunks = 9, kChunkBytes = 64 * 128, kRotary = 8;
constexpr float kNothing = -1e30f;  // "no score yet": finite, so that differences stay numbers
constexpr float kSlack = 8;         // powers of two by which a score may exceed m

// What a thread of a math warpgroup knows of its two rows, r and r + 8.
struct Rows {
  float largest[2], sum[2];
};

// What the kernels get. Pieces: outputs of pieces of cut sequences, and two numbers for each of their rows.
struct LatentArgs {
  LatentStep step;
  PlanView plan;
  bf16* o;
  float *lse, *piece_o, *piece_lse;
  float scale, scale2;  // scale2: for exponentials of two
};

inline LatentArgs latent_args(const LatentDecode& d) {
  float* const piece_o = static_cast<float*>(d.pieces);
  const int64_t piece_rows = piece_bytes(d.step) / (4 * (kLatentWidth + 2));
  return {
      .step = d.step,
      .plan = {const_cast<int32_t*>(d.plan)},
      .o = d.o_latent,
      .lse = d.lse,
      .piece_o = piece_o,
      .piece_lse = piece_o + piece_rows * kLatentWidth,
      .scale = d.scale,
      .scale2 = d.scale * 1.4426950408889634f,
  };
}

// Behind latent_decode.cu or latent_decode_codes.cu, which left them.
void merge_pieces(const Queue& queue, const LatentArgs& a);

// Warpgroups for themselves.
enum NamedBarrier : uint32_t { kScoresOnly = 1, kLeftOnly, kRightOnly };

// One piece of work: blocks [begin, end) of a sequence for this block's tile.
struct Unit {
  int sequence, begin, end, piece, tile;
  int page;  // of the first block; -1: to be looked up
  SequenceShape shape;
  int slot, slots;  // of the sequence's pieces: the first, and pieces times tiles; 0: it is not cut
};

// Everything that the plan gives this block, a unit at a time.
struct Units {
  int item, tile = 0, begin = 0, last = 0, piece = 0, sequence = 1, page = -1, unit_blocks = 0, slot = 0,
            slots = 0;
  Part part{};
  SequenceShape shape{};

  __device__ __forceinline__ Units() : item(int(blockIdx.x) - int(gridDim.x)) {}
  __device__ __forceinline__ bool next(const LatentArgs& a, Unit& u) {
    while (begin >= last) {
      if (++sequence > part.end_sequence) {
        item += gridDim.x;
        const PlanHead head = a.plan.read_head();
        part = a.plan.read_part(min(item, kMostParts - 1));  // together with the head: mostly it is this one
        if (item >= head.parts * head.tiles) return false;
        tile = item % head.tiles;
        if (head.tiles > 1) part = a.plan.read_part(item / head.tiles);
        unit_blocks = head.unit_blocks;
        sequence = part.begin_sequence - 1;
        continue;
      }
      const bool first = sequence == part.begin_sequence;
      shape = first ? part.shape : shape_of(a.step, sequence);
      page = first ? part.page : -1;
      slot = first ? part.slot : __ldcg(a.plan.piece_slots() + sequence);
      slots = first ? part.slots : __ldcg(a.plan.piece_slots() + sequence + 1) - slot;
      if (tile >= shape.tiles(int(a.step.heads))) continue;
      last = sequence == part.end_sequence ? part.end_block : shape.blocks();
      begin = sequence == part.begin_sequence ? part.begin_block : 0;
      piece = sequence == part.begin_sequence ? part.first_piece : 0;
      if (begin >= last) break;  // no tokens: a unit all the same
    }
    const int end = last - begin > unit_blocks ? begin + unit_blocks : max(last, begin);
    u = {sequence, begin, end, piece++, tile, page, shape, slot, slots};
    begin = end, page = -1;
    return true;
  }
};

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

// Outputs follow a largest score that moved.
__device__ __forceinline__ void shrink_rows(float (&o)[128], const float (&shrink)[2]) {
  if (!__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] *= shrink[i / 2 % 2];
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
// `count` chunks; by a warpgroup.
__device__ __forceinline__ void clear_rows(uint8_t* chunks, int count, int first) {
  const int rest = (kBlockTokens - first) * 8;  // of 16 bytes, in each chunk
#pragma unroll 1
  for (int i = threadIdx.x % 128; i < count * rest; i += 128)
    *reinterpret_cast<uint4*>(chunks + i / rest * kChunkBytes + first * 128 + i % rest * 16) = uint4{};
}

// A warp's arrival, which counts `times`.
__device__ __forceinline__ void give_back(Barrier* b, int lane, int times = 1) {
  __syncwarp();
  if (lane < times) arrive(b);
}

// Lanes 4 j ... 4 j + 3 hold four 16-byte words by columns: x[i] of lane q is part q of word i. Afterwards
// lane q holds word q whole.
__device__ __forceinline__ void gather_words(uint32_t (&x)[4], int lane) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const uint32_t give = upper ? x[i] : x[i + step], got = __shfl_xor_sync(~0u, give, step);
      if (upper) x[i] = got;
      else x[i + step] = got;
    }
  }
}

}  // namespace cachalot::cuda::hopper
