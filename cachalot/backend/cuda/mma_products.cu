// Contract: product.h. BF16 products on mma.sync for any card from Ampere on.
//
// A block computes 128 x 128 of C with 4 warps, 64 x 64 each: a fragment is used four to eight times. Panels
// of 64 of K arrive by cp.async in three stages. A row of a panel is 128 or 256 bytes; its pieces of 16 bytes
// are permuted by the row's number, so that the eight rows of an ldmatrix block lie in different banks.
//
// Blocks are as many as fit the card and walk the tiles of all problems; a problem's rows may be known on the
// device only (tile.cuh). Order of summation: along K, in the tensor core's groups of 16; it depends on the
// number's own row, column and K only.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/product.h"
#include "backend/cuda/tile.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kTile = 128, kDepth = 64, kStages = 3, kThreads = 128;
static_assert(kDepth / 16 % 2 == 0);  // slices alternate between two sets of registers
constexpr int kPanelBytes = kTile * kDepth * 2, kStageBytes = 2 * kPanelBytes;

// One thread's share of the copies of a panel: 8 pieces of 16 bytes.
//   along K:  kTile rows of 8 pieces; the thread has piece t % 8 of rows t / 8 + 16 i
//   across:   kDepth rows (of K) of 16 pieces; piece t % 16 of rows t / 16 + 8 i
template <bool along> class PanelCopies {
 public:
  // The panel's numbers begin at `data` (row 0 of the tile at k = 0), `count` of the tile's rows (or columns)
  // are there, K is `depth` long.
  __device__ PanelCopies(const bf16* data, int64_t ld, int64_t count, int64_t depth)
      : ld_(ld), depth_(depth) {
    const int t = threadIdx.x;
    if constexpr (along) {
      const int row = t / 8, piece = t % 8;
      from_ = data + row * ld + piece * 8;
      k_ = piece * 8;
      to_ = row * 128 + (piece ^ (row & 7)) * 16;
      rows_ = int(min(int64_t(kTile), count)) - row;
    } else {
      const int row = t / 16, piece = t % 16;
      from_ = data + row * ld + piece * 8;
      k_ = row;
      to_ = row * 256 + (piece ^ (row & 7)) * 16;
      rows_ = piece * 8 < count ? 1 : 0;
    }
    base_ = data;
  }

  // Depths [k, k + kDepth) into the panel at shared address `panel`.
  __device__ void start(uint32_t panel, int64_t k) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      bool take;
      const bf16* from;
      uint32_t to = panel + to_;
      if constexpr (along) {
        take = 16 * i < rows_ && k + k_ < depth_;
        from = from_ + 16 * i * ld_ + k;
        to += 16 * i * 128;
      } else {
        take = rows_ > 0 && k + k_ + 8 * i < depth_;
        from = from_ + (k + 8 * i) * ld_;
        to += 8 * i * 256;
      }
      copy_16(to, take ? from : base_, take);
    }
  }

 private:
  const bf16 *from_, *base_;
  int64_t ld_, depth_;
  int k_, rows_;
  uint32_t to_;
};

template <bool trans_a, bool trans_b> __global__ void __launch_bounds__(kThreads, 2)
    multiply(const __grid_constant__ Products p) {
  extern __shared__ __align__(128) uint8_t panels[];
  __shared__ Tile shared_tile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / 2 * 64, warp_col = warp % 2 * 64;
  const uint32_t memory = shared_address(panels);

  // Where this lane's ldmatrix rows are in a panel, without the step along K.
  uint32_t a_row, a_piece, b_row, b_piece;  // byte offset of the row; piece before the permutation
  if constexpr (trans_a) {                  // rows of K: the row moves with K, the piece with the tile
    a_row = (lane % 8 + lane / 16 * 8) * 256;
    a_piece = warp_row / 8 + lane / 8 % 2;
  } else {
    a_row = (warp_row + lane % 16) * 128;
    a_piece = lane / 16;
  }
  if constexpr (trans_b) {
    b_row = (warp_col + lane % 8 + lane / 16 * 8) * 128;
    b_piece = lane / 8 % 2;
  } else {
    b_row = lane % 16 * 256;
    b_piece = warp_col / 8 + lane / 16;
  }
  const uint32_t permute = lane % 8;  // every row above is congruent to it modulo 8

  for (int64_t index = blockIdx.x;; index += gridDim.x) {
    __syncthreads();
    if (warp == 0) {
      const Tile t = find_tile(p, kTile, kTile, index);
      if (lane == 0) shared_tile = t;
    }
    __syncthreads();
    const Tile t = shared_tile;
    if (t.problem < 0) return;
    const bool ragged_rows = p.ragged == Products::Ragged::rows,
               ragged_depth = p.ragged == Products::Ragged::depth;
    const int64_t m = ragged_rows ? t.size : p.m, k = ragged_depth ? t.size : p.k;
    const int64_t b_begin = ragged_depth ? t.begin : p.b_row_first + t.problem * p.b_row_step;
    const bf16* a = static_cast<const bf16*>(p.a.data) + t.begin * p.a.ld;
    const bf16* b = static_cast<const bf16*>(p.b.data) + b_begin * p.b.ld;
    const PanelCopies<!trans_a> a_copies(trans_a ? a + t.row : a + t.row * p.a.ld, p.a.ld, m - t.row, k);
    const PanelCopies<trans_b> b_copies(trans_b ? b + t.col * p.b.ld : b + t.col, p.b.ld, p.n - t.col, k);

    float c[4][8][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[i][j][e] = 0;

    const int steps = int((k + kDepth - 1) / kDepth);
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) {
        a_copies.start(memory + s * kStageBytes, s * kDepth);
        b_copies.start(memory + s * kStageBytes + kPanelBytes, s * kDepth);
      }
      end_copies();
    }
    // Fragments of the next 16 of K are loaded while the tensor cores work on these.
    uint32_t x[2][4][4], y[2][4][4];
    const auto load = [&](int to, uint32_t a_panel, int d) {
      const uint32_t b_panel = a_panel + kPanelBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (trans_a)
          load_blocks_transposed(x[to][i],
                                 a_panel + a_row + d * 16 * 256 + ((a_piece + 2 * i) ^ permute) * 16);
        else load_blocks(x[to][i], a_panel + a_row + i * 16 * 128 + ((a_piece + 2 * d) ^ permute) * 16);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (trans_b)
          load_blocks(y[to][j], b_panel + b_row + j * 16 * 128 + ((b_piece + 2 * d) ^ permute) * 16);
        else
          load_blocks_transposed(y[to][j],
                                 b_panel + b_row + d * 16 * 256 + ((b_piece + 2 * j) ^ permute) * 16);
      }
    };
    constexpr int kSlices = kDepth / 16;
    int stage = 0, next = kStages - 1;
    wait_copies<kStages - 2>();
    __syncthreads();
    if (steps > 0) load(0, memory, 0);
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int d = 0; d < kSlices; ++d) {
        if (d + 1 < kSlices) {
          load((d + 1) % 2, memory + stage * kStageBytes, d + 1);
        } else {
          wait_copies<kStages - 2>();
          __syncthreads();  // the next stage has arrived for all, and all have read this one
          stage = stage + 1 == kStages ? 0 : stage + 1;
          load(0, memory + stage * kStageBytes, 0);  // behind the last step: of no use, and of no harm
        }
        if (d == 0) {  // into the stage that was left one step ago
          if (step + kStages - 1 < steps) {
            a_copies.start(memory + next * kStageBytes, int64_t(step + kStages - 1) * kDepth);
            b_copies.start(memory + next * kStageBytes + kPanelBytes, int64_t(step + kStages - 1) * kDepth);
          }
          end_copies();
          next = next + 1 == kStages ? 0 : next + 1;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            multiply_add(c[i][2 * j], x[d % 2][i], y[d % 2][j][0], y[d % 2][j][1]);
            multiply_add(c[i][2 * j + 1], x[d % 2][i], y[d % 2][j][2], y[d % 2][j][3]);
          }
      }
    }
    wait_copies<0>();

    const int64_t c_row = ragged_rows ? t.begin : t.problem * p.c_row_step;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = t.row + warp_row + 16 * i + 8 * half + lane / 4;
        if (row >= m) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int64_t col = t.col + warp_col + 8 * j + 2 * (lane % 4);
          if (col >= p.n) continue;
          float low = c[i][j][2 * half], high = c[i][j][2 * half + 1];
          const int64_t at = (c_row + row) * p.c.ld + col;
          if (p.c.dtype == DType::f32) {
            float2* to = reinterpret_cast<float2*>(static_cast<float*>(p.c.data) + at);
            if (p.add) {
              const float2 before = *to;
              low += before.x, high += before.y;
            }
            *to = make_float2(low, high);
          } else {
            uint32_t* to = reinterpret_cast<uint32_t*>(static_cast<bf16*>(p.c.data) + at);
            if (p.add) {
              const uint32_t before = *to;
              low += __uint_as_float(before << 16), high += __uint_as_float(before & 0xFFFF0000u);
            }
            *to = pack_bf16(low, high);
          }
        }
      }
  }
}

bool on_16_bytes(const Tensor& t) {
  const int64_t numbers = 16 / size_of(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.ld % numbers == 0 && t.cols % numbers == 0;
}

template <bool trans_a, bool trans_b>
void launch(cudaStream_t stream, int multiprocessors, const Products& p) {
  const int64_t tiles = most_tiles(p, kTile, kTile);
  if (tiles == 0) return;
  must(cudaFuncSetAttribute(multiply<trans_a, trans_b>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            kStages * kStageBytes),
       "a product: shared memory");
  const unsigned blocks = unsigned(std::min<int64_t>(tiles, 2 * multiprocessors));
  multiply<trans_a, trans_b><<<blocks, kThreads, kStages * kStageBytes, stream>>>(p);
  launched("a product on the tensor cores");
}

}  // namespace

bool mma_products(cudaStream_t stream, int multiprocessors, const Products& p) {
  if (p.a.dtype != DType::bf16 || p.b.dtype != DType::bf16 || !on_16_bytes(p.a) || !on_16_bytes(p.b) ||
      !on_16_bytes(p.c) || p.a_col_step != 0 || p.c_col_step != 0 || p.n % 8 != 0 || (p.trans_a && p.trans_b))
    return false;
  if (p.trans_a) launch<true, false>(stream, multiprocessors, p);
  else if (p.trans_b) launch<false, true>(stream, multiprocessors, p);
  else launch<false, false>(stream, multiprocessors, p);
  return true;
}

}  // namespace cachalot::cuda
