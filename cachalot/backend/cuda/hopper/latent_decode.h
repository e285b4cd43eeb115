// Absorbed MLA decoding over the paged latent cache, on Hopper's tensor cores.
//
//   o[t,h] = sum_j p_j latent_j,   p = softmax_j(scale (q_latent[t,h] . latent_j + q_rope[t,h] . rope_j))
//
// All heads read the same 576 numbers a token (512 latent, 64 rotary), and the first 512 are the values
// too: one sequence with n query tokens and H heads is a product of n H rows with its cache, twice.
//
//   FLOPs  2 n H L (576 + 512) a sequence of L tokens      (V3: H = 128)
//   bytes  1152 L (BF16 cache) or 656 L (FP8 cache), once; queries and outputs are small
//   ridge  at 800 TFLOP/s and 4.27 TB/s: n H = 100 rows. V3's 128 heads are bound by the tensor cores
//          (b = 128, L = 4096: 146 GFLOP, 0.18 ms), 16 heads by memory (604 MB: 0.14 ms)
//
// Rows (token i, head h) of a sequence are laid out as i H + h and cut into tiles of 64; tokens into
// blocks of 64 (a page). The output of a tile, 64 x 512 f32, is half of a multiprocessor's registers, so
// one block a multiprocessor owns a tile and walks over tokens. A step's plan says which: `tiles`
// neighbouring blocks walk the same tokens for the tiles of a sequence, and sequences are cut where the
// work of the `parts` such groups is even. Pieces of a cut sequence leave their outputs in memory
// (latent_pieces.cuh); of two pieces the first picks up the second, more are merged in order by a second
// kernel.
//
// The plan depends on lengths only: it is made once a step, on the device, and all layers share it.
// Nothing here depends on the host knowing lengths, so a recorded graph stays valid while sequences grow.
//
// With `unit` tokens a piece (a multiple of 128) sequences are cut at multiples of it and nowhere else: a
// row's bits then depend on its own tokens only, not on what stands beside it in the batch.
//
// One H200, cold second-level cache, events around decode and merge, median of 20; sequences of 4096
// tokens, b = 128 (reading their cache alone takes 143 us by plain loads that go over it together, 147 us
// by the copy engine a sequence a block):
//   128 heads 222 us, 657 TFLOP/s; with 2 queries 408 us, 714 TFLOP/s, and 440 to 465 us once the card has
//   worked for a while and lowers its clock
//   64 heads 160 us (one after the other in a graph 149 us, 4.16 TB/s); 16 heads 156 us
//   (latent_decode_narrow; in a graph 142 us, 4.3 TB/s)
//   FP8 cache: 128 heads 289 us, 16 heads 103 us. One sequence of 65,536 tokens, 128 heads: 48 us; 8 of 8192
//   tokens 53 us
//
//   DeepSeek-V2 report section 2.1 (MLA). FlashMLA's "seesaw" splits the output between two warpgroups too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "tensor/dtype.h"

namespace cachalot::cuda::hopper {

constexpr int kLatentWidth = 512, kRopeWidth = 64, kBlockTokens = 64, kTileRows = 64;
constexpr int64_t kMostSequences = 2048;

enum class LatentFormat : uint8_t {
  bf16,  // 512 + 64 numbers: 1152 bytes a token
  fp8,   // 512 e4m3 | 4 f32: scales of 128 numbers each, powers of two in 2^-120 ... 2^7 | 64 bf16: 656 bytes
};
constexpr int64_t bytes_of_token(LatentFormat f) { return f == LatentFormat::bf16 ? 1152 : 656; }

// Shapes and index vectors of a step: what the plan is made of.
struct LatentStep {
  int64_t sequences = 0, rows = 0, heads = 0;  // S, T, H
  const int32_t* page_table = nullptr;         // [S, table_cols], rows table_ld apart
  int64_t table_ld = 0, table_cols = 0;
  int64_t page_size = 0;              // a multiple of 64
  int64_t slots = 0;                  // rows of the cache
  const int32_t* kv_lens = nullptr;   // [S]
  const int32_t* q_starts = nullptr;  // [S+1]
  int64_t unit = 0;                   // 0: cut evenly. Else tokens a piece, a multiple of 128
  int multiprocessors = 0;
  Faults faults = {};
};

// Words (i32) of a step's plan; bytes of memory for the pieces, on 16 bytes.
int64_t plan_words(const LatentStep& s);
int64_t piece_bytes(const LatentStep& s);

void make_latent_plan(const Queue& queue, const LatentStep& s, int32_t* plan);

struct LatentDecode {
  LatentStep step;
  const int32_t* plan = nullptr;
  const bf16* q_latent = nullptr;  // [T H, 512] on 16 bytes
  const bf16* q_rope = nullptr;    // [T H, 64], rows q_rope_stride numbers apart (a multiple of 8)
  int64_t q_rope_stride = 0;
  LatentFormat format = LatentFormat::bf16;
  const void* cache = nullptr;  // [slots] tokens, packed, on 16 bytes
  bf16* o_latent = nullptr;     // [T H, 512]; rows that see no token become zero
  float* lse = nullptr;         // [T H] natural log of the softmax' denominator; nullptr: not wanted
  float scale = 0;
  void* pieces = nullptr;  // piece_bytes(step)
  // What is older than the step (index vectors, plan, rows of the cache) may be read ahead of kernels before.
  bool read_ahead = false;
};
void latent_decode(const Queue& queue, const LatentDecode& d);

// At most 16 rows a sequence on average, cut evenly: bound by memory. The same plan and pieces, one kernel.
bool narrow_suits(const LatentDecode& d);
void latent_decode_narrow(const Queue& queue, const LatentDecode& d);

// Few query tokens, contexts of a few thousand tokens, BF16 cache: one launch, without plan and pieces,
// in a few microseconds.
bool few_suits(const LatentDecode& d);
void latent_decode_few(const Queue& queue, const LatentDecode& d);

}  // namespace cachalot::cuda::hopper
