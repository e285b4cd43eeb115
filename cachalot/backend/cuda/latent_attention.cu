// Contract: backend/ops/latent_attention.h. Decoding has few queries and many tokens, so a query's tokens are
// cut into pieces that different blocks walk: each leaves its largest score, its sum and its unnormalised
// output; a second kernel adds the pieces in order. The cut depends on how many tokens the query sees, not on
// what is beside it. Lengths and pages are read on the device: the launch depends on shapes only, and a graph
// of it stays valid as sequences grow.
//
// Hopper has kernels of its own for V3's widths in bf16 (hopper/latent_decode.h). Elsewhere, with latents of
// 512 and rope keys of 64 in bf16, 16 heads share a block and its tokens, and both products run on the tensor
// cores. Anything else: a block a head, FFMA.
#include <algorithm>
#include <string>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/latent_attention_hopper.h"
#include "backend/cuda/latent_row.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/number.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kMostPieces = 16, kLeastPiece = 32, kChunk = 64;

// Tokens a piece: a multiple of 32, so that few tokens still keep many blocks busy.
__host__ __device__ inline int64_t piece_of(int64_t seen) {
  const int64_t piece =
      ((seen + kMostPieces - 1) / kMostPieces + kLeastPiece - 1) / kLeastPiece * kLeastPiece;
  return piece < kLeastPiece ? kLeastPiece : piece;
}

// What the pieces of rows [first_row, ...) leave: [rows, heads, pieces] of largest and sum, [..., C] of
// output.
struct Parts {
  float *largest, *sum, *o;
  int64_t first_row, pieces;
};

struct Seen {  // no initialisers: it stands in shared memory
  int64_t sequence, tokens;
};

// What query row `row` sees; 0 tokens for a row of no sequence, or one whose lengths make no sense. One warp.
__device__ Seen find_seen(const LatentAttention& a, int64_t row, const Faults& faults) {
  const int32_t *starts = static_cast<const int32_t*>(a.q_starts.data),
                *lens = static_cast<const int32_t*>(a.kv_lens.data);
  for (int64_t base = 0; base < a.sequences; base += 32) {
    const int64_t s = base + threadIdx.x % 32;
    const bool real = s < a.sequences;  // three loads at once, not one after the other
    const int32_t its_begin = real ? starts[s] : 0, its_end = real ? starts[s + 1] : 0,
                  its_len = real ? lens[s] : 0;
    const unsigned found = __ballot_sync(~0u, real && its_begin <= row && row < its_end);
    if (!found) continue;
    const int owner = __ffs(int(found)) - 1;
    const int64_t sequence = base + owner, tokens = __shfl_sync(~0u, its_len, owner),
                  end = __shfl_sync(~0u, its_end, owner), seen = tokens - end + row + 1;
    const bool fine = faults.fine(FaultOf::latent_attention, tokens, a.page_table.cols * a.page_size + 1) &&
                      faults.fine(FaultOf::latent_attention, end, a.q_latent.rows + 1) &&
                      faults.fine(FaultOf::latent_attention, seen - 1, tokens);
    return {sequence, fine ? seen : 0};
  }
  return {0, 0};
}

// Cache row of a token; -1, and told, when its page is not in the cache.
__device__ inline int64_t slot_of(const LatentAttention& a, int64_t sequence, int64_t token,
                                  const Faults& faults) {
  const int64_t page =
      static_cast<const int32_t*>(a.page_table.data)[sequence * a.page_table.ld + token / a.page_size];
  const int64_t slot = page * a.page_size + token % a.page_size;
  return faults.fine(FaultOf::latent_attention, slot, a.cache.rows) ? slot : -1;
}

__device__ inline float cache_number(const LatentAttention& a, int64_t slot, int64_t c) {
  if (a.cache.dtype == DType::e4m3) return latent_row(a.cache, slot, a.latent, a.rope)(c);
  return load_number(a.cache, slot, c);
}

constexpr int kPlainThreads = 128, kPlainColumns = 8;  // latents up to 1024

// Block: piece, head, row.
__global__ void __launch_bounds__(kPlainThreads)
    plain_pieces(const __grid_constant__ LatentAttention a, const Parts parts, const Faults faults) {
  start();
  extern __shared__ float q[];
  __shared__ float p[kChunk];
  __shared__ int64_t slots[kChunk];
  __shared__ Seen shared_seen;
  const int64_t piece = blockIdx.x, h = blockIdx.y, row = parts.first_row + blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    const Seen found = find_seen(a, row, faults);
    if (lane == 0) shared_seen = found;
  }
  __syncthreads();
  const Seen seen = shared_seen;
  const int64_t size = piece_of(seen.tokens), begin = piece * size, end = min(begin + size, seen.tokens);
  if (begin >= end) return;
  const int64_t width = a.latent + a.rope;
  for (int64_t c = threadIdx.x; c < width; c += kPlainThreads)
    q[c] = float(a.scale) * (c < a.latent ? load_number(a.q_latent, row, h * a.latent + c)
                                          : load_number(a.q_rope, row, h * a.q_rope_stride + c - a.latent));
  float o[kPlainColumns] = {}, largest = -INFINITY, sum = 0;
  for (int64_t first = begin; first < end; first += kChunk) {
    const int count = int(min(int64_t(kChunk), end - first));
    __syncthreads();
    if (threadIdx.x < count) slots[threadIdx.x] = slot_of(a, seen.sequence, first + threadIdx.x, faults);
    __syncthreads();
    for (int j = warp; j < count; j += kPlainThreads / 32) {
      float score = 0;
      if (slots[j] >= 0)
        for (int64_t c = lane; c < width; c += 32) score = fmaf(q[c], cache_number(a, slots[j], c), score);
      for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(~0u, score, step);
      if (lane == 0) p[j] = slots[j] >= 0 ? score : -INFINITY;
    }
    __syncthreads();
    float top = largest;
    for (int j = 0; j < count; ++j) top = fmaxf(top, p[j]);
    if (top == -INFINITY) continue;  // pages outside of the cache: told already
    const float shrink = expf(largest - top);
    largest = top;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < kPlainColumns; ++i) o[i] *= shrink;
    for (int j = 0; j < count; ++j) {
      const float x = expf(p[j] - top);
      if (x == 0) continue;
      sum += x;
#pragma unroll
      for (int i = 0; i < kPlainColumns; ++i) {
        const int64_t c = threadIdx.x + i * kPlainThreads;
        if (c < a.latent) o[i] = fmaf(x, cache_number(a, slots[j], c), o[i]);
      }
    }
  }
  const int64_t at = (int64_t(blockIdx.z) * a.heads + h) * parts.pieces + piece;
  if (threadIdx.x == 0) parts.largest[at] = largest, parts.sum[at] = sum;
#pragma unroll
  for (int i = 0; i < kPlainColumns; ++i) {
    const int64_t c = threadIdx.x + i * kPlainThreads;
    if (c < a.latent) parts.o[at * a.latent + c] = o[i];
  }
}

// Block: head, row, kAdded columns of the latent.
constexpr int kAdded = 128;
__global__ void __launch_bounds__(kAdded)
    add_pieces(const __grid_constant__ LatentAttention a, const Parts parts, const Faults faults) {
  start();
  __shared__ Seen shared_seen;
  const int64_t h = blockIdx.x, row = parts.first_row + blockIdx.y;
  if (threadIdx.x < 32) {
    const Seen found = find_seen(a, row, faults);
    if (threadIdx.x == 0) shared_seen = found;
  }
  __syncthreads();
  const int64_t seen = shared_seen.tokens;
  if (seen == 0) return;
  const int count = int((seen + piece_of(seen) - 1) / piece_of(seen));
  const int64_t at = (int64_t(blockIdx.y) * a.heads + h) * parts.pieces;
  const int64_t c = int64_t(blockIdx.z) * kAdded + threadIdx.x;
  float largest = -INFINITY, sum = 0, weight[kMostPieces], sums[kMostPieces], mine[kMostPieces];
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) {  // all at once
    const bool real = i < count;
    weight[i] = real ? parts.largest[at + i] : -INFINITY;
    sums[i] = real ? parts.sum[at + i] : 0;
    mine[i] = real && c < a.latent ? parts.o[(at + i) * a.latent + c] : 0;
  }
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) largest = fmaxf(largest, weight[i]);
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) {
    weight[i] = i < count ? expf(weight[i] - largest) : 0;
    sum = fmaf(weight[i], sums[i], sum);
  }
  float o = 0;
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) o = fmaf(weight[i], mine[i], o);
  if (c < a.latent) store_number(a.o_latent, row, h * a.latent + c, o / sum);
}

// On the tensor cores: 16 heads, 8 warps. Shared memory: queries and tokens as they are, rows padded by 16
// bytes so that the eight rows of an ldmatrix block lie in different banks.
constexpr int kLatent = 512, kRope = 64, kWidth = kLatent + kRope, kLd = kWidth + 8;
constexpr int kHeads = 16, kThreads = 256, kScoreLd = kChunk + 4, kProbabilityLd = kChunk + 8;

struct Shared {
  alignas(16) bf16 q[kHeads * kLd];
  alignas(16) bf16 tokens[kChunk * kLd];
  alignas(16) bf16 p[kHeads * kProbabilityLd];
  float scores[kHeads * kScoreLd];
  float shrink[kHeads];
  int64_t slots[kChunk];
  Seen seen;
};

// Block: piece, group of heads, row.
__global__ void __launch_bounds__(kThreads, 2)
    mma_pieces(const __grid_constant__ LatentAttention a, const Parts parts, const Faults faults) {
  start();
  extern __shared__ __align__(16) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int64_t piece = blockIdx.x, head = int64_t(blockIdx.y) * kHeads, row = parts.first_row + blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  constexpr int kRowCopies = kWidth / 8;  // of 16 bytes
  for (int i = threadIdx.x; i < kHeads * kRowCopies; i += kThreads) {
    const int h = i / kRowCopies, c = i % kRowCopies * 8;
    const bool take = head + h < a.heads;
    const int64_t from = take ? head + h : 0;
    const bf16* q = c < kLatent
                        ? static_cast<const bf16*>(a.q_latent.data) + row * a.q_latent.ld + from * kLatent + c
                        : static_cast<const bf16*>(a.q_rope.data) + row * a.q_rope.ld +
                              from * a.q_rope_stride + (c - kLatent);
    copy_16(shared_address(shared.q + h * kLd + c), q, take);
  }
  if (warp == 0) {
    const Seen found = find_seen(a, row, faults);
    if (lane == 0) shared.seen = found;
  }
  __syncthreads();
  const Seen seen = shared.seen;
  const int64_t size = piece_of(seen.tokens), begin = piece * size, end = min(begin + size, seen.tokens);
  if (begin >= end) return;

  // Addresses of ldmatrix: A of queries and probabilities; B of tokens along K (two steps of 16 at once) and,
  // transposed, along the latent (two tiles of 8 columns at once).
  const uint32_t q_address = shared_address(shared.q + lane % 16 * kLd + lane / 16 * 8);
  const uint32_t p_address = shared_address(shared.p + lane % 16 * kProbabilityLd + lane / 16 * 8);
  const uint32_t k_address = shared_address(shared.tokens + (warp * 8 + lane % 8) * kLd + lane / 8 * 8);
  const uint32_t v_address = shared_address(shared.tokens + lane % 16 * kLd + warp * 64 + lane / 16 * 8);
  // In the softmax 16 neighbouring threads own a head, 4 tokens each.
  const int my_head = threadIdx.x / 16, my_lane = threadIdx.x % 16;
  const float scale = float(a.scale);
  float largest = -INFINITY, sum = 0;
  float o[8][4] = {};
  for (int64_t first = begin; first < end; first += kChunk) {
    const int count = int(min(int64_t(kChunk), end - first));
    if (threadIdx.x < kChunk)
      shared.slots[threadIdx.x] =
          int(threadIdx.x) < count ? slot_of(a, seen.sequence, first + threadIdx.x, faults) : -1;
    __syncthreads();                            // also: the chunk before has been read
    const int filled = (count + 15) / 16 * 16;  // behind the last token zeros, as far as a product reaches
    for (int i = threadIdx.x; i < filled * kRowCopies; i += kThreads) {
      const int j = i / kRowCopies, c = i % kRowCopies * 8;
      const int64_t slot = shared.slots[j];
      copy_16(shared_address(shared.tokens + j * kLd + c),
              static_cast<const bf16*>(a.cache.data) + (slot < 0 ? 0 : slot) * a.cache.ld + c, slot >= 0);
    }
    end_copies();
    wait_copies<0>();
    __syncthreads();

    // Scores of 8 tokens a warp.
    float even[4] = {}, odd[4] = {};
    if (8 * warp < filled) {
#pragma unroll 6
      for (int k = 0; k < kWidth; k += 32) {
        uint32_t x[4], y[4], b[4];
        load_blocks(b, k_address + 2 * k);
        load_blocks(x, q_address + 2 * k);
        load_blocks(y, q_address + 2 * (k + 16));
        multiply_add(even, x, b[0], b[1]);
        multiply_add(odd, y, b[2], b[3]);
      }
    }
    float* to = shared.scores + group * kScoreLd + warp * 8 + 2 * pair;
    to[0] = scale * (even[0] + odd[0]);
    to[1] = scale * (even[1] + odd[1]);
    to[8 * kScoreLd] = scale * (even[2] + odd[2]);
    to[8 * kScoreLd + 1] = scale * (even[3] + odd[3]);
    __syncthreads();

    float x[4], top = largest;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = shared.slots[4 * my_lane + i] >= 0 ? shared.scores[my_head * kScoreLd + 4 * my_lane + i]
                                                : -INFINITY;
      top = fmaxf(top, x[i]);
    }
    for (int step = 1; step < 16; step *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    const float base = top == -INFINITY ? 0 : top, shrink = expf(largest - base);
    float part = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = expf(x[i] - base);
      part += x[i];
    }
    for (int step = 1; step < 16; step *= 2) part += __shfl_xor_sync(~0u, part, step);
    sum = sum * shrink + part;
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
    for (int k = 0; k < kChunk; k += 16) {
      if (k >= filled) break;
      uint32_t p[4];
      load_blocks(p, p_address + 2 * k);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        uint32_t b[4];
        load_blocks_transposed(b, v_address + 2 * (k * kLd + n * 8));
        multiply_add(o[n], p, b[0], b[1]);
        multiply_add(o[n + 1], p, b[2], b[3]);
      }
    }
  }
  const auto at = [&](int h) { return (int64_t(blockIdx.z) * a.heads + head + h) * parts.pieces + piece; };
  if (my_lane == 0 && head + my_head < a.heads) {
    parts.largest[at(my_head)] = largest;
    parts.sum[at(my_head)] = sum;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int h = group + 8 * half;
    if (head + h >= a.heads) continue;
    float* out = parts.o + at(h) * kLatent + warp * 64 + 2 * pair;
#pragma unroll
    for (int n = 0; n < 8; ++n)
      *reinterpret_cast<float2*>(out + 8 * n) = make_float2(o[n][2 * half], o[n][2 * half + 1]);
  }
}

bool on_16_bytes(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows <= 1 || t.ld * size_of(t.dtype) % 16 == 0);
}

bool mma_takes(const LatentAttention& a, int device) {
  if (a.q_latent.dtype != DType::bf16 || a.cache.dtype != DType::bf16 || a.latent != kLatent ||
      a.rope != kRope || a.q_rope_stride % 8 != 0 || !on_16_bytes(a.q_latent) || !on_16_bytes(a.q_rope) ||
      !on_16_bytes(a.cache))
    return false;
  int most = 0;
  must(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking the device");
  return most >= int(sizeof(Shared));
}

}  // namespace

void CudaBackend::latent_attention(const LatentAttention& a) {
  check(a);
  require_no_f64("latent_attention", {&a.q_latent, &a.o_latent});
  select();
  const int64_t rows = a.q_latent.rows, most = a.page_table.cols * a.page_size;
  if (rows == 0 || a.sequences == 0 || most == 0) return;
  if (kHopperAttention.runs_on(context_->major) &&
      hopper::latent_attention({.queue = queue_,
                                .multiprocessors = context_->multiprocessors,
                                .faults = faults_,
                                .memory = workspace_,
                                .bytes = kWorkspace},
                               a))
    return;
  const bool mma = mma_takes(a, context_->device);
  if (!mma && a.latent > kPlainThreads * kPlainColumns)
    throw Error("latent attention on CUDA: kv_lora_rank " + std::to_string(a.latent) +
                "; the kernels take up to " + std::to_string(kPlainThreads * kPlainColumns))
        .hint("use the device cpu for this model");
  const int64_t pieces = std::min<int64_t>(kMostPieces, (most + kLeastPiece - 1) / kLeastPiece);
  const int64_t parts_of_row = a.heads * pieces, bytes_of_row = 4 * parts_of_row * (a.latent + 2);
  const int64_t group = std::min({rows, (kWorkspace - 1024) / bytes_of_row, int64_t(65535)});
  CHECK(group > 0, "latent_attention: one row does not fit the workspace");
  if (mma)
    must(cudaFuncSetAttribute(mma_pieces, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared))),
         "latent_attention: shared memory");
  for (int64_t first = 0; first < rows; first += group) {
    const int64_t count = std::min(group, rows - first);
    float* memory = static_cast<float*>(workspace_);
    const int64_t n = (count * parts_of_row + 3) / 4 * 4;  // float2 stores behind it
    const Parts parts{
        .largest = memory, .sum = memory + n, .o = memory + 2 * n, .first_row = first, .pieces = pieces};
    if (mma) {
      const dim3 grid(unsigned(pieces), unsigned((a.heads + kHeads - 1) / kHeads), unsigned(count));
      launch(queue_, mma_pieces, grid, kThreads, sizeof(Shared), a, parts, faults_);
    } else {
      const dim3 grid(unsigned(pieces), unsigned(a.heads), unsigned(count));
      launch(queue_, plain_pieces, grid, kPlainThreads, size_t(4 * (a.latent + a.rope)), a, parts, faults_);
    }
    launched("latent_attention: pieces");
    launch(queue_, add_pieces,
           dim3(unsigned(a.heads), unsigned(count), unsigned((a.latent + kAdded - 1) / kAdded)), kAdded, 0, a,
           parts, faults_);
    launched("latent_attention: adding pieces");
  }
}

}  // namespace cachalot::cuda
