// The second half of absorbed MLA decoding: pieces that decode_kernel left are put together.
#include "backend/cuda/hopper/latent_pieces.cuh"

namespace cachalot::cuda::hopper {

namespace {

// A slab's pieces are added up by 1, 2, 4 or 8 warps, each every so many-th, and their sums in order. What it
// costs is the time until numbers are here: a warp asks for most of its pieces at once, and where all
// sequences have few, for three each of two slabs. How a row is summed depends on the number of its own
// pieces only.
constexpr int kWarps = 8, kBlocks = 4, kFew = 8, kAtOnce = 5, kFewAtOnce = 3;
__device__ __forceinline__ int warps_of(int pieces) {
  return pieces <= kFew ? 1 : pieces <= 2 * kAtOnce ? 2 : pieces <= 4 * kAtOnce ? 4 : 8;
}
constexpr int kSlabsOfWarp = 4;  // where one warp is enough for all

// Of two rows: {largest m, sum of w l}.
struct Ends {
  float2 of[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
};

struct Tile {
  int slot, step, pieces;  // of its pieces: the first one's place, and how far the next is
  TilePlace to;
};

// What is there shrinks to a new largest m; then a piece is added with weight 2^(its m - largest).
__device__ __forceinline__ float shrink(float2& ends, float largest) {
  const float by = exp2_of(ends.x - largest);
  ends = make_float2(largest, ends.y * by);
  return by;
}
__device__ __forceinline__ float weigh(float2& ends, float2 its) {
  const float w = exp2_of(its.x - ends.x);
  ends.y = fmaf(w, its.y, ends.y);
  return w;
}
__device__ __forceinline__ void scale(float4& o, float upper, float lower) {
  o.x *= upper, o.y *= upper, o.z *= lower, o.w *= lower;
}
__device__ __forceinline__ void add(float4& o, float upper, float lower, const float4& x) {
  o.x = fmaf(upper, x.x, o.x), o.y = fmaf(upper, x.y, o.y);
  o.z = fmaf(lower, x.z, o.z), o.w = fmaf(lower, x.w, o.w);
}

// Pieces from, from + every, ... of the slabs from `slab` on, which have the same rows.
template <int Slabs, int AtOnce>
__device__ __forceinline__ void add_pieces(const LatentArgs& a, const Tile& t, int slab, int from, int every,
                                           int lane, float4 (&o)[Slabs], Ends& sum) {
  const int row = slab / kRowSlabs % 4 * 16 + lane / 4;
#pragma unroll 1
  for (int base = from; base < t.pieces; base += AtOnce * every) {
    float4 x[AtOnce][Slabs] = {};
    Ends ends[AtOnce];
#pragma unroll
    for (int j = 0; j < AtOnce; ++j) {
      if (base + j * every >= t.pieces) continue;
      const int slot = t.slot + (base + j * every) * t.step;
#pragma unroll
      for (int i = 0; i < Slabs; ++i) x[j][i] = __ldcg(slab_of(a, slot, slab + i, lane));
#pragma unroll
      for (int half = 0; half < 2; ++half) ends[j].of[half] = __ldcg(ends_of(a, slot, row + 8 * half));
    }
    float by[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = sum.of[half].x;
#pragma unroll
      for (int j = 0; j < AtOnce; ++j) largest = fmaxf(largest, ends[j].of[half].x);
      by[half] = shrink(sum.of[half], largest);
    }
#pragma unroll
    for (int i = 0; i < Slabs; ++i) scale(o[i], by[0], by[1]);
#pragma unroll
    for (int j = 0; j < AtOnce; ++j) {
      const float upper = weigh(sum.of[0], ends[j].of[0]), lower = weigh(sum.of[1], ends[j].of[1]);
#pragma unroll
      for (int i = 0; i < Slabs; ++i) add(o[i], upper, lower, x[j][i]);
    }
  }
}

// All pieces, up to kFew, of one slab or of four, by a warp.
__device__ __forceinline__ void merge_few(const LatentArgs& a, const Tile& t, int slab, int lane) {
  float4 o[1] = {};
  Ends ends;
  add_pieces<1, kFewAtOnce>(a, t, slab, 0, 1, lane, o, ends);
  put_slab(a, t.to, slab / kRowSlabs % 4 * 16 + lane / 4, slab, lane, ends.of, o[0]);
}
__device__ __forceinline__ void merge_few_of_four(const LatentArgs& a, const Tile& t, int slab, int lane) {
  uint32_t x[2][4];
  Ends ends;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    float4 o[2] = {};
    ends = {};
    add_pieces<2, kFewAtOnce>(a, t, slab + i, 0, 1, lane, o, ends);
    const float upper = ends.of[0].y > 0 ? 1 / ends.of[0].y : 0,
                lower = ends.of[1].y > 0 ? 1 / ends.of[1].y : 0;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      x[0][i + j] = bf16_pair(o[j].x * upper, o[j].y * upper);
      x[1][i + j] = bf16_pair(o[j].z * lower, o[j].w * lower);
    }
  }
  const int column = slab / (kSlabs / 2) * (kLatentWidth / 2) + slab % kRowSlabs * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    gather_words(x[half], lane);
    const int row = slab / kRowSlabs % 4 * 16 + lane / 4 + 8 * half;
    if (row >= t.to.rows) continue;
    const int64_t at = int64_t(t.to.first_row) + row;
    *reinterpret_cast<uint4*>(a.o + at * kLatentWidth + column + lane % 4 * 8) =
        make_uint4(x[half][0], x[half][1], x[half][2], x[half][3]);
    if (a.lse && column == 0 && lane % 4 == 0) a.lse[at] = natural_lse(ends.of[half].x, ends.of[half].y);
  }
}

struct Part {
  float4 o[32];
  float2 ends[2][32];
};

__device__ __forceinline__ Tile tile_of(const LatentArgs& a, const SequenceShape& shape, int slot, int slots,
                                        int tile) {
  const int heads = int(a.step.heads), tiles = shape.tiles(heads);
  return {slot + tile,
          tiles,
          slots / tiles,
          {shape.queries * heads - tile * kTileRows, shape.first_row * heads + tile * kTileRows}};
}

__global__ void __launch_bounds__(32 * kWarps, kBlocks) merge_kernel(const __grid_constant__ LatentArgs a) {
  let_next_start();
  __shared__ Part parts[kWarps];
  // Decoding let this one start when the plan was there.
  const PlanHead head = a.plan.read_head();
  const int32_t* const slots = a.plan.piece_slots();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, most = warps_of(head.most_pieces),
            slabs = most == 1 ? kWarps * kSlabsOfWarp : kWarps / most, groups = head.tiles * (kSlabs / slabs);
  bool waited = false;
  for (int item = blockIdx.x; item < head.merge_count * groups; item += gridDim.x) {
    const int sequence = __ldcg(a.plan.merged_sequences(a.step.sequences) + item / groups),
              tile = item % groups / (kSlabs / slabs), slab = item % (kSlabs / slabs) * slabs,
              slot = __ldcg(slots + sequence), end = __ldcg(slots + sequence + 1);
    const Tile t = tile_of(a, shape_of(a.step, sequence), slot, end - slot, tile);
    if (!waited) wait_for_earlier();
    waited = true;
    if (tile >= t.step) continue;
    const auto rows_at = [&](int slab) { return slab / kRowSlabs % 4 * 16 < t.to.rows; };
    if (most == 1) {
      const int mine = slab + warp * kSlabsOfWarp;
      if (rows_at(mine)) merge_few_of_four(a, t, mine, lane);
      continue;
    }
    const int warps = warps_of(t.pieces), mine = slab + warp / warps, part = warp % warps;
    const bool busy = warp / warps < slabs && rows_at(mine);
    if (warps == 1) {
      if (busy) merge_few(a, t, mine, lane);
      continue;
    }
    float4 o[1] = {};
    Ends ends;
    if (busy) add_pieces<1, kAtOnce>(a, t, mine, part, warps, lane, o, ends);
    __syncthreads();
    parts[warp].o[lane] = o[0];
    parts[warp].ends[0][lane] = ends.of[0], parts[warp].ends[1][lane] = ends.of[1];
    __syncthreads();
    if (part > 0 || !busy) continue;
#pragma unroll 1
    for (int w = warp + 1; w < warp + warps; ++w) {
      float by[2], weights[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 its = parts[w].ends[half][lane];
        by[half] = shrink(ends.of[half], fmaxf(ends.of[half].x, its.x));
        weights[half] = weigh(ends.of[half], its);
      }
      scale(o[0], by[0], by[1]);
      add(o[0], weights[0], weights[1], parts[w].o[lane]);
    }
    put_slab(a, t.to, mine / kRowSlabs % 4 * 16 + lane / 4, mine, lane, ends.of, o[0]);
  }
  if (!waited) wait_for_earlier();
  // Pairs that did not find each other: seldom any.
  if (blockIdx.x + 1 < gridDim.x) return;
  int32_t* const left = a.plan.left(a.step);
  const int count = __ldcg(left);
  for (int i = 0; i < count; ++i) {
    const int sequence = __ldcg(left + 1 + 2 * i), half = __ldcg(left + 2 + 2 * i),
              slot = __ldcg(slots + sequence);
    const Tile t =
        tile_of(a, shape_of(a.step, sequence), slot, __ldcg(slots + sequence + 1) - slot, half / 2);
    for (int slab = warp; slab < kSlabs / 2; slab += kWarps)
      if (slab / kRowSlabs * 16 < t.to.rows) merge_few(a, t, half % 2 * (kSlabs / 2) + slab, lane);
    if (threadIdx.x == 0) a.plan.flags(a.step.sequences)[2 * t.slot + half % 2] = 0;
  }
  __syncthreads();
  if (count > 0 && threadIdx.x == 0) *left = 0;
}

}  // namespace

void merge_pieces(const Queue& queue, const LatentArgs& a) {
  launch(queue, merge_kernel, unsigned(kBlocks * a.step.multiprocessors), 32 * kWarps, 0, a);
}

}  // namespace cachalot::cuda::hopper
