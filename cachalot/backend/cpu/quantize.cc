// Contract: backend/ops/quantize.h. Items are rows, tiles of 128 rows, or rows of blocks.
#include "backend/cpu/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kB = kScaleBlock;
constexpr float kFloor = 1e-4f;
constexpr float kLargestE5m6 = 65024.0f;

int64_t blocks(int64_t n) { return (n + kB - 1) / kB; }

float scale_of(float amax, float largest, bool power_of_two) {
  const float scale = amax / largest;
  if (!power_of_two) return scale;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(scale) + 0x7FFFFFu) & ~0x7FFFFFu);
}

uint8_t* codes_at(const Tensor& t, int64_t r, int64_t c) {
  return static_cast<uint8_t*>(t.data) + r * t.ld + c;
}

// out[c][r] = in[r][c]. Eight by eight bytes in eight words: squares of 4, 2 and 1 bytes change places across
// the diagonal (Warren, "Hacker's Delight", section 7-3).
void turn(const uint8_t* in, int64_t in_ld, int64_t rows, int64_t cols, uint8_t* out, int64_t out_ld) {
  static_assert(std::endian::native == std::endian::little);
  const int64_t whole_rows = rows / 8 * 8, whole_cols = cols / 8 * 8;
  const auto exchange = [](uint64_t& a, uint64_t& b, int shift, uint64_t mask) {
    const uint64_t t = (a >> shift ^ b) & mask;
    a ^= t << shift, b ^= t;
  };
  for (int64_t r = 0; r < whole_rows; r += 8)
    for (int64_t c = 0; c < whole_cols; c += 8) {
      uint64_t w[8];
      for (int i = 0; i < 8; ++i) std::memcpy(&w[i], in + (r + i) * in_ld + c, 8);
      for (int i = 0; i < 4; ++i) exchange(w[i], w[i + 4], 32, 0x00000000FFFFFFFFu);
      for (const int i : {0, 1, 4, 5}) exchange(w[i], w[i + 2], 16, 0x0000FFFF0000FFFFu);
      for (const int i : {0, 2, 4, 6}) exchange(w[i], w[i + 1], 8, 0x00FF00FF00FF00FFu);
      for (int i = 0; i < 8; ++i) std::memcpy(out + (c + i) * out_ld + r, &w[i], 8);
    }
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t r = c < whole_cols ? whole_rows : 0; r < rows; ++r) out[c * out_ld + r] = in[r * in_ld + c];
}

// Offsets come from device memory: a wrong one must not become a wild access.
void check_offsets(const Tensor& offsets, int64_t end) {
  const auto o = offsets.vector<const int32_t>();
  CHECK(o[0] == 0, "quantize: offsets begin at " + std::to_string(o[0]));
  for (int64_t e = 0; e + 1 < o.size; ++e)
    CHECK(o[e] <= o[e + 1] && o[e + 1] <= end, "quantize: offsets of expert " + std::to_string(e) + " are " +
                                                   std::to_string(o[e]) + " to " + std::to_string(o[e + 1]) +
                                                   " of " + std::to_string(end));
}

// 128 rows of x, or fewer, become columns [to, to + width) of y, zeros behind the rows.
void column_tile(const Vectors& vectors, const Tensor& x, int64_t first, int64_t rows, const Tensor& y,
                 int64_t to, int64_t width, bool power_of_two) {
  constexpr int64_t kCols = 256;  // at a time: their rows fit the cache
  Scratch scratch;
  float* numbers = scratch.take<float>(kB * kCols);
  float* amax = scratch.take<float>(kCols);
  uint8_t* codes = scratch.take<uint8_t>(kB * kCols);
  for (int64_t col = 0; col < x.cols; col += kCols) {
    const int64_t n = std::min(kCols, x.cols - col);
    std::fill(amax, amax + n, kFloor);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = numbers + r * kCols;
      load_row(x, first + r, col, n, row);
      vectors.larger_sizes(row, n, amax);
    }
    float* scale = y.scales + to / kB * y.scale_ld + col;
    for (int64_t c = 0; c < n; ++c) scale[c] = scale_of(amax[c], e4m3::kMax, power_of_two);
    for (int64_t r = 0; r < rows; ++r) vectors.encode_each(numbers + r * kCols, scale, n, codes + r * kCols);
    turn(codes, kCols, rows, n, codes_at(y, col, to), y.ld);
    for (int64_t c = 0; c < n && width > rows; ++c)
      std::memset(codes_at(y, col + c, to + rows), 0, size_t(width - rows));
  }
}

// Rows [first, first + rows) of y, a row of blocks.
void block_row(const Vectors& vectors, const Tensor& x, const Tensor& y, int64_t first, int64_t rows,
               bool power_of_two) {
  Scratch scratch;
  const int64_t across = blocks(y.cols);
  float* numbers = scratch.take<float>(rows * y.cols);
  float* amax = scratch.take<float>(across);
  std::fill(amax, amax + across, kFloor);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = numbers + r * y.cols;
    load_row(x, first + r, 0, y.cols, row);
    for (int64_t b = 0; b < across; ++b)
      amax[b] = vectors.largest_size(row + b * kB, std::min(kB, y.cols - b * kB), amax[b]);
  }
  float* scale = y.scales + y.scale_row(first) * y.scale_ld;
  for (int64_t b = 0; b < across; ++b) scale[b] = scale_of(amax[b], e4m3::kMax, power_of_two);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t b = 0; b < across; ++b)
      vectors.encode(numbers + r * y.cols + b * kB, scale[b], std::min(kB, y.cols - b * kB),
                     codes_at(y, first + r, b * kB));
}

// body(first row, rows) for every row of blocks.
template <class Body>
void for_block_rows(Context& context, const Tensor& y, double nanoseconds, const Body& body) {
  const int64_t part = y.part_rows ? y.part_rows : y.rows, down = blocks(part);
  context.parallel(y.rows / part * down, nanoseconds, [&](int64_t i) {
    const int64_t row = i % down * kB;
    body(i / down * part + row, std::min(kB, part - row));
  });
}

// Of |x| <= 65024. Selections instead of branches, so that loops vectorise.
uint32_t e5m6_bits(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), size = u & 0x7FFFFFFFu;
  // Below 2^-14: subnormal, a multiple of 2^-20, which is the last bit of 8.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 8.0f) - 0x41000000u;
  const uint32_t normal = ((size + 0xFFFFu + (size >> 17 & 1u)) >> 17) - (112u << 6);  // rebias 127 -> 15
  const uint32_t bits = (size < 0x38800000u ? small : normal) | (u >> 20 & 0x800u);
  return size > 0x7F800000u ? 0xFFFu : bits;
}

float e5m6_value(uint32_t bits) {
  const uint32_t sign = (bits & 0x800u) << 20, exponent = bits >> 6 & 31, mantissa = bits & 63;
  const float small = float(int32_t(mantissa)) * 0x1p-20f;
  const uint32_t normal = (exponent + 112) << 23 | mantissa << 17;
  const uint32_t size = exponent == 0    ? std::bit_cast<uint32_t>(small)
                        : exponent == 31 ? 0x7FC00000u
                                         : normal;
  return std::bit_cast<float>(size | sign);
}

}  // namespace

void quantise_row(const Vectors& vectors, const float* x, const Tensor& to, int64_t r, bool power_of_two) {
  for (int64_t b = 0; b < blocks(to.cols); ++b) {
    const int64_t n = std::min(kB, to.cols - b * kB);
    const float scale = scale_of(vectors.largest_size(x + b * kB, n, kFloor), e4m3::kMax, power_of_two);
    to.scales[b * to.scale_ld + r] = scale;
    vectors.encode(x + b * kB, scale, n, codes_at(to, r, b * kB));
  }
}

void copy_quantised_row(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row) {
  copy_row(from, from_row, to, to_row);
  for (int64_t b = 0; b < blocks(to.cols); ++b)
    to.scales[b * to.scale_ld + to_row] = from.scales[b * from.scale_ld + from_row];
}

void CpuBackend::quantize(const Quantize& q) {
  check(q);
  require_no_f64("quantize", {&q.x});
  const Vectors& vectors = context_->vectors;
  const int64_t rows = q.x.rows, cols = q.x.cols, experts = q.offsets.cols - 1;
  const double nanoseconds = 1.5 * double(q.x.size());
  if (q.offsets) {
    check_offsets(q.offsets, rows);
    check_offsets(q.padded, q.transposed ? q.transposed.cols : padded_rows(rows, experts));
  }
  const auto offsets = q.offsets ? q.offsets.vector<const int32_t>() : Vector<const int32_t>{};
  const auto padded = q.padded ? q.padded.vector<const int32_t>() : Vector<const int32_t>{};
  if (q.y) {
    const int64_t owned = q.offsets ? offsets[experts] : rows;
    context_->parallel_ranges(owned, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      float* buffer = scratch.take<float>(cols);
      for (int64_t r = begin; r < end; ++r)
        quantise_row(vectors, row_as_floats(q.x, r, buffer), q.y, r, q.power_of_two);
    });
  }
  if (!q.transposed) return;
  const int64_t end = q.offsets ? padded[experts] : rows;
  context_->parallel(blocks(end), 2 * nanoseconds, [&](int64_t tile) {
    const int64_t to = tile * kB;
    if (!q.offsets) {
      const int64_t n = std::min(kB, rows - to);
      return column_tile(vectors, q.x, to, n, q.transposed, to, n, q.power_of_two);
    }
    const int64_t e = std::upper_bound(padded.data, padded.data + experts + 1, int32_t(to)) - padded.data - 1;
    const int64_t first = offsets[e] + to - padded[e], left = offsets[e + 1] - first,
                  width = std::min<int64_t>(kB, padded[e + 1] - to);
    CHECK(left > 0 && std::min(left, kB) <= width, "quantize: the padded offsets do not fit the offsets");
    column_tile(vectors, q.x, first, std::min(kB, left), q.transposed, to, width, q.power_of_two);
  });
}

void CpuBackend::pad_offsets(const PadOffsets& p) {
  check(p);
  const auto offsets = p.offsets.vector<const int32_t>();
  const auto padded = p.padded.vector<int32_t>();
  padded[0] = 0;
  for (int64_t e = 0; e + 1 < offsets.size; ++e)
    padded[e + 1] = int32_t(padded[e] + blocks(offsets[e + 1] - offsets[e]) * kB);
}

void CpuBackend::quantize_weight(const QuantizeWeight& q) {
  check(q);
  require_no_f64("quantize_weight", {&q.x});
  if (q.x.size() == 0) return;
  const Vectors& vectors = context_->vectors;
  const int64_t outputs = q.x.rows / q.experts, inputs = q.x.cols;
  const double nanoseconds = 2 * double(q.x.size());
  if (q.y)
    for_block_rows(*context_, q.y, nanoseconds, [&](int64_t first, int64_t rows) {
      block_row(vectors, q.x, q.y, first, rows, q.power_of_two);
    });
  if (!q.transposed) return;
  const Tensor& t = q.transposed;
  const int64_t part = q.x.part_rows ? q.x.part_rows : outputs;
  const bool carried = q.x.dtype == DType::e4m3 && (part == outputs || part % kB == 0);
  for_block_rows(*context_, t, nanoseconds, [&](int64_t first, int64_t rows) {
    // Rows [first, first + rows) of the transpose are columns of one expert's matrix; block by block.
    const int64_t e = first / inputs, col = first % inputs;
    Scratch scratch;
    float* numbers = scratch.take<float>(kB * rows);
    uint8_t* codes = scratch.take<uint8_t>(kB * rows);
    for (int64_t o = 0; o < outputs; o += kB) {
      const int64_t n = std::min(kB, outputs - o), from = e * outputs + o;
      float& scale = t.scales[t.scale_row(first) * t.scale_ld + o / kB];
      if (carried) {
        scale = q.x.scale(from, col);
        turn(codes_at(q.x, from, col), q.x.ld, n, rows, codes_at(t, first, o), t.ld);
        continue;
      }
      for (int64_t i = 0; i < n; ++i) load_row(q.x, from + i, col, rows, numbers + i * rows);
      scale = scale_of(vectors.largest_size(numbers, n * rows, kFloor), e4m3::kMax, q.power_of_two);
      vectors.encode(numbers, scale, n * rows, codes);
      turn(codes, rows, n, rows, codes_at(t, first, o), t.ld);
    }
  });
}

void CpuBackend::pack_e5m6(const PackE5m6& p) {
  check(p);
  require_no_f64("pack_e5m6", {&p.x});
  const int64_t cols = p.x.cols;
  const auto scales = p.scales.matrix<float>();
  const Vectors& vectors = context_->vectors;
  const double nanoseconds = 3 * double(p.x.size());
  context_->parallel_ranges(p.x.rows, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* x = scratch.take<float>(cols);
    uint32_t* bits = scratch.take<uint32_t>(round_up(cols, 8));
    for (int64_t t = begin; t < end; ++t) {
      load_row(p.x, t, 0, cols, x);
      std::fill(bits + cols, bits + round_up(cols, 8), 0u);
      for (int64_t b = 0; b < blocks(cols); ++b) {
        const int64_t first = b * kB, last = std::min(cols, first + kB);
        const float scale =
            scale_of(vectors.largest_size(x + first, last - first, kFloor), kLargestE5m6, true);
        scales(b, t) = scale;
        for (int64_t c = first; c < last; ++c) bits[c] = e5m6_bits(x[c] / scale);
      }
      auto* words = static_cast<uint32_t*>(p.packed.data) + t * p.packed.ld;
      for (const uint32_t* v = bits; v < bits + cols; v += 8, words += 3) {
        words[0] = v[0] << 20 | v[1] << 8 | v[2] >> 4;
        words[1] = v[2] << 28 | v[3] << 16 | v[4] << 4 | v[5] >> 8;
        words[2] = v[5] << 24 | v[6] << 12 | v[7];
      }
    }
  });
}

void CpuBackend::unpack_e5m6(const UnpackE5m6& p) {
  check(p);
  require_no_f64("unpack_e5m6", {&p.y});
  const int64_t cols = p.y.cols;
  const auto scales = p.scales.matrix<const float>();
  const double nanoseconds = 2 * double(p.y.size());
  context_->parallel_ranges(p.y.rows, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    const int64_t whole = round_up(cols, 8);
    uint32_t* bits = scratch.take<uint32_t>(whole);
    float* y = scratch.take<float>(whole);
    for (int64_t t = begin; t < end; ++t) {
      const auto* w = static_cast<const uint32_t*>(p.packed.data) + t * p.packed.ld;
      for (int64_t c = 0; c < cols; c += 8, w += 3) {
        uint32_t* v = bits + c;
        v[0] = w[0] >> 20, v[1] = w[0] >> 8 & 0xFFF, v[2] = (w[0] << 4 | w[1] >> 28) & 0xFFF;
        v[3] = w[1] >> 16 & 0xFFF, v[4] = w[1] >> 4 & 0xFFF, v[5] = (w[1] << 8 | w[2] >> 24) & 0xFFF;
        v[6] = w[2] >> 12 & 0xFFF, v[7] = w[2] & 0xFFF;
      }
      for (int64_t b = 0; b < blocks(cols); ++b) {
        const float scale = scales(b, t);
        for (int64_t c = b * kB; c < std::min(whole, (b + 1) * kB); ++c) y[c] = e5m6_value(bits[c]) * scale;
      }
      store_row(p.y, t, 0, cols, y);
    }
  });
}

}  // namespace cachalot::cpu
