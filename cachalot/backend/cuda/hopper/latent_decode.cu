// Absorbed MLA decoding: latent_decode.h has the maths, the counts and the cut; here is one block's work.
//
// A tile's 64 rows walk over blocks of 64 tokens. Three warpgroups:
//   scores        S_j = Q K_j^T, softmax, P_j to shared memory
//   left, right   O += P_j V_j, 256 of the 512 columns each, in registers
// The scores of block j + 1 and the first half of the products with block j's values are under way
// together, the second half while exponentials are taken. K and V are the same shared memory: as K its
// rows are the columns of a product (64 numbers contiguous along the sum), as V its rows are the sum (64
// numbers contiguous along the columns); the tensor core reads either way.
//
// m need not be the largest score, only near it: it moves when a score exceeds it by a factor of 2^8, so
// that the outputs in registers are almost never rescaled. P up to 2^8 and its sum are f32 and bf16 like
// any other.
//
// Seven of Q's nine chunks stay in the scores' registers: from shared memory they would take as much of
// its bandwidth as the tokens do, and there would be room for two stages of tokens only
// (latent_feed.cuh).
//
// A block of tokens costs 36 products m64n64k16 and 8 of m64n256k16, 2176 clocks of the tensor cores, and
// 248 KB through shared memory, 1940 clocks at 128 bytes. Traced, 128 heads: 2900 a block, at the 1.63
// GHz that the card then runs at, all of them the scores' (products 1450, their end 380, softmax 840,
// signals). With few heads 3700: a stage that is free waits for its tokens.
#include <string>

#include "backend/cuda/hopper/latent_expand.cuh"
#include "backend/cuda/hopper/tensor_map.h"
#include "backend/cuda/mma.cuh"
#include "base/error.h"

namespace cachalot::cuda::hopper {

namespace {

// Of 504, three times the 168 that a thread starts with. Less, and the compiler waits after every
// product.
constexpr int kScoreRegisters = 184, kValueRegisters = 160;

constexpr uint32_t only(int role) { return role == 0 ? kScoresOnly : role == 1 ? kLeftOnly : kRightOnly; }

// The next unit of a role (0: scores, 1: left, 2: right), for all its threads.
template <int Role>
__device__ __forceinline__ bool next_unit(const LatentArgs& a, DecodeShared& shared, bool share) {
  meet(only(Role), 128);
  if (threadIdx.x % 128 == 0)
    if (!shared.units[Role].next(a, share, shared.unit[Role])) shared.unit[Role].sequence = -1;
  meet(only(Role), 128);
  return shared.unit[Role].sequence >= 0;
}

template <LatentFormat F>
__device__ __forceinline__ void score(const LatentArgs& a, DecodeShared& shared, bool share) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  Turn at;
  const auto latents_here = [&](const Turn& t, int c) {
    if (c == 0 || (F == LatentFormat::bf16 && c % 2 == 0)) wait(&shared.full[t.stage][c / 2], t.parity);
  };
  // A block's codes become numbers; what the cache holds behind the last token becomes zero.
  const auto prepare = [&](const Turn& t, int block, int clear) {
    uint8_t* const tokens = shared.tokens[t.stage];
    if (F == LatentFormat::fp8) {
      latents_here(t, 0);
      expand_block(tokens);
    }
    const int seen = block < clear ? kBlockTokens : shared.unit[0].shape.tokens - block * kBlockTokens;
    if (seen < kBlockTokens) {
      for (int c = 0; c < 8; ++c) latents_here(t, c);
      wait(&shared.rotary_full[t.slot()], t.slot_parity());
      if (F == LatentFormat::fp8) meet(kScoresOnly, 128);
      clear_rows(tokens, shared.rotary[t.slot()], seen);
    }
    if (F == LatentFormat::fp8 || seen < kBlockTokens) {
      shared_writes_visible();
      meet(kScoresOnly, 128);
    }
  };
  while (next_unit<0>(a, shared, share)) {
    int block = shared.unit[0].begin;
    const int end = shared.unit[0].end,
              clear = (shared.unit[0].shape.tokens - shared.unit[0].shape.queries + 1) /
                      kBlockTokens;  // blocks that all rows see all of
    if (block >= end) continue;
    uint32_t q[kQueryChunks][4][4];
    latents_here(at, 0);
    {
      const uint8_t* from = shared.tokens[at.stage];
      const uint32_t address = shared_address(from) + (16 * warp + lane % 16) * 128;
#pragma unroll
      for (int c = 0; c < kQueryChunks; ++c) {
        latents_here(at, c);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          load_blocks(q[c][k], address + c * kChunkBytes + ((2 * k + lane / 16) ^ lane % 8) * 16);
      }
      latents_here(at, 6);
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
      give_back(&shared.left_free[at.stage], lane, share);
      give_back(&shared.right_free[at.stage], lane, share);
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
        latents_here(at, c);
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) Wgmma<64>::bf16_rs(s, q[c][k], b + c * (kChunkBytes / 16) + 2 * k, c + k);
        wgmma_commit();
      }
      const uint64_t tail = swizzled_tile(shared.q[0]);
#pragma unroll
      for (int c = kQueryChunks; c < 8; ++c) {
        latents_here(at, c);
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

template <LatentFormat F, bool kRight>
__device__ __forceinline__ void weigh(const LatentArgs& a, const Maps& maps, DecodeShared& shared,
                                      bool share) {
  constexpr int kRole = kRight ? 2 : 1;
  constexpr int kGate = 2;  // steps of 16 tokens that do not wait for the next scores
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  const bool feeds = threadIdx.x % 128 == 0 && (F == LatentFormat::bf16 || kRight);
  const Feeder<F, kRight> feeder{a, maps, shared, share};
  if (feeds) {
    feeder.next_unit();
    for (uint32_t i = 0; i < kStages; ++i) {
      feeder.ask_latents(i);
      if (i < 2) feeder.ask_rotary(i);
    }
  }
  __syncwarp();
  Turn at;
  while (next_unit<kRole>(a, shared, share)) {
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
        give_back(kRight ? &shared.right_free[turn.stage] : &shared.left_free[turn.stage], lane, share);
      }
      // Once the turn is over in all blocks of a sharing pair, others take its places.
      if (feeds && shared.feed[kRight].rotary_more) {
        wait(&shared.left_free[turn.stage], turn.parity);
        if (kRight) {
          wait(&shared.right_free[turn.stage], turn.parity);
          feeder.ask_rotary(turn.slot());
        }
        feeder.ask_latents(turn.stage);
      }
      __syncwarp();
    }
    const Unit u = shared.unit[kRole];
    write_unit<kRight>(a, u, u.tile, o, rows, rows.sum, row, lane);
  }
}

// The first things that a unit needs hang on each other: plan, lengths, page table, tokens. All blocks
// together call them into the second-level cache, while the kernel before still runs.
__device__ __forceinline__ void call_in_plan(const LatentArgs& a) {
  constexpr int kLine = 32;  // words
  const LatentStep& s = a.step;
  const int64_t all = int64_t(gridDim.x) * kDecodeThreads,
                mine = int64_t(blockIdx.x) * kDecodeThreads + threadIdx.x;
  const int64_t plan = (kHeadWords + kMostParts * kPartWords + 2 * s.sequences) / kLine + 1,
                lengths = s.sequences / kLine + 1;
  for (int64_t i = mine; i < plan + 2 * lengths + s.sequences; i += all) {
    if (i < plan) call_in(a.plan.words + i * kLine);
    else if (i < plan + lengths) call_in(s.kv_lens + min((i - plan) * kLine, s.sequences - 1));
    else if (i < plan + 2 * lengths) call_in(s.q_starts + min((i - plan - lengths) * kLine, s.sequences));
    else call_in(s.page_table + (i - plan - 2 * lengths) * s.table_ld);
  }
}

template <LatentFormat F> __global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ LatentArgs a, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) uint8_t memory[];
  DecodeShared& shared = *reinterpret_cast<DecodeShared*>(memory);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      for (int g = 0; g < kGroups; ++g) barrier_init(&shared.full[s][g], 1);
      barrier_init(&shared.ready[s], 4);
      barrier_init(&shared.scored[s], 4);
      barrier_init(&shared.left_free[s], 8);
      barrier_init(&shared.right_free[s], 8);
    }
    for (int i = 0; i < 2; ++i) barrier_init(&shared.rotary_full[i], 1);
    for (int i = 0; i < 3; ++i) shared.units[i] = Units();
    for (int i = 0; i < 2; ++i) shared.feed[i].units = Units();
    barrier_init_done();
    prefetch(&maps.latents), prefetch(&maps.ropes), prefetch(&maps.tokens), prefetch(&maps.rotary);
    if (F == LatentFormat::fp8) prefetch(&maps.scales);
  }
  call_in_plan(a);
  __syncthreads();
  cluster_meet();
  start();
  const bool share = F == LatentFormat::bf16 && a.plan.head().tiles % 2 == 0;
  const int role = __shfl_sync(~0u, int(threadIdx.x) / 128, 0);
  if (role == 0) {
    take_registers<kScoreRegisters>();
    score<F>(a, shared, share);
  } else if (role == 1) {
    keep_registers<kValueRegisters>();
    weigh<F, false>(a, maps, shared, share);
  } else {
    keep_registers<kValueRegisters>();
    weigh<F, true>(a, maps, shared, share);
  }
  cluster_meet();  // the other block may still write here
}

void must(cudaError_t code) {
  if (code != cudaSuccess)
    throw Error(std::string("latent attention: CUDA says \"") + cudaGetErrorString(code) + "\"");
}

template <LatentFormat F> void run(const Queue& queue, const LatentArgs& a, const Maps& maps) {
  must(cudaFuncSetAttribute(decode_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            int(sizeof(DecodeShared))));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {2, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = unsigned(a.step.multiprocessors) / 2 * 2;
  config.blockDim = kDecodeThreads;
  config.dynamicSmemBytes = sizeof(DecodeShared);
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.overlap ? 2 : 1;
  must(cudaLaunchKernelEx(&config, decode_kernel<F>, a, maps));
}

}  // namespace

void latent_decode(const Queue& queue, const LatentDecode& d) {
  const LatentStep& s = d.step;
  CHECK(s.page_size % kBlockTokens == 0 && s.rows > 0 && s.sequences > 0);
  const int64_t rows = s.rows * s.heads;
  const TensorMap latents = tensor_map({.data = d.q_latent,
                                        .dimensions = 3,
                                        .size = {64, rows, kLatentWidth / 64},
                                        .stride = {0, 2 * kLatentWidth, 128},
                                        .box = {64, kTileRows, 2}});
  const TensorMap ropes = tensor_map({.data = d.q_rope,
                                      .size = {kRopeWidth, rows},
                                      .stride = {0, 2 * d.q_rope_stride},
                                      .box = {64, kTileRows}});
  float* const piece_o = static_cast<float*>(d.pieces);
  const int64_t piece_rows = piece_bytes(s) / (4 * (kLatentWidth + 2));
  const LatentArgs a{.step = s,
                     .plan = {const_cast<int32_t*>(d.plan)},
                     .o = d.o_latent,
                     .lse = d.lse,
                     .piece_o = piece_o,
                     .piece_lse = piece_o + piece_rows * kLatentWidth,
                     .scale = d.scale,
                     .scale2 = d.scale * 1.4426950408889634f};
  const uint8_t* const cache = static_cast<const uint8_t*>(d.cache);
  if (d.format == LatentFormat::fp8) {
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
    run<LatentFormat::fp8>(queue, a, {latents, ropes, codes, scales, rotary});
  } else {
    const int64_t width = bytes_of_token(LatentFormat::bf16);
    const TensorMap tokens = tensor_map({.data = cache,
                                         .dimensions = 3,
                                         .size = {64, s.slots, kChunks},
                                         .stride = {0, width, 128},
                                         .box = {64, kBlockTokens, 2}});
    const TensorMap rotary = tensor_map({.data = cache,
                                         .size = {kLatentWidth + kRopeWidth, s.slots},
                                         .stride = {0, width},
                                         .box = {64, kBlockTokens / 2}});
    run<LatentFormat::bf16>(queue, a, {latents, ropes, tokens, tokens, rotary});
  }
  merge_pieces(queue, a);
  must(cudaGetLastError());
}

}  // namespace cachalot::cuda::hopper
