// Contract: backend/ops/rope.h. In place, one rounding.
#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::rope(const Rope& r) {
  check(r);
  require_no_f64("rope", {&r.x, &r.cos});
  const auto positions = r.positions.vector<const int32_t>();
  const auto cos = r.cos.matrix<const float>(), sin = r.sin.matrix<const float>();
  const int64_t width = r.heads * r.width;
  const double nanoseconds = double(r.x.rows * width);
  context_->parallel_ranges(r.x.rows, rows_per_item(width), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* x = scratch.take<float>(r.width);
    for (int64_t t = begin; t < end; ++t) {
      CHECK(0 <= positions[t] && positions[t] < cos.rows,
            "rope: position " + std::to_string(positions[t]) + " of " + std::to_string(cos.rows));
      const float *c = cos.row(positions[t]), *s = sin.row(positions[t]);
      const float sign = r.inverse ? -1.0f : 1.0f;
      for (int64_t h = 0; h < r.heads; ++h) {
        const int64_t first = h * r.stride + r.offset;
        load_row(r.x, t, first, r.width, x);
        for (int64_t i = 0; i < r.width / 2; ++i) {
          const float a = x[2 * i], b = x[2 * i + 1], si = sign * s[i];
          x[2 * i] = a * c[i] - b * si;
          x[2 * i + 1] = a * si + b * c[i];
        }
        store_row(r.x, t, first, r.width, x);
      }
    }
  });
}

}  // namespace cachalot::cpu
