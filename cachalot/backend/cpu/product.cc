// C = op(A) op(B) on the CPU, many of them at once. Two ways, chosen by formats and shape alone:
//
//   wide  Both operands are packed into panels (kernels.h), once for all tiles of C that need them, by all
//         threads; then work items are tiles of C. Blocks of C and chunks of K keep the panels within
//         kPanelBytes. B of a product with one row of tiles is packed by the tile that uses it, in its cache.
//   few   Up to Arithmetic::few rows: decoding. Weights are read once, where they are, in long runs; nothing
//         but the rows is packed.
//
// Formats. Pairs of bf16 are multiplied by Kernels::halves where there is such a thing, everything else as
// floats. Codes of e4m3 become numbers without their scale (exactly, in either arithmetic), and the sums of a
// cut are multiplied by it: no scaled copy of the weights exists. (On the left, where no layer has them, they
// are multiplied on the way into the panels.)
//
// Order of summation: K is cut every Arithmetic::depth numbers, and where the scale of B changes. Inside a
// cut, one chain of multiply-adds in the order of k; the cuts, scaled, are added in order. That is the whole
// definition of a number of C: neither the threads, nor the tile it is in, nor how many other rows and
// columns there are changes its bits, and `few` is the same sum as `wide`. A row computed alone (decoding)
// equals the same row computed among thousands (training). The chains also bound the error: it grows like
// sqrt(depth) + sqrt(K / depth), not like sqrt(K).
#include "backend/cpu/product.h"

#include <algorithm>

#include "backend/cpu/convert.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kTileCols = 256;                  // a multiple of every nr
constexpr int64_t kBlock = 1536;                    // rows and columns of C that share panels: whole tiles
constexpr int64_t kPanelBytes = int64_t(32) << 20;  // panels at a time
constexpr int64_t kPackRows = 192;                  // rows or columns of one cut that are packed as one item
constexpr int64_t kConverted = 512 * 96;            // numbers converted at a time before they are packed

int64_t up(int64_t n, int64_t of) { return (n + of - 1) / of; }

struct Cut {
  int64_t k = 0, depth = 0;     // numbers [k, k + depth)
  int64_t word = 0, words = 0;  // words [word, word + words) of what is packed
};

struct Product {
  Gemm g;
  const Arithmetic* with = nullptr;
  int64_t m = 0, n = 0, k = 0;
  const Cut* cuts = nullptr;
  int64_t cut_count = 0;
  int64_t words() const { return cut_count == 0 ? 0 : cuts[cut_count - 1].word + cuts[cut_count - 1].words; }
};

Format format_of(DType t) {
  return t == DType::f32 ? Format::f32 : t == DType::bf16 ? Format::bf16 : Format::e4m3;
}

const uint8_t* at(const Tensor& t, int64_t r, int64_t c) {
  return static_cast<const uint8_t*>(t.data) + (r * t.ld + c) * size_of(t.dtype);
}

bool scaled(const Tensor& t) { return t.dtype == DType::e4m3 && t.scales; }

// The first row after r with other scales.
int64_t end_of_scale_row(const Tensor& t, int64_t r) {
  const int64_t row = r + t.first_row, in_part = t.part_rows ? row % t.part_rows : row;
  int64_t end = (in_part / kScaleBlock + 1) * kScaleBlock;
  if (t.part_rows) end = std::min(end, t.part_rows);
  return r + end - in_part;
}

// The end of the cut that begins at k.
int64_t end_of_cut(const Product& p, int64_t k) {
  const int64_t end = std::min(p.k, k + p.with->depth);
  if (!scaled(p.g.b)) return end;
  return std::min(end, p.g.trans_b ? (k / kScaleBlock + 1) * kScaleBlock : end_of_scale_row(p.g.b, k));
}

// The scales of columns [col, col + cols) in a cut; nullptr where there are none. `out`: `room` floats.
const float* column_scales(const Gemm& g, const Cut& cut, int64_t col, int64_t cols, float* out,
                           int64_t room) {
  if (!scaled(g.b)) return nullptr;
  for (int64_t j = 0, end; j < cols; j = end) {
    const int64_t c = col + j;
    end = std::min(cols, (g.trans_b ? end_of_scale_row(g.b, c) : (c / kScaleBlock + 1) * kScaleBlock) - col);
    std::fill(out + j, out + end, g.trans_b ? g.b.scale(c, cut.k) : g.b.scale(cut.k, c));
  }
  std::fill(out + cols, out + room, 0.0f);
  return out;
}

using Pack = void (*)(const Source&, int64_t count, int64_t k, void* out);

// `count` rows of op(A) or columns of op(B) from `first`, in one cut, packed into panels of `width`. `lie`:
// how K lies in t.
void pack(const Arithmetic& with, Pack packer, const Tensor& t, Lie lie, int64_t first, int64_t count,
          const Cut& cut, int64_t width, void* out) {
  const bool along = lie == Lie::along, is_left = packer != with.pack_right;
  const Format format = format_of(t.dtype);
  if (format == with.number) {
    const uint8_t* data = along ? at(t, first, cut.k) : at(t, cut.k, first);
    packer({.data = data, .ld = t.ld, .lie = lie}, count, cut.depth, out);
    return;
  }
  Scratch scratch;
  uint8_t* buffer = scratch.take<uint8_t>(kConverted * bytes_of(with.number));
  const int64_t step = kConverted / 512 / width * width;
  for (int64_t i = 0; i < count; i += step) {
    const int64_t n = std::min(step, count - i);
    const int64_t rows = along ? n : cut.depth, cols = along ? cut.depth : n;
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* row = buffer + r * cols * bytes_of(with.number);
      const int64_t from_row = (along ? first + i : cut.k) + r, from_col = along ? cut.k : first + i;
      if (is_left && scaled(t)) load_row(t, from_row, from_col, cols, reinterpret_cast<float*>(row));
      else with.convert(format, at(t, from_row, from_col), cols, row);
    }
    packer({.data = buffer, .ld = cols, .lie = lie}, n, cut.depth,
           static_cast<uint32_t*>(out) + i * cut.words);
  }
}

Lie lie_of_a(const Gemm& g) { return g.trans_a ? Lie::across : Lie::along; }
Lie lie_of_b(const Gemm& g) { return g.trans_b ? Lie::along : Lie::across; }

// Rows of sums become numbers of C.
void finish(const Gemm& g, int64_t row, int64_t rows, int64_t col, int64_t cols, float* sums, int64_t ld) {
  Scratch scratch;
  float* buffer = scratch.take<float>(cols);
  for (int64_t i = 0; i < rows; ++i) {
    float* sum = sums + i * ld;
    if (g.accumulate == Accumulate::add) {
      const float* before = buffer;
      if (g.c.dtype == DType::f32) before = static_cast<const float*>(g.c.data) + (row + i) * g.c.ld + col;
      else load_row(g.c, row + i, col, cols, buffer);
      for (int64_t j = 0; j < cols; ++j) sum[j] = before[j] + sum[j];
    }
    store_row(g.c, row + i, col, cols, sum);
  }
}

// ---- few rows

// Item by item: columns [begin, end) of the products one after the other.
struct FewWork {
  const Product* p = nullptr;
  const uint32_t* x = nullptr;  // [words][rows, padded]
  int64_t block = 0;            // columns whose sums are finished together
  int64_t item_cols = 0, first_item = 0;
};

bool is_few(const Product& p) {
  return p.m <= p.with->few && p.k > 0 && (p.g.trans_b ? p.with->few_along : p.with->few_across) > 0;
}

// What the kernel calls in while it works on `cut` of columns [j, j + cols). Rows of weights that follow each other
// without a gap: as many bytes of the next columns' rows, which are one long run. Longer rows, whose next columns
// would not fit the cache: the same part of the next kFewRun bytes of these rows, after the last ones the first of
// the next columns. Nothing where neither goes.
struct Ahead {
  const void* data = nullptr;
  int64_t ld = 0;  // bytes
};
constexpr int64_t kMostAhead = int64_t(1) << 18;

bool one_run(const Product& p, int64_t cols) {
  const Tensor& w = p.g.b;
  return p.g.trans_b && w.ld == p.k && cols * p.k * size_of(w.dtype) <= kMostAhead;
}

Ahead ahead_of(const Product& p, const Cut& cut, int64_t j, int64_t cols, int64_t end) {
  const int64_t size = size_of(p.g.b.dtype), row = p.k * size, begin = cut.k * size, bytes = cut.depth * size;
  if (one_run(p, cols)) {
    // Up to the last whole row of the next columns, so that nothing behind them is asked for.
    if (j + 2 * cols > end) return {};
    return {static_cast<const uint8_t*>(at(p.g.b, j + cols, 0)) + cols * begin, kFewRun};
  }
  if (!p.g.trans_b || row % kFewRun != 0 || kFewRun % bytes != 0) return {};
  const int64_t first = begin % kFewRun / bytes * (cols * bytes / kFewRun);  // of the rows that share a run
  int64_t run = begin / kFewRun + 1;
  if ((run + 1) * kFewRun > row) run = 0, j += cols;
  if (j + cols > end) return {};
  return {at(p.g.b, j + first, run * kFewRun / size), p.g.b.ld * size};
}

void compute_few(const FewWork& w, int64_t item) {
  const Product& p = *w.p;
  const int64_t begin = item * w.item_cols, end = std::min(p.n, begin + w.item_cols);
  const int64_t width = round_up(p.m, p.with->few_multiple);
  Scratch scratch;
  float* sums = scratch.take<float>(p.m * w.block);
  float* scale = scratch.take<float>(w.block);
  for (int64_t j = begin; j < end; j += w.block) {
    const int64_t cols = std::min(w.block, end - j);
    if (j == begin && one_run(p, cols)) {
      const uint8_t* first = at(p.g.b, j, 0);
      for (int64_t b = 0; b < cols * p.k * size_of(p.g.b.dtype); b += 64) __builtin_prefetch(first + b, 0, 2);
    }
    for (int64_t c = 0; c < p.cut_count; ++c) {
      const Cut& cut = p.cuts[c];
      const Ahead ahead = ahead_of(p, cut, j, cols, end);
      p.with->multiply_few({.x = w.x + cut.word * width,
                            .rows = p.m,
                            .cols = cols,
                            .k = cut.depth,
                            .format = format_of(p.g.b.dtype),
                            .weights = {.data = p.g.trans_b ? at(p.g.b, j, cut.k) : at(p.g.b, cut.k, j),
                                        .ld = p.g.b.ld,
                                        .lie = lie_of_b(p.g)},
                            .ahead = ahead.data,
                            .ahead_ld = ahead.ld,
                            .sums = {.c = sums,
                                     .ldc = w.block,
                                     .scale = column_scales(p.g, cut, j, cols, scale, w.block),
                                     .add = c > 0}});
    }
    finish(p.g, 0, p.m, j, cols, sums, w.block);
  }
}

void run_few(Context& context, const Product* const* products, int64_t count) {
  if (count == 0) return;
  Scratch scratch;
  double bytes = 0;
  for (int64_t i = 0; i < count; ++i)
    bytes += double(products[i]->n) * double(products[i]->k) * double(size_of(products[i]->g.b.dtype));
  // Long runs, but something for every thread to do at the end.
  const double item_bytes = std::clamp(bytes / double(2 * context.pool.threads()), 128e3, 1e6);
  FewWork* works = scratch.take<FewWork>(count);
  int64_t items = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Product& p = *products[i];
    const int64_t block = p.g.trans_b ? p.with->few_along : p.with->few_across,
                  width = round_up(p.m, p.with->few_multiple);
    uint32_t* x = scratch.take<uint32_t>(p.words() * width);
    for (int64_t c = 0; c < p.cut_count; ++c)
      pack(*p.with, p.with->pack_few, p.g.a, lie_of_a(p.g), 0, p.m, p.cuts[c], width,
           x + p.cuts[c].word * width);
    const int64_t cols = int64_t(item_bytes / double(p.k * size_of(p.g.b.dtype)));
    works[i] = {.p = &p,
                .x = x,
                .block = block,
                .item_cols = std::max(block, cols / block * block),
                .first_item = items};
    items += up(p.n, works[i].item_cols);
  }
  context.parallel(items, bytes / 20, [&](int64_t item) {
    const FewWork* w = std::upper_bound(works, works + count, item,
                                        [](int64_t i, const FewWork& f) { return i < f.first_item; }) -
                       1;
    compute_few(*w, item - w->first_item);
  });
}

// ---- wide products

// A block of C and the panels of a chunk of K.
struct Block {
  const Product* p = nullptr;
  int64_t row = 0, rows = 0, col = 0, cols = 0;
  int64_t tiles_down = 0, first_tile = 0, first_item = 0;
  uint32_t* left = nullptr;
  uint32_t* right = nullptr;  // nullptr: every tile packs its own
};

// Cuts [first, last) of every block; `sums`: of all tiles between chunks, nullptr when there is one chunk.
struct Chunk {
  int64_t first = 0, last = 0;
  float* sums = nullptr;
};

int64_t last_cut(const Chunk& chunk, const Product& p) { return std::min(chunk.last, p.cut_count); }
int64_t words_of(const Chunk& chunk, const Product& p) {
  const int64_t last = last_cut(chunk, p);
  if (last <= chunk.first) return 0;
  return p.cuts[last - 1].word + p.cuts[last - 1].words - p.cuts[chunk.first].word;
}

void pack_item(const Block& b, const Chunk& chunk, int64_t item) {
  const Product& p = *b.p;
  const Arithmetic& with = *p.with;
  const int64_t cuts = last_cut(chunk, p) - chunk.first, left_items = cuts * up(b.rows, kPackRows);
  const bool left = item < left_items;
  if (!left) item -= left_items;
  const int64_t count = left ? b.rows : b.cols, parts = up(count, kPackRows);
  // Numbers along K next to each other in time: the same rows, or the same cut.
  const bool along = left ? !p.g.trans_a : p.g.trans_b;
  const int64_t part = along ? item / cuts : item % parts,
                c = chunk.first + (along ? item % cuts : item / parts);
  const Cut& cut = p.cuts[c];
  const int64_t first = part * kPackRows, n = std::min(kPackRows, count - first);
  const int64_t width = left ? with.mr : with.nr;
  uint32_t* panels = (left ? b.left : b.right) +
                     (cut.word - p.cuts[chunk.first].word) * round_up(count, width) + first * cut.words;
  if (left) pack(with, with.pack_left, p.g.a, lie_of_a(p.g), b.row + first, n, cut, width, panels);
  else pack(with, with.pack_right, p.g.b, lie_of_b(p.g), b.col + first, n, cut, width, panels);
}

int64_t pack_items(const Block& b, const Chunk& chunk) {
  return (last_cut(chunk, *b.p) - chunk.first) *
         (up(b.rows, kPackRows) + (b.right ? up(b.cols, kPackRows) : 0));
}

void compute_tile(const Block& b, const Chunk& chunk, int64_t tile, int64_t tile_rows, int64_t tile_cols) {
  const Product& p = *b.p;
  const Arithmetic& with = *p.with;
  const int64_t row = tile % b.tiles_down * tile_rows, rows = std::min(tile_rows, b.rows - row),
                col = tile / b.tiles_down * tile_cols, cols = std::min(tile_cols, b.cols - col);
  const int64_t ld = round_up(cols, with.nr), room = round_up(rows, with.mr) * ld;
  Scratch scratch;
  float* sums = chunk.sums ? chunk.sums + tile * tile_rows * tile_cols : scratch.take<float>(room);
  float* scale = scratch.take<float>(ld);
  if (p.k == 0) std::fill(sums, sums + room, 0.0f);
  for (int64_t c = chunk.first; c < last_cut(chunk, p); ++c) {
    const Cut& cut = p.cuts[c];
    const int64_t word = cut.word - p.cuts[chunk.first].word;
    const uint32_t* left = b.left + word * round_up(b.rows, with.mr) + row * cut.words;
    const uint32_t* right = b.right + word * round_up(b.cols, with.nr) + col * cut.words;
    Scratch own;
    if (!b.right) {
      uint32_t* panels = own.take<uint32_t>(cut.words * ld);
      pack(with, with.pack_right, p.g.b, lie_of_b(p.g), b.col + col, cols, cut, with.nr, panels);
      right = panels;
    }
    with.multiply(
        left, right, rows, cols, cut.words,
        {.c = sums, .ldc = ld, .scale = column_scales(p.g, cut, b.col + col, cols, scale, ld), .add = c > 0});
  }
  if (chunk.last >= p.cut_count) finish(p.g, b.row + row, rows, b.col + col, cols, sums, ld);
}

// All cuts of the blocks when their panels fit, else (one block then) chunk by chunk.
void run_blocks(Context& context, Block* blocks, int64_t count) {
  // Small problems are cut finer, so that there is work for every thread; the bits do not depend on it.
  int64_t tile_rows = blocks[0].p->with->tile_rows, tile_cols = kTileCols, tiles = 0;
  while (true) {
    tiles = 0;
    for (int64_t i = 0; i < count; ++i)
      tiles += up(blocks[i].rows, tile_rows) * up(blocks[i].cols, tile_cols);
    if (tiles >= 4 * context.pool.threads() || tile_cols <= 64) break;
    if (tile_rows > 48) tile_rows /= 2;
    else tile_cols /= 2;
  }
  tiles = 0;
  int64_t words = 0, cuts = 0;  // words: of all panels, per word of K where K is chunked
  for (int64_t i = 0; i < count; ++i) {
    Block& b = blocks[i];
    b.tiles_down = up(b.rows, tile_rows);
    b.first_tile = tiles;
    tiles += b.tiles_down * up(b.cols, tile_cols);
    words += (round_up(b.rows, b.p->with->mr) + round_up(b.cols, b.p->with->nr)) * b.p->words();
    cuts = std::max(cuts, b.p->cut_count);
  }
  Scratch scratch;
  Chunk chunk{.first = 0, .last = cuts};
  int64_t cuts_a_chunk = cuts;
  if (count == 1 && 4 * words > kPanelBytes) {
    cuts_a_chunk = std::max<int64_t>(1, cuts * kPanelBytes / (4 * words));
    chunk.sums = scratch.take<float>(tiles * tile_rows * tile_cols);
  }
  do {
    chunk.last = std::min(cuts, chunk.first + cuts_a_chunk);
    Scratch panels;
    int64_t items = 0;
    double pack_time = 0, multiply_time = 0;  // ns on one thread, roughly
    for (int64_t i = 0; i < count; ++i) {
      Block& b = blocks[i];
      const int64_t n = words_of(chunk, *b.p), rows = round_up(b.rows, b.p->with->mr),
                    cols = round_up(b.cols, b.p->with->nr);
      b.left = panels.take<uint32_t>(n * rows);
      b.right = b.tiles_down > 1 ? panels.take<uint32_t>(n * cols) : nullptr;
      b.first_item = items;
      items += pack_items(b, chunk);
      pack_time += double(n) * double(rows + (b.right ? cols : 0)) / 3;
      multiply_time += double(n) * double(rows) * double(cols) / 50 + double(rows * cols) +
                       (b.right ? 0.0 : double(n * cols));
    }
    context.parallel(items, pack_time, [&](int64_t item) {
      const Block* b = std::upper_bound(blocks, blocks + count, item,
                                        [](int64_t i, const Block& x) { return i < x.first_item; }) -
                       1;
      pack_item(*b, chunk, item - b->first_item);
    });
    context.parallel(tiles, multiply_time, [&](int64_t tile) {
      const Block* b = std::upper_bound(blocks, blocks + count, tile,
                                        [](int64_t i, const Block& x) { return i < x.first_tile; }) -
                       1;
      compute_tile(*b, chunk, tile - b->first_tile, tile_rows, tile_cols);
    });
    chunk.first = chunk.last;
  } while (chunk.first < cuts);
}

void run_wide(Context& context, const Product* const* products, int64_t count) {
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) most += up(products[i]->m, kBlock) * up(products[i]->n, kBlock);
  Scratch scratch;
  Block* blocks = scratch.take<Block>(most);
  int64_t waiting = 0, bytes = 0;
  const auto run_waiting = [&] {
    if (waiting > 0) run_blocks(context, blocks, waiting);
    waiting = bytes = 0;
  };
  for (int64_t i = 0; i < count; ++i) {
    const Product& p = *products[i];
    for (int64_t row = 0; row < p.m; row += kBlock)
      for (int64_t col = 0; col < p.n; col += kBlock) {
        const Block b{.p = &p,
                      .row = row,
                      .rows = std::min(kBlock, p.m - row),
                      .col = col,
                      .cols = std::min(kBlock, p.n - col)};
        const int64_t more = 4 * p.words() * (round_up(b.rows, p.with->mr) + round_up(b.cols, p.with->nr));
        if (bytes + more > kPanelBytes) run_waiting();
        blocks[waiting++] = b;
        bytes += more;
      }
  }
  run_waiting();
}

}  // namespace

void run_products(Context& context, const std::vector<Gemm>& gemms) {
  const int64_t count = int64_t(gemms.size());
  Scratch scratch;
  Product* products = scratch.take<Product>(count);
  const Product** wide = scratch.take<const Product*>(count);
  const Product** few = scratch.take<const Product*>(count);
  int64_t wide_count = 0, few_count = 0;
  for (int64_t i = 0; i < count; ++i) {
    Product& p = products[i];
    p = {.g = gemms[size_t(i)]};
    const Gemm& g = p.g;
    const bool halves = context.kernels.halves && g.a.dtype == DType::bf16 && g.b.dtype != DType::f32;
    p.with = halves ? context.kernels.halves : context.kernels.floats;
    p.m = g.c.rows;
    p.n = g.c.cols;
    p.k = g.trans_a ? g.a.rows : g.a.cols;
    if (p.m == 0 || p.n == 0) continue;
    for (int64_t k = 0; k < p.k; k = end_of_cut(p, k)) ++p.cut_count;
    Cut* cuts = scratch.take<Cut>(p.cut_count);
    int64_t word = 0;
    for (int64_t k = 0, c = 0; c < p.cut_count; ++c) {
      const int64_t depth = end_of_cut(p, k) - k, words = p.with->words(depth);
      cuts[c] = {.k = k, .depth = depth, .word = word, .words = words};
      k += depth;
      word += words;
    }
    p.cuts = cuts;
    if (is_few(p)) few[few_count++] = &p;
    else wide[wide_count++] = &p;
  }
  run_few(context, few, few_count);
  run_wide(context, wide, wide_count);
}

}  // namespace cachalot::cpu
