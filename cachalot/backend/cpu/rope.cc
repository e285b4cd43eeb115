// Contract: backend/ops/rope.h. In place, one rounding. A pair (a, b) turns into (a cos - b sin, b cos + a
// sin): every number times its cosine, plus its partner times a signed sine; both factors are laid out once
// a row.
#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::rope(const Rope& r) {
  check(r);
  require_no_f64("rope", {&r.x, &r.cos});
  const RowVectors& vectors = rows_in(context_->vectors, r.x.dtype);
  const auto positions = r.positions.vector<const int32_t>();
  const auto cos = r.cos.matrix<const float>(), sin = r.sin.matrix<const float>();
  const int64_t width = r.heads * r.width;
  const double nanoseconds = 0.3 * double(r.x.rows * (width + r.width));
  context_->parallel_ranges(r.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float *along = scratch.take<float>(r.width), *across = scratch.take<float>(r.width);
    const float sign = r.inverse ? -1.0f : 1.0f;
    for (int64_t t = begin; t < end; ++t) {
      CHECK(0 <= positions[t] && positions[t] < cos.rows,
            "rope: position " + std::to_string(positions[t]) + " of " + std::to_string(cos.rows));
      const float *c = cos.row(positions[t]), *s = sin.row(positions[t]);
      for (int64_t i = 0; i < r.width / 2; ++i) {
        along[2 * i] = along[2 * i + 1] = c[i];
        across[2 * i] = -sign * s[i];
        across[2 * i + 1] = sign * s[i];
      }
      vectors.rotate(place(r.x, t, r.offset), r.heads, r.stride, along, across, r.width);
    }
  });
}

}  // namespace cachalot::cpu
