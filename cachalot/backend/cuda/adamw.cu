// Contract: backend/ops/adamw.h. One pass, 22 bytes a weight with a bf16 copy. Float arithmetic; the factors
// of a step are made in double, on the host and, where they need the norm, by each thread.
#include <cmath>
#include <type_traits>

#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

struct AdamArgs {
  Matrix<float> master;
  Matrix<const float> grad;
  Matrix<bf16> m, v;
  const double* norm_squared;
  double max_norm;
  float beta1, beta2, fresh1, fresh2;  // fresh = 1 - beta
  float unbias1, unbias2;              // 1 / (1 - beta^step)
  float lr, eps, decay;
};

// W float and no data: nobody wants a copy.
template <class W, bool wide> __global__ void adamw_kernel(AdamArgs a, Matrix<W> weight) {
  start();
  const double norm_squared = *a.norm_squared;
  if (!isfinite(norm_squared)) return;
  const double norm = sqrt(norm_squared);
  const float clip = a.max_norm > 0 && norm > a.max_norm ? float(a.max_norm / norm) : 1.0f;
  const int64_t cols = a.master.cols;
  for_plane(a.master.rows, cols, [&](int64_t r, int64_t c) {
    const Packed<bf16> packed_m = load<wide>(a.m.data + r * a.m.ld, c, cols),
                       packed_v = load<wide>(a.v.data + r * a.v.ld, c, cols);
    const Eight grad = load_eight<wide>(a.grad.data + r * a.grad.ld, c, cols);
    Eight w = load_eight<wide>(a.master.data + r * a.master.ld, c, cols);
    Eight m = unpack(packed_m), v = unpack(packed_v);
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const float g = grad.v[i] * clip;
      m.v[i] = a.beta1 * m.v[i] + a.fresh1 * g;
      v.v[i] = a.beta2 * v.v[i] + a.fresh2 * (g * g);
      w.v[i] -= a.lr * (m.v[i] * a.unbias1 / (sqrtf(v.v[i] * a.unbias2) + a.eps) + a.decay * w.v[i]);
    }
    store_eight<wide>(a.m.data + r * a.m.ld, c, cols, m);
    store_eight<wide>(a.v.data + r * a.v.ld, c, cols, v);
    store_eight<wide>(a.master.data + r * a.master.ld, c, cols, w);
    if (weight.data) store_eight<wide>(weight.data + r * weight.ld, c, cols, w);
  });
}

}  // namespace

void CudaBackend::adamw(const AdamW& u) {
  check(u);
  require_no_f64("adamw", {&u.master, &u.grad, &u.m, &u.v, &u.weight});
  if (u.master.size() == 0) return;
  select();
  AdamW a = u;
  flatten({&a.master, &a.grad, &a.m, &a.v, &a.weight});
  const AdamArgs args{.master = a.master.matrix<float>(),
                      .grad = a.grad.matrix<const float>(),
                      .m = a.m.matrix<bf16>(),
                      .v = a.v.matrix<bf16>(),
                      .norm_squared = a.grad_norm_squared.matrix<const double>().data,
                      .max_norm = a.max_norm,
                      .beta1 = float(a.beta1),
                      .beta2 = float(a.beta2),
                      .fresh1 = float(1 - a.beta1),
                      .fresh2 = float(1 - a.beta2),
                      .unbias1 = float(1 / (1 - std::pow(a.beta1, double(a.step)))),
                      .unbias2 = float(1 / (1 - std::pow(a.beta2, double(a.step)))),
                      .lr = float(a.lr),
                      .eps = float(a.eps),
                      .decay = float(a.weight_decay)};
  const Plane p = plane(a.master.rows, a.master.cols);
  with_act(a.weight ? a.weight.dtype : DType::f32, [&](auto format) {
    using W = decltype(format);
    with_width(are_wide({&a.master, &a.grad, &a.m, &a.v, &a.weight}), [&](auto wide) {
      launch(queue_, adamw_kernel<W, wide.value>, p.grid, p.block, 0, args,
             a.weight ? a.weight.matrix<W>() : Matrix<W>{});
    });
  });
  launched("adamw");
}

}  // namespace cachalot::cuda
