// The tile scheduler of absorbed MLA decoding (latent_decode.h). One block, once a step.
//
// Sequences lie on a line of cost: piece_cost for what begins and ends a piece, then their blocks. Part p
// owns the line from p / parts to (p + 1) / parts of its length; a boundary inside a sequence moves to an
// even block, or to the end of a piece where units are fixed. Boundaries are found
// by all parts at once, in the prefix sums of the costs.
#include "backend/cuda/hopper/latent_plan.cuh"
#include "backend/cuda/hopper/launched.h"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kThreads = 1024;

// Sums of what stands before: x [count + 1], x[i] becomes x[0] + ... + x[i-1]; the last is the total.
__device__ void prefix_sums(int32_t* x, int count) {
  __shared__ int32_t of_warp[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < count; base += kThreads) {
    const int i = base + int(threadIdx.x), mine = i < count ? x[i] : 0;
    int sum = mine;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    int earlier = before, all = before;
    for (int w = 0; w < min(kThreads, count - base + 31) / 32; ++w) {
      if (w < warp) earlier += of_warp[w];
      all += of_warp[w];
    }
    if (i < count) x[i] = earlier + sum - mine;
    before = all;
    __syncthreads();
  }
  if (threadIdx.x == 0) x[count] = before;
  __syncthreads();
}

struct Boundary {
  int32_t sequence, block;
};

__global__ void __launch_bounds__(kThreads) plan_step(const LatentStep s, const PlanView plan) {
  wait_for_earlier();
  extern __shared__ int32_t memory[];
  __shared__ int most_tiles, merge_count, most_pieces, active, longest, shortest;
  __shared__ Boundary boundary[kMostParts + 1];
  const int sequences = int(s.sequences), unit = int(s.unit / kBlockTokens);
  // What latent_decode_narrow takes, at the speed of memory: there a piece costs the time of more blocks.
  const bool few_rows = unit == 0 && s.rows * s.heads <= 16 * s.sequences;
  const int piece_cost = few_rows ? 5 : 3;
  int32_t *const line = memory,                         // [S+1] prefix sums of cost, later of slots
      *const blocks = memory + sequences + 1,           // [S], -1: nobody asks
          *const tiles = blocks + sequences,            // [S]
              *const first_cut = tiles + sequences,     // [S] the first part that begins inside
                  *const cuts = first_cut + sequences;  // [S]
  if (threadIdx.x == 0) {
    most_tiles = 1, merge_count = 0, most_pieces = 0;
    active = 0, longest = 0, shortest = 1 << 30;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < sequences; i += kThreads) {
    const SequenceShape q = shape_of(s, i);
    tell_wrong_lengths(s, i);
    blocks[i] = q.queries > 0 ? q.blocks() : -1;
    tiles[i] = q.tiles(int(s.heads));
    cuts[i] = 0, first_cut[i] = kMostParts;
    const int pieces = unit > 0 ? max((blocks[i] + unit - 1) / unit, 1) : 1;
    line[i] = q.queries > 0 ? blocks[i] + pieces * piece_cost : 0;
    atomicMax(&most_tiles, tiles[i]);
    if (q.queries > 0) {
      atomicAdd(&active, 1);
      atomicMax(&longest, line[i]);
      atomicMin(&shortest, line[i]);
    }
  }
  __syncthreads();
  prefix_sums(line, sequences);
  // So few that no two boundaries meet. And where all sequences are equally long, a few less if whole
  // sequences then fall to each: that saves a piece's beginning and end.
  const int total = line[sequences], least = unit > 0 && longest > unit + piece_cost ? unit + piece_cost : 2,
            most = max(min(min(s.multiprocessors / most_tiles, total / least), kMostParts), 1);
  int parts = most, pieces_each = 0;  // the latter: equally many for every sequence that is asked for
  if (longest == shortest) {
    const int each = (active + most - 1) / most, whole = (active + each - 1) / each;
    if (active % whole == 0 && total / whole <= total / most + 2 * piece_cost) parts = whole;
    // Where memory bounds, a part is a piece: 3 % fewer parts cost less than a second piece in each.
    const int equal = max(most / max(active, 1), 1);
    if (few_rows && parts == most && active > 0 && active < most && longest >= 4 * equal + piece_cost &&
        total / (active * equal) <= total / most + 2 * piece_cost)
      parts = active * equal, pieces_each = equal;
  }

  const int p = threadIdx.x;
  if (p <= parts) {
    const int at = pieces_each > 0 ? p / pieces_each * longest : int(int64_t(total) * p / parts);
    int low = 0, high = sequences;  // the last sequence that begins at or before
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (line[middle] <= at) low = middle;
      else high = middle;
    }
    Boundary b{low, 0};
    if (p == parts) b = {sequences, 0};
    else if (blocks[low] > 0) {
      b.block = pieces_each > 0 ? (blocks[low] * (p % pieces_each) / pieces_each + 1) & ~1
                : unit > 0      ? (at - line[low] + (unit + piece_cost) / 2) / (unit + piece_cost) * unit
                                : max(at - line[low] - piece_cost, 0) & ~1;
      if (b.block >= blocks[low]) b = {low + 1, 0};
    }
    boundary[p] = b;
    if (b.block > 0) {
      atomicMin(&first_cut[b.sequence], p);
      atomicAdd(&cuts[b.sequence], 1);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < sequences; i += kThreads) {
    const int pieces = unit > 0 ? (blocks[i] + unit - 1) / unit : cuts[i] + 1;
    line[i] = pieces > 1 ? pieces * tiles[i] : 0;
    atomicMax(&most_pieces, pieces);
    if (pieces > (unit > 0 ? 1 : 2)) plan.merged_sequences(sequences)[atomicAdd(&merge_count, 1)] = i;
  }
  __syncthreads();
  prefix_sums(line, sequences);
  if (p < parts) {
    const Boundary b = boundary[p], e = boundary[p + 1];
    const int inside = b.block > 0 ? p - first_cut[b.sequence] + 1 : 0;
    const int first = min(b.sequence, sequences - 1), page_blocks = int(s.page_size) / kBlockTokens;
    plan.part(p) = {
        .begin_sequence = b.sequence,
        .begin_block = b.block,
        .end_sequence = e.block > 0 ? e.sequence : e.sequence - 1,
        .end_block = e.block > 0      ? e.block
                     : e.sequence > 0 ? blocks[e.sequence - 1]
                                      : 0,
        .first_piece = unit > 0 ? b.block / unit : inside,
        .shape = shape_of(s, first),
        .page = s.page_table[first * s.table_ld + min(b.block / page_blocks, int(s.table_cols) - 1)],
        .slot = line[first],
        .slots = line[first + 1] - line[first]};
  }
  for (int i = threadIdx.x; i <= sequences; i += kThreads) plan.piece_slots()[i] = line[i];
  for (int i = threadIdx.x; i < sequences; i += kThreads) plan.arrived(sequences)[i] = 0;
  // Evenly cut sequences leave at most two slots a block.
  for (int i = threadIdx.x; i < 4 * s.multiprocessors; i += kThreads) plan.flags(sequences)[i] = 0;
  if (threadIdx.x == 0) {
    *plan.left(s) = 0;
    plan.head() = {most_tiles, parts, unit > 0 ? unit : kUncut, merge_count, most_pieces, 0};
  }
  // Whoever comes later in the stream may read the plan before its own wait.
  __threadfence();
  __syncthreads();
  let_next_start();
}

}  // namespace

int64_t plan_words(const LatentStep& s) {
  return kHeadWords + kMostParts * kPartWords + 3 * s.sequences + 1 + 8 * s.multiprocessors + 1;
}

int64_t piece_bytes(const LatentStep& s) {
  // A part leaves at most two pieces of cut sequences, its first and its last. With fixed units, every piece
  // of every sequence may be one.
  const int64_t even = 2 * s.multiprocessors, tiles = s.rows * s.heads / kTileRows + s.sequences,
                units = s.unit > 0 ? (s.table_cols * s.page_size + s.unit - 1) / s.unit : 0;
  return 4 * (kLatentWidth + 2) * kTileRows * (s.unit > 0 ? tiles * units : even);
}

void make_latent_plan(const Queue& queue, const LatentStep& s, int32_t* plan) {
  CHECK(s.sequences <= kMostSequences && s.unit % (2 * kBlockTokens) == 0);
  const size_t memory = size_t(4 * (5 * s.sequences + 1));
  launch(queue, plan_step, 1, kThreads, memory, s, PlanView{plan});
  launched(cudaGetLastError(), "the plan of absorbed attention");
}

}  // namespace cachalot::cuda::hopper
