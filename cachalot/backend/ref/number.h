// Every format as double: what lets the oracle read like the formulas, at the price of a switch a number.
#pragma once

#include <bit>
#include <cmath>
#include <limits>

#include "tensor/tensor.h"

namespace cachalot {

// x as bf16, rounded once to nearest even. Through float alone it would be rounded twice: a float that the
// first rounding made a tie could go the wrong way. So the float on the way is rounded to odd: cut off, and
// its last bit set when anything was lost, which keeps it off every tie of bf16.
inline bf16 round_bf16(double x) {
  float f = float(x);
  if (std::isfinite(x) && double(f) != x) {
    uint32_t bits = std::bit_cast<uint32_t>(f);
    if (std::abs(double(f)) > std::abs(x)) --bits;  // towards zero; infinity becomes the largest float
    f = std::bit_cast<float>(bits | 1u);
  }
  return bf16(f);
}

// x as a number of the format holds it.
inline double round_to(DType dtype, double x) {
  switch (dtype) {
    case DType::f64: return x;
    case DType::f32: return float(x);
    case DType::bf16: return float(round_bf16(x));
    case DType::e4m3:
    case DType::i32: break;
  }
  CHECK(false, "no arithmetic in " + std::string(name_of(dtype)));
  return x;
}

// Numbers of a tensor, e4m3 times its scales. [i] counts in rows.
class Reader {
 public:
  Reader(const Tensor& t) : t_(t) {}
  double operator()(int64_t r, int64_t c) const {
    CHECK(0 <= r && r < t_.rows && 0 <= c && c < t_.cols);
    const int64_t i = r * t_.ld + c;
    switch (t_.dtype) {
      case DType::f64: return static_cast<const double*>(t_.data)[i];
      case DType::f32: return static_cast<const float*>(t_.data)[i];
      case DType::bf16: return float(static_cast<const bf16*>(t_.data)[i]);
      case DType::e4m3: return double(float(static_cast<const e4m3*>(t_.data)[i])) * t_.scale(r, c);
      case DType::i32: return static_cast<const int32_t*>(t_.data)[i];
    }
    return 0;
  }
  double operator[](int64_t i) const { return (*this)(i / t_.cols, i % t_.cols); }

 private:
  const Tensor t_;
};

// The same for writing; rounds once.
class Writer : public Reader {
 public:
  Writer(const Tensor& t) : Reader(t), t_(t) { CHECK(t.dtype != DType::e4m3); }
  void set(int64_t r, int64_t c, double x) const {
    CHECK(0 <= r && r < t_.rows && 0 <= c && c < t_.cols);
    const int64_t i = r * t_.ld + c;
    switch (t_.dtype) {
      case DType::f64: static_cast<double*>(t_.data)[i] = x; break;
      case DType::f32: static_cast<float*>(t_.data)[i] = float(x); break;
      case DType::bf16: static_cast<bf16*>(t_.data)[i] = round_bf16(x); break;
      case DType::e4m3: break;
      case DType::i32:
        CHECK(std::abs(x) < 2147483648.0, "outside i32: " + std::to_string(x));
        static_cast<int32_t*>(t_.data)[i] = int32_t(x);
        break;
    }
  }
  void set(int64_t i, double x) const { set(i / t_.cols, i % t_.cols, x); }
  void add(int64_t r, int64_t c, double x) const { set(r, c, (*this)(r, c) + x); }

 private:
  const Tensor t_;
};

// Indices, checked against the range that the contract gives them.
class Indices {
 public:
  Indices(const Tensor& t, int64_t below, int64_t from = 0) : t_(t), from_(from), below_(below) {
    CHECK(t.dtype == DType::i32);
  }
  int64_t operator()(int64_t r, int64_t c) const {
    CHECK(0 <= r && r < t_.rows && 0 <= c && c < t_.cols);
    const int64_t i = static_cast<const int32_t*>(t_.data)[r * t_.ld + c];
    CHECK(from_ <= i && i < below_, "index " + std::to_string(i) + " is not in [" + std::to_string(from_) +
                                        ", " + std::to_string(below_) + ")");
    return i;
  }
  int64_t operator[](int64_t i) const { return (*this)(i / t_.cols, i % t_.cols); }

 private:
  const Tensor t_;
  int64_t from_, below_;
};

inline constexpr int64_t kAnyNegative = std::numeric_limits<int32_t>::min();

// starts[0 ... S]: ascending from `first`, not beyond `rows`.
class Starts {
 public:
  Starts(const Tensor& t, int64_t rows) : starts_(t, rows + 1) {
    for (int64_t s = 0; s + 1 < t.size(); ++s) CHECK(starts_[s] <= starts_[s + 1], "starts do not ascend");
  }
  int64_t operator[](int64_t s) const { return starts_[s]; }

 private:
  Indices starts_;
};

}  // namespace cachalot
