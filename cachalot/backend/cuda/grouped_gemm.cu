// Contract: backend/ops/grouped_gemm.h. One launch for all experts: blocks walk the tiles of a list that
// every block works out from the offsets on the device. Few rows: skinny_products.cu; BF16 on the tensor
// cores (mma_products.cu), everything else on the plain kernel.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/product.h"
#include "backend/ops/check.h"

namespace cachalot::cuda {

void CudaBackend::grouped_gemm(const GroupedGemm& g) {
  check(g);
  require_no_f64("grouped_gemm", {&g.x, &g.w, &g.y});
  select();
  const int64_t out = g.w.rows / g.experts;
  const Products p{.a = g.x,
                   .b = g.w,
                   .c = g.y,
                   .trans_b = !g.input_grad,
                   .n = g.y.cols,
                   .k = g.x.cols,
                   .count = g.experts,
                   .b_row_step = out,
                   .ragged = Products::Ragged::rows,
                   .offsets = static_cast<const int32_t*>(g.offsets.data),
                   .total = g.x.rows,
                   .faults = faults_,
                   .op = FaultOf::grouped_gemm};
  if (skinny_products(stream_, p)) return;
  if (!mma_products(stream_, context_->multiprocessors, p))
    plain_products(stream_, context_->multiprocessors, p);
}

void CudaBackend::grouped_weight_grad(const GroupedWeightGrad& g) {
  check(g);
  require_no_f64("grouped_weight_grad", {&g.dy, &g.x, &g.dw});
  select();
  const Products p{.a = g.dy,
                   .b = g.x,
                   .c = g.dw,
                   .trans_a = true,
                   .add = g.accumulate == Accumulate::add,
                   .m = g.dy.cols,
                   .n = g.x.cols,
                   .count = g.experts,
                   .c_row_step = g.dy.cols,
                   .ragged = Products::Ragged::depth,
                   .offsets = static_cast<const int32_t*>(g.offsets.data),
                   .total = g.x.rows,
                   .faults = faults_,
                   .op = FaultOf::grouped_weight_grad};
  if (!mma_products(stream_, context_->multiprocessors, p))
    plain_products(stream_, context_->multiprocessors, p);
}

}  // namespace cachalot::cuda
