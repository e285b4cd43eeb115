// Views of numbers. `Tensor` (dtype at run time) is what layers and the backend's interface speak;
// `Matrix<T>` and `Vector<T>` are the same, typed, for the inside of kernels. None owns memory.
// Letters for shapes: docs/notation.md.
#pragma once

#include <cassert>
#include <concepts>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "tensor/dtype.h"

namespace cachalot {

template <class T> struct Vector {
  T* data = nullptr;
  int64_t size = 0;
  CACHALOT_HD T& operator[](int64_t i) const {
    assert(0 <= i && i < size);
    return data[i];
  }
  template <std::same_as<const T> U> CACHALOT_HD operator Vector<U>() const { return {data, size}; }
};

template <class T> struct Matrix {  // valid while its Buffer or Arena is
  T* data = nullptr;
  int64_t rows = 0, cols = 0, ld = 0;  // row-major, columns contiguous, ld = elements between rows (>= cols)
  CACHALOT_HD T& operator()(int64_t r, int64_t c) const {
    assert(0 <= r && r < rows && 0 <= c && c < cols);
    return data[r * ld + c];
  }
  CACHALOT_HD T* row(int64_t r) const {
    assert(0 <= r && r < rows);
    return data + r * ld;
  }
  template <std::same_as<const T> U> CACHALOT_HD operator Matrix<U>() const { return {data, rows, cols, ld}; }
};

// FP8 numbers carry one scale a tile of 128 (DeepSeek-V3 report, section 3.3.2): value = code * scale.
//   block  128 x 128 numbers of a weight, ragged at the edges
//   row    1 x 128 numbers of an activation or gradient, ragged at the row's end
constexpr int64_t kScaleBlock = 128;
enum class ScaleTile : uint8_t { block, row };

struct Tensor {
  void* data = nullptr;  // device memory: kernels only
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0, ld = 0;  // a vector of n is [1, n]

  // e4m3 only.
  //
  // block: row-major, scales(block row, c / 128) = scales[block row * scale_ld + c / 128]. Several matrices
  // may be stacked into one tensor (the experts of a layer; gate above up): each has `part_rows` rows and its
  // own blocks, so a block never spans two parts. 0 means one part: all rows. `first_row` counts from the row
  // that the scales begin at, so that a slice keeps finding its blocks.
  //
  // row: one tile after the other, each for all rows: scale(r, c) = scales[c / 128 * scale_ld + r], scale_ld
  // >= rows. The tensor memory accelerator reads them so, given that scale_ld is a multiple of 4.
  // block: [parts * ceil(part_rows / 128), scale_ld]; row: [ceil(cols / 128), scale_ld]
  float* scales = nullptr;
  int64_t scale_ld = 0, part_rows = 0, first_row = 0;
  ScaleTile scale_tile = ScaleTile::block;

  explicit operator bool() const { return data != nullptr; }
  int64_t size() const { return rows * cols; }

  // The row of scales of a block.
  CACHALOT_HD int64_t scale_row(int64_t r) const {
    r += first_row;
    if (part_rows == 0) return r / kScaleBlock;
    return r / part_rows * ((part_rows + kScaleBlock - 1) / kScaleBlock) + r % part_rows / kScaleBlock;
  }
  // The factor of element (r, c): 1 when there are no scales.
  CACHALOT_HD float scale(int64_t r, int64_t c) const {
    if (!scales) return 1.0f;
    if (scale_tile == ScaleTile::row) return scales[c / kScaleBlock * scale_ld + r];
    return scales[scale_row(r) * scale_ld + c / kScaleBlock];
  }

  Tensor slice_rows(int64_t first, int64_t count) const {
    CHECK(0 <= first && 0 <= count && first + count <= rows);
    Tensor t = *this;
    t.data = static_cast<uint8_t*>(data) + first * ld * size_of(dtype);
    t.rows = count;
    if (scale_tile == ScaleTile::block) t.first_row = first_row + first;
    else if (scales) t.scales = scales + first;
    return t;
  }
  // Of numbers with scales: from a tile's first column on.
  Tensor slice_cols(int64_t first, int64_t count) const {
    CHECK(0 <= first && 0 <= count && first + count <= cols);
    CHECK(!scales || first % kScaleBlock == 0, "a column slice would cut its scale tiles");
    Tensor t = *this;
    t.data = static_cast<uint8_t*>(data) + first * size_of(dtype);
    t.cols = count;
    if (scales) t.scales = scales + first / kScaleBlock * (scale_tile == ScaleTile::row ? scale_ld : 1);
    return t;
  }

  template <class T> Matrix<T> matrix() const {
    CHECK(dtype_of<T> == dtype, std::string(name_of(dtype_of<T>)) + " asked of " + describe());
    return {static_cast<T*>(data), rows, cols, ld};
  }
  template <class T> Vector<T> vector() const {
    CHECK(dtype_of<T> == dtype, std::string(name_of(dtype_of<T>)) + " asked of " + describe());
    CHECK(rows == 1 || ld == cols, "not contiguous: " + describe());
    return {static_cast<T*>(data), rows * cols};
  }
  std::string describe() const;  // "bf16 [4096, 7168]"
};

inline bool same_shape(const Tensor& a, const Tensor& b) { return a.rows == b.rows && a.cols == b.cols; }

// A contiguous view of memory that somebody else owns.
inline Tensor make_tensor(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {.data = data, .dtype = dtype, .rows = rows, .cols = cols, .ld = cols};
}

// THE error metric (docs/numerics.md): |x-y|^2 / (|x|^2 + |y|^2) in double; 0 when both are zero; NaN (which
// fails every bound) when either holds one. Host memory only.
double error_metric(const Tensor& x, const Tensor& y);

}  // namespace cachalot
