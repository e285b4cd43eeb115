// The shared memory of a block that decodes, and who fills it.
//
// A turn is a round of one of three stages: a unit's queries, then its blocks of tokens. A stage has the
// eight latent chunks [64 rows][64 numbers], 128-byte swizzled; the rotary chunk has two places of its
// own, which take P once the scores are done. One thread of the left and one of the right warpgroup ask
// the copy engine, beside their mathematics, for the turn after next but one as soon as places are free.
#pragma once

#include "backend/cuda/hopper/latent_unit.cuh"

namespace cachalot::cuda::hopper {

constexpr int kStages = 3, kDecodeThreads = 384, kLatentChunks = 8,
              kLatentBytes = kLatentChunks * kChunkBytes;
constexpr int kQueryChunks = 7;  // of Q in registers; the other two in shared memory
constexpr int kGroups = 4, kGroupBytes = 2 * kChunkBytes;  // chunks arrive in twos

// How an FP8 cache's tokens arrive in a stage: their scales [64][4] f32 at its beginning, eight pieces of
// codes [64 tokens][64] in its upper half.
constexpr int kCodesAt = 4 * kChunkBytes, kPieceBytes = 64 * 64, kScaleBytes = 64 * 16;

// What the copy engine is asked for, with its boxes.
struct Maps {
  TensorMap latents, ropes;  // [2][64 rows][64], [64][64]
  TensorMap tokens, scales;  // bf16: [2][64 tokens][64]. fp8: codes [8][64][64] and [64][4]
  TensorMap rotary;          // bf16: [32][64]. fp8: [64][64]
};

// What a feeding thread keeps: in shared memory, for its warpgroup has no register to spare.
struct Feed {
  Units units;
  Unit u;
  int block, page_block, rotary_row;  // block u.begin - 1: the queries
  int32_t page;
  bool more, rotary_more, rotary_of_queries;
  const int32_t* table;
};

struct DecodeShared {
  uint8_t tokens[kStages][kLatentBytes];
  uint8_t rotary[2][kChunkBytes];
  uint8_t q[2][kChunkBytes];  // chunks 7 and 8
  float shrink[kStages][kTileRows];
  float2 ends[2][kTileRows];  // largest score and sum behind a unit's last block, by turn
  Unit unit[3];               // of the scores, left, right; here for the same reason
  Units units[3];
  Feed feed[2];
  Barrier full[kStages][kGroups], rotary_full[2];
  Barrier ready[kStages];   // P, shrink, ends
  Barrier scored[kStages];  // the scores' products are through
  Barrier left_free[kStages], right_free[kStages];
};
static_assert(sizeof(DecodeShared) <= 232448);

// Where a role stands: a turn's stage and parity, and the place of its rotary chunk.
struct Turn {
  uint32_t stage = 0, parity = 0, count = 0;
  __device__ __forceinline__ void advance() {
    ++count;
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  __device__ __forceinline__ uint32_t slot() const { return count & 1; }
  __device__ __forceinline__ uint32_t slot_parity() const { return count >> 1 & 1; }
};

// A word from memory to shared memory, on its way until fetched().
__device__ __forceinline__ void fetch_word(int32_t* to, const int32_t* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Asks the copy engine for a turn's chunks. One thread of the left warpgroup asks for chunks 0-3, one of
// the right for 4-7 and the rotary ones (of an FP8 cache for everything). Of a sharing pair each fetches
// half for both. The rotary chunk follows a turn later: it has two places only, and the place of two
// turns before must be free.
template <LatentFormat F, bool kRight> struct Feeder {
  static constexpr bool kAll = F == LatentFormat::fp8;
  static constexpr int kFrom = kRight && !kAll ? 2 : 0, kTo = kRight ? kGroups : 2;
  const LatentArgs& a;
  const Maps& maps;
  DecodeShared& shared;
  bool share;

  __device__ __forceinline__ Feed& feed() const { return shared.feed[kRight]; }
  __device__ __forceinline__ void next_unit() const {
    Feed& f = feed();
    do f.more = f.units.next(a, share, f.u);
    while (f.more && f.u.begin >= f.u.end);
    if (!f.more) return;
    f.block = f.u.begin - 1;
    const int blocks_of_page = int(a.step.page_size) / kBlockTokens;
    f.table = a.step.page_table + f.u.sequence * a.step.table_ld + f.u.begin / blocks_of_page;
    f.page_block = f.u.begin % blocks_of_page;
    fetch_word(&f.page, f.table);
  }
  // Of the turn after the last one asked for.
  __device__ __forceinline__ void ask_latents(uint32_t stage) const {
    Feed& f = feed();
    const bool more = f.more;
    f.rotary_more = more;
    if (!more) return;
    const int block = f.block;
    uint8_t* const tile = shared.tokens[stage];
    Barrier* const full = shared.full[stage];
    const bool queries = block < f.u.begin;
    f.rotary_of_queries = queries;
    if (queries) {
      const int row = int(f.u.shape.first_row * a.step.heads) + f.u.tile * kTileRows;
      f.rotary_row = row;
      if (kAll) arrive_expecting(full, kLatentBytes);
#pragma unroll
      for (int g = kFrom; g < kTo; ++g) {
        if (!kAll) arrive_expecting(full + g, kGroupBytes);
        load(&maps.latents, kAll ? full : full + g, tile + g * kGroupBytes, 0, row, 2 * g);
      }
    } else {
      fetched();
      const int page_block = f.page_block, blocks_of_page = int(a.step.page_size) / kBlockTokens;
      int64_t first = int64_t(f.page) * a.step.page_size + page_block * kBlockTokens;
      if (!a.step.faults.fine(FaultOf::latent_attention, first, a.step.slots - kBlockTokens + 1)) first = 0;
      const int slot = int(first);
      f.rotary_row = slot;
      if constexpr (kAll) {
        arrive_expecting(full, 8 * kPieceBytes + kScaleBytes);
        load(&maps.tokens, full, tile + kCodesAt, 0, slot, 0, Reuse::first_out);
        load(&maps.scales, full, tile, 0, slot, Reuse::first_out);
      } else {
#pragma unroll
        for (int g = kFrom; g < kTo; ++g) arrive_expecting(full + g, kGroupBytes);
        if (share) {
          const int g = kFrom + int(rank_in_cluster());
          load_to_all(&maps.tokens, full + g, tile + g * kGroupBytes, 3, 0, slot, 2 * g, Reuse::first_out);
        } else {
#pragma unroll
          for (int g = kFrom; g < kTo; ++g)
            load(&maps.tokens, full + g, tile + g * kGroupBytes, 0, slot, 2 * g, Reuse::first_out);
        }
      }
      if (page_block + 1 == blocks_of_page) {
        f.page_block = 0;
        const int32_t* const table = f.table + 1;
        f.table = table;
        if (block + 1 < f.u.end) fetch_word(&f.page, table);
      } else {
        f.page_block = page_block + 1;
      }
    }
    f.block = block + 1;
    if (block + 1 == f.u.end) next_unit();
  }
  // Of the last turn whose latents were asked for.
  __device__ __forceinline__ void ask_rotary(uint32_t slot) const {
    const Feed& f = feed();
    if (!kRight || !f.rotary_more) return;
    Barrier* const done = &shared.rotary_full[slot];
    uint8_t* const to = shared.rotary[slot];
    const int row = f.rotary_row;
    arrive_expecting(done, kChunkBytes);
    if (f.rotary_of_queries) load(&maps.ropes, done, to, 0, row);
    else if (kAll) load(&maps.rotary, done, to, 0, row, Reuse::first_out);
    else if (share) {
      const int rank = int(rank_in_cluster());
      load_to_all(&maps.rotary, done, to + rank * (kChunkBytes / 2), 3, kRotary * 64,
                  row + rank * (kBlockTokens / 2), Reuse::first_out);
    } else {
      load(&maps.rotary, done, to, kRotary * 64, row, Reuse::first_out);
      load(&maps.rotary, done, to + kChunkBytes / 2, kRotary * 64, row + kBlockTokens / 2, Reuse::first_out);
    }
  }
};

}  // namespace cachalot::cuda::hopper
