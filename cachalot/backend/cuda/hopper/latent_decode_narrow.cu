// Absorbed MLA decoding of few heads, bound by memory (latent_decode.h has the maths and the cut).
//
// With 16 rows a sequence a token costs 35 kFLOP and 1152 bytes: the tensor cores have four times the time
// they need, and everything hangs on reading without a pause. A block walks over its sequences with tiles
// of 16 rows and the portable products of 16 rows.
//   one warp      asks the copy engine for tokens, stages ahead
//   eight warps   scores of 8 tokens each, P to shared memory, one barrier, then 64 columns of the output
//                 each
// m need not be the largest score, only near it: it moves when a score exceeds it by a factor of 2^8, which
// the barrier's own reduction tells.
//
// An FP8 cache's codes become f16 by one instruction a pair, which is exact. Scales s_g(j) are of 128
// columns: scores add up 128 columns before they are scaled; P is scaled before it is rounded, four times,
//   P_g(i, j) = 2^(x(i, j) - m(i)) s_g(j) r_g(i)
// with powers of two r_g that keep the largest near 1, so that no scale can leave f16's range.
//
// Pieces of cut sequences leave normalised outputs and their log-sum-exps in memory. Two pieces are added up
// by the block that comes later; more, once all are there, by all blocks that wrote them, each a share, in
// the order of the pieces. A block waits for the others' pieces only if all blocks of the launch have begun:
// beside another kernel some may not, and would not before this one leaves. Then it leaves its share to the
// block that comes last.
#include "backend/cuda/hopper/latent_unit.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/hopper/tensor_map.h"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kRows = 16, kWarps = 8, kMathThreads = 32 * kWarps, kThreads = kMathThreads + 128;
constexpr int kMathRegisters = 232,
              kFeedRegisters = 40;         // of 504, three times the 168 that a thread starts with
constexpr uint32_t kMath = 1, kAsked = 2;  // named barriers; the second: the first queries are asked for
constexpr int kGroups = 4;                 // scales a token
constexpr int kColumns = kLatentWidth / kWarps;
constexpr int kQueryPitch = 1168;  // 16 bytes more than a row: eight rows lie in eight different places
constexpr int kPBytes = kRows * kBlockTokens * 2;

// Eight tokens that ldmatrix reads at once must lie in eight different places of 128 bytes. The FP8 cache's
// rows of 656 bytes do, as they are. Those of 1152 are nine lines of 128: all lines of the cache are one
// matrix to the copy engine, which moves piece c (of 16 bytes) of line i to c ^ i % 8; line k of token t is
// number 9 t + k. (Rows further apart by 16, 32 or 64 bytes are copied 5 to 14 % slower.)
// kEarly: blocks asked for before the first queries, which would wait behind them.
template <LatentFormat F> struct Layout {
  static constexpr int kRowBytes = 1152, kEarly = 1, kStages = 2, kPs = 1;
};
template <> struct Layout<LatentFormat::fp8> {
  static constexpr int kRowBytes = 656, kEarly = 1, kStages = 4, kPs = kGroups;
};
constexpr int kLines = 9, kBoxTokens = 8;

// A piece of a cut sequence that this block wrote. Evenly cut, a part has two at most: its first and its
// last.
struct CutUnit {
  int sequence, rows, first_row;  // the sequence's rows, and the first in all
  int slot, tiles, all;           // its memory; pieces times tiles
  int mine, shares;               // this block's share of their sum (-1: left to others), of so many
  bool others;                    // it came last, and some had left their shares
};

template <LatentFormat F> struct Shared {
  uint8_t tokens[Layout<F>::kStages][kBlockTokens * Layout<F>::kRowBytes];  // on 1024 bytes
  uint8_t q[kRows * kQueryPitch];
  uint8_t p[2][Layout<F>::kPs][kPBytes];  // rows of 128 bytes, 16-byte piece c of row r at c ^ r % 8
  float unscale[kRows];                   // FP8: of the queries
  Units units;
  Unit unit;
  CutUnit cut[2];
  int cuts;
  float sums[kWarps][kRows];
  float tops[Layout<F>::kPs == 1 ? 1 : 1 + kGroups][kWarps][kRows];
  Barrier full[Layout<F>::kStages], empty[Layout<F>::kStages];
  Barrier counted;
  uint32_t begun;  // blocks that began before this one, in this launch and earlier ones
};
static_assert(sizeof(Shared<LatentFormat::bf16>) <= 232448 && sizeof(Shared<LatentFormat::fp8>) <= 232448);

struct Args {
  LatentArgs a;
  const bf16 *q_latent, *q_rope;
  int64_t q_rope_stride;
  const uint8_t* cache;
  bool read_ahead;
};

// Over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ int exponent_of(float x) { return int(__float_as_uint(x) >> 23) - 127; }  // x >= 0

// The warps of mathematics meet; whether any thread says yes.
__device__ __forceinline__ bool meet_any(bool yes) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "bar.red.or.pred q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}"
      : "=r"(any)
      : "r"(uint32_t(yes)), "n"(kMath), "n"(kMathThreads)
      : "memory");
  return any != 0;
}

__device__ __forceinline__ uint32_t f16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// Four codes as four f16.
__device__ __forceinline__ void decode(uint32_t codes, uint32_t& low, uint32_t& high) {
  asm("{\n"
      ".reg .b16 x, y;\n"
      "mov.b32 {x, y}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, x;\n"
      "cvt.rn.f16x2.e4m3x2 %1, y;\n"
      "}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
}
// c += a b, of f16
__device__ __forceinline__ void multiply_add_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Lines of 128 bytes from `first` on. Without a hint about reuse: they cost 5 us and more of 150.
__device__ __forceinline__ void load_lines(const TensorMap* map, Barrier* done, void* to, int first) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(0), "r"(first)
      : "memory");
}

// Tiles of 16 rows that a unit's tile of 64 holds.
__device__ __forceinline__ int narrow_tiles(const Unit& u, int heads) {
  return (min(u.shape.queries * heads - u.tile * kTileRows, kTileRows) + kRows - 1) / kRows;
}

// What is as old as the plan is asked for before the kernel ahead has ended: the plan itself, lengths and
// pages, and kEarly blocks of tokens without any of the step's own.
template <LatentFormat F>
__device__ __forceinline__ void feed(const Args& args, const TensorMap* lines, Shared<F>& shared) {
  constexpr int kRowBytes = Layout<F>::kRowBytes, kStages = Layout<F>::kStages;
  const LatentArgs& a = args.a;
  const int lane = threadIdx.x % 32, heads = int(a.step.heads),
            page_blocks = int(a.step.page_size) / kBlockTokens;
  Ring<kStages> at;
  bool waited = false;
  int early = 0;
  Units units;
  Unit u;
  while (units.next(a, u)) {
    if (u.begin >= u.end) continue;
    const int32_t* const table = a.step.page_table + u.sequence * a.step.table_ld;
    const int tiles = narrow_tiles(u, heads);
    int page = 0;
    const auto ask = [&](int block) {
      const int i = (block - u.begin) % 32;
      if (i == 0)  // a lane a block
        page = block + lane < u.end ? __ldcg(table + (block + lane) / page_blocks) : 0;
      const int at_page = block == u.begin && u.page >= 0 ? u.page : __shfl_sync(~0u, page, i);
      int64_t slot = int64_t(at_page) * a.step.page_size + block % page_blocks * kBlockTokens;
      if (!a.step.faults.fine(FaultOf::latent_attention, slot, a.step.slots - kBlockTokens + 1)) slot = 0;
      const int count = min(kBlockTokens, u.shape.tokens - block * kBlockTokens);
      wait(&shared.empty[at.stage], at.parity ^ 1);
      Barrier* const full = &shared.full[at.stage];
      uint8_t* const stage = shared.tokens[at.stage];
      if constexpr (F == LatentFormat::fp8) {
        if (lane == 0) {
          arrive_expecting(full, uint32_t(count * kRowBytes));
          load_bytes(args.cache + slot * kRowBytes, full, stage, uint32_t(count * kRowBytes));
        }
      } else {
        const int boxes = (count + kBoxTokens - 1) / kBoxTokens;
        if (lane == 0) arrive_expecting(full, uint32_t(boxes * kBoxTokens * kRowBytes));
        __syncwarp();
        if (lane < boxes)
          load_lines(lines, full, stage + lane * kBoxTokens * kRowBytes,
                     int(slot + lane * kBoxTokens) * kLines);
      }
      at.advance();
    };
    for (int tile = 0; tile < tiles; ++tile) {
      int block = u.begin;
      if (!waited) {
        const int old_blocks = (u.shape.tokens - u.shape.queries) / kBlockTokens;
        early = min(min(u.end, u.begin + Layout<F>::kEarly), old_blocks);
      }
#pragma unroll 1
      for (; block < u.end; ++block) {
        if (!waited && block >= early) {
          wait_for_earlier();
          meet(kAsked, kMathThreads + 32);
          waited = true;
        }
        ask(block);
      }
      if (!waited) {
        wait_for_earlier();
        meet(kAsked, kMathThreads + 32);
        waited = true;
      }
    }
  }
}

// Pieces of this block's cut sequences, once all of a sequence's are there: its share of their sum,
//   o = sum_i w_i o_i / sum_i w_i,  w_i = exp(lse_i - max)
// in the order of the pieces. What it costs is the time until numbers are here, so all that a thread needs
// are asked for at once. Up to 8 pieces: a thread has several groups of four columns of a row. Up to 64: a
// warp has a quarter of a row's columns. More: a block has a quarter of a row; its warps take every eighth
// piece, and their sums are added in order.
constexpr int kFewPieces = 8, kSomePieces = 64;
struct MergeShared {
  float4 parts[kWarps][32];
  float sums[kWarps];
};
__device__ __forceinline__ void add_piece(float4& o, float& sum, float w, const float4& x) {
  sum += w;
  o.x = fmaf(w, x.x, o.x), o.y = fmaf(w, x.y, o.y), o.z = fmaf(w, x.z, o.z), o.w = fmaf(w, x.w, o.w);
}
__device__ __forceinline__ void put_merged(const LatentArgs& a, int64_t row, int column, const float4& o,
                                           float sum, float largest) {
  const float over = sum > 0 ? 1 / sum : 0;
  *reinterpret_cast<uint2*>(a.o + row * kLatentWidth + column) =
      make_uint2(bf16_pair(o.x * over, o.y * over), bf16_pair(o.z * over, o.w * over));
  if (a.lse && column == 0) a.lse[row] = sum > 0 ? largest + logf(sum) : -INFINITY;
}
__device__ __forceinline__ float weight(float lse, float largest) {
  return largest > -INFINITY ? __expf(lse - largest) : 0;
}

template <int kPieces, int kAtOnce>
__device__ __forceinline__ void merge_few(const LatentArgs& a, const CutUnit& c, int pieces) {
  const int count = c.rows * (kLatentWidth / 4), every = c.shares * kMathThreads;
  for (int base = c.mine * kMathThreads + threadIdx.x; base < count; base += kAtOnce * every) {
    float4 x[kAtOnce][kPieces];
    float lse[kAtOnce][kPieces];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = min(base + i * every, count - 1), row = at / (kLatentWidth / 4),
                column = at % (kLatentWidth / 4) * 4;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        const int64_t from =
            int64_t(c.slot + min(j, pieces - 1) * c.tiles + row / kTileRows) * kTileRows + row % kTileRows;
        lse[i][j] = __ldcg(a.piece_lse + 2 * from);
        x[i][j] = __ldcg(reinterpret_cast<const float4*>(a.piece_o + from * kLatentWidth + column));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = base + i * every;
      if (at >= count) break;
      float largest = -INFINITY, sum = 0;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) largest = fmaxf(largest, lse[i][j]);
      float4 o{};
#pragma unroll
      for (int j = 0; j < kPieces; ++j)
        if (j < pieces) add_piece(o, sum, weight(lse[i][j], largest), x[i][j]);
      put_merged(a, c.first_row + at / (kLatentWidth / 4), at % (kLatentWidth / 4) * 4, o, sum, largest);
    }
  }
}
// Four columns of a row of the pieces' memory.
__device__ __forceinline__ float4 piece_of(const LatentArgs& a, int64_t row, int column) {
  return __ldcg(reinterpret_cast<const float4*>(a.piece_o + row * kLatentWidth + column));
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}
__device__ __forceinline__ void merge_some(const LatentArgs& a, const CutUnit& c, int pieces) {
  constexpr int kAtOnce = 12;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int item = warp * c.shares + c.mine; item < c.rows * 4; item += kWarps * c.shares) {
    const int row = item / 4, column = 128 * (item % 4) + 4 * lane;
    const int64_t first = int64_t(c.slot + row / kTileRows) * kTileRows + row % kTileRows,
                  step = int64_t(c.tiles) * kTileRows;
    float4 x[kAtOnce], o{};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) x[j] = piece_of(a, first + min(j, pieces - 1) * step, column);
    float w[2], sum = 0;  // of pieces `lane` and 32 more
#pragma unroll
    for (int i = 0; i < 2; ++i)
      w[i] = lane + 32 * i < pieces ? __ldcg(a.piece_lse + 2 * (first + (lane + 32 * i) * step)) : -INFINITY;
    const float largest = warp_max(fmaxf(w[0], w[1]));
#pragma unroll
    for (int i = 0; i < 2; ++i) w[i] = weight(w[i], largest);
    for (int base = 0;;) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float its = __shfl_sync(~0u, base + j < 32 ? w[0] : w[1], (base + j) % 32);
        if (base + j < pieces) add_piece(o, sum, its, x[j]);
      }
      base += kAtOnce;
      if (base >= pieces) break;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) x[j] = piece_of(a, first + min(base + j, pieces - 1) * step, column);
    }
    put_merged(a, c.first_row + row, column, o, sum, largest);
  }
}
__device__ __forceinline__ void merge_many(const LatentArgs& a, const CutUnit& c, int pieces,
                                           MergeShared& shared) {
  constexpr int kAtOnce = 9;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int item = c.mine; item < c.rows * 4; item += c.shares) {
    const int row = item / 4, column = 128 * (item % 4) + 4 * lane;
    const int64_t first = int64_t(c.slot + row / kTileRows) * kTileRows + row % kTileRows,
                  step = int64_t(c.tiles) * kTileRows;
    float4 x[kAtOnce], o{};
    float lse[kAtOnce];
    const auto ask = [&](int base) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t at = first + min(base + j * kWarps, pieces - 1) * step;
        x[j] = piece_of(a, at, column);
        lse[j] = __ldcg(a.piece_lse + 2 * at);
      }
    };
    ask(warp);
    float largest = -INFINITY, sum = 0;
#pragma unroll 4
    for (int j = lane; j < pieces; j += 32)
      largest = fmaxf(largest, __ldcg(a.piece_lse + 2 * (first + j * step)));
    largest = warp_max(largest);
    for (int base = warp;;) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (base + j * kWarps < pieces) add_piece(o, sum, weight(lse[j], largest), x[j]);
      base += kAtOnce * kWarps;
      if (base >= pieces) break;
      ask(base);
    }
    meet(kMath, kMathThreads);
    shared.parts[warp][lane] = o;
    if (lane == 0) shared.sums[warp] = sum;
    meet(kMath, kMathThreads);
    if (warp > 0) continue;
    o = {}, sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float4 y = shared.parts[w][lane];
      o.x += y.x, o.y += y.y, o.z += y.z, o.w += y.w, sum += shared.sums[w];
    }
    put_merged(a, c.first_row + row, column, o, sum, largest);
  }
}

// A cut sequence's word counts, ten bits each: pieces that are there, blocks that left before, blocks that
// are done with it. The last of these makes it zero for the next kernel.
constexpr int32_t kArrived = 1, kLeft = 1 << 10, kDone = 1 << 20;
__device__ __forceinline__ int arrived_of(int32_t word) { return word & 1023; }

__device__ __forceinline__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ __forceinline__ int32_t load_acquire(const int32_t* from) {
  int32_t x;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}
// To count when nothing of earlier kernels runs any more: launches follow each other whole.
template <LatentFormat F>
__device__ __forceinline__ void count_begun(const LatentArgs& a, Shared<F>& shared) {
  wait_for_earlier();
  shared.begun = uint32_t(atomicAdd(&a.plan.head().begun, 1));
  arrive(&shared.counted);
}
template <LatentFormat F>
__device__ __forceinline__ bool all_have_begun(const LatentArgs& a, Shared<F>& shared) {
  wait(&shared.counted, 0);
  return uint32_t(load_acquire(&a.plan.head().begun)) >= (shared.begun / gridDim.x + 1) * gridDim.x;
}

__device__ __forceinline__ void merge_share(const LatentArgs& a, CutUnit c, int share, MergeShared& shared) {
  c.mine = share;
  const int pieces = c.all / c.tiles;
  if (pieces <= 2) merge_few<2, 4>(a, c, pieces);
  else if (pieces <= 4) merge_few<4, 3>(a, c, pieces);
  else if (pieces <= 6) merge_few<6, 2>(a, c, pieces);
  else if (pieces <= kFewPieces) merge_few<kFewPieces, 2>(a, c, pieces);
  else if (pieces <= kSomePieces) merge_some(a, c, pieces);
  else merge_many(a, c, pieces, shared);
}

template <LatentFormat F> __device__ __forceinline__ void merge(const LatentArgs& a, Shared<F>& shared) {
  const int count = shared.cuts;
  if (count == 0) return;
  MergeShared& memory = *reinterpret_cast<MergeShared*>(shared.tokens[0]);
  bool done = false;
  CutUnit& mine = shared.cut[threadIdx.x & 1];
  int32_t* const word = a.plan.arrived(a.step.sequences) + mine.sequence;
  int32_t* const left = a.plan.flags(a.step.sequences);  // [slots]
  const bool alone = mine.shares == 1;
  if (threadIdx.x < count && !alone && arrived_of(load_acquire(word)) < mine.all) {
    if (all_have_begun(a, shared)) {
      while (arrived_of(load_acquire(word)) < mine.all) {
      }
    } else {
      int32_t* const flag = left + mine.slot + mine.mine;
      *flag = 1;
      fence_gpu();
      const int32_t before = atomicAdd(word, kLeft + kDone);
      done = true;
      if (arrived_of(before) < mine.all) {
        mine.mine = -1;
      } else {  // in time all the same
        *flag = 0;
        if (before >> 20 == mine.all - 1) *word = 0;
        fence_gpu();
      }
    }
  }
  meet(kMath, kMathThreads);
  for (int i = 0; i < count; ++i) {
    const CutUnit& c = shared.cut[i];
    if (c.mine < 0) continue;
    const int end = c.others ? c.all : c.mine + 1;
    for (int share = c.others ? 0 : c.mine; share < end; ++share) {
      bool its = share == c.mine;
      if (c.others) its |= meet_any(threadIdx.x == 0 && atomicExch(left + c.slot + share, 0) != 0);
      if (its) merge_share(a, c, share, memory);
    }
  }
  if (threadIdx.x < count && !done && (alone || atomicAdd(word, kDone) >> 20 == mine.all - 1)) *word = 0;
}

// A tile's queries to shared memory, two rows a warp; behind the last row the last one again. By plain loads:
// through the copy engine they would wait behind tokens that were asked for before them. FP8: the latent ones
// as f16, the largest to between 2^13 and 2^14 (powers of two are exact). Lane `pair` of four gets the codes
// 4 pair ... of 16: the queries are put in that order.
template <LatentFormat F> __device__ __forceinline__ void put_queries(const Args& args, Shared<F>& shared,
                                                                      const Unit& u, int first_row, int rows,
                                                                      bool first_time) {
  constexpr bool kCodes = F == LatentFormat::fp8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first = int64_t(u.shape.first_row) * args.a.step.heads;
  const auto row_of = [&](int r) { return first + min(first_row + r, rows - 1); };
  uint4 x[2][2], rope{};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint4* const from =
        reinterpret_cast<const uint4*>(args.q_latent + row_of(warp + kWarps * j) * kLatentWidth);
#pragma unroll
    for (int i = 0; i < 2; ++i) x[j][i] = __ldcg(from + (kCodes ? 2 * lane + i : lane + 32 * i));
  }
  const int rope_row = warp + lane / 8 * kWarps;
  if (lane < 16)
    rope = __ldcg(reinterpret_cast<const uint4*>(args.q_rope + row_of(rope_row) * args.q_rope_stride) +
                  lane % 8);
  if (first_time) pass_by(kAsked, kMathThreads + 32);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int r = warp + kWarps * j;
    uint4* const to = reinterpret_cast<uint4*>(shared.q + r * kQueryPitch);
    if constexpr (kCodes) {
      uint32_t w[8] = {x[j][0].x, x[j][0].y, x[j][0].z, x[j][0].w,
                       x[j][1].x, x[j][1].y, x[j][1].z, x[j][1].w};
      float top = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        top =
            fmaxf(top, fmaxf(fabsf(__uint_as_float(w[i] << 16)), fabsf(__uint_as_float(w[i] & 0xFFFF0000u))));
      for (int d = 1; d < 32; d *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
      const int shift = min(max(13 + 127 - int(__float_as_uint(top) >> 23), -100), 100);
      const float up = __uint_as_float(uint32_t(127 + shift) << 23);
      if (lane == 0) shared.unscale[r] = __uint_as_float(uint32_t(127 - shift) << 23);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        w[i] = f16_pair(up * __uint_as_float(w[i] << 16), up * __uint_as_float(w[i] & 0xFFFF0000u));
      to[2 * lane] = make_uint4(w[0], w[2], w[4], w[6]),
             to[2 * lane + 1] = make_uint4(w[1], w[3], w[5], w[7]);
    } else {
      to[lane] = x[j][0], to[lane + 32] = x[j][1];
    }
  }
  if (lane < 16)
    *reinterpret_cast<uint4*>(shared.q + rope_row * kQueryPitch + 2 * kLatentWidth + lane % 8 * 16) = rope;
}

template <LatentFormat F> __device__ __forceinline__ void work(const Args& args, Shared<F>& shared) {
  constexpr bool kCodes = F == LatentFormat::fp8;
  constexpr int kMs = kCodes ? 1 + kGroups : 1;  // tops: of scores, of a group's scaled P
  const LatentArgs& a = args.a;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4,
            heads = int(a.step.heads);
  const int my_p = kCodes ? warp * kGroups / kWarps : 0;
  const uint32_t p_row = lane % 16 * 128, p_mask = lane % 8,
                 rope_row =
                     shared_address(shared.q) + lane % 16 * kQueryPitch + 2 * kLatentWidth + lane / 16 * 16;
  Ring<Layout<F>::kStages> at;
  bool odd = false, waited = false, asked = false;
  const Unit& u = shared.unit;
  while (true) {
    meet(kMath, kMathThreads);
    if (threadIdx.x == 0)
      if (!shared.units.next(a, shared.unit)) shared.unit.sequence = -1;
    meet(kMath, kMathThreads);
    if (!waited) wait_for_earlier();
    waited = true;
    if (u.sequence < 0) break;
    const int tiles = narrow_tiles(u, heads), rows = u.shape.queries * heads, begin = u.begin, end = u.end,
              all_tokens = u.shape.tokens;
    const bool to_place = begin == 0 && end == u.shape.blocks();
    if (!to_place && threadIdx.x == 0) {
      const int32_t* const slots = a.plan.piece_slots() + u.sequence;
      const int all_tiles = u.shape.tiles(heads);
      shared.cut[shared.cuts++] = {.sequence = u.sequence,
                                   .rows = rows,
                                   .first_row = u.shape.first_row * heads,
                                   .slot = slots[0],
                                   .tiles = all_tiles,
                                   .all = slots[1] - slots[0],
                                   .mine = u.piece * all_tiles + u.tile,
                                   .shares = slots[1] - slots[0],
                                   .others = false};
    }
    for (int tile = 0; tile < tiles; ++tile) {
      const int first_row = u.tile * kTileRows + tile * kRows;
      float o[8][4] = {}, m[2] = {kNothing, kNothing}, sum[2] = {};
      float r[kGroups][2];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) r[g][0] = r[g][1] = 1;
      uint32_t q[kCodes ? 32 : 36][4];
      float unscale[2] = {1, 1};  // FP8: of the queries
      if (begin < end) {
        put_queries<F>(args, shared, u, first_row, rows, !asked);
        asked = true;
        meet(kMath, kMathThreads);
        const uint32_t address = shared_address(shared.q) + lane % 16 * kQueryPitch + lane / 16 * 16;
        if (kCodes)
#pragma unroll
          for (int half = 0; half < 2; ++half) unscale[half] = shared.unscale[group + 8 * half];
#pragma unroll
        for (int i = 0; i < (kCodes ? 32 : 36); ++i) load_blocks(q[i], address + i * 32);
      }
      int visible[2];  // tokens that the rows see
#pragma unroll
      for (int half = 0; half < 2; ++half)
        visible[half] = u.shape.tokens - u.shape.queries + 1 +
                        min((first_row + group + 8 * half) / heads, u.shape.queries - 1);
#pragma unroll 1
      for (int block = begin; block < end; ++block) {
        uint8_t* const tokens = shared.tokens[at.stage];
        const uint32_t address = shared_address(tokens);
        wait(&shared.full[at.stage], at.parity);
        const int count = all_tokens - block * kBlockTokens;
        if (count < kBlockTokens) {  // what lay there before
          constexpr int kPieces = Layout<F>::kRowBytes / 16;
          for (int i = threadIdx.x; i < (kBlockTokens - count) * kPieces; i += kMathThreads)
            reinterpret_cast<uint4*>(tokens + count * Layout<F>::kRowBytes)[i] = uint4{};
          shared_writes_visible();  // before the copy engine writes there again
          meet(kMath, kMathThreads);
        }
        // Scores of 8 tokens.
        float x[4];
        float s[2][kGroups];  // FP8: scales of tokens 2 pair, 2 pair + 1
        const uint32_t k_row = address + (8 * warp + lane % 8) * Layout<F>::kRowBytes;
        const auto ask_keys = [&](uint32_t(&to)[4], int i) {  // 64 bytes of 8 tokens
          if constexpr (kCodes) load_blocks(to, k_row + i * 64 + lane / 8 * 16);
          else load_blocks(to, k_row + i / 2 * 128 + ((lane / 8 ^ (lane + i / 2) % 8) * 16 ^ i % 2 * 64));
        };
        if constexpr (kCodes) {
          // Groups in turns: a product's sum is 30 clocks on its way.
          float part[kGroups + 1][4] = {};
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t b[kGroups][4];
#pragma unroll
            for (int g = 0; g < kGroups; ++g) ask_keys(b[g], 2 * g + i);
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
              for (int g = 0; g < kGroups; ++g) {
                uint32_t b0, b1;
                decode(b[g][j], b0, b1);
                multiply_add_f16(part[g], q[4 * (2 * g + i) + j], b0, b1);
              }
            load_blocks(b[0], k_row + kLatentWidth + 16 + i * 64 + lane / 8 * 16);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              uint32_t rope[4];
              load_blocks(rope, rope_row + (4 * i + 2 * j) * 16);
              multiply_add(part[kGroups], rope, b[0][2 * j], b[0][2 * j + 1]);
            }
          }
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float4 four = *reinterpret_cast<const float4*>(
                tokens + (8 * warp + 2 * pair + j) * Layout<F>::kRowBytes + kLatentWidth);
            s[j][0] = four.x, s[j][1] = four.y, s[j][2] = four.z, s[j][3] = four.w;
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float(&f)[kGroups] = s[i % 2];
            const float latent =
                fmaf(part[0][i], f[0], fmaf(part[1][i], f[1], fmaf(part[2][i], f[2], part[3][i] * f[3])));
            x[i] = fmaf(latent, unscale[i / 2], part[kGroups][i]) * a.scale2;
          }
        } else {
          float part[4][4] = {};
          uint32_t b[3][4];
          ask_keys(b[0], 0);
          ask_keys(b[1], 1);
#pragma unroll
          for (int i = 0; i < 18; ++i) {
            if (i < 16) ask_keys(b[(i + 2) % 3], i + 2);
            const uint32_t(&k)[4] = b[i % 3];
            multiply_add(part[i % 2], q[2 * i], k[0], k[1]);
            multiply_add(part[2 + i % 2], q[2 * i + 1], k[2], k[3]);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i)
            x[i] = ((part[0][i] + part[1][i]) + (part[2][i] + part[3][i])) * a.scale2;
        }
        const int token = block * kBlockTokens + 8 * warp + 2 * pair;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (token + i % 2 >= visible[i / 2]) x[i] = -INFINITY;
        // P, as it is if m (and the r) stay. Else they move, and once is enough: then no score is more than
        // 2^7.5 above m, and no P_g above 2^7.5, if scales are powers of two in the cache's range. With other
        // scales, which nothing writes, rows that see them get what they get, in the same time.
        float added[2];
        for (bool moved = false;; moved = true) {
          bool over = false;
          float p[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            over |= x[i] > m[i / 2] + kSlack;
            p[i] = exp2_of(x[i] - m[i / 2]);
          }
          added[0] = p[0] + p[1], added[1] = p[2] + p[3];
#pragma unroll
          for (int g = 0; g < Layout<F>::kPs; ++g)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              uint32_t both;
              if constexpr (kCodes) {
                const float p0 = p[2 * half] * r[g][half] * s[0][g],
                            p1 = p[2 * half + 1] * r[g][half] * s[1][g];
                over |= fmaxf(p0, p1) > float(1 << int(kSlack));
                both = f16_pair(p0, p1);
              } else {
                both = bf16_pair(p[2 * half], p[2 * half + 1]);
              }
              const int row = group + 8 * half;
              *reinterpret_cast<uint32_t*>(shared.p[odd][g] + row * 128 + (warp ^ row % 8) * 16 + pair * 4) =
                  both;
            }
          if (!meet_any(over) || moved) break;
#pragma unroll
          for (int k = 0; k < kMs; ++k)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float y[2] = {x[2 * half], x[2 * half + 1]};
              if constexpr (kCodes)
                if (k > 0)
#pragma unroll
                  for (int j = 0; j < 2; ++j) y[j] += float(exponent_of(s[j][k > 0 ? k - 1 : 0]));
              const float top = quad_max(fmaxf(y[0], y[1]));
              if (pair == 0) shared.tops[k][warp][group + 8 * half] = top;
            }
          meet(kMath, kMathThreads);
          // They move a little before they must: who asked for it finds them moved.
          constexpr float kNear = kSlack - 0.5f;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const auto top_of = [&](int k) {
              float top = -INFINITY;
              for (int w = 0; w < kWarps; ++w) top = fmaxf(top, shared.tops[k][w][group + 8 * half]);
              return top;
            };
            const float before = m[half], top = top_of(0);
            if (top > before + kNear) m[half] = top;
            float shrink = exp2_of(before - m[half]);
            sum[half] *= shrink;
            if constexpr (kCodes) {
              shrink = 1;
#pragma unroll
              for (int g = 0; g < kGroups; ++g) {
                const float its = before - float(exponent_of(r[g][half])), its_top = top_of(1 + g);
                if (!(its_top > its + kNear) && m[half] == before) continue;
                const float down = fminf(fmaxf(floorf(fmaxf(its, its_top) - m[half]), -110.0f), 120.0f);
                r[g][half] = __uint_as_float(uint32_t(127 - int(down)) << 23);
                if (g == my_p) shrink = exp2_of(its - (m[half] + down));
              }
            }
#pragma unroll
            for (int n = 0; n < 8; ++n) o[n][2 * half] *= shrink, o[n][2 * half + 1] *= shrink;
          }
        }
        sum[0] += added[0], sum[1] += added[1];
        // Output.
        const uint32_t p_from = shared_address(shared.p[odd][my_p]) + p_row;
        // Steps of 16 tokens by 32 bytes of columns; what the next one needs is on its way.
        constexpr int kSteps = kCodes ? 2 : 4;
        const uint32_t v_row = address + lane % 16 * Layout<F>::kRowBytes +
                               (kCodes ? warp * kColumns + lane / 16 * 16 : warp * 128),
                       v_piece = kCodes ? 0 : (lane / 16 ^ (lane + warp) % 8) * 16;
        uint32_t p[2][4], b[2][4];
        const auto ask = [&](int step) {
          const int k = step / kSteps, c = step % kSteps;
          if (c == 0) load_blocks(p[k % 2], p_from + ((2 * k + lane / 16) ^ p_mask) * 16);
          load_blocks_transposed(b[step % 2], v_row + 16 * k * Layout<F>::kRowBytes + (v_piece ^ c * 32));
        };
        ask(0);
#pragma unroll
        for (int step = 0; step < 4 * kSteps; ++step) {
          if (step + 1 < 4 * kSteps) ask(step + 1);
          const uint32_t(&w)[4] = p[step / kSteps % 2], (&v)[4] = b[step % 2];
          const int c = step % kSteps;
          if constexpr (kCodes) {  // 16 codes of a token are 8 pairs, of even and odd columns
            uint32_t even[4], uneven[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) decode(__byte_perm(v[i], 0, 0x3120), even[i], uneven[i]);
            multiply_add_f16(o[4 * c], w, even[0], even[1]);
            multiply_add_f16(o[4 * c + 1], w, uneven[0], uneven[1]);
            multiply_add_f16(o[4 * c + 2], w, even[2], even[3]);
            multiply_add_f16(o[4 * c + 3], w, uneven[2], uneven[3]);
          } else {
            multiply_add(o[2 * c], w, v[0], v[1]);
            multiply_add(o[2 * c + 1], w, v[2], v[3]);
          }
        }
        // An arrival does not wait for ldmatrix, which may still read what the copy engine then writes.
        shared_writes_visible();
        give_back(&shared.empty[at.stage], lane);
        at.advance();
        odd = !odd;
      }

      // A row's sum over the warps' tokens, in order.
      float total[2];
      if (begin < end) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float mine = quad_sum(sum[half]);
          if (pair == 0) shared.sums[warp][group + 8 * half] = mine;
        }
      }
      meet(kMath, kMathThreads);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        total[half] = 0;
        if (begin < end)
          for (int w = 0; w < kWarps; ++w) total[half] += shared.sums[w][group + 8 * half];
      }
      int slot = 0;
      if (!to_place) {
        const CutUnit& c = shared.cut[shared.cuts - 1];
        slot = c.slot + c.mine;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + group + 8 * half;
        if (row >= rows) continue;
        float scale = total[half] > 0 ? 1 / total[half] : 0;
        if constexpr (kCodes) {
#pragma unroll
          for (int g = 0; g < kGroups; ++g)
            if (g == my_p)  // over r, a power of two
              scale *= __uint_as_float((254u << 23) - __float_as_uint(r[g][half]));
        }
        const float lse = total[half] > 0 ? m[half] * 0.6931471805599453f + logf(total[half]) : -INFINITY;
        const int64_t at_place = int64_t(u.shape.first_row) * heads + row,
                      at_piece = int64_t(slot) * kTileRows + row % kTileRows;
        if (warp == 0 && pair == 0) {
          if (!to_place) a.piece_lse[2 * at_piece] = lse;
          else if (a.lse) a.lse[at_place] = lse;
        }
        const auto put = [&](int column, float x0, float x1, float x2, float x3) {
          if (to_place)
            *reinterpret_cast<uint2*>(a.o + at_place * kLatentWidth + column) =
                make_uint2(bf16_pair(x0 * scale, x1 * scale), bf16_pair(x2 * scale, x3 * scale));
          else
            *reinterpret_cast<float4*>(a.piece_o + at_piece * kLatentWidth + column) =
                make_float4(x0 * scale, x1 * scale, x2 * scale, x3 * scale);
        };
        const auto put2 = [&](int column, float x0, float x1) {
          if (to_place)
            *reinterpret_cast<uint32_t*>(a.o + at_place * kLatentWidth + column) =
                bf16_pair(x0 * scale, x1 * scale);
          else
            *reinterpret_cast<float2*>(a.piece_o + at_piece * kLatentWidth + column) =
                make_float2(x0 * scale, x1 * scale);
        };
        const int i = 2 * half;
        if constexpr (kCodes) {
#pragma unroll
          for (int c = 0; c < 4; ++c)
            put(warp * kColumns + 16 * c + 4 * pair, o[2 * c][i], o[2 * c + 1][i], o[2 * c][i + 1],
                o[2 * c + 1][i + 1]);
        } else {
#pragma unroll
          for (int n = 0; n < 8; ++n) put2(warp * kColumns + 8 * n + 2 * pair, o[n][i], o[n][i + 1]);
        }
      }
    }
    if (!to_place) {
      meet(kMath, kMathThreads);
      if (threadIdx.x == 0) {
        CutUnit& c = shared.cut[shared.cuts - 1];
        fence_gpu();
        const int32_t before = atomicAdd(a.plan.arrived(a.step.sequences) + u.sequence, kArrived);
        fence_gpu();
        c.others = arrived_of(before) == c.all - 1 && before >= kLeft;
        if (c.all == 2) {
          if (before == kArrived) c.mine = 0, c.shares = 1;
          else --shared.cuts;  // the other's block does it
        }
      }
    }
  }
}

template <LatentFormat F> __global__ void __launch_bounds__(kThreads, 1)
    narrow_kernel(const __grid_constant__ Args args, const __grid_constant__ TensorMap lines) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<F>& shared = *reinterpret_cast<Shared<F>*>(memory);
  if (F == LatentFormat::bf16 && threadIdx.x == kMathThreads) prefetch(&lines);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Layout<F>::kStages; ++s)
      barrier_init(&shared.full[s], 1), barrier_init(&shared.empty[s], kWarps);
    barrier_init(&shared.counted, 1);
    barrier_init_done();
    shared.units = Units();
    shared.cuts = 0;
  }
  __syncthreads();
  let_next_start();
  if (!args.read_ahead) wait_for_earlier();
  const int role = __shfl_sync(~0u, int(threadIdx.x) / kMathThreads, 0);
  if (role > 0) {
    keep_registers<kFeedRegisters>();
    if (threadIdx.x < kMathThreads + 32) feed<F>(args, &lines, shared);
    else if (threadIdx.x == kMathThreads + 32) count_begun(args.a, shared);
  } else {
    take_registers<kMathRegisters>();
    work<F>(args, shared);
    meet(kMath, kMathThreads);
    merge(args.a, shared);
  }
}

template <LatentFormat F> void run(const Queue& queue, const Args& args) {
  TensorMap lines{};
  if (F == LatentFormat::bf16)
    lines = tensor_map({.data = args.cache,
                        .size = {64, args.a.step.slots * kLines},
                        .stride = {0, 128},
                        .box = {64, kBoxTokens * kLines},
                        .promotion = Promotion::b128});
  launched(cudaFuncSetAttribute(narrow_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                int(sizeof(Shared<F>))),
           "shared memory of absorbed attention");
  launch(queue, narrow_kernel<F>, unsigned(args.a.step.multiprocessors), kThreads, sizeof(Shared<F>), args,
         lines);
  launched(cudaGetLastError(), "absorbed attention");
}

}  // namespace

bool narrow_suits(const LatentDecode& d) {
  return d.step.unit == 0 && d.step.rows * d.step.heads <= kRows * d.step.sequences;
}

void latent_decode_narrow(const Queue& queue, const LatentDecode& d) {
  const LatentStep& s = d.step;
  CHECK(s.unit == 0 && s.page_size % kBlockTokens == 0 && s.rows > 0 && s.sequences > 0);
  const Args args{.a = latent_args(d),
                  .q_latent = d.q_latent,
                  .q_rope = d.q_rope,
                  .q_rope_stride = d.q_rope_stride,
                  .cache = static_cast<const uint8_t*>(d.cache),
                  .read_ahead = d.read_ahead};
  if (d.format == LatentFormat::fp8) run<LatentFormat::fp8>(queue, args);
  else run<LatentFormat::bf16>(queue, args);
}

}  // namespace cachalot::cuda::hopper
