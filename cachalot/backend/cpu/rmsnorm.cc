// Contract: backend/ops/rmsnorm.h. Rows are independent; the gain's gradient sums rows in chunks of kChunk,
// then the chunks in order, in double.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/quantize.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kChunk = 32;

}  // namespace

void CpuBackend::rmsnorm_forward(const RmsNormForward& n) {
  check(n);
  require_no_f64("rmsnorm_forward", {&n.x, &n.y});
  const RowVectors& vectors = rows_in(context_->vectors, n.x.dtype);
  const int64_t d = n.x.cols;
  const auto gain = n.gain.vector<const float>();
  const auto scales = n.r.vector<float>();
  const double nanoseconds = (n.quantized ? 1.5 : 0.25) * double(n.x.size());
  context_->parallel_ranges(n.x.rows, rows_per_item(d), nanoseconds, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    const Tensor row = make_tensor(scratch.take<float>(d), n.x.dtype, 1, d);  // of y, when nobody keeps it
    float* buffer = scratch.take<float>(d);
    for (int64_t t = begin; t < end; ++t) {
      const void* x = place(n.x, t);
      const float r = float(1 / std::sqrt(double(vectors.sum_squares(x, d)) / double(d) + n.eps));
      const Tensor y = n.y ? n.y.slice_rows(t, 1) : row;
      vectors.normalise(x, gain.data, r, d, y.data);
      if (n.quantized)
        quantise_row(context_->vectors, row_as_floats(y, 0, buffer), n.quantized, t, n.power_of_two);
      scales[t] = r;
    }
  });
}

void CpuBackend::rmsnorm_backward(const RmsNormBackward& n) {
  check(n);
  require_no_f64("rmsnorm_backward", {&n.x, &n.dx});
  const RowVectors& vectors = rows_in(context_->vectors, n.x.dtype);
  const int64_t d = n.x.cols, rows = n.x.rows, chunks = (rows + kChunk - 1) / kChunk;
  const auto gain = n.gain.vector<const float>();
  const auto scales = n.r.vector<const float>();
  const auto dgain = n.dgain.vector<float>();
  Scratch shared;
  float* sums = shared.take<float>(chunks * d);  // of each chunk: sum_t dy x r
  context_->parallel(chunks, 0.7 * double(n.x.size()), [&](int64_t chunk) {
    float* sum = sums + chunk * d;
    std::fill(sum, sum + d, 0.0f);
    for (int64_t t = chunk * kChunk; t < std::min(rows, (chunk + 1) * kChunk); ++t) {
      const void *x = place(n.x, t), *dy = place(n.dy, t);
      const float r = scales[t], mean = vectors.norm_sums(dy, x, gain.data, r, d, sum) / float(d);
      vectors.norm_gradient(dy, x, gain.data, n.residual ? place(n.residual, t) : nullptr, r, mean, d,
                            place(n.dx, t));
    }
  });
  constexpr int64_t kCols = 256;
  context_->parallel_ranges(d, kCols, 0.5 * double(chunks * d), [&](int64_t begin, int64_t end) {
    double total[kCols];
    for (int64_t i = begin; i < end; ++i)
      total[i - begin] = n.accumulate_gain == Accumulate::add ? dgain[i] : 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t i = begin; i < end; ++i) total[i - begin] += sums[chunk * d + i];
    for (int64_t i = begin; i < end; ++i) dgain[i] = float(total[i - begin]);
  });
}

}  // namespace cachalot::cpu
