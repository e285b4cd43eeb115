#include "backend/ref/quantize.h"

#include <algorithm>
#include <functional>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

float scale_of_tile(const std::vector<float>& tile, float largest, bool power_of_two) {
  float amax = 1e-4f;
  for (float x : tile) amax = std::fmax(amax, std::fabs(x));  // fmax passes over NaN
  const float scale = amax / largest;
  if (!power_of_two || std::isinf(scale)) return scale;
  int exponent;
  return std::frexp(scale, &exponent) == 0.5f ? scale : std::ldexp(1.0f, exponent);
}

e4m3 code_of(float x, float scale) {
  const float quotient = x / scale;
  e4m3 code(quotient);
  if (std::isnan(quotient)) code.bits = 0x7F;
  return code;
}

void write_row_tiles(const Tensor& t, int64_t r, const std::vector<float>& x, bool power_of_two) {
  CHECK(int64_t(x.size()) == t.cols);
  for (int64_t first = 0; first < t.cols; first += kScaleBlock) {
    const int64_t end = std::min(t.cols, first + kScaleBlock);
    const float scale = scale_of_tile({x.begin() + first, x.begin() + end}, e4m3::kMax, power_of_two);
    t.scales[first / kScaleBlock * t.scale_ld + r] = scale;
    for (int64_t c = first; c < end; ++c)
      static_cast<e4m3*>(t.data)[r * t.ld + c] = code_of(x[size_t(c)], scale);
  }
}

namespace {

// x as f32: what is quantised.
class Floats {
 public:
  explicit Floats(const Tensor& t) : x_(t) {}
  float operator()(int64_t r, int64_t c) const { return float(x_(r, c)); }

 private:
  Reader x_;
};

using Number = std::function<float(int64_t r, int64_t c)>;

// Blocks of a stack of matrices of t.part_rows rows each.
void write_blocks(const Tensor& t, const Number& number, bool power_of_two) {
  const int64_t part = t.part_rows ? t.part_rows : t.rows;
  for (int64_t begin = 0; begin < t.rows; begin += part)
    for (int64_t row = begin; row < begin + part; row += kScaleBlock)
      for (int64_t col = 0; col < t.cols; col += kScaleBlock) {
        const int64_t row_end = std::min(begin + part, row + kScaleBlock),
                      col_end = std::min(t.cols, col + kScaleBlock);
        std::vector<float> tile;
        for (int64_t r = row; r < row_end; ++r)
          for (int64_t c = col; c < col_end; ++c) tile.push_back(number(r, c));
        const float scale = scale_of_tile(tile, e4m3::kMax, power_of_two);
        t.scales[t.scale_row(row) * t.scale_ld + col / kScaleBlock] = scale;
        for (int64_t r = row; r < row_end; ++r)
          for (int64_t c = col; c < col_end; ++c)
            static_cast<e4m3*>(t.data)[r * t.ld + c] = code_of(number(r, c), scale);
      }
}

// Bits of the number of E5M6 that is nearest to x.
uint32_t e5m6_bits(float x) {
  if (std::isnan(x)) return 0xFFF;
  const double size = std::fabs(x);
  CHECK(size <= 65024);
  int exponent;
  std::frexp(size, &exponent);                       // size in [2^(exponent - 1), 2^exponent)
  const int step = std::max(exponent - 1, -14) - 6;  // neighbours are 2^step apart
  const auto steps = uint32_t(std::nearbyint(std::ldexp(size, -step)));  // ties to even
  // A number of the next exponent has steps = 128, which carries into the exponent's bits.
  const uint32_t magnitude = steps < 64 ? steps : uint32_t(step + 20) * 64 + steps;
  return (std::signbit(x) ? 0x800u : 0u) | magnitude;
}

double e5m6_value(uint32_t bits) {
  const int exponent = int(bits >> 6 & 31), mantissa = int(bits & 63);
  if (exponent == 31) return std::nan("");
  const double size = exponent == 0 ? std::ldexp(mantissa, -20) : std::ldexp(64 + mantissa, exponent - 21);
  return bits & 0x800 ? -size : size;
}

}  // namespace

void RefBackend::quantize(const Quantize& q) {
  check(q);
  const Floats x(q.x);
  const int64_t rows = q.x.rows, cols = q.x.cols;
  std::vector<int64_t> offsets{0, rows}, padded{0, rows};  // without experts: one that is not padded
  if (q.offsets) {
    const Starts from(q.offsets, rows),
        to(q.padded, q.transposed ? q.transposed.cols : padded_rows(rows, q.offsets.cols));
    offsets.clear(), padded.clear();
    for (int64_t e = 0; e < q.offsets.cols; ++e) offsets.push_back(from[e]), padded.push_back(to[e]);
    CHECK(offsets[0] == 0 && padded[0] == 0);
  }
  if (q.y)
    for (int64_t r = 0; r < offsets.back(); ++r) {
      std::vector<float> row;
      for (int64_t c = 0; c < cols; ++c) row.push_back(x(r, c));
      write_row_tiles(q.y, r, row, q.power_of_two);
    }
  if (!q.transposed) return;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    CHECK(padded[e + 1] - padded[e] >= offsets[e + 1] - offsets[e]);
    for (int64_t to = padded[e]; to < padded[e + 1]; to += kScaleBlock)
      for (int64_t c = 0; c < cols; ++c) {
        std::vector<float> tile;
        for (int64_t i = to; i < std::min(padded[e + 1], to + kScaleBlock); ++i) {
          const int64_t r = offsets[e] + i - padded[e];
          tile.push_back(r < offsets[e + 1] ? x(r, c) : 0);
        }
        const float scale = scale_of_tile(tile, e4m3::kMax, q.power_of_two);
        q.transposed.scales[to / kScaleBlock * q.transposed.scale_ld + c] = scale;
        for (size_t i = 0; i < tile.size(); ++i)
          static_cast<e4m3*>(q.transposed.data)[c * q.transposed.ld + to + int64_t(i)] =
              code_of(tile[i], scale);
      }
  }
}

void RefBackend::pad_offsets(const PadOffsets& p) {
  check(p);
  const Indices offsets(p.offsets, int64_t(1) << 31);
  const Writer padded(p.padded);
  int64_t at = 0;
  padded.set(0, 0);
  for (int64_t e = 0; e + 1 < p.offsets.cols; ++e) {
    CHECK(offsets[e] <= offsets[e + 1], "offsets do not ascend");
    at += (offsets[e + 1] - offsets[e] + kScaleBlock - 1) / kScaleBlock * kScaleBlock;
    padded.set(e + 1, double(at));
  }
}

void RefBackend::quantize_weight(const QuantizeWeight& q) {
  check(q);
  const Floats x(q.x);
  const int64_t outputs = q.x.rows / q.experts, inputs = q.x.cols;
  if (q.y)
    write_blocks(
        q.y, [&](int64_t r, int64_t c) { return x(r, c); }, q.power_of_two);
  if (!q.transposed) return;
  const Tensor& t = q.transposed;
  // Row r of the transpose is input r % inputs of an expert.
  const auto row_of = [&](int64_t r, int64_t c) { return r / inputs * outputs + c; };
  const int64_t part = q.x.part_rows ? q.x.part_rows : outputs;
  const bool same_blocks = part == outputs || part % kScaleBlock == 0;
  if (q.x.dtype != DType::e4m3 || !same_blocks)
    return write_blocks(
        t, [&](int64_t r, int64_t c) { return x(row_of(r, c), r % inputs); }, q.power_of_two);
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < t.cols; ++c) {
      const int64_t from = row_of(r, c);
      static_cast<e4m3*>(t.data)[r * t.ld + c] =
          static_cast<const e4m3*>(q.x.data)[from * q.x.ld + r % inputs];
      t.scales[t.scale_row(r) * t.scale_ld + c / kScaleBlock] = q.x.scale(from, r % inputs);
    }
}

void RefBackend::pack_e5m6(const PackE5m6& p) {
  check(p);
  const Floats x(p.x);
  const Writer scales(p.scales);
  for (int64_t t = 0; t < p.x.rows; ++t) {
    std::vector<uint32_t> bits(size_t((p.x.cols + 7) / 8 * 8), 0u);
    for (int64_t first = 0; first < p.x.cols; first += kScaleBlock) {
      std::vector<float> tile;
      for (int64_t d = first; d < std::min(p.x.cols, first + kScaleBlock); ++d) tile.push_back(x(t, d));
      const float scale = scale_of_tile(tile, 65024.0f, true);
      scales.set(first / kScaleBlock, t, scale);
      for (size_t i = 0; i < tile.size(); ++i) bits[size_t(first) + i] = e5m6_bits(tile[i] / scale);
    }
    auto* words = static_cast<uint32_t*>(p.packed.data) + t * p.packed.ld;
    for (size_t i = 0; i < bits.size(); i += 8, words += 3) {
      const uint32_t* v = bits.data() + i;
      words[0] = v[0] << 20 | v[1] << 8 | v[2] >> 4;
      words[1] = (v[2] & 0xF) << 28 | v[3] << 16 | v[4] << 4 | v[5] >> 8;
      words[2] = (v[5] & 0xFF) << 24 | v[6] << 12 | v[7];
    }
  }
}

void RefBackend::unpack_e5m6(const UnpackE5m6& p) {
  check(p);
  const Reader scales(p.scales);
  const Writer y(p.y);
  for (int64_t t = 0; t < p.y.rows; ++t)
    for (int64_t d = 0; d < p.y.cols; ++d) {
      const auto* w = static_cast<const uint32_t*>(p.packed.data) + t * p.packed.ld + d / 8 * 3;
      // The 12 bits from bit 12 (d % 8) on, counted from the top of the three words.
      const int64_t from = 12 * (d % 8), word = from / 32, left = from % 32;
      const uint64_t two = uint64_t(w[word]) << 32 | (word < 2 ? w[word + 1] : 0);
      const uint32_t bits = uint32_t(two << left >> 52);
      y.set(t, d, double(float(e5m6_value(bits) * scales(d / kScaleBlock, t))));
    }
}

}  // namespace cachalot
