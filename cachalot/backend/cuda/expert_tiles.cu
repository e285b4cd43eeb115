// Experts of a decoding step with many sequences: a few rows an expert, so it is a matter of reading all
// experts' weights once at full speed (V3-1b, 128 tokens: 152 MB a layer, 36 us at 4.2 TB/s).
//
// A block owns a slice of one expert's weights: 64 rows of them, through which its first tokens go on the tensor
// cores, a tile of 32 or 48. Who its tokens are it finds in the choices itself (a few KB): no permutation, and the
// expert is known before the kernel before has ended, so the first weights are then on their way already. Which
// experts have more tokens is not known then: blocks behind all others, as many as there may have to be, count all
// choices and take another tile of one expert each.
// Numbers stay in the order of the choices: row t K + j belongs to choice j of token t.
//   up    32 hidden numbers: their gate and up rows lie side by side, swiglu is taken in registers
//   down  64 columns of the output, of every choice
//   sum   residual + shared + weighted choices, in order
// The shared expert's slices stand behind the others', a block for every tile of tokens.
//
// Tiles of 48 leave memory for five blocks a multiprocessor, all of those that 128 tokens of V3-1b keep busy. With 64
// there were four, and a second wave of few blocks: 35 us instead of 26 for `up`. With 32 there are more tiles, 30 us;
// of up to 64 tokens they are the faster ones, by 2 % of a step.
//
// Shared memory: chunks of 64 numbers of 64 + 48 rows, 128 bytes a row, the 16-byte piece j of row r at j ^ r
// % 8.
#include <algorithm>

#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/expert_mlp.h"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kWeightRows = 64, kChunk = 64, kStages = 3,
              kMostTokens = 256;
constexpr int kMostCounted = 512;  // experts whose tokens one block counts
constexpr int kRowBytes = 2 * kChunk, kWeightBytes = kWeightRows * kRowBytes;
constexpr int stage_bytes(int height) { return kWeightBytes + height * kRowBytes; }

// Tokens of a tile, a multiple of 16: by the number of all tokens.
constexpr int kLow = 32, kTall = 48, kMostOfLow = 64;
constexpr int tiles_of(int tokens, int height) { return (tokens + height - 1) / height; }

struct Part {  // weights and where their inputs and outputs lie
  const bf16 *weights, *x;
  bf16* y;
  int64_t weight_ld, x_ld, y_ld;
  int64_t half;       // up: I, rows between an index's gate and up row
  int64_t of_expert;  // rows of an expert
  int depth;          // numbers of a row
  int slices;
};

struct Args {
  Part routed, shared;
  const int32_t* indices;
  int tokens, chosen, experts;
  bool eager;  // nearly every expert has tokens: weights are worth calling before it is known
  int more;    // tiles behind an expert's first that there may be; 0: a block takes all tokens of its expert
};

// An expert's tile of tokens: those of its choices, in their order, from number `height` times `tile` on.
struct Tile {
  int expert, tile;
};

// The experts of choices first + 32 k + lane, as far as they lie before `last`; else -1.
constexpr int kLooks = 8, kWindow = 32 * kLooks;
__device__ inline void load_choices(const Args& a, int first, int last, int lane, int (&of)[kLooks]) {
#pragma unroll
  for (int k = 0; k < kLooks; ++k) {
    const int i = first + 32 * k + lane;
    of[k] = i < last ? a.indices[i] : -1;
  }
}
// A warp's share of all choices.
struct Share {
  int first, last;
  __device__ Share(const Args& a, int warp) {
    const int choices = a.tokens * a.chosen, each = (choices + kThreads - 1) / kThreads * 32;
    first = min(warp * each, choices), last = min(first + each, choices);
  }
};

// Number `number` of all tiles behind experts' first ones, by the whole block; expert -1: there are fewer. `counts`:
// kMostCounted numbers of shared memory.
template <int height> __device__ inline Tile find_tile(const Args& a, int number, int* counts) {
  __shared__ int totals[kWarps];
  __shared__ Tile found;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int e = threadIdx.x; e < a.experts; e += kThreads) counts[e] = 0;
  if (threadIdx.x == 0) found = {-1, 0};
  __syncthreads();
  const Share share(a, warp);
  for (int base = share.first; base < share.last; base += kWindow) {
    int of[kLooks];
    load_choices(a, base, share.last, lane, of);
#pragma unroll
    for (int k = 0; k < kLooks; ++k)
      if (of[k] >= 0 && of[k] < a.experts) atomicAdd(counts + of[k], 1);
  }
  __syncthreads();
  int before = 0;
  for (int base = 0; base < a.experts; base += kThreads) {
    const int e = base + int(threadIdx.x);
    const int more = e < a.experts ? max(tiles_of(counts[e], height) - 1, 0) : 0;
    int sum = more;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) totals[warp] = sum;
    __syncthreads();
    int first = before + sum - more;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) first += totals[w];
      before += totals[w];
    }
    if (first <= number && number < first + more) found = {e, 1 + number - first};
    __syncthreads();
  }
  return found;
}

// Choices of `expert` into `list`, kMostTokens at most, in any order; how many. By the whole block.
__device__ inline int list_choices(const Args& a, int expert, int32_t* list) {
  __shared__ int found;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  const Share share(a, threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  for (int base = share.first; base < share.last; base += kWindow) {
    int of[kLooks];
    load_choices(a, base, share.last, lane, of);
#pragma unroll
    for (int k = 0; k < kLooks; ++k) {
      if (of[k] != expert) continue;
      const int at = atomicAdd(&found, 1);
      if (at < kMostTokens) list[at] = base + 32 * k + lane;
    }
  }
  __syncthreads();
  return min(found, kMostTokens);
}

// Choices of expert's tile into `list`, in their order; how many. By the whole block.
template <int height> __device__ inline int list_tile(const Args& a, const Tile& tile, int32_t* list) {
  __shared__ int of_warp[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Share share(a, warp);
  int of[kLooks], mine = 0;
  for (int base = share.first; base < share.last; base += kWindow) {
    load_choices(a, base, share.last, lane, of);
#pragma unroll
    for (int k = 0; k < kLooks; ++k) mine += __popc(__ballot_sync(~0u, of[k] == tile.expert));
  }
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  int rank = -height * tile.tile, all = rank;  // counted from the tile's first one
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) rank += of_warp[w];
    all += of_warp[w];
  }
  const bool again = share.last - share.first > kWindow;  // else they are in registers
  for (int base = share.first; base < share.last; base += kWindow) {
    if (again) load_choices(a, base, share.last, lane, of);
#pragma unroll
    for (int k = 0; k < kLooks; ++k) {
      const unsigned same = __ballot_sync(~0u, of[k] == tile.expert);
      const int at = rank + __popc(same & ((1u << lane) - 1));
      if (of[k] == tile.expert && at >= 0 && at < height) list[at] = base + 32 * k + lane;
      rank += __popc(same);
    }
  }
  __syncthreads();
  return max(min(all, height), 0);
}

__device__ inline uint32_t piece_address(int row, int piece) {
  return uint32_t(row * kRowBytes + ((piece ^ (row % 8)) * 16));
}

// Grid: slices of experts, of the shared expert for every tile of tokens, of tiles behind experts' first ones.
template <int height, bool up> __global__ void __launch_bounds__(kThreads)
    tiles_kernel(const __grid_constant__ Args a) {
  constexpr int kSixteens = height / 16;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ int32_t list[kMostTokens];
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int routed_blocks = a.experts * a.routed.slices,
            shared_blocks = a.shared.slices * tiles_of(a.tokens, height), block = int(blockIdx.x);
  const bool more = block >= routed_blocks + shared_blocks, shared = block >= routed_blocks && !more;
  const Part& part = shared ? a.shared : a.routed;
  const int within = block - (more     ? routed_blocks + shared_blocks
                              : shared ? routed_blocks
                                       : 0),
            slice = within % part.slices,
            number = within / part.slices;  // of an expert, of a tile of the shared one, of a later tile
  const int chunks = part.depth / kChunk;
  const uint32_t base = shared_address(memory);

  // Weights: four pieces a thread and chunk. Row r of the tile: of up, half (r % 16 / 8) of hidden number
  // 32 slice + 8 (r / 16) + r % 8.
  const int piece = threadIdx.x % 8, row0 = threadIdx.x / 8;
  const bf16* from[4];
  const auto point_at = [&](int expert) {
    const bf16* weights = part.weights + expert * part.of_expert * part.weight_ld;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row0 + 16 * i;
      const int64_t row = up ? int64_t(r % 16 / 8) * part.half + slice * 32 + r / 16 * 8 + r % 8
                             : int64_t(slice) * kWeightRows + r;
      from[i] = weights + row * part.weight_ld + piece * 8;
    }
  };
  const auto call_weights = [&](int chunk) {
    const uint32_t to = base + uint32_t(chunk % kStages * stage_bytes(height));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      copy_16(to + piece_address(row0 + 16 * i, piece), from[i] + int64_t(chunk) * kChunk, true);
  };
  const auto call_first_weights = [&] {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < chunks) call_weights(i);
      end_copies();
    }
  };
  Tile mine{.expert = shared || more ? 0 : number, .tile = 0};
  const bool eager = shared || (a.eager && !more);
  point_at(mine.expert);
  if (eager) call_first_weights();
  wait_for_earlier();
  int rows = 0;
  if (shared) {
    const int first_token = number * height;
    for (int t = threadIdx.x; t < height && first_token + t < a.tokens; t += kThreads)
      list[t] = first_token + t;
    rows = min(height, a.tokens - first_token);
  } else {
    if (more) {
      mine = find_tile<height>(a, number, reinterpret_cast<int*>(memory));
      if (mine.expert < 0) return;
      point_at(mine.expert);
    }
    rows = a.more > 0 ? list_tile<height>(a, mine, list) : list_choices(a, mine.expert, list);
  }
  __syncthreads();
  if (!eager && rows > 0) call_first_weights();

  for (int first = 0; first < rows; first += height) {
    if (first > 0) call_first_weights();
    const int count = min(height, rows - first), tall = (count + 15) / 16;
    const bf16* token[kSixteens];
    bool real[kSixteens];
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) {
      const int r = row0 + 16 * i;
      real[i] = r < count;
      const int64_t row = real[i] ? list[first + r] : 0;
      token[i] = part.x + (up && !shared ? row / a.chosen : row) * part.x_ld + piece * 8;
    }
    const auto call_tokens = [&](int chunk) {
      const uint32_t to = base + uint32_t(chunk % kStages * stage_bytes(height) + kWeightBytes);
#pragma unroll
      for (int i = 0; i < kSixteens; ++i)
        if (i < tall)
          copy_16(to + piece_address(row0 + 16 * i, piece), token[i] + int64_t(chunk) * kChunk, real[i]);
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < chunks) call_tokens(i);
      end_copies();
    }
    float sums[kSixteens][2][4] = {};  // 16 tokens, 8 weight rows
    for (int chunk = 0; chunk < chunks; ++chunk) {
      wait_copies<kStages - 2>();
      __syncthreads();
      if (const int next = chunk + kStages - 1; next < chunks) call_weights(next), call_tokens(next);
      end_copies();
      const uint32_t stage = base + uint32_t(chunk % kStages * stage_bytes(height));
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) {
        uint32_t b[4];
        load_blocks(b, stage + piece_address(16 * warp + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kSixteens; ++m) {
          if (m >= tall) break;
          uint32_t x[4];
          load_blocks(x, stage + kWeightBytes + piece_address(16 * m + lane % 16, 2 * k + lane / 16));
          multiply_add(sums[m][0], x, b[0], b[1]);
          multiply_add(sums[m][1], x, b[2], b[3]);
        }
      }
    }
    const int group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int m = 0; m < kSixteens; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = 16 * m + 8 * half + group;
        if (r >= count) continue;
        bf16* to = part.y + int64_t(list[first + r]) * part.y_ld;
        const float* low = sums[m][0] + 2 * half;
        const float* high = sums[m][1] + 2 * half;
        if constexpr (up) {
          const auto act = [](float g, float u) {
            const float gate = float(bf16(g));
            return __fdividef(gate, 1.0f + expf(-gate)) * float(bf16(u));
          };
          *reinterpret_cast<uint32_t*>(to + slice * 32 + 8 * warp + 2 * pair) =
              pack_bf16(act(low[0], high[0]), act(low[1], high[1]));
        } else {
          bf16* at = to + slice * kWeightRows + 16 * warp + 2 * pair;
          *reinterpret_cast<uint32_t*>(at) = pack_bf16(low[0], low[1]);
          *reinterpret_cast<uint32_t*>(at + 8) = pack_bf16(high[0], high[1]);
        }
      }
    wait_copies<0>();
    __syncthreads();  // the stages have been read, the list too
  }
  wait_copies<0>();
}

// y[t] = residual + shared + sum_j weights(t, j) outputs[t K + j], in that order. Grid: eights of columns,
// tokens.
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ ExpertMlp e, const Faults faults) {
  start();
  const int64_t t = blockIdx.y, chosen = e.indices.cols,
                c = kEight * (int64_t(blockIdx.x) * kThreads + threadIdx.x), d = e.x.cols;
  if (c >= d) return;
  const auto row = [&](const Tensor& x, int64_t r) {
    return load_eight<true>(static_cast<const bf16*>(x.data) + r * x.ld, c, d);
  };
  constexpr int kAtOnce = 8;
  Eight sum = row(e.residual, t), shared = {};
  if (e.shared_down.data) shared = row(e.shared_output, t);
  for (int64_t first = 0; first < chosen; first += kAtOnce) {
    Packed<bf16> x[kAtOnce];
    float weight[kAtOnce];
    int32_t expert[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t j = min(first + k, chosen - 1);
      x[k] = load<true>(static_cast<const bf16*>(e.outputs.data) + (t * chosen + j) * e.outputs.ld, c, d);
      weight[k] = static_cast<const float*>(e.weights.data)[t * e.weights.ld + j];
      expert[k] = static_cast<const int32_t*>(e.indices.data)[t * e.indices.ld + j];
    }
    if (first == 0 && e.shared_down.data) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) sum.v[i] += shared.v[i];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= chosen || !faults.fine(FaultOf::permute_plan, expert[k], e.experts)) continue;
      const Eight y = unpack(x[k]);
#pragma unroll
      for (int i = 0; i < kEight; ++i) sum.v[i] = fmaf(weight[k], y.v[i], sum.v[i]);
    }
  }
  store_eight<true>(static_cast<bf16*>(e.y.data) + t * e.y.ld, c, d, sum);
}

template <int height, bool up> void launch_tiles(const Queue& queue, const Args& a) {
  constexpr int kBytes = kStages * stage_bytes(height);
  must(cudaFuncSetAttribute(tiles_kernel<height, up>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
       "expert_mlp: shared memory");
  const int blocks = (a.more + a.experts) * a.routed.slices + a.shared.slices * tiles_of(a.tokens, height);
  launch(queue, tiles_kernel<height, up>, unsigned(blocks), kThreads, size_t(kBytes), a);
  launched("expert_mlp: tiles");
}

// The operation on some of its tokens.
ExpertMlp tokens_of(ExpertMlp e, int64_t first, int64_t count) {
  const int64_t chosen = e.indices.cols;
  for (Tensor* t : {&e.x, &e.residual, &e.indices, &e.weights, &e.y, &e.shared_activated, &e.shared_output})
    if (*t) *t = t->slice_rows(first, count);
  for (Tensor* t : {&e.activated, &e.outputs}) *t = t->slice_rows(first * chosen, count * chosen);
  return e;
}

// Tiles behind experts' first ones: an expert has a token once at most, and a tile's height ahead of such a tile.
int most_more(int64_t tokens, int64_t chosen, int64_t experts, int height) {
  const int64_t of_expert = tiles_of(int(tokens), height) - 1;
  return int(std::min(of_expert * experts, tokens * chosen / height));
}

template <int height> void queue_tokens(const Queue& queue, const ExpertMlp& e, const Faults& faults) {
  const int64_t tokens = e.x.rows, width = e.x.cols, hidden = e.down.cols,
                shared = e.shared_down ? e.shared_down.cols : 0;
  const auto part = [](const Tensor& w, const Tensor& x, const Tensor& y, int64_t half, int64_t of_expert,
                       int64_t slices) {
    return Part{.weights = static_cast<const bf16*>(w.data),
                .x = static_cast<const bf16*>(x.data),
                .y = static_cast<bf16*>(y.data),
                .weight_ld = w.ld,
                .x_ld = x.ld,
                .y_ld = y.ld,
                .half = half,
                .of_expert = of_expert,
                .depth = int(w.cols),
                .slices = int(slices)};
  };
  Args a{.routed = part(e.gate_up, e.x, e.activated, hidden, 2 * hidden, hidden / 32),
         .shared = part(e.shared_gate_up, e.x, e.shared_activated, shared, 0, shared / 32),
         .indices = static_cast<const int32_t*>(e.indices.data),
         .tokens = int(tokens),
         .chosen = int(e.indices.cols),
         .experts = int(e.experts),
         .eager = tokens * e.indices.cols >= 4 * e.experts,
         .more = e.experts > kMostCounted ? 0 : most_more(tokens, e.indices.cols, e.experts, height)};
  launch_tiles<height, true>(queue, a);
  a.routed = part(e.down, e.activated, e.outputs, 0, width, width / kWeightRows);
  a.shared =
      part(e.shared_down, e.shared_activated, e.shared_output, 0, 0, shared > 0 ? width / kWeightRows : 0);
  launch_tiles<height, false>(queue, a);
  launch(queue, sum_kernel,
         dim3(unsigned((width + kEight * kThreads - 1) / (kEight * kThreads)), unsigned(tokens)), kThreads, 0,
         e, faults);
  launched("expert_mlp: sum");
}

}  // namespace

bool expert_tiles(const Queue& queue, const ExpertMlp& e, const Faults& faults, bool any_rows) {
  const int64_t tokens = e.x.rows, width = e.x.cols, hidden = e.down.cols,
                shared = e.shared_down ? e.shared_down.cols : 0;
  const auto fits = [](const Tensor& t) { return !t || (t.dtype == DType::bf16 && is_wide(t)); };
  if ((tokens > kMostTokens && !any_rows) || width % 64 != 0 || hidden % 64 != 0 || shared % 64 != 0 ||
      !fits(e.x) || !fits(e.residual) || !fits(e.gate_up) || !fits(e.down) || !fits(e.y) ||
      !fits(e.activated) || !fits(e.outputs) || !fits(e.shared_gate_up) || !fits(e.shared_down) ||
      !fits(e.shared_activated) || !fits(e.shared_output))
    return false;
  for (int64_t first = 0; first < tokens; first += kMostTokens) {
    const ExpertMlp some = tokens_of(e, first, std::min<int64_t>(kMostTokens, tokens - first));
    if (tokens <= kMostOfLow) queue_tokens<kLow>(queue, some, faults);
    else queue_tokens<kTall>(queue, some, faults);
  }
  return true;
}

}  // namespace cachalot::cuda
