// The shared memory of a block that decodes, and who fills it.
//
// Tokens come in halves of a block: four chunks [64 tokens][64 numbers], 128-byte swizzled, in a ring. An
// even block's left half (columns 0 ... 255) comes before its right one, an odd block's after it: the half
// that its owner will multiply P with comes first and is free first. The rotary chunks of even and of odd
// blocks have a place each, which takes P once the scores are done. A unit begins with its queries: most of
// their chunks have a place of their own, the others pass through the ring on their way to registers.
#pragma once

#include "backend/cuda/hopper/latent_pieces.cuh"

namespace cachalot::cuda::hopper {

constexpr int kHalfChunks = 4, kHalfBytes = kHalfChunks * kChunkBytes, kPairBytes = 2 * kChunkBytes;

constexpr int kSlots = 5, kQueryRegisters = 3;  // chunks of Q, the last ones

// What the copy engine is asked for, with its boxes.
struct Maps {
  TensorMap latents, ropes;  // of queries: [2][64 rows][64], [64][64]
  TensorMap tokens, rotary;  // [2][64 tokens][64], [64][64]
};

// What a softmax leaves for the other warpgroup: a row's reference, and by what sums and outputs shrink.
struct Moved {
  float largest, shrink;
};

struct DecodeShared {
  uint8_t halves[kSlots][kHalfBytes];
  uint8_t rotary[2][kChunkBytes];
  uint8_t q[kChunks - kQueryRegisters][kChunkBytes];
  Moved moved[2][kTileRows];
  float sums[2][2][kTileRows];  // of the two warpgroups, in even and odd units
  Unit unit[4];                 // the one that is fed, and up to two before it that are still worked on
  Units units;
  Barrier free[kSlots];
  Barrier full[kSlots][2];  // full: two chunks each
  Barrier rotary_full[2], rotary_free[2];
  Barrier ready[2];        // P, moved
  Barrier summed[2][2];    // sums
  Barrier q_full, q_free;  // a unit and its queries; the last scores are done
};
static_assert(sizeof(DecodeShared) <= 232448);

// Where half number n of all lies, and the parity of that round.
struct HalfPlace {
  uint32_t slot, parity;
  __device__ __forceinline__ explicit HalfPlace(uint32_t n) : slot(n % kSlots), parity(n / kSlots & 1) {}
};

__device__ __forceinline__ void init_barriers(DecodeShared& shared) {
  for (int s = 0; s < kSlots; ++s) {
    for (Barrier& b : shared.full[s]) barrier_init(&b, 1);
    barrier_init(&shared.free[s],
                 8);  // the queries' by both warpgroups, a block's twice by the last to need it
  }
  for (int s = 0; s < 2; ++s) {
    barrier_init(&shared.rotary_full[s], 1), barrier_init(&shared.rotary_free[s], 8);
    barrier_init(&shared.ready[s], 4);
    for (Barrier& b : shared.summed[s]) barrier_init(&b, 4);
  }
  barrier_init(&shared.q_full, 1), barrier_init(&shared.q_free, 8);
  barrier_init_done();
}

// The next unit, for all who work on it; sequence < 0: there is none.
__device__ __forceinline__ Unit publish_unit(const LatentArgs& a, DecodeShared& shared, uint32_t count) {
  Unit u;
  if (!shared.units.next(a, u)) u.sequence = -1, u.begin = u.end = 0;
  shared.unit[count % 4] = u;
  return u;
}

// A unit's queries; those for registers to half number n of the ring.
__device__ __forceinline__ void ask_queries(const LatentArgs& a, const Maps& maps, DecodeShared& shared,
                                            const Unit& u, uint32_t count, uint32_t n) {
  wait(&shared.q_free, count & 1 ^ 1);
  if (u.begin >= u.end) {
    arrive(&shared.q_full);
    return;
  }
  const HalfPlace at(n);
  wait(&shared.free[at.slot], at.parity ^ 1);
  const int row = int(u.shape.first_row * a.step.heads) + u.tile * kTileRows;
  constexpr int kPlaced = (kChunks - kQueryRegisters) / 2;  // pairs of chunks with a place of their own
  arrive_expecting(&shared.q_full, kPlaced * kPairBytes);
#pragma unroll
  for (int g = 0; g < kPlaced; ++g) load(&maps.latents, &shared.q_full, shared.q[2 * g], 0, row, 2 * g);
  Barrier* full = shared.full[at.slot];
  uint8_t* to = shared.halves[at.slot];
#pragma unroll
  for (int g = kPlaced; g < kRotary / 2; ++g, ++full, to += kPairBytes) {
    arrive_expecting(full, kPairBytes);
    load(&maps.latents, full, to, 0, row, 2 * g);
  }
  arrive_expecting(full, kChunkBytes);
  load(&maps.ropes, full, to, 0, row);
}

// Where a unit's blocks lie: pages, read two ahead.
struct Pages {
  const LatentStep& s;
  const int32_t* table;
  int blocks_of_page, in_page, page, after, more;  // more: pages behind this one

  __device__ __forceinline__ Pages(const LatentStep& s, const Unit& u)
      : s(s), blocks_of_page(int(s.page_size) / kBlockTokens) {
    const int first = u.begin / blocks_of_page;
    table = s.page_table + u.sequence * s.table_ld + first;
    in_page = u.begin % blocks_of_page;
    more = (u.end - 1) / blocks_of_page - first;
    page = u.page >= 0 ? u.page : *table;
    if (more > 0) after = table[1];
  }
  // The slot of the block's first token.
  __device__ __forceinline__ int next() {
    const int64_t first = int64_t(page) * s.page_size + in_page * kBlockTokens;
    if (++in_page == blocks_of_page) {
      in_page = 0, ++table, page = after;
      if (--more > 0) after = table[1];
    }
    return s.faults.fine(FaultOf::latent_attention, first, s.slots - kBlockTokens + 1) ? int(first) : 0;
  }
};

// Boxes of the cache, without a hint: with one, whichever, they read slower.
__device__ __forceinline__ void load_tokens(const TensorMap* map, Barrier* done, void* to, int32_t c0,
                                            int32_t c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void load_tokens(const TensorMap* map, Barrier* done, void* to, int32_t c0,
                                            int32_t c1, int32_t c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void ask_rotary(const Maps& maps, DecodeShared& shared, int odd, uint32_t parity,
                                           int slot) {
  wait(&shared.rotary_free[odd], parity ^ 1);
  arrive_expecting(&shared.rotary_full[odd], kChunkBytes);
  load_tokens(&maps.rotary, &shared.rotary_full[odd], shared.rotary[odd], kRotary * 64, slot);
}

// One thread asks the copy engine for a BF16 cache's tokens.
__device__ __forceinline__ void feed(const LatentArgs& a, const Maps& maps, DecodeShared& shared) {
  uint32_t n = 0, turns = 0;  // halves so far; rounds of the rotary places: their parities, a bit each
  shared.units = Units();
#pragma unroll 1
  for (uint32_t count = 0;; ++count) {
    const Unit u = publish_unit(a, shared, count);
    ask_queries(a, maps, shared, u, count, n);
    if (count == 0) count_begun(a.plan);
    if (u.sequence < 0) return;
    if (u.begin >= u.end) continue;
    ++n;
    Pages pages(a.step, u);
#pragma unroll 1
    for (int block = u.begin; block < u.end; ++block) {
      const int odd = (block - u.begin) & 1, slot = pages.next();
#pragma unroll
      for (int i = 0; i < 2; ++i, ++n) {
        const HalfPlace at(n);
        Barrier* const full = shared.full[at.slot];
        wait(&shared.free[at.slot], at.parity ^ 1);
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          arrive_expecting(full + g, kPairBytes);
          load_tokens(&maps.tokens, full + g, shared.halves[at.slot] + g * kPairBytes, 0, slot,
                      kHalfChunks * (i ^ odd) + 2 * g);
        }
      }
      ask_rotary(maps, shared, odd, turns >> odd & 1, slot);
      turns ^= 1u << odd;
    }
  }
}

}  // namespace cachalot::cuda::hopper
