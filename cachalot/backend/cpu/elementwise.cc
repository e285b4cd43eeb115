// Contract: backend/ops/elementwise.h.
#include <algorithm>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

template <class T> void fill_rows(const Tensor& y, T value, int64_t begin, int64_t end) {
  const auto m = y.matrix<T>();
  for (int64_t r = begin; r < end; ++r) std::fill(m.row(r), m.row(r) + m.cols, value);
}

}  // namespace

// f64 too: sums of squares are kept so, and somebody has to zero them.
void CpuBackend::fill(const Fill& f) {
  check(f);
  const double nanoseconds = 0.1 * double(f.y.size());
  context_->parallel_ranges(f.y.rows, rows_per_item(f.y.cols), nanoseconds, [&](int64_t begin, int64_t end) {
    switch (f.y.dtype) {
      case DType::f64: return fill_rows(f.y, f.value, begin, end);
      case DType::f32: return fill_rows(f.y, float(f.value), begin, end);
      case DType::bf16: return fill_rows(f.y, bf16(float(f.value)), begin, end);
      case DType::i32: return fill_rows(f.y, int32_t(f.value), begin, end);
      case DType::e4m3: CHECK(false, "fill: e4m3");
    }
  });
}

void CpuBackend::cast(const Cast& c) {
  check(c);
  require_no_f64("cast", {&c.x, &c.y});
  const int64_t cols = c.x.cols;
  const bool rounds = c.x.dtype == DType::f32 && c.y.dtype == DType::bf16;
  const bool widens = c.x.dtype == DType::bf16 && c.y.dtype == DType::f32;
  const double nanoseconds = (c.x.dtype == DType::e4m3 ? 0.5 : 0.2) * double(c.x.size());
  context_->parallel_ranges(c.x.rows, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* buffer = scratch.take<float>(cols);
    for (int64_t r = begin; r < end; ++r) {
      if (c.x.dtype == c.y.dtype) copy_row(c.x, r, c.y, r);
      else if (rounds)
        context_->vectors.bf16.from_floats(static_cast<const float*>(place(c.x, r)), 1, cols, place(c.y, r));
      else if (widens)
        context_->vectors.bf16.to_floats(place(c.x, r), 1, cols, static_cast<float*>(place(c.y, r)));
      else store_row(c.y, r, 0, cols, row_as_floats(c.x, r, buffer));
    }
  });
}

void CpuBackend::add(const Add& a) {
  check(a);
  require_no_f64("add", {&a.a, &a.b, &a.y});
  const int64_t cols = a.y.cols;
  const double nanoseconds = 0.3 * double(a.y.size());
  context_->parallel_ranges(a.y.rows, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
    if (a.y.dtype == DType::i32) {
      const auto x = a.a.matrix<const int32_t>(), y = a.b.matrix<const int32_t>();
      for (int64_t r = begin; r < end; ++r)
        for (int64_t i = 0; i < cols; ++i) a.y.matrix<int32_t>()(r, i) = x(r, i) + y(r, i);
      return;
    }
    const RowVectors& vectors = rows_in(context_->vectors, a.y.dtype);
    for (int64_t r = begin; r < end; ++r) vectors.add(place(a.a, r), place(a.b, r), cols, place(a.y, r));
  });
}

// Chunks of kChunk numbers in the order of rows and columns, whatever the shape; then the chunks in order.
void CpuBackend::sum_squares(const SumSquares& s) {
  check(s);
  require_no_f64("sum_squares", {&s.x});
  constexpr int64_t kChunk = 1 << 14;
  const auto x = s.x.matrix<const float>();
  const int64_t size = s.x.size(), chunks = (size + kChunk - 1) / kChunk;
  Scratch scratch;
  double* sums = scratch.take<double>(chunks);
  context_->parallel(chunks, 0.15 * double(size), [&](int64_t chunk) {
    double sum = 0;
    const int64_t end = std::min(size, (chunk + 1) * kChunk);
    for (int64_t at = chunk * kChunk, n; at < end; at += n) {
      const int64_t r = at / x.cols, c = at % x.cols;
      n = std::min(end - at, x.cols - c);
      sum += context_->vectors.sum_squares(x.row(r) + c, n);
    }
    sums[chunk] = sum;
  });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk];
  *s.out.matrix<double>().data += total;
}

}  // namespace cachalot::cpu
