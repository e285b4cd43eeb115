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
#include <array>

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
  if (g.b.scale_tile == ScaleTile::row) {  // [N, K], a scale a column of C
    const float* scales = g.b.scales + cut.k / kScaleBlock * g.b.scale_ld + col;
    std::copy(scales, scales + cols, out);
    std::fill(out + cols, out + room, 0.0f);
    return out;
  }
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

// Columns of a product whose sums are finished together are a block; the blocks of all products, one after
// the other, are what is read.
struct FewWork {
  const Product* p = nullptr;
  const uint32_t* x = nullptr;  // [words][rows, padded]
  int64_t cols = 0;             // of a block
  int64_t first_block = 0;
};

bool is_few(const Product& p) {
  return p.m <= p.with->few && p.k > 0 && (p.g.trans_b ? p.with->few_along : p.with->few_across) > 0;
}

class FewWorks {
 public:
  FewWorks(const FewWork* works, int64_t count, int64_t blocks)
      : works_(works), count_(count), blocks_(blocks) {}

  // Weights that the next operation will read; nullptr: not known.
  void expect(const uint8_t* follows) { follows_ = follows; }
  const uint8_t* follows() const { return follows_; }

  struct Block {
    const FewWork* w = nullptr;
    int64_t col = 0, cols = 0;
  };
  Block block(int64_t b) const {
    const FewWork* w = std::upper_bound(works_, works_ + count_, b,
                                        [](int64_t i, const FewWork& f) { return i < f.first_block; }) -
                       1;
    const int64_t col = (b - w->first_block) * w->cols;
    return {w, col, std::min(w->cols, w->p->n - col)};
  }
  int64_t blocks() const { return blocks_; }

 private:
  const FewWork* works_;
  int64_t count_, blocks_;
  const uint8_t* follows_ = nullptr;
};

int64_t bytes_of(const FewWorks::Block& b) { return b.cols * b.w->p->k * size_of(b.w->p->g.b.dtype); }

// Weights of a block that follow each other without a gap, nullptr where they do not, or are too many to be
// called into the cache while others are in use.
const uint8_t* one_run(const FewWorks::Block& b) {
  constexpr int64_t kMost = int64_t(1) << 18;
  const Product& p = *b.w->p;
  const Tensor& w = p.g.b;
  if (w.ld != (p.g.trans_b ? p.k : b.cols) || bytes_of(b) > kMost) return nullptr;
  return p.g.trans_b ? at(w, b.col, 0) : at(w, 0, b.col);
}

// Blocks [first, last), which one thread takes at once. `next`: the first block that it will probably take
// after them, as threads take turns.
struct Turn {
  int64_t first = 0, last = 0, next = 0;
};

// The run of the block `steps` after block b, behind the last one what follows; nullptr: none is known.
const uint8_t* run_after(const FewWorks& works, const Turn& turn, int64_t b, int64_t steps) {
  const int64_t later = b + steps < turn.last ? b + steps : turn.next + (b + steps - turn.last);
  if (later < works.blocks()) return one_run(works.block(later));
  // One thread calls in what follows: the one whose turn would be the first after the last.
  if (!works.follows() || turn.next != works.blocks()) return nullptr;
  return works.follows() + (later - turn.next) * bytes_of(works.block(b));
}

// Of long rows, kept in no run: the part that `cut` has in the run of kFewRun bytes `steps` further in these
// rows, after the last ones in the first of the next block's.
const uint8_t* rows_after(const FewWorks::Block& here, const Cut& cut, int64_t steps) {
  const Product& p = *here.w->p;
  const int64_t size = size_of(p.g.b.dtype), row = p.k * size, begin = cut.k * size, bytes = cut.depth * size;
  if (!p.g.trans_b || row % kFewRun != 0 || kFewRun % bytes != 0) return nullptr;
  const int64_t first =
      begin % kFewRun / bytes * (here.cols * bytes / kFewRun);  // of the rows that share a run
  int64_t run = begin / kFewRun + steps, col = here.col;
  if ((run + 1) * kFewRun > row) run -= row / kFewRun, col += here.cols;
  if (run * kFewRun >= row || col + here.cols > p.n) return nullptr;
  return at(p.g.b, col + first, run * kFewRun / size);
}

// Reads a byte of every line: the first weights are waited for in the order in which memory is fastest.
void touch(const uint8_t* data, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) (void)*static_cast<const volatile uint8_t*>(data + b);
}

void compute_few(const FewWorks& works, const Turn& turn) {
  for (int64_t b = turn.first; b < turn.last; ++b) {
    const FewWorks::Block block = works.block(b);
    const auto [w, col, cols] = block;
    const Product& p = *w->p;
    Scratch scratch;
    float* sums = scratch.take<float>(p.m * w->cols);
    float* scale = scratch.take<float>(w->cols);
    const uint8_t *run = one_run(block), *soon = nullptr, *later = nullptr;
    if (run) soon = run_after(works, turn, b, 1), later = run_after(works, turn, b, 2);
    if (run && b == turn.first) touch(run, bytes_of(block));
    for (int64_t c = 0; c < p.cut_count; ++c) {
      const Cut& cut = p.cuts[c];
      const int64_t done = cols * cut.k * size_of(p.g.b.dtype);  // of a run: as much as of this one
      p.with->multiply_few({.x = w->x + cut.word * round_up(p.m, p.with->few_multiple),
                            .rows = p.m,
                            .cols = cols,
                            .k = cut.depth,
                            .format = format_of(p.g.b.dtype),
                            .weights = {.data = p.g.trans_b ? at(p.g.b, col, cut.k) : at(p.g.b, cut.k, col),
                                        .ld = p.g.b.ld,
                                        .lie = lie_of_b(p.g)},
                            .soon = run ? (soon ? soon + done : nullptr) : rows_after(block, cut, 1),
                            .later = run ? (later ? later + done : nullptr) : rows_after(block, cut, 2),
                            .ahead_ld = run ? kFewRun : p.g.b.ld * size_of(p.g.b.dtype),
                            .sums = {.c = sums,
                                     .ldc = w->cols,
                                     .scale = column_scales(p.g, cut, col, cols, scale, w->cols),
                                     .add = c > 0}});
    }
    finish(p.g, 0, p.m, col, cols, sums, w->cols);
  }
}

// Decoding runs the same operations step after step: what a thread read after some weights is what it will
// read after them again, bar experts. The first blocks of it are called in while the last ones of an
// operation are multiplied; a wrong guess costs their reading, so a guess must have been right once. Only
// addresses are kept: a line called in from memory that was given back does no harm.
class Followers {
 public:
  // The weights expected after these, nullptr if none are.
  const uint8_t* after(const uint8_t* weights) {
    if (last_ && weights) {
      if (last_->next == weights) last_->sure = true;
      else *last_ = {.key = last_->key, .next = weights};
    }
    last_ = nullptr;
    if (!weights) return nullptr;
    last_ = &slots_[(uintptr_t(weights) >> 6) * 0x9E3779B97F4A7C15u >> (64 - kBits)];
    if (last_->key != weights) *last_ = {.key = weights};
    return last_->sure ? last_->next : nullptr;
  }

 private:
  static constexpr int kBits = 11;
  struct Slot {
    const uint8_t *key = nullptr, *next = nullptr;
    bool sure = false;
  };
  std::array<Slot, size_t(1) << kBits> slots_{};
  Slot* last_ = nullptr;
};

void run_few(Context& context, const Product* const* products, int64_t count) {
  if (count == 0) return;
  Scratch scratch;
  FewWork* list = scratch.take<FewWork>(count);
  int64_t blocks = 0;
  double bytes = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Product& p = *products[i];
    const int64_t cols = p.g.trans_b ? p.with->few_along : p.with->few_across,
                  width = round_up(p.m, p.with->few_multiple);
    uint32_t* x = scratch.take<uint32_t>(p.words() * width);
    for (int64_t c = 0; c < p.cut_count; ++c)
      pack(*p.with, p.with->pack_few, p.g.a, lie_of_a(p.g), 0, p.m, p.cuts[c], width,
           x + p.cuts[c].word * width);
    list[i] = {.p = &p, .x = x, .cols = cols, .first_block = blocks};
    blocks += up(p.n, cols);
    bytes += double(p.n) * double(p.k) * double(size_of(p.g.b.dtype));
  }
  FewWorks works(list, count, blocks);
  thread_local Followers followers;
  works.expect(followers.after(one_run(works.block(0))));
  // Long runs, but something for every thread to do at the end.
  const int64_t threads = context.shares(bytes / 20) ? context.pool.threads() : 1;
  const double turn_bytes = std::clamp(bytes / double(2 * threads), 128e3, 1e6);
  const int64_t most =
      threads == 1 ? blocks : std::max<int64_t>(1, int64_t(turn_bytes / bytes * double(blocks)));
  const int64_t turns = up(blocks, most);
  context.parallel(turns, bytes / 20, [&](int64_t i) {
    const int64_t next = i + threads;  // after the last turn: once for all threads
    compute_few(works, {.first = i * most,
                        .last = std::min(blocks, (i + 1) * most),
                        .next = next <= turns ? std::min(blocks, next * most) : blocks + most});
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
