// Contract: backend/ops/grouped_gemm.h. One launch for all experts: blocks walk the tiles of a list that
// every block works out from the offsets on the device. On Hopper FP8 and BF16: hopper/; few rows:
// skinny_products.cu; BF16 on older tensor cores: mma_products.cu; everything else: the plain kernel.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/hopper/bf16_gemm.h"
#include "backend/cuda/hopper/fp8_gemm.h"
#include "backend/cuda/product.h"
#include "backend/ops/check.h"

namespace cachalot::cuda {

void CudaBackend::grouped_gemm(const GroupedGemm& g) {
  check(g);
  require_no_f64("grouped_gemm", {&g.x, &g.w, &g.y});
  select();
  const auto* offsets = static_cast<const int32_t*>(g.offsets.data);
  const hopper::Card card{context_->major, context_->multiprocessors};
  if (!g.input_grad && !rows_fixed_ &&
      !hopper::fp8_grouped_gemm(
          {.a = g.x, .b = g.w, .d = g.y, .offsets = offsets, .experts = g.experts, .faults = faults_}, card,
          stream_))
    return;
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
  if (skinny_products(queue_, p, rows_fixed_)) return;
  if (rows_fixed_) return plain_products(stream_, context_->multiprocessors, p);
  if (!hopper::bf16_grouped_gemm({.x = g.x,
                                  .w = g.w,
                                  .y = g.y,
                                  .offsets = offsets,
                                  .experts = g.experts,
                                  .input_grad = g.input_grad,
                                  .faults = faults_},
                                 card, stream_))
    return;
  if (!mma_products(stream_, context_->multiprocessors, p))
    plain_products(stream_, context_->multiprocessors, p);
}

void CudaBackend::grouped_weight_grad(const GroupedWeightGrad& g) {
  check(g);
  require_no_f64("grouped_weight_grad", {&g.dy, &g.x, &g.dw});
  select();
  const auto* offsets = static_cast<const int32_t*>(g.offsets.data);
  const hopper::Card card{context_->major, context_->multiprocessors};
  const bool add = g.accumulate == Accumulate::add;
  if (!hopper::fp8_weight_grad({.dy = g.dy,
                                .x = g.x,
                                .dw = g.dw,
                                .offsets = offsets,
                                .experts = g.experts,
                                .add = add,
                                .faults = faults_},
                               card, stream_) ||
      !hopper::bf16_weight_grad({.dy = g.dy,
                                 .x = g.x,
                                 .dw = g.dw,
                                 .offsets = offsets,
                                 .experts = g.experts,
                                 .add = add,
                                 .faults = faults_},
                                card, stream_))
    return;
  const bool transposed = g.x.dtype == DType::e4m3;  // dy [O, R], x [I, R]
  const int64_t m = transposed ? g.dy.rows : g.dy.cols;
  const Products p{.a = g.dy,
                   .b = g.x,
                   .c = g.dw,
                   .trans_a = !transposed,
                   .trans_b = transposed,
                   .add = add,
                   .m = m,
                   .n = transposed ? g.x.rows : g.x.cols,
                   .count = g.experts,
                   .c_row_step = m,
                   .ragged = Products::Ragged::depth,
                   .offsets = static_cast<const int32_t*>(g.offsets.data),
                   .total = transposed ? g.x.cols : g.x.rows,
                   .faults = faults_,
                   .op = FaultOf::grouped_weight_grad};
  if (!mma_products(stream_, context_->multiprocessors, p))
    plain_products(stream_, context_->multiprocessors, p);
}

}  // namespace cachalot::cuda
