// Contract: some_rows.h. What stands between the queries and the attention of some sequences, in one launch:
// blocks that multiply every head's plain numbers into the latent, and beside them those that append to the
// cache and turn the rotary numbers, which nobody else here reads or writes.
//
// A block makes 32 tokens by 64 columns of the latent over all of K, with 2 x 4 warps; its part of the
// weights is in shared memory before the kernel before has ended. Rows of 128 bytes (of K numbers for the
// tokens), the 16-byte piece j of row r at j ^ r % 8. A number depends on its own row and column only.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/latent_append.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/some_rows.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = kAppendThreads, kWarps = kThreads / 32, kRows = 32, kColumns = 64, kMostDepth = 128;
constexpr int64_t kFewestAbsorbed = 5, kMostAbsorbed = 8, kMostOfSmall = 256,
                  kSmallWeights = int64_t(1) << 20;
static_assert(kWarps == kRows / 16 * (kColumns / 16));

struct Args {
  const bf16 *x, *w;
  bf16* y;
  int64_t x_ld, w_ld, y_ld, x_step, w_step, y_step;  // steps from head to head
  int rows, depth, columns, heads;
  int beside, of_token;  // blocks that append; each token's
  bool ahead;            // w may be read ahead
};

// Grid: the blocks that append; then heads, tiles of columns, tiles of rows.
__global__ void __launch_bounds__(kThreads)
    absorb_kernel(const __grid_constant__ Args p, const __grid_constant__ LatentAppend a,
                  const Faults faults) {
  __shared__ alignas(128) uint8_t weights[kMostDepth * kColumns * 2], tokens[kRows * kMostDepth * 2];
  let_next_start();
  if (int(blockIdx.x) < p.beside) {
    const int64_t t = int(blockIdx.x) / p.of_token;
    if (const int part = int(blockIdx.x) % p.of_token; part == 0) append_row(a, faults, t);
    else turn_queries(a, faults, t, part - 1);
    return;
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tiles = p.columns / kColumns;
  const int block = int(blockIdx.x) - p.beside, head = block / tiles % p.heads,
            column = block % tiles * kColumns, row = block / tiles / p.heads * kRows;
  const uint32_t w_base = shared_address(weights), x_base = shared_address(tokens);
  const bf16* w = p.w + head * p.w_step + column;
  if (!p.ahead) wait_for_earlier();
  for (int i = threadIdx.x; i < p.depth * 8; i += kThreads) {
    const int k = i / 8, j = i % 8;
    copy_16(w_base + uint32_t(k * 128 + (j ^ k % 8) * 16), w + k * p.w_ld + 8 * j, true);
  }
  end_copies();
  if (p.ahead) wait_for_earlier();
  const int pieces = p.depth / 8, pitch = p.depth * 2;
  const bf16* x = p.x + head * p.x_step;
  for (int i = threadIdx.x; i < kRows * pieces; i += kThreads) {
    const int r = i / pieces, j = i % pieces;
    const bool real = row + r < p.rows;
    copy_16(x_base + uint32_t(r * pitch + (j ^ r % 8) * 16), x + (real ? row + r : 0) * p.x_ld + 8 * j, real);
  }
  end_copies();
  wait_copies<0>();
  __syncthreads();
  const int my_row = warp / 4 * 16, my_column = warp % 4 * 16, swizzle = lane % 8;
  float sums[2][4] = {};
#pragma unroll 4
  for (int k = 0; k < p.depth; k += 16) {
    uint32_t q[4], b[4];
    load_blocks(q, x_base + uint32_t((my_row + lane % 16) * pitch + ((k / 8 + lane / 16) ^ swizzle) * 16));
    load_blocks_transposed(
        b, w_base + uint32_t((k + lane % 16) * 128 + ((my_column / 8 + lane / 16) ^ swizzle) * 16));
    multiply_add(sums[0], q, b[0], b[1]);
    multiply_add(sums[1], q, b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = row + my_row + lane / 4 + i % 2 * 8, n = i / 2;
    if (r < p.rows)
      *reinterpret_cast<uint32_t*>(p.y + r * p.y_ld + head * p.y_step + column + my_column + 8 * n +
                                   lane % 4 * 2) = pack_bf16(sums[n][i % 2 * 2], sums[n][i % 2 * 2 + 1]);
  }
}

bool fits(const HeadGemm& g, bool any_rows) {
  const int64_t most = g.heads * g.w_rows * g.w.cols <= kSmallWeights ? kMostOfSmall : kMostAbsorbed;
  const auto wide = [](const Tensor& t) { return t.dtype == DType::bf16 && is_wide(t); };
  return !g.trans_w && (any_rows || (g.x.rows >= kFewestAbsorbed && g.x.rows <= most)) &&
         g.w_rows % 64 == 0 && g.w_rows <= kMostDepth && g.w.cols % kColumns == 0 && g.x_stride % 8 == 0 &&
         g.y_stride % 2 == 0 && g.y.ld % 2 == 0 && reinterpret_cast<uintptr_t>(g.y.data) % 4 == 0 &&
         wide(g.x) && wide(g.w) && g.y.dtype == DType::bf16;
}

}  // namespace

bool absorb_rows(const Queue& queue, const HeadGemm& g, const LatentAppend* append, const Faults& faults,
                 bool any_rows) {
  if (!fits(g, any_rows) || (append && !append_fits(*append))) return false;
  const int64_t tiles = g.w.cols / kColumns * g.heads * ((g.x.rows + kRows - 1) / kRows);
  Args p{.x = static_cast<const bf16*>(g.x.data),
         .w = static_cast<const bf16*>(g.w.data) + g.w_first * g.w.ld,
         .y = static_cast<bf16*>(g.y.data),
         .x_ld = g.x.ld,
         .w_ld = g.w.ld,
         .y_ld = g.y.ld,
         .x_step = g.x_stride,
         .w_step = g.w_stride * g.w.ld,
         .y_step = g.y_stride,
         .rows = int(g.x.rows),
         .depth = int(g.w_rows),
         .columns = int(g.w.cols),
         .heads = int(g.heads),
         .beside = 0,
         .of_token = 1,
         .ahead = g.read_ahead};
  if (append) p.of_token = int(append_blocks(*append)), p.beside = int(append->x.rows) * p.of_token;
  launch(queue, absorb_kernel, unsigned(p.beside + tiles), kThreads, 0, p, append ? *append : LatentAppend{},
         faults);
  launched("head_gemm: queries into the latent");
  return true;
}

}  // namespace cachalot::cuda
