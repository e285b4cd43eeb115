// Contract: backend/ops/rows.h.
#include <algorithm>
#include <cstring>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

void check_row(const char* op, int64_t row, int64_t rows) {
  CHECK(row < rows, std::string(op) + ": row " + std::to_string(row) + " of " + std::to_string(rows));
}

// f32 and bf16, either way.
void convert_row(const Vectors& vectors, const Tensor& from, int64_t from_row, const Tensor& to,
                 int64_t to_row) {
  if (from.dtype == to.dtype) return copy_row(from, from_row, to, to_row);
  const void* x = place(from, from_row);
  void* y = place(to, to_row);
  if (to.dtype == DType::bf16) vectors.bf16.from_floats(static_cast<const float*>(x), 1, from.cols, y);
  else vectors.bf16.to_floats(x, 1, from.cols, static_cast<float*>(y));
}

void clear_row(const Tensor& t, int64_t r) { std::memset(place(t, r), 0, size_t(t.cols * size_of(t.dtype))); }

}  // namespace

void CpuBackend::gather_rows(const GatherRows& g) {
  check(g);
  require_no_f64("gather_rows", {&g.x, &g.y});
  const int64_t d = g.y.cols;
  const auto rows = g.rows.vector<const int32_t>();
  const double nanoseconds = 0.2 * double(g.y.size());
  context_->parallel_ranges(g.y.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (rows[t] >= 0) {
        check_row("gather_rows", rows[t], g.x.rows);
        convert_row(context_->vectors, g.x, rows[t], g.y, t);
      } else {
        clear_row(g.y, t);
      }
    }
  });
}

void CpuBackend::scatter_rows(const ScatterRows& s) {
  check(s);
  require_no_f64("scatter_rows", {&s.x, &s.y});
  const int64_t d = s.x.cols;
  const auto rows = s.rows.vector<const int32_t>();
  const double nanoseconds = 0.2 * double(s.x.size());
  context_->parallel_ranges(s.x.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (rows[t] < 0) continue;
      check_row("scatter_rows", rows[t], s.y.rows);
      convert_row(context_->vectors, s.x, t, s.y, rows[t]);
    }
  });
}

// An item owns some columns of y and takes all rows in order.
void CpuBackend::scatter_add_rows(const ScatterAddRows& s) {
  check(s);
  require_no_f64("scatter_add_rows", {&s.x, &s.y});
  constexpr int64_t kCols = 128;
  const RowVectors& vectors = rows_in(context_->vectors, s.x.dtype);
  const auto rows = s.rows.vector<const int32_t>();
  const auto y = s.y.matrix<float>();
  const bool overwrite = s.accumulate == Accumulate::overwrite;
  const double nanoseconds = 0.7 * double(s.x.size()) + (overwrite ? 0.3 * double(s.y.size()) : 0.0);
  context_->parallel_ranges(y.cols, kCols, nanoseconds, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    if (overwrite)
      for (int64_t r = 0; r < y.rows; ++r) std::fill(y.row(r) + begin, y.row(r) + end, 0.0f);
    for (int64_t t = 0; t < s.x.rows; ++t) {
      if (rows[t] < 0) continue;
      check_row("scatter_add_rows", rows[t], y.rows);
      vectors.accumulate(place(s.x, t, begin), n, y.row(rows[t]) + begin);
    }
  });
}

}  // namespace cachalot::cpu
