// Contract: backend/ops/elementwise.h.
#include <algorithm>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

template <class T> void fill_rows(const Tensor& y, T value, int64_t begin, int64_t end) {
  const auto m = y.matrix<T>();
  for (int64_t r = begin; r < end; ++r) std::fill(m.row(r), m.row(r) + m.cols, value);
}

// sum_i x[i]^2 in eight interleaved double sums.
double sum_of_squares(const float* x, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += double(x[i + lane]) * x[i + lane];
  for (int64_t lane = 0; i < n; ++i, ++lane) sums[lane] += double(x[i]) * x[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace

// f64 too: sums of squares are kept so, and somebody has to zero them.
void CpuBackend::fill(const Fill& f) {
  check(f);
  const double nanoseconds = 0.3 * double(f.y.size());
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
  const double nanoseconds = 0.5 * double(c.x.size());
  context_->parallel_ranges(c.x.rows, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* buffer = scratch.take<float>(cols);
    for (int64_t r = begin; r < end; ++r) {
      if (c.x.dtype == c.y.dtype) copy_row(c.x, r, c.y, r);
      else store_row(c.y, r, 0, cols, row_as_floats(c.x, r, buffer));
    }
  });
}

void CpuBackend::add(const Add& a) {
  check(a);
  require_no_f64("add", {&a.a, &a.b, &a.y});
  const int64_t cols = a.y.cols;
  const double nanoseconds = double(a.y.size());
  context_->parallel_ranges(a.y.rows, rows_per_item(cols), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* left = scratch.take<float>(cols);
    float* right = scratch.take<float>(cols);
    float* sum = scratch.take<float>(cols);
    for (int64_t r = begin; r < end; ++r) {
      if (a.y.dtype == DType::i32) {
        const auto x = a.a.matrix<const int32_t>(), y = a.b.matrix<const int32_t>();
        for (int64_t i = 0; i < cols; ++i) a.y.matrix<int32_t>()(r, i) = x(r, i) + y(r, i);
        continue;
      }
      const float *x = row_as_floats(a.a, r, left), *y = row_as_floats(a.b, r, right);
      for (int64_t i = 0; i < cols; ++i) sum[i] = x[i] + y[i];
      store_row(a.y, r, 0, cols, sum);
    }
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
  context_->parallel(chunks, 0.5 * double(size), [&](int64_t chunk) {
    double sum = 0;
    const int64_t end = std::min(size, (chunk + 1) * kChunk);
    for (int64_t at = chunk * kChunk, n; at < end; at += n) {
      const int64_t r = at / x.cols, c = at % x.cols;
      n = std::min(end - at, x.cols - c);
      sum += sum_of_squares(x.row(r) + c, n);
    }
    sums[chunk] = sum;
  });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk];
  *s.out.matrix<double>().data += total;
}

}  // namespace cachalot::cpu
