// Absorbed MLA decoding of few sequences with short contexts, where latency counts: one kernel of a few
// microseconds, without plan and pieces (latent_decode.h has the maths).
//
// A cluster of 8 blocks owns one query token and up to 16 of its heads; its blocks walk over the sequence's
// blocks of 64 tokens in turn, with the portable tensor-core instructions of 16 rows. At the end block r gets
// columns 64 r ... of everybody's output pushed into its shared memory, and adds them in order. What a row
// gives depends on its own tokens only. With `read_ahead` tables and older tokens are asked for before the
// kernel ahead, which makes the queries and the newest token, has ended.
//
// Time at 512 tokens: two or three dependent reads (lengths, page, tokens), 72 KB into each of eight
// multiprocessors, two products of a fraction of a microsecond, one exchange.
#include "backend/cuda/hopper/latent_plan.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/hopper/tensor_map.h"
#include "backend/cuda/hopper/tma.cuh"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kHeads = 16, kThreads = 256, kCluster = 8, kStages = 2, kWidth = kLatentWidth + kRopeWidth;
constexpr int kChunks = 9, kChunkBytes = kBlockTokens * 128, kQueryChunkBytes = kHeads * 128;
constexpr int kScoreLd = kBlockTokens + 4, kProbabilityLd = kBlockTokens + 8,
              kColumns = kLatentWidth / kCluster;
static_assert(kColumns == 64 && kThreads / 32 == kCluster);  // warp w multiplies what block w adds

struct Shared {
  uint8_t tokens[kStages][kChunks * kChunkBytes];  // chunks [64][64], 128-byte swizzled
  uint8_t q[kChunks * kQueryChunkBytes];           // chunks [16][64]
  alignas(16) float4 pushed[kCluster][kHeads][kColumns / 4];
  float4 pushed_state[kCluster][kHeads];  // largest, sum
  alignas(16) bf16 p[kHeads * kProbabilityLd];
  float scores[kHeads * kScoreLd];
  float shrink[kHeads];
  Barrier q_full, full[kStages], all_pushed;
};
constexpr uint32_t kPushedBytes = kCluster * kHeads * (kColumns * 4 + 16);

struct Args {
  LatentStep step;
  bf16* o;
  float* lse;
  float scale;
  bool read_ahead;
};

// Grid: (8, groups of 16 heads, T), clusters of 8.
__global__ void __launch_bounds__(kThreads, 1)
    few_kernel(const __grid_constant__ Args a, const __grid_constant__ TensorMap latents,
               const __grid_constant__ TensorMap ropes, const __grid_constant__ TensorMap cache) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  const int rank = blockIdx.x, head = blockIdx.y * kHeads, token = blockIdx.z, heads = int(a.step.heads);
  if (threadIdx.x == 0) {
    barrier_init(&shared.q_full, 1);
    for (int i = 0; i < kStages; ++i) barrier_init(&shared.full[i], 1);
    barrier_init(&shared.all_pushed, 1);
    barrier_init_done();
    arrive_expecting(&shared.all_pushed, kPushedBytes);
  }
  __syncthreads();
  cluster_arrive_relaxed();
  let_next_start();
  if (!a.read_ahead) wait_for_earlier();
  // Which sequence, its length, and the page of this block's first tokens: every warp for itself.
  const int page_blocks = int(a.step.page_size) / kBlockTokens, pages = int(a.step.table_cols);
  int sequence = 0;
  if (a.step.sequences > 1) {
    sequence = -1;
    for (int base = 0; base < a.step.sequences && sequence < 0; base += 32) {
      const int s = base + lane;
      const unsigned found =
          __ballot_sync(~0u, s < a.step.sequences && __ldcg(a.step.q_starts + s) <= token &&
                                 token < __ldcg(a.step.q_starts + s + 1));
      if (found) sequence = base + __ffs(found) - 1;
    }
  }
  const int32_t* table = a.step.page_table + max(sequence, 0) * a.step.table_ld;
  int page = __ldcg(table + min(rank / page_blocks, pages - 1));  // asked for before it is known to be one
  SequenceShape shape{};
  if (sequence >= 0) {
    shape = shape_of(a.step, sequence);
    if (threadIdx.x == 0) tell_wrong_lengths(a.step, sequence);
  }
  const int seen = shape.queries > 0 ? max(shape.tokens - shape.queries + token - shape.first_row + 1, 0) : 0,
            blocks = (seen + kBlockTokens - 1) / kBlockTokens;
  const auto ask = [&](int block, int stage) {  // one thread
    if (block != rank) page = __ldcg(table + block / page_blocks);
    int64_t slot = int64_t(page) * a.step.page_size + block % page_blocks * kBlockTokens;
    if (!a.step.faults.fine(FaultOf::latent_attention, slot, a.step.slots - kBlockTokens + 1)) slot = 0;
    arrive_expecting(&shared.full[stage], kChunks * kChunkBytes);
    for (int c = 0; c < kChunks; ++c)
      load(&cache, &shared.full[stage], shared.tokens[stage] + c * kChunkBytes, c * 64, int(slot));
  };
  // Tokens that are older than the step; none that a row of it does not see.
  const int older = seen > 0 ? shape.tokens - shape.queries : 0;
  int asked = 0;
  if (threadIdx.x == 0)
    for (; asked < kStages && (rank + asked * kCluster + 1) * kBlockTokens <= older; ++asked)
      ask(rank + asked * kCluster, asked);
  wait_for_earlier();
  if (threadIdx.x == 0)
    for (; asked < kStages && rank + asked * kCluster < blocks; ++asked) ask(rank + asked * kCluster, asked);
  if (threadIdx.x == 32) {  // rows behind the token's heads are of nobody's interest
    arrive_expecting(&shared.q_full, kChunks * kQueryChunkBytes);
    const int row = token * heads + head;
    for (int c = 0; c < kChunks - 1; ++c)
      load(&latents, &shared.q_full, shared.q + c * kQueryChunkBytes, c * 64, row);
    load(&ropes, &shared.q_full, shared.q + (kChunks - 1) * kQueryChunkBytes, 0, row);
  }

  // Addresses of ldmatrix rows; the 16-byte piece j of row r lies at j ^ r % 8, and r % 8 is lane % 8
  // everywhere.
  const uint32_t q_row = shared_address(shared.q) + lane % 16 * 128,
                 k_row = uint32_t(warp * 8 + lane % 8) * 128,
                 v_row = uint32_t(warp * kChunkBytes + lane % 16 * 128), mask = lane % 8;
  const uint32_t p_address = shared_address(shared.p + lane % 16 * kProbabilityLd + lane / 16 * 8);
  // In the softmax 16 neighbouring threads own a head, 4 tokens each.
  const int my_head = threadIdx.x / 16, my_lane = threadIdx.x % 16;
  const float scale = a.scale * 1.4426950408889634f;
  float largest = -INFINITY, sum = 0;
  float o[8][4] = {};
  wait(&shared.q_full, 0);
  uint32_t parity = 0;
  for (int block = rank, stage = 0; block < blocks; block += kCluster) {
    const int count = min(kBlockTokens, seen - block * kBlockTokens);
    uint8_t* const tile = shared.tokens[stage];
    const uint32_t tokens = shared_address(tile);
    wait(&shared.full[stage], parity);
    if (count < kBlockTokens) {  // what lies there may be NaN, which 0 x NaN would carry on
      const int rest = (kBlockTokens - count) * 8;
      for (int i = threadIdx.x; i < kChunks * rest; i += kThreads)
        *reinterpret_cast<uint4*>(tile + i / rest * kChunkBytes + count * 128 + i % rest * 16) = uint4{};
      shared_writes_visible();  // before the copy engine writes there again
      __syncthreads();
    }
    // Scores of 8 tokens a warp.
    float part[4][4] = {};
#pragma unroll
    for (int k = 0; k < kWidth; k += 32) {
      const uint32_t chunk = k / 64, j = k % 64 / 8;
      uint32_t x[4], y[4], b[4];
      load_blocks(b, tokens + chunk * kChunkBytes + k_row + ((j + lane / 8) ^ mask) * 16);
      load_blocks(x, q_row + chunk * kQueryChunkBytes + ((j + lane / 16) ^ mask) * 16);
      load_blocks(y, q_row + chunk * kQueryChunkBytes + ((j + 2 + lane / 16) ^ mask) * 16);
      multiply_add(part[k / 32 % 2], x, b[0], b[1]);
      multiply_add(part[2 + k / 32 % 2], y, b[2], b[3]);
    }
    float* to = shared.scores + group * kScoreLd + warp * 8 + 2 * pair;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[i / 2 * 8 * kScoreLd + i % 2] = scale * ((part[0][i] + part[1][i]) + (part[2][i] + part[3][i]));
    __syncthreads();
    float x[4], top = largest;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = 4 * my_lane + i < count ? shared.scores[my_head * kScoreLd + 4 * my_lane + i] : -INFINITY;
      top = fmaxf(top, x[i]);
    }
    for (int step = 1; step < 16; step *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    const float shrink = exp2f(largest - top);
    float added = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = exp2f(x[i] - top);
      added += x[i];
    }
    for (int step = 1; step < 16; step *= 2) added += __shfl_xor_sync(~0u, added, step);
    sum = sum * shrink + added;
    largest = top;
    *reinterpret_cast<uint2*>(shared.p + my_head * kProbabilityLd + 4 * my_lane) =
        make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
    if (my_lane == 0) shared.shrink[my_head] = shrink;
    __syncthreads();
    // Output: 64 columns of the latent a warp.
    const float low = shared.shrink[group], high = shared.shrink[group + 8];
#pragma unroll
    for (int n = 0; n < 8; ++n) o[n][0] *= low, o[n][1] *= low, o[n][2] *= high, o[n][3] *= high;
#pragma unroll
    for (int k = 0; k < kBlockTokens; k += 16) {
      uint32_t p[4];
      load_blocks(p, p_address + 2 * k);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        uint32_t b[4];
        load_blocks_transposed(b, tokens + v_row + k * 128 + ((n + lane / 16) ^ mask) * 16);
        multiply_add(o[n], p, b[0], b[1]);
        multiply_add(o[n + 1], p, b[2], b[3]);
      }
    }
    shared_writes_visible();  // an arrival does not wait for ldmatrix
    __syncthreads();          // the stage has been read
    if (threadIdx.x == 0 && block + kStages * kCluster < blocks) ask(block + kStages * kCluster, stage);
    if (++stage == kStages) stage = 0, parity ^= 1;
  }

  // The exchange: four columns at once, of the upper row by even lanes, of the lower by odd ones.
  cluster_wait();
  {
    const uint32_t barrier = address_in(&shared.all_pushed, uint32_t(warp));
    const int odd = pair % 2, row = group + 8 * odd;
    const uint32_t to = address_in(&shared.pushed[rank][row][pair / 2], uint32_t(warp));
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float give0 = odd ? o[n][0] : o[n][2], give1 = odd ? o[n][1] : o[n][3];
      const float got0 = __shfl_xor_sync(~0u, give0, 1), got1 = __shfl_xor_sync(~0u, give1, 1);
      if (odd) push(to + n * 32, barrier, got0, got1, o[n][2], o[n][3]);
      else push(to + n * 32, barrier, o[n][0], o[n][1], got0, got1);
    }
    if (my_lane < kCluster)
      push(address_in(&shared.pushed_state[rank][my_head], uint32_t(my_lane)),
           address_in(&shared.all_pushed, uint32_t(my_lane)), largest, sum, 0, 0);
  }
  wait_cluster(&shared.all_pushed, 0);
  float top = -INFINITY, total = 0;
#pragma unroll
  for (int i = 0; i < kCluster; ++i) top = fmaxf(top, shared.pushed_state[i][my_head].x);
  float4 out{};
#pragma unroll
  for (int i = 0; i < kCluster; ++i) {
    const float4 state = shared.pushed_state[i][my_head], part = shared.pushed[i][my_head][my_lane];
    const float w = state.y > 0 ? exp2f(state.x - top) : 0;
    total += w * state.y;
    out.x = fmaf(w, part.x, out.x), out.y = fmaf(w, part.y, out.y);
    out.z = fmaf(w, part.z, out.z), out.w = fmaf(w, part.w, out.w);
  }
  if (head + my_head < heads && sequence >= 0) {
    const float over = total > 0 ? 1 / total : 0;
    const int64_t at = int64_t(token) * heads + head + my_head;
    *reinterpret_cast<uint2*>(a.o + at * kLatentWidth + rank * kColumns + my_lane * 4) =
        make_uint2(pack_bf16(out.x * over, out.y * over), pack_bf16(out.z * over, out.w * over));
    if (a.lse && rank == 0 && my_lane == 0)
      a.lse[at] = total > 0 ? top * 0.6931471805599453f + logf(total) : -INFINITY;
  }
}

}  // namespace

bool few_suits(const LatentDecode& d) {
  const int64_t clusters = d.step.rows * ((d.step.heads + kHeads - 1) / kHeads);
  return d.format == LatentFormat::bf16 && clusters <= 16 && d.step.table_cols * d.step.page_size <= 4096;
}

void latent_decode_few(const Queue& queue, const LatentDecode& d) {
  const LatentStep& s = d.step;
  CHECK(d.format == LatentFormat::bf16 && s.page_size % kBlockTokens == 0);
  const int64_t rows = s.rows * s.heads;
  const TensorMap latents = tensor_map({.data = d.q_latent,
                                        .size = {kLatentWidth, rows},
                                        .stride = {0, 2 * kLatentWidth},
                                        .box = {64, kHeads}});
  const TensorMap ropes = tensor_map({.data = d.q_rope,
                                      .size = {kRopeWidth, rows},
                                      .stride = {0, 2 * d.q_rope_stride},
                                      .box = {64, kHeads}});
  const TensorMap cache = tensor_map(
      {.data = d.cache, .size = {kWidth, s.slots}, .stride = {0, 2 * kWidth}, .box = {64, kBlockTokens}});
  const Args a{.step = s, .o = d.o_latent, .lse = d.lse, .scale = d.scale, .read_ahead = d.read_ahead};
  launched(cudaFuncSetAttribute(few_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared))),
           "shared memory of absorbed attention");
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kCluster, unsigned((s.heads + kHeads - 1) / kHeads), unsigned(s.rows));
  config.blockDim = kThreads;
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.overlap ? 2 : 1;
  launched(cudaLaunchKernelEx(&config, few_kernel, a, latents, ropes, cache), "absorbed attention");
}

}  // namespace cachalot::cuda::hopper
