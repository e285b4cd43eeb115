// Contract: backend/masked_gemm.h. The kernel: hopper/fp8_grouped.cu.
#include "backend/masked_gemm.h"

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/hopper/fp8_gemm.h"

namespace cachalot {

bool masked_gemm(Backend& backend, const MaskedGemm& g) {
  auto* card = dynamic_cast<cuda::CudaBackend*>(&backend);
  return card && card->masked_gemm(g);
}

namespace cuda {

bool CudaBackend::masked_gemm(const MaskedGemm& g) {
  CHECK(g.counts.dtype == DType::i32 && g.counts.size() == g.experts, g.counts.describe());
  CHECK(g.x.rows == g.experts * g.max_rows && g.y.rows == g.x.rows, g.x.describe() + g.y.describe());
  CHECK(g.w.rows == g.experts * g.y.cols && g.w.cols == g.x.cols, g.w.describe());
  select();
  return !hopper::fp8_masked_gemm({.a = g.x,
                                   .b = g.w,
                                   .d = g.y,
                                   .counts = static_cast<const int32_t*>(g.counts.data),
                                   .experts = g.experts,
                                   .max_rows = g.max_rows,
                                   .expected_rows = g.expected_rows},
                                  {context_->major, context_->multiprocessors}, stream_);
}

}  // namespace cuda
}  // namespace cachalot
