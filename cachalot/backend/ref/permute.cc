#include <vector>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::permute_plan(const PermutePlan& p) {
  check(p);
  const Indices expert(p.indices, p.experts);
  const Writer row_of(p.row_of), offsets(p.offsets);
  int64_t row = 0;
  for (int64_t e = 0; e < p.experts; ++e) {
    offsets.set(e, double(row));
    for (int64_t t = 0; t < p.indices.rows; ++t)
      for (int64_t j = 0; j < p.indices.cols; ++j)
        if (expert(t, j) == e) row_of.set(t, j, double(row++));
  }
  offsets.set(p.experts, double(row));
}

void RefBackend::permute(const Permute& p) {
  check(p);
  const Indices row_of(p.row_of, p.y.rows);
  if (p.x.dtype == DType::e4m3) {
    for (int64_t t = 0; t < p.x.rows; ++t)
      for (int64_t j = 0; j < p.row_of.cols; ++j)
        for (int64_t d = 0; d < p.x.cols; ++d) {
          const int64_t to = row_of(t, j);
          static_cast<e4m3*>(p.y.data)[to * p.y.ld + d] = static_cast<const e4m3*>(p.x.data)[t * p.x.ld + d];
          p.y.scales[d / kScaleBlock * p.y.scale_ld + to] = p.x.scale(t, d);
        }
    return;
  }
  const Reader x(p.x);
  const Writer y(p.y);
  for (int64_t t = 0; t < p.x.rows; ++t)
    for (int64_t j = 0; j < p.row_of.cols; ++j)
      for (int64_t d = 0; d < p.x.cols; ++d) y.set(row_of(t, j), d, x(t, d));
}

void RefBackend::unpermute(const Unpermute& p) {
  check(p);
  const Reader x(p.x), weights(p.weights), residual(p.residual), shared(p.shared);
  const Indices row_of(p.row_of, p.x.rows);
  const Writer y(p.y);
  for (int64_t t = 0; t < p.y.rows; ++t)
    for (int64_t d = 0; d < p.y.cols; ++d) {
      double sum = (p.residual ? residual(t, d) : 0) + (p.shared ? shared(t, d) : 0);
      for (int64_t j = 0; j < p.row_of.cols; ++j) sum += (p.weights ? weights(t, j) : 1) * x(row_of(t, j), d);
      y.set(t, d, sum);
    }
}

void RefBackend::unpermute_backward(const UnpermuteBackward& p) {
  check(p);
  const Reader dy(p.dy), x(p.x), weights(p.weights);
  const Indices row_of(p.row_of, p.x.rows);
  const Writer dx(p.dx), dweights(p.dweights);
  for (int64_t t = 0; t < p.dy.rows; ++t)
    for (int64_t j = 0; j < p.row_of.cols; ++j) {
      double sum = 0;
      for (int64_t d = 0; d < p.dy.cols; ++d) {
        sum += dy(t, d) * x(row_of(t, j), d);
        dx.set(row_of(t, j), d, weights(t, j) * dy(t, d));
      }
      dweights.set(t, j, sum);
    }
}

}  // namespace cachalot
