// Absorbed MLA decoding over a BF16 cache: latent_decode.h has the maths, the counts and the cut; here is one
// block's work. (An FP8 cache: latent_decode_codes.cu. Few rows: latent_decode_narrow.cu,
// latent_decode_few.cu.)
//
// A tile's 64 rows walk over blocks of 64 tokens. Two warpgroups take turns with the blocks, the left one has
// the even, the right one the odd ones; each keeps half of the output, O_w [64, 256] f32, in registers
// (FlashMLA's "seesaw"). The owner of block j
//   S = Q K_j^T [64, 64],  m = max(m, rows of S),  P = exp(scale (S - m)),
//   O_own = shrink O_own + P V_j [own half]
// and the other one, with P from shared memory,
//   O_other = shrink O_other + P V_j [other half]
// behind the latent part of its own next scores, which keeps the tensor cores busy for about as long as the
// owner's exponentials take. (In the middle of them: 3 % slower. Behind all of them: 7 %, as then a third
// block would have to lie in shared memory.) m and shrink go along with P; the sums of P stay with the owner
// of a block until the end. K and V are the same shared memory: as K its rows are the columns of a product
// (64 numbers contiguous along the sum), as V its rows are the sum; the tensor core reads either way.
//
// m need not be the largest score, only near it: it moves when a score exceeds it by a factor of 2^8, so that
// outputs in registers are almost never rescaled, and a warp whose rows' m all stay need not find a row's
// largest score among its four threads. P up to 2^8 and its sum are f32 and bf16 like any other.
//
// A block of tokens costs 36 products m64n64k16 and 8 of m64n256k16, 2176 clocks of the tensor cores, and 270
// KB through shared memory, 2120 clocks at 128 bytes. Memory is not the bound: without arithmetic the same
// boxes come in at 7.9 TB/s cold and 15 out of the second-level cache, 5.4 are needed; one block loading for
// two (multicast) and lines called in ahead gain nothing or lose. But a half block that is asked for is here
// after 1300 clocks, and there is room for five.
#include "backend/cuda/hopper/latent_feed.cuh"
#include "backend/cuda/hopper/latent_launch.cuh"
#include "backend/cuda/hopper/latent_pieces.cuh"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kMathRegisters = 240, kFeedRegisters = 504 - 2 * kMathRegisters;

// A warpgroup: W = 0 owns the even blocks and the left half of the output.
template <int W> struct Math {
  static constexpr uint32_t kAlone = W ? kRightOnly : kLeftOnly;
  static constexpr int kRegs = kQueryRegisters, kFirstReg = kChunks - kRegs;
  const LatentArgs& a;
  DecodeShared& shared;
  const int warp, lane, row;

  // S = or += Q K^T with chunks From ... To - 1 of half a block; on their way when this returns.
  template <int Half, int From, int To>
  __device__ __forceinline__ void ask_scores(float (&s)[32], const uint32_t (&q)[kRegs][4][4],
                                             const HalfPlace& at, bool add) const {
    const uint64_t k = swizzled_tile(shared.halves[at.slot]), qs = swizzled_tile(shared.q[0]);
#pragma unroll
    for (int i = From; i < To; ++i) {
      const int c = kHalfChunks * Half + i;
      if (i == 0 || i == 2) wait(&shared.full[at.slot][i / 2], at.parity);
      if (i % 2 == 0) wgmma_begin();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const uint64_t b = k + i * (kChunkBytes / 16) + 2 * step;
        if (c >= kFirstReg) Wgmma<64>::bf16_rs(s, q[c - kFirstReg][step], b, add || i + step > 0);
        else Wgmma<64>::bf16_ss(s, qs + c * (kChunkBytes / 16) + 2 * step, b, add || i + step > 0);
      }
      if (i % 2 == 1) wgmma_commit();
    }
  }
  __device__ __forceinline__ void ask_rotary_scores(float (&s)[32], const uint32_t (&q)[kRegs][4][4],
                                                    uint32_t parity) const {
    const uint64_t k = swizzled_tile(shared.rotary[W]);
    wait(&shared.rotary_full[W], parity);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step) Wgmma<64>::bf16_rs(s, q[kRegs - 1][step], k + 2 * step, 1);
    wgmma_commit();
  }

  __device__ __forceinline__ uint64_t values(const HalfPlace& at) const {
    return swizzled_tile(shared.halves[at.slot], 1024, kChunkBytes);
  }

  // O += P V of the other warpgroup's block, on its way when this returns; S is under way.
  __device__ __forceinline__ void ask_other(float (&o)[128], float (&s)[32], Rows& rows, uint32_t parity,
                                            const HalfPlace& at) const {
    wait(&shared.ready[W ^ 1], parity);
    const Moved(&moved)[kTileRows] = shared.moved[W ^ 1];
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Moved m = moved[row + 8 * half];
      rows.largest[half] = m.largest, shrink[half] = m.shrink;
      rows.sum[half] *= m.shrink;
    }
    // A wait for products belongs to all four warps or to none, so each looks at all 64 rows, not at its 16.
    const float x = moved[lane].shrink, y = moved[lane + 32].shrink;
    if (__any_sync(~0u, (x != 1) | (y != 1))) {
      wgmma_wait<0>();
      pin(s);
#pragma unroll
      for (int i = 0; i < 128; ++i) o[i] *= shrink[i / 2 % 2];
    }
    const uint64_t p = swizzled_tile(shared.rotary[W ^ 1]), v = values(at);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<256>::bf16_ss<Major::k, Major::mn>(o, p + 2 * k, v + 128 * k, 1);
    wgmma_commit();
  }
  __device__ __forceinline__ void free_other(const HalfPlace& at) const {
    give_back(&shared.free[at.slot], lane, 2);
    give_back(&shared.rotary_free[W ^ 1], lane);
  }

  // Softmax of S, P to shared memory, O += P V.
  __device__ __forceinline__ void use_scores(float (&s)[32], float (&o)[128], Rows& rows,
                                             const HalfPlace& at) const {
    float top[2] = {fmaxf(s[0], s[1]), fmaxf(s[2], s[3])}, shrink[2] = {1, 1};
#pragma unroll
    for (int i = 4; i < 32; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    // In nearly all blocks no row's m moves: then its four threads need not find its largest score.
    const float above = fmaxf(top[0] - rows.largest[0], top[1] - rows.largest[1]);
    if (__any_sync(~0u, above * a.scale2 > kSlack)) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
        const float before = rows.largest[half];
        if ((top[half] - before) * a.scale2 > kSlack) rows.largest[half] = top[half];
        shrink[half] = exp2_of((before - rows.largest[half]) * a.scale2);
        rows.sum[half] *= shrink[half];
      }
    }
    __syncwarp();
    const float reference[2] = {rows.largest[0] * a.scale2, rows.largest[1] * a.scale2};
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (lane % 4 == 0) shared.moved[W][row + 8 * half] = {rows.largest[half], shrink[half]};
    const uint32_t to = shared_address(shared.rotary[W]) + (16 * warp + lane % 16) * 128;
    uint32_t p[4][4];
    meet(kAlone, 128);  // P is written over what the scores' products read
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float parts[2] = {};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        s[8 * k + i] = exp2_of(fmaf(s[8 * k + i], a.scale2, -reference[i / 2 % 2]));
        parts[i / 2 % 2] += s[8 * k + i];
      }
      rows.sum[0] += parts[0], rows.sum[1] += parts[1];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = bf16_pair(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
      store_blocks(to + ((2 * k + lane / 16) ^ (lane % 8)) * 16, p[k]);
    }
    shared_writes_visible();
    give_back(&shared.ready[W], lane);
    shrink_rows(o, shrink);
    const uint64_t v = values(at);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<256>::bf16_rs<Major::mn>(o, p[k], v + 128 * k, 1);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    give_back(&shared.free[at.slot], lane, 2);
    give_back(&shared.rotary_free[W], lane);
  }

  // What the cache holds behind the last token becomes zero.
  __device__ __forceinline__ void clear_rest(int seen, uint32_t n, uint32_t parity) const {
#pragma unroll 1
    for (uint32_t half = n; half < n + 2; ++half) {
      const HalfPlace at(half);
      wait(&shared.full[at.slot][0], at.parity), wait(&shared.full[at.slot][1], at.parity);
      clear_rows(shared.halves[at.slot], kHalfChunks, seen);
    }
    wait(&shared.rotary_full[W], parity);
    clear_rows(shared.rotary[W], 1, seen);
    shared_writes_visible();
    meet(kAlone, 128);
  }

  __device__ __forceinline__ void walk() const {
    uint32_t own = 0, others = 0, turn = 0;  // blocks and units with tokens so far
    uint32_t n = 0;                          // halves in front of the unit's
#pragma unroll 1
    for (uint32_t count = 0;; ++count) {
      wait(&shared.q_full, count & 1);
      const Unit& u = shared.unit[count % 4];
      if (u.sequence < 0) return;
      Rows rows;
      rows.largest[0] = rows.largest[1] = kNothing, rows.sum[0] = rows.sum[1] = 0;
      float o[128];
#pragma unroll
      for (int i = 0; i < 128; ++i) o[i] = 0;
      const int blocks = u.end - u.begin;
      float sum[2] = {0, 0};
      if (blocks > 0) {
        uint32_t q[kRegs][4][4];
        const HalfPlace staged(n++);
        for (int i = 0; i < (kRegs + 1) / 2; ++i) wait(&shared.full[staged.slot][i], staged.parity);
        const uint32_t from = shared_address(shared.halves[staged.slot]) + (16 * warp + lane % 16) * 128;
#pragma unroll
        for (int c = 0; c < kRegs; ++c)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            load_blocks(q[c][k], from + c * kChunkBytes + ((2 * k + lane / 16) ^ lane % 8) * 16);
        shared_writes_visible();  // nor may reads be overtaken by the copy engine's writes
        give_back(&shared.free[staged.slot], lane);
        const int clear =
            (u.shape.tokens - u.shape.queries + 1) / kBlockTokens - u.begin;  // that all rows see all of
#pragma unroll 1
        for (int b = W; b < blocks; b += 2) {
          const int seen = u.shape.tokens - (u.begin + b) * kBlockTokens;
          const bool other = W == 1 || b > 0;
          const HalfPlace at(n + 2 * b), at2(n + 2 * b + 1), before(n + 2 * b - 1);
          if (seen < kBlockTokens) clear_rest(seen, n + 2 * b, own & 1);
          float s[32];
          ask_scores<W, 0, 4>(s, q, at, false);
          ask_scores<W ^ 1, 0, 4>(s, q, at2, true);
          if (other) ask_other(o, s, rows, others & 1, before);
          ask_rotary_scores(s, q, own & 1);
          wgmma_wait<1>();
          pin(o);
          if (other) free_other(before);
          wgmma_wait<0>();
          pin(s);
          if (b + 2 >= blocks) give_back(&shared.q_free, lane);
          if (b >= clear)
            hide(s, u.shape, int(a.step.heads), u.tile * kTileRows + row, (u.begin + b) * kBlockTokens, lane);
          use_scores(s, o, rows, at);
          ++own, others += other;
        }
        if (W >= blocks) give_back(&shared.q_free, lane);
        if ((blocks - 1) % 2 != W) {
          float s[32];
          const HalfPlace at(n + 2 * blocks - 1);
          ask_other(o, s, rows, others & 1, at);
          wgmma_wait<0>();
          pin(o);
          free_other(at);
          ++others;
        }
        n += 2 * blocks;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float own_sum = rows.sum[half];
          own_sum += __shfl_xor_sync(~0u, own_sum, 1);
          own_sum += __shfl_xor_sync(~0u, own_sum, 2);
          if (lane % 4 == 0) shared.sums[turn & 1][W][row + 8 * half] = own_sum;
        }
        give_back(&shared.summed[turn & 1][W], lane);
        wait(&shared.summed[turn & 1][W ^ 1], turn >> 1 & 1);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          sum[half] = shared.sums[turn & 1][0][row + 8 * half] + shared.sums[turn & 1][1][row + 8 * half];
        ++turn;
      } else {
        give_back(&shared.q_free, lane);
      }
      write_unit<W == 1>(a, u, u.tile, o, rows, sum, row, lane);
    }
  }
};

__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ LatentArgs a, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *reinterpret_cast<DecodeShared*>(memory);
  if (threadIdx.x == 0) {
    init_barriers(shared);
    prefetch(&maps.latents), prefetch(&maps.ropes), prefetch(&maps.tokens), prefetch(&maps.rotary);
  }
  call_in_plan(a);
  __syncthreads();
  wait_for_earlier();
  let_next_start();  // which may then read the plan before its own wait
  const int role = __shfl_sync(~0u, int(threadIdx.x) / 128, 0), lane = threadIdx.x % 32,
            warp = threadIdx.x / 32 % 4, row = 16 * warp + lane / 4;
  if (role == 2) {
    keep_registers<kFeedRegisters>();
    if (threadIdx.x == 256) feed(a, maps, shared);
  } else if (role == 0) {
    take_registers<kMathRegisters>();
    Math<0>{a, shared, warp, lane, row}.walk();
  } else {
    take_registers<kMathRegisters>();
    Math<1>{a, shared, warp, lane, row}.walk();
  }
}

}  // namespace

void latent_decode(const Queue& queue, const LatentDecode& d) {
  const LatentStep& s = d.step;
  CHECK(s.page_size % kBlockTokens == 0 && s.rows > 0 && s.sequences > 0);
  if (d.format == LatentFormat::fp8) return latent_decode_codes(queue, d);
  const QueryMaps q = query_maps(d);
  const int64_t width = bytes_of_token(LatentFormat::bf16);
  const TensorMap tokens = tensor_map({.data = d.cache,
                                       .dimensions = 3,
                                       .size = {64, s.slots, kChunks},
                                       .stride = {0, width, 128},
                                       .box = {64, kBlockTokens, 2},
                                       .promotion = Promotion::b128});
  const TensorMap rotary = tensor_map({.data = d.cache,
                                       .size = {kLatentWidth + kRopeWidth, s.slots},
                                       .stride = {0, width},
                                       .box = {64, kBlockTokens},
                                       .promotion = Promotion::b128});
  launch_decoding(queue, decode_kernel, sizeof(DecodeShared), latent_args(d),
                  Maps{q.latents, q.ropes, tokens, rotary});
}

}  // namespace cachalot::cuda::hopper
