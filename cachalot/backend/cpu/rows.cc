// Contract: backend/ops/rows.h.
#include <algorithm>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

void check_row(const char* op, int64_t row, int64_t rows) {
  CHECK(row < rows, std::string(op) + ": row " + std::to_string(row) + " of " + std::to_string(rows));
}

void convert_row(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, float* buffer) {
  if (from.dtype == to.dtype) copy_row(from, from_row, to, to_row);
  else store_row(to, to_row, 0, from.cols, row_as_floats(from, from_row, buffer));
}

}  // namespace

void CpuBackend::gather_rows(const GatherRows& g) {
  check(g);
  require_no_f64("gather_rows", {&g.x, &g.y});
  const int64_t d = g.y.cols;
  const auto rows = g.rows.vector<const int32_t>();
  const double nanoseconds = 0.5 * double(g.y.size());
  context_->parallel_ranges(g.y.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* buffer = scratch.take<float>(d);
    for (int64_t t = begin; t < end; ++t) {
      if (rows[t] >= 0) {
        check_row("gather_rows", rows[t], g.x.rows);
        convert_row(g.x, rows[t], g.y, t, buffer);
      } else {
        std::fill(buffer, buffer + d, 0.0f);
        store_row(g.y, t, 0, d, buffer);
      }
    }
  });
}

void CpuBackend::scatter_rows(const ScatterRows& s) {
  check(s);
  require_no_f64("scatter_rows", {&s.x, &s.y});
  const int64_t d = s.x.cols;
  const auto rows = s.rows.vector<const int32_t>();
  const double nanoseconds = 0.5 * double(s.x.size());
  context_->parallel_ranges(s.x.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* buffer = scratch.take<float>(d);
    for (int64_t t = begin; t < end; ++t) {
      if (rows[t] < 0) continue;
      check_row("scatter_rows", rows[t], s.y.rows);
      convert_row(s.x, t, s.y, rows[t], buffer);
    }
  });
}

// An item owns some columns of y and takes all rows in order.
void CpuBackend::scatter_add_rows(const ScatterAddRows& s) {
  check(s);
  require_no_f64("scatter_add_rows", {&s.x, &s.y});
  constexpr int64_t kCols = 64;
  const auto rows = s.rows.vector<const int32_t>();
  const auto y = s.y.matrix<float>();
  const bool overwrite = s.accumulate == Accumulate::overwrite;
  const double nanoseconds = 0.7 * double(s.x.size()) + (overwrite ? 0.3 * double(s.y.size()) : 0.0);
  context_->parallel_ranges(y.cols, kCols, nanoseconds, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    float buffer[kCols];
    if (overwrite)
      for (int64_t r = 0; r < y.rows; ++r) std::fill(y.row(r) + begin, y.row(r) + end, 0.0f);
    for (int64_t t = 0; t < s.x.rows; ++t) {
      if (rows[t] < 0) continue;
      check_row("scatter_add_rows", rows[t], y.rows);
      load_row(s.x, t, begin, n, buffer);
      float* sum = y.row(rows[t]) + begin;
      for (int64_t i = 0; i < n; ++i) sum[i] += buffer[i];
    }
  });
}

}  // namespace cachalot::cpu
