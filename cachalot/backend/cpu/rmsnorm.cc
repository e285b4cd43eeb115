// Contract: backend/ops/rmsnorm.h. Rows are independent; the gain's gradient sums rows in chunks of kChunk,
// then the chunks in order, in double.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kChunk = 32;

// normed = x r, scaled = gain dy, sum += dy normed
void products(int64_t n, float r, const float* __restrict x, const float* __restrict dy,
              const float* __restrict gain, float* __restrict normed, float* __restrict scaled,
              float* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) {
    normed[i] = x[i] * r;
    scaled[i] = gain[i] * dy[i];
    sum[i] += dy[i] * normed[i];
  }
}

}  // namespace

void CpuBackend::rmsnorm_forward(const RmsNormForward& n) {
  check(n);
  require_no_f64("rmsnorm_forward", {&n.x, &n.y});
  const int64_t d = n.x.cols;
  const auto gain = n.gain.vector<const float>();
  const auto scales = n.r.vector<float>();
  context_->parallel_ranges(n.x.rows, rows_per_item(d), double(n.x.size()), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* buffer = scratch.take<float>(d);
    float* out = scratch.take<float>(d);
    for (int64_t t = begin; t < end; ++t) {
      const float* x = row_as_floats(n.x, t, buffer);
      const float r = float(1 / std::sqrt(double(dot(x, x, d)) / double(d) + n.eps));
      for (int64_t i = 0; i < d; ++i) out[i] = gain.data[i] * (x[i] * r);
      store_row(n.y, t, 0, d, out);
      scales[t] = r;
    }
  });
}

void CpuBackend::rmsnorm_backward(const RmsNormBackward& n) {
  check(n);
  require_no_f64("rmsnorm_backward", {&n.x, &n.dx});
  const int64_t d = n.x.cols, rows = n.x.rows, chunks = (rows + kChunk - 1) / kChunk;
  const auto gain = n.gain.vector<const float>();
  const auto scales = n.r.vector<const float>();
  const auto dgain = n.dgain.vector<float>();
  Scratch shared;
  float* sums = shared.take<float>(chunks * d);  // of each chunk: sum_t dy n
  context_->parallel(chunks, 3.0 * double(n.x.size()), [&](int64_t chunk) {
    Scratch scratch;
    float* x_buffer = scratch.take<float>(d);
    float* dy_buffer = scratch.take<float>(d);
    float* normed = scratch.take<float>(d);
    float* scaled = scratch.take<float>(d);
    float* sum = sums + chunk * d;
    std::fill(sum, sum + d, 0.0f);
    for (int64_t t = chunk * kChunk; t < std::min(rows, (chunk + 1) * kChunk); ++t) {
      const float* x = row_as_floats(n.x, t, x_buffer);
      const float* dy = row_as_floats(n.dy, t, dy_buffer);
      const float r = scales[t];
      products(d, r, x, dy, gain.data, normed, scaled, sum);
      const float mean = dot(scaled, normed, d) / float(d);
      for (int64_t i = 0; i < d; ++i) scaled[i] = r * (scaled[i] - normed[i] * mean);
      if (n.residual) {
        const float* residual = row_as_floats(n.residual, t, x_buffer);
        for (int64_t i = 0; i < d; ++i) scaled[i] += residual[i];
      }
      store_row(n.dx, t, 0, d, scaled);
    }
  });
  context_->parallel_ranges(d, 256, double(chunks * d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum = n.accumulate_gain == Accumulate::add ? dgain[i] : 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * d + i];
      dgain[i] = float(sum);
    }
  });
}

}  // namespace cachalot::cpu
