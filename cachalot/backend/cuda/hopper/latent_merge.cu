// The second half of absorbed MLA decoding: sequences of three pieces and more are put together.
#include <algorithm>

#include "backend/cuda/hopper/latent_unit.cuh"

namespace cachalot::cuda::hopper {

namespace {

// Merges the pieces of sequences that decode_kernel left: o = sum_i w_i o_i / sum_i w_i,  w_i = exp(lse_i
// - max). Few pieces: a warp a row, eight rows a block. Many: a block a quarter of a row's columns; its
// eight warps take every eighth piece, and their sums are added in order. How a row is summed depends on
// its own pieces only.
constexpr int kMergeWarps = 8, kFewPieces = 8, kQuarters = 4;

// Adds pieces from, from + every, ...: of their rows the float4s column + lane, column + lane + 32, ...
template <int Columns, int AtOnce>
__device__ __forceinline__ void add_pieces(const LatentArgs& a, int64_t first, int64_t step, int pieces,
                                           int from, int every, int column, float largest,
                                           float4 (&o)[Columns], float& sum) {
  const int lane = threadIdx.x % 32;
  for (int base = from; base < pieces; base += AtOnce * every) {
    float4 x[AtOnce][Columns];
    float lse[AtOnce];
#pragma unroll
    for (int j = 0; j < AtOnce; ++j) {
      const int64_t row = first + min(base + j * every, pieces - 1) * step;
      const float4* piece = reinterpret_cast<const float4*>(a.piece_o + row * kLatentWidth) + column + lane;
#pragma unroll
      for (int i = 0; i < Columns; ++i) x[j][i] = piece[32 * i];
      lse[j] = a.piece_lse[2 * row];
    }
#pragma unroll
    for (int j = 0; j < AtOnce; ++j) {
      const float w = base + j * every < pieces && largest > -INFINITY ? __expf(lse[j] - largest) : 0;
      sum += w;
#pragma unroll
      for (int i = 0; i < Columns; ++i) {
        o[i].x = fmaf(w, x[j][i].x, o[i].x), o[i].y = fmaf(w, x[j][i].y, o[i].y);
        o[i].z = fmaf(w, x[j][i].z, o[i].z), o[i].w = fmaf(w, x[j][i].w, o[i].w);
      }
    }
  }
}

__global__ void __launch_bounds__(32 * kMergeWarps, 4) merge_kernel(const __grid_constant__ LatentArgs a) {
  start();
  __shared__ float4 parts[kMergeWarps][32];
  __shared__ float part_sums[kMergeWarps];
  const PlanHead head = a.plan.head();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, heads = int(a.step.heads),
            rows = head.tiles * kTileRows;
  const bool all_few = head.most_pieces <= kFewPieces;
  const int groups = all_few ? rows / kMergeWarps : rows * kQuarters;
  for (int item = blockIdx.x; item < head.merge_count * groups; item += gridDim.x) {
    const int sequence = a.plan.merged_sequences(a.step.sequences)[item / groups];
    const SequenceShape shape = shape_of(a.step, sequence);
    const int tiles = shape.tiles(heads), slot = a.plan.piece_slots()[sequence],
              pieces = (a.plan.piece_slots()[sequence + 1] - slot) / tiles,
              quarter = all_few ? 0 : item % kQuarters,
              row = all_few ? item % groups * kMergeWarps + warp : item % groups / kQuarters;
    const bool few = pieces <= kFewPieces;
    if (row >= shape.queries * heads || (few && !all_few && (warp > 0 || quarter > 0))) continue;
    const int64_t first = int64_t(slot + row / kTileRows) * kTileRows + row % kTileRows,
                  step = tiles * kTileRows;
    float largest = -INFINITY, sum = 0;
    for (int j = lane; j < pieces; j += 32) largest = fmaxf(largest, a.piece_lse[2 * (first + j * step)]);
    for (int d = 1; d < 32; d *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    const int64_t at = int64_t(shape.first_row) * heads + row;
    const auto put = [&](const float4& x, int column) {
      const float over = sum > 0 ? 1 / sum : 0;
      *reinterpret_cast<uint2*>(a.o + at * kLatentWidth + 4 * column) =
          make_uint2(bf16_pair(x.x * over, x.y * over), bf16_pair(x.z * over, x.w * over));
    };
    if (few) {
      float4 o[kQuarters] = {};
      add_pieces<kQuarters, 2>(a, first, step, pieces, 0, 1, 0, largest, o, sum);
#pragma unroll
      for (int i = 0; i < kQuarters; ++i) put(o[i], lane + 32 * i);
    } else {
      float4 o[1] = {};
      add_pieces<1, 5>(a, first, step, pieces, warp, kMergeWarps, 32 * quarter, largest, o, sum);
      __syncthreads();
      parts[warp][lane] = o[0];
      if (lane == 0) part_sums[warp] = sum;
      __syncthreads();
      if (warp > 0) continue;
      float4 all{};
      sum = 0;
#pragma unroll
      for (int w = 0; w < kMergeWarps; ++w) {
        const float4 x = parts[w][lane];
        all.x += x.x, all.y += x.y, all.z += x.z, all.w += x.w, sum += part_sums[w];
      }
      put(all, lane + 32 * quarter);
    }
    if (a.lse && lane == 0 && quarter == 0) a.lse[at] = sum > 0 ? largest + logf(sum) : -INFINITY;
  }
}

}  // namespace

void merge_pieces(const Queue& queue, const LatentArgs& a) {
  const int64_t rows = a.step.rows * a.step.heads;
  launch(queue, merge_kernel, unsigned(std::min<int64_t>(kQuarters * rows, 4 * a.step.multiprocessors)),
         32 * kMergeWarps, 0, a);
}

}  // namespace cachalot::cuda::hopper
