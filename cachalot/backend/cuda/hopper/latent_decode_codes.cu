// Absorbed MLA decoding over the FP8 cache: latent_decode.h has the maths, the counts and the cut; here is
// one block's work. latent_decode.cu does the same over a BF16 cache in another order: here the expansion of
// the codes needs the time of a warpgroup, so that scores and values have warpgroups of their own.
//
// A tile's 64 rows walk over blocks of 64 tokens. Three warpgroups:
//   scores        codes to bf16 in place, S_j = Q K_j^T, softmax, P_j to shared memory
//   left, right   O += P_j V_j, 256 of the 512 columns each, in registers
// The scores of block j + 1 and the first quarter of the products with block j's values are under way
// together, the rest while exponentials are taken (half and half: 2 % slower). m need only be near the
// largest score, as in latent_decode.cu. Seven of Q's nine chunks stay in the scores' registers: from shared
// memory they would take as much of its bandwidth as the tokens do, and there would be room for two stages of
// tokens only.
//
// Shared memory. A turn is a round of one of three stages: a unit's queries, then its blocks of tokens. A
// stage has the eight latent chunks [64 rows][64 numbers], 128-byte swizzled; the rotary chunk has two places
// of its own, which take P once the scores are done. One thread of the right warpgroup asks the copy engine,
// beside its mathematics, for the turn after next but one as soon as places are free.
//
// 128 heads: about 3700 clocks a block, 290 us for 128 sequences of 4096 tokens. Expanding elsewhere is
// slower: in a warpgroup of its own in front of latent_decode.cu's two 365 us, in the values' warpgroups,
// half a block each, 343. Through shared memory go 313 KB a block, 2450 clocks at 128 bytes.
#include "backend/cuda/hopper/latent_expand.cuh"
#include "backend/cuda/hopper/latent_launch.cuh"
#include "backend/cuda/hopper/latent_pieces.cuh"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kStages = 3, kLatentChunks = 8, kLatentBytes = kLatentChunks * kChunkBytes;
constexpr int kQueryChunks = 7;  // of Q in registers; the other two in shared memory
// How tokens arrive in a stage: their scales [64][4] f32 at its beginning, eight pieces of codes
// [64 tokens][64] in its upper half (latent_expand.cuh).
constexpr int kPieces = 8, kScaleBytes = 64 * 16;

// What the copy engine is asked for, with its boxes.
struct Maps {
  TensorMap latents, ropes;         // of queries: [2][64 rows][64], [64][64]
  TensorMap codes, scales, rotary;  // [8][64 tokens][64], [64][4], [64][64]
};

// What the feeding thread keeps: in shared memory, for its warpgroup has no register to spare.
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
  Feed feed;
  Barrier full[kStages], rotary_full[2];
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

// Asks the copy engine for a turn's chunks: one thread of the right warpgroup. The rotary chunk follows a
// turn later: it has two places only, and the place of two turns before must be free.
struct Feeder {
  const LatentArgs& a;
  const Maps& maps;
  DecodeShared& shared;

  __device__ __forceinline__ void next_unit() const {
    Feed& f = shared.feed;
    do f.more = f.units.next(a, f.u);
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
    Feed& f = shared.feed;
    const bool more = f.more;
    f.rotary_more = more;
    if (!more) return;
    const int block = f.block;
    uint8_t* const tile = shared.tokens[stage];
    Barrier* const full = &shared.full[stage];
    const bool queries = block < f.u.begin;
    f.rotary_of_queries = queries;
    if (queries) {
      const int row = int(f.u.shape.first_row * a.step.heads) + f.u.tile * kTileRows;
      f.rotary_row = row;
      arrive_expecting(full, kLatentBytes);
#pragma unroll
      for (int c = 0; c < kLatentChunks; c += 2) load(&maps.latents, full, tile + c * kChunkBytes, 0, row, c);
    } else {
      fetched();
      const int page_block = f.page_block, blocks_of_page = int(a.step.page_size) / kBlockTokens;
      int64_t first = int64_t(f.page) * a.step.page_size + page_block * kBlockTokens;
      if (!a.step.faults.fine(FaultOf::latent_attention, first, a.step.slots - kBlockTokens + 1)) first = 0;
      const int slot = int(first);
      f.rotary_row = slot;
      arrive_expecting(full, kPieces * kPieceBytes + kScaleBytes);
      load(&maps.codes, full, tile + kCodesAt, 0, slot, 0, Reuse::first_out);
      load(&maps.scales, full, tile, 0, slot, Reuse::first_out);
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
    const Feed& f = shared.feed;
    if (!f.rotary_more) return;
    Barrier* const done = &shared.rotary_full[slot];
    arrive_expecting(done, kChunkBytes);
    if (f.rotary_of_queries) load(&maps.ropes, done, shared.rotary[slot], 0, f.rotary_row);
    else load(&maps.rotary, done, shared.rotary[slot], 0, f.rotary_row, Reuse::first_out);
  }
};

// Of 504, three times the 168 that a thread starts with. Less, and the compiler waits after every
// product.
constexpr int kScoreRegisters = 184, kValueRegisters = 160;

constexpr uint32_t only(int role) { return role == 0 ? kScoresOnly : role == 1 ? kLeftOnly : kRightOnly; }

// The next unit of a role (0: scores, 1: left, 2: right), for all its threads.
template <int Role> __device__ __forceinline__ bool next_unit(const LatentArgs& a, DecodeShared& shared) {
  meet(only(Role), 128);
  if (threadIdx.x % 128 == 0)
    if (!shared.units[Role].next(a, shared.unit[Role])) shared.unit[Role].sequence = -1;
  meet(only(Role), 128);
  return shared.unit[Role].sequence >= 0;
}

__device__ __forceinline__ void score(const LatentArgs& a, DecodeShared& shared) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  Turn at;
  // A block's codes become numbers; what the cache holds behind the last token becomes zero.
  const auto prepare = [&](const Turn& t, int block, int clear) {
    uint8_t* const tokens = shared.tokens[t.stage];
    wait(&shared.full[t.stage], t.parity);
    expand_block(tokens);
    const int seen = block < clear ? kBlockTokens : shared.unit[0].shape.tokens - block * kBlockTokens;
    if (seen < kBlockTokens) {
      wait(&shared.rotary_full[t.slot()], t.slot_parity());
      meet(kScoresOnly, 128);
      clear_rows(tokens, kLatentChunks, seen);
      clear_rows(shared.rotary[t.slot()], 1, seen);
    }
    shared_writes_visible();
    meet(kScoresOnly, 128);
  };
  while (next_unit<0>(a, shared)) {
    int block = shared.unit[0].begin;
    const int end = shared.unit[0].end,
              clear = (shared.unit[0].shape.tokens - shared.unit[0].shape.queries + 1) /
                      kBlockTokens;  // blocks that all rows see all of
    if (block >= end) continue;
    uint32_t q[kQueryChunks][4][4];
    wait(&shared.full[at.stage], at.parity);
    {
      const uint8_t* from = shared.tokens[at.stage];
      const uint32_t address = shared_address(from) + (16 * warp + lane % 16) * 128;
#pragma unroll
      for (int c = 0; c < kQueryChunks; ++c) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          load_blocks(q[c][k], address + c * kChunkBytes + ((2 * k + lane / 16) ^ lane % 8) * 16);
      }
      wait(&shared.rotary_full[at.slot()], at.slot_parity());
#pragma unroll 1
      for (int i = threadIdx.x % 128; i < 2 * kChunkBytes / 16; i += 128)
        reinterpret_cast<uint4*>(shared.q[0])[i] =
            i < kChunkBytes / 16
                ? reinterpret_cast<const uint4*>(from + 7 * kChunkBytes)[i]
                : reinterpret_cast<const uint4*>(shared.rotary[at.slot()])[i - kChunkBytes / 16];
      shared_writes_visible();
      give_back(&shared.scored[at.stage], lane);
      give_back(&shared.ready[at.stage], lane);
      give_back(&shared.left_free[at.stage], lane);
      give_back(&shared.right_free[at.stage], lane);
      meet(kScoresOnly, 128);
      at.advance();
    }
    Rows rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) rows.largest[half] = kNothing, rows.sum[half] = 0;
#pragma unroll 1
    for (; block < end; ++block) {
      prepare(at, block, clear);
      float s[32];
      const uint64_t b = swizzled_tile(shared.tokens[at.stage]);
#pragma unroll
      for (int c = 0; c < kQueryChunks; ++c) {
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) Wgmma<64>::bf16_rs(s, q[c][k], b + c * (kChunkBytes / 16) + 2 * k, c + k);
        wgmma_commit();
      }
      const uint64_t tail = swizzled_tile(shared.q[0]);
#pragma unroll
      for (int c = kQueryChunks; c < 8; ++c) {
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k)
          Wgmma<64>::bf16_ss(s, tail + 2 * k, b + c * (kChunkBytes / 16) + 2 * k, 1);
        wgmma_commit();
      }
      uint8_t* const rotary = shared.rotary[at.slot()];
      wait(&shared.rotary_full[at.slot()], at.slot_parity());
      {
        const uint64_t r = swizzled_tile(rotary);
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) Wgmma<64>::bf16_ss(s, tail + kChunkBytes / 16 + 2 * k, r + 2 * k, 1);
        wgmma_commit();
      }
      wgmma_wait<0>();
      pin(s);
      give_back(&shared.scored[at.stage], lane);
      if (block >= clear) {  // not every row sees all of it
        const Unit& u = shared.unit[0];
        const int first = block * kBlockTokens;
        hide(s, u.shape, int(a.step.heads), u.tile * kTileRows + row, first, lane);
      }

      float top[2] = {fmaxf(s[0], s[1]), fmaxf(s[2], s[3])}, shrink[2];
#pragma unroll
      for (int i = 4; i < 32; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
        const float before = rows.largest[half];
        if ((top[half] - before) * a.scale2 > kSlack) rows.largest[half] = top[half];
        shrink[half] = exp2_of((before - rows.largest[half]) * a.scale2);
        rows.sum[half] *= shrink[half];
        top[half] = rows.largest[half] * a.scale2;
        if (lane % 4 == 0) shared.shrink[at.stage][row + 8 * half] = shrink[half];
      }
      const uint32_t to = shared_address(rotary) + (16 * warp + lane % 16) * 128;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t p[4];
        float parts[2] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          s[8 * k + i] = exp2_of(fmaf(s[8 * k + i], a.scale2, -top[i / 2 % 2]));
          parts[i / 2 % 2] += s[8 * k + i];
        }
        rows.sum[0] += parts[0], rows.sum[1] += parts[1];
#pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = bf16_pair(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
        store_blocks(to + ((2 * k + lane / 16) ^ (lane % 8)) * 16, p);
      }
      if (block + 1 == end) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float sum = rows.sum[half];
          sum += __shfl_xor_sync(~0u, sum, 1);
          sum += __shfl_xor_sync(~0u, sum, 2);
          if (lane % 4 == 0) shared.ends[at.slot()][row + 8 * half] = make_float2(rows.largest[half], sum);
        }
      }
      shared_writes_visible();
      give_back(&shared.ready[at.stage], lane);
      at.advance();
    }
  }
}

template <bool kRight>
__device__ __forceinline__ void weigh(const LatentArgs& a, const Maps& maps, DecodeShared& shared) {
  constexpr int kRole = kRight ? 2 : 1;
  constexpr int kGate = 1;  // steps of 16 tokens that do not wait for the next scores
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  const bool feeds = kRight && threadIdx.x % 128 == 0;
  const Feeder feeder{a, maps, shared};
  if (feeds) {
    feeder.next_unit();
    for (uint32_t i = 0; i < kStages; ++i) {
      feeder.ask_latents(i);
      if (i < 2) feeder.ask_rotary(i);
    }
    count_begun(a.plan);
  }
  __syncwarp();
  Turn at;
  while (next_unit<kRole>(a, shared)) {
    float o[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0;
    Rows rows;
    rows.largest[0] = rows.largest[1] = kNothing, rows.sum[0] = rows.sum[1] = 0;
    const int blocks = shared.unit[kRole].end - shared.unit[kRole].begin;
#pragma unroll 1
    for (int left = blocks; blocks > 0 && left >= 0; --left) {  // the queries' turn, then the blocks'
      const Turn turn = at;
      at.advance();
      wait(&shared.ready[turn.stage], turn.parity);
      wait(&shared.scored[turn.stage], turn.parity);  // long passed; but every phase is waited for
      if (left < blocks) {
        const float shrink[2] = {shared.shrink[turn.stage][row], shared.shrink[turn.stage][row + 8]};
        if (left == 0) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 end = shared.ends[turn.slot()][row + 8 * half];
            rows.largest[half] = end.x, rows.sum[half] = end.y;
          }
        }
        shrink_rows(o, shrink);
        const uint64_t p = swizzled_tile(shared.rotary[turn.slot()]),
                       v = swizzled_tile(shared.tokens[turn.stage] + (kRight ? 4 : 0) * kChunkBytes, 1024,
                                         kChunkBytes);
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < kGate; ++k)
          Wgmma<256>::bf16_ss<Major::k, Major::mn>(o, p + 2 * k, v + 128 * k, 1);
        wgmma_commit();
        if constexpr (kGate < 4) {
          if (left > 0) wait(&shared.scored[at.stage], at.parity);
          wgmma_begin();
#pragma unroll
          for (int k = kGate; k < 4; ++k)
            Wgmma<256>::bf16_ss<Major::k, Major::mn>(o, p + 2 * k, v + 128 * k, 1);
          wgmma_commit();
        }
        wgmma_wait<0>();
        pin(o);
        give_back(kRight ? &shared.right_free[turn.stage] : &shared.left_free[turn.stage], lane);
      }
      // Once the turn is over, others take its places.
      if (feeds && shared.feed.rotary_more) {
        wait(&shared.left_free[turn.stage], turn.parity);
        wait(&shared.right_free[turn.stage], turn.parity);
        feeder.ask_rotary(turn.slot());
        feeder.ask_latents(turn.stage);
      }
      __syncwarp();
    }
    const Unit u = shared.unit[kRole];
    write_unit<kRight>(a, u, u.tile, o, rows, rows.sum, row, lane);
  }
}

__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_codes_kernel(const __grid_constant__ LatentArgs a, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) uint8_t memory[];
  DecodeShared& shared = *reinterpret_cast<DecodeShared*>(memory);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      for (Barrier* b : {&shared.ready[s], &shared.scored[s], &shared.left_free[s], &shared.right_free[s]})
        barrier_init(b, 4);
    }
    for (int i = 0; i < 2; ++i) barrier_init(&shared.rotary_full[i], 1);
    for (int i = 0; i < 3; ++i) shared.units[i] = Units();
    shared.feed.units = Units();
    barrier_init_done();
    for (const TensorMap* map : {&maps.latents, &maps.ropes, &maps.codes, &maps.scales, &maps.rotary})
      prefetch(map);
  }
  call_in_plan(a);
  __syncthreads();
  wait_for_earlier();
  let_next_start();  // which may then read the plan before its own wait
  const int role = __shfl_sync(~0u, int(threadIdx.x) / 128, 0);
  if (role == 0) {
    take_registers<kScoreRegisters>();
    score(a, shared);
  } else if (role == 1) {
    keep_registers<kValueRegisters>();
    weigh<false>(a, maps, shared);
  } else {
    keep_registers<kValueRegisters>();
    weigh<true>(a, maps, shared);
  }
}

}  // namespace

void latent_decode_codes(const Queue& queue, const LatentDecode& d) {
  const LatentStep& s = d.step;
  const QueryMaps q = query_maps(d);
  const uint8_t* const cache = static_cast<const uint8_t*>(d.cache);
  const int64_t width = bytes_of_token(LatentFormat::fp8);
  const TensorMap codes = tensor_map({.data = cache,
                                      .dtype = DType::e4m3,
                                      .dimensions = 3,
                                      .size = {64, s.slots, kLatentChunks},
                                      .stride = {0, width, 64},
                                      .box = {64, kBlockTokens, kLatentChunks},
                                      .swizzle = Swizzle::none});
  const TensorMap scales = tensor_map({.data = cache + kLatentWidth,
                                       .dtype = DType::f32,
                                       .size = {4, s.slots},
                                       .stride = {0, width},
                                       .box = {4, kBlockTokens},
                                       .swizzle = Swizzle::none});
  const TensorMap rotary = tensor_map({.data = cache + kLatentWidth + 16,
                                       .size = {kRopeWidth, s.slots},
                                       .stride = {0, width},
                                       .box = {64, kBlockTokens}});
  launch_decoding(queue, decode_codes_kernel, sizeof(DecodeShared), latent_args(d),
                  Maps{q.latents, q.ropes, codes, scales, rotary});
}

}  // namespace cachalot::cuda::hopper
