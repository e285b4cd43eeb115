// Contract: backend/ops/permute.h.
#include <algorithm>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/quantize.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

// Rows are device data: a wrong one must not become a wild write.
int64_t checked_row(const char* op, int32_t row, int64_t rows) {
  CHECK(0 <= row && row < rows,
        std::string(op) + ": row " + std::to_string(row) + " of " + std::to_string(rows));
  return row;
}

}  // namespace

// Counting sort: count, prefix sums, place in the order of (token, choice). Two passes over T K integers.
void CpuBackend::permute_plan(const PermutePlan& p) {
  check(p);
  const auto indices = p.indices.matrix<const int32_t>();
  const auto row_of = p.row_of.matrix<int32_t>();
  const auto offsets = p.offsets.vector<int32_t>();
  Scratch scratch;
  int32_t* next = scratch.take<int32_t>(p.experts + 1);
  std::fill(next, next + p.experts + 1, 0);
  for (int64_t t = 0; t < indices.rows; ++t)
    for (int64_t j = 0; j < indices.cols; ++j)
      ++next[checked_row("permute_plan", indices(t, j), p.experts) + 1];
  for (int64_t e = 0; e < p.experts; ++e) next[e + 1] += next[e];
  std::copy(next, next + p.experts + 1, offsets.data);
  for (int64_t t = 0; t < indices.rows; ++t)
    for (int64_t j = 0; j < indices.cols; ++j) row_of(t, j) = next[indices(t, j)]++;
}

void CpuBackend::permute(const Permute& p) {
  check(p);
  require_no_f64("permute", {&p.x, &p.y});
  const auto row_of = p.row_of.matrix<const int32_t>();
  const double nanoseconds = 0.2 * double(p.y.size());
  context_->parallel_ranges(p.x.rows, rows_per_item(p.y.cols), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = 0; j < row_of.cols; ++j) {
        const int64_t row = checked_row("permute", row_of(t, j), p.y.rows);
        if (p.x.dtype == DType::e4m3) copy_quantised_row(p.x, t, p.y, row);
        else copy_row(p.x, t, p.y, row);
      }
  });
}

void CpuBackend::unpermute(const Unpermute& p) {
  check(p);
  require_no_f64("unpermute", {&p.x, &p.y});
  const int64_t d = p.y.cols;
  const auto row_of = p.row_of.matrix<const int32_t>();
  const Matrix<const float> weights = p.weights ? p.weights.matrix<const float>() : Matrix<const float>{};
  const double nanoseconds = 0.2 * double(p.x.size() + 3 * p.y.size());
  const RowVectors& vectors = rows_in(context_->vectors, p.y.dtype);
  context_->parallel_ranges(p.y.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    const void** rows = scratch.take<const void*>(row_of.cols + 2);
    float* factors = scratch.take<float>(row_of.cols + 2);
    for (int64_t t = begin; t < end; ++t) {
      int64_t count = 0;
      for (const Tensor* whole : {&p.residual, &p.shared})
        if (*whole) rows[count] = place(*whole, t), factors[count++] = 1;
      for (int64_t j = 0; j < row_of.cols; ++j) {
        rows[count] = place(p.x, checked_row("unpermute", row_of(t, j), p.x.rows));
        factors[count++] = p.weights ? weights(t, j) : 1.0f;
      }
      vectors.combine(rows, factors, count, d, place(p.y, t));
    }
  });
}

void CpuBackend::unpermute_backward(const UnpermuteBackward& p) {
  check(p);
  require_no_f64("unpermute_backward", {&p.x, &p.dx});
  const int64_t d = p.dy.cols;
  const auto row_of = p.row_of.matrix<const int32_t>();
  const auto weights = p.weights.matrix<const float>();
  const auto dweights = p.dweights.matrix<float>();
  const RowVectors& vectors = rows_in(context_->vectors, p.x.dtype);
  const double nanoseconds = 0.4 * double(p.x.size());
  context_->parallel_ranges(p.dy.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = 0; j < row_of.cols; ++j) {
        const int64_t row = checked_row("unpermute_backward", row_of(t, j), p.x.rows);
        dweights(t, j) =
            vectors.scale_and_dot(place(p.dy, t), place(p.x, row), weights(t, j), d, place(p.dx, row));
      }
  });
}

}  // namespace cachalot::cpu
