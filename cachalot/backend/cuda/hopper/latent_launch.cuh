// How the two large kernels of absorbed decoding are launched: boxes of queries, lines called in.
#pragma once

#include "backend/cuda/hopper/latent_unit.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/hopper/tensor_map.h"

namespace cachalot::cuda::hopper {

constexpr int kDecodeThreads = 384;

// Over an FP8 cache (latent_decode_codes.cu); latent_decode passes it on.
void latent_decode_codes(const Queue& queue, const LatentDecode& d);

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

struct QueryMaps {
  TensorMap latents, ropes;  // boxes [2][64 rows][64], [64][64]
};
inline QueryMaps query_maps(const LatentDecode& d) {
  const int64_t rows = d.step.rows * d.step.heads;
  return {tensor_map({.data = d.q_latent,
                      .dimensions = 3,
                      .size = {64, rows, kLatentWidth / 64},
                      .stride = {0, 2 * kLatentWidth, 128},
                      .box = {64, kTileRows, 2}}),
          tensor_map({.data = d.q_rope,
                      .size = {kRopeWidth, rows},
                      .stride = {0, 2 * d.q_rope_stride},
                      .box = {64, kTileRows}})};
}

// A block on every multiprocessor: the plan counts on all of them at once. Then the merge.
template <class Maps> void launch_decoding(const Queue& queue, void (*kernel)(LatentArgs, Maps),
                                           size_t shared, const LatentArgs& a, const Maps& maps) {
  launched(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
           "shared memory of absorbed attention");
  launch(queue, kernel, unsigned(a.step.multiprocessors), kDecodeThreads, shared, a, maps);
  merge_pieces(queue, a);
  launched(cudaGetLastError(), "absorbed attention");
}

}  // namespace cachalot::cuda::hopper
