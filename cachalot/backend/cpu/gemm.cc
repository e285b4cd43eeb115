// C = op(A) op(B) on the CPU. Any mixture of formats becomes float panels on the way into the cache, scales
// applied; one micro-kernel (kernels.h) multiplies panels; sums stay float and are rounded once, at the
// store.
//
// Order of summation: K is cut every kDepth numbers. Inside a cut, one chain of multiply-adds in the order of
// k; the cuts are added in order. That is the whole definition of a number of C: neither the threads, nor the
// tile it is in, nor how many other rows and columns there are changes its bits. A row computed alone
// (decoding) equals the same row computed among thousands (training). The chains also bound the error: it
// grows like sqrt(kDepth) + sqrt(K / kDepth), not like sqrt(K).
//
// A work item is a tile of C. It packs kDepth x columns of B once and walks the rows of A under it.
#include <algorithm>

#include "backend/cpu/convert.h"
#include "backend/cpu/product.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kDepth = 256;
constexpr int64_t kTileRows = 240, kTileCols = 256;  // multiples of every mr and nr; sums: 240 KiB of L2
constexpr int64_t kLeftRows = 48;                    // rows of A packed at a time: 48 KiB
constexpr int64_t kBuffer = kDepth * 96;             // converted numbers before they are packed: 96 KiB

struct Floats {
  const float* data = nullptr;
  int64_t ld = 0;
};

// t[r.., c..] as floats: in place when it is float already, else converted into `buffer`.
Floats as_floats(const Tensor& t, int64_t r, int64_t c, int64_t rows, int64_t cols, float* buffer) {
  if (t.dtype == DType::f32) return {static_cast<const float*>(t.data) + r * t.ld + c, t.ld};
  for (int64_t i = 0; i < rows; ++i) load_row(t, r + i, c, cols, buffer + i * cols);
  return {buffer, cols};
}

// Panels of width w of `count` rows (op(A)) or columns (op(B)) from `first`, depths [k, k + depth). `along`:
// the depth runs along the rows of t.
void pack(const Kernels& kernels, const Tensor& t, bool along, int64_t first, int64_t count, int64_t k,
          int64_t depth, int64_t w, float* buffer, float* panels) {
  // Floats are packed in place; other formats by whole panels of at most kBuffer numbers at a time.
  const int64_t step = t.dtype == DType::f32 ? count : kBuffer / kDepth / w * w;
  for (int64_t i = 0; i < count; i += step) {
    const int64_t n = std::min(step, count - i);
    const Floats f =
        along ? as_floats(t, first + i, k, n, depth, buffer) : as_floats(t, k, first + i, depth, n, buffer);
    (along ? kernels.pack_along : kernels.pack_across)(f.data, f.ld, n, depth, w, panels + i * depth);
  }
}

void compute_tile(const Kernels& kernels, const Gemm& g, int64_t row, int64_t rows, int64_t col,
                  int64_t cols) {
  const int64_t depth_of_all = g.trans_a ? g.a.rows : g.a.cols;
  const int64_t ld = round_up(cols, kernels.nr);
  Scratch scratch;
  float* sums = scratch.take<float>(rows * ld);
  float* right = scratch.take<float>(kDepth * ld);
  float* left = scratch.take<float>(kDepth * kLeftRows);
  float* buffer = scratch.take<float>(kBuffer);
  if (depth_of_all == 0) std::fill(sums, sums + rows * ld, 0.0f);
  for (int64_t k = 0; k < depth_of_all; k += kDepth) {
    const int64_t depth = std::min(kDepth, depth_of_all - k);
    pack(kernels, g.b, g.trans_b, col, cols, k, depth, kernels.nr, buffer, right);
    for (int64_t i = 0; i < rows; i += kLeftRows) {
      const int64_t n = std::min(kLeftRows, rows - i);
      pack(kernels, g.a, !g.trans_a, row + i, n, k, depth, kernels.mr, buffer, left);
      kernels.multiply(left, right, n, cols, depth, sums + i * ld, ld, k > 0);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    float* sum = sums + i * ld;
    if (g.accumulate == Accumulate::add) {
      const Floats before = as_floats(g.c, row + i, col, 1, cols, buffer);
      for (int64_t j = 0; j < cols; ++j) sum[j] = before.data[j] + sum[j];
    }
    store_row(g.c, row + i, col, cols, sum);
  }
}

}  // namespace

void run_products(Context& context, const std::vector<Gemm>& products) {
  // Small problems are cut finer, so that there is work for every thread; the bits do not depend on it.
  int64_t tile_rows = kTileRows, tile_cols = kTileCols, tiles = 0;
  const auto tiles_of = [&](const Gemm& g) {
    return (g.c.rows + tile_rows - 1) / tile_rows * ((g.c.cols + tile_cols - 1) / tile_cols);
  };
  double nanoseconds = 0;
  for (const Gemm& g : products) {
    const double k = double(g.trans_a ? g.a.rows : g.a.cols);
    nanoseconds += double(g.c.size()) * k / 20 + double(g.c.cols) * k + double(g.c.size());
  }
  while (true) {
    tiles = 0;
    for (const Gemm& g : products) tiles += tiles_of(g);
    if (tiles >= 4 * context.pool.threads() || tile_cols <= 64) break;
    if (tile_rows > 60) tile_rows /= 2;
    else tile_cols /= 2;
  }
  Scratch scratch;
  int64_t* first_tile = scratch.take<int64_t>(int64_t(products.size()) + 1);
  first_tile[0] = 0;
  for (size_t i = 0; i < products.size(); ++i) first_tile[i + 1] = first_tile[i] + tiles_of(products[i]);
  context.parallel(tiles, nanoseconds, [&](int64_t tile) {
    const auto at = std::upper_bound(first_tile, first_tile + products.size() + 1, tile) - first_tile - 1;
    const Gemm& g = products[size_t(at)];
    tile -= first_tile[at];
    const int64_t down = (g.c.rows + tile_rows - 1) / tile_rows;  // neighbours in time share columns of B
    const int64_t row = tile % down * tile_rows, col = tile / down * tile_cols;
    compute_tile(context.kernels, g, row, std::min(tile_rows, g.c.rows - row), col,
                 std::min(tile_cols, g.c.cols - col));
  });
}

void CpuBackend::gemm(const Gemm& g) {
  check(g);
  require_no_f64("gemm", {&g.a, &g.b, &g.c});
  products_.assign(1, g);
  run_products(*context_, products_);
}

}  // namespace cachalot::cpu
