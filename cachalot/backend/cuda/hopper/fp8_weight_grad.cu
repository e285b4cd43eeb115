#include "backend/cuda/hopper/fp8_dispatch.cuh"

namespace cachalot::cuda::hopper {

const char* fp8_weight_grad(const Fp8WeightGrad& g, const Card& card, cudaStream_t stream) {
  if (const char* why = refused(card)) return why;
  if (const char* why = refused_operand(g.dy, ScaleTile::row)) return why;
  if (const char* why = refused_operand(g.x, ScaleTile::row)) return why;
  if (const char* why = refused_output(g.dw)) return why;
  if (g.dw.dtype != DType::f32) return "the gradient is not f32";
  if (g.experts > kMaxExperts) return "too many experts";
  if (g.dy.rows == 0 || g.x.rows == 0 || g.dy.cols == 0) return "nothing to multiply";
  Fp8Problem p = problem_of(g.dy, g.x, g.dw);
  p.parts = g.experts, p.offsets = g.offsets, p.add = g.add;
  p.faults = g.faults, p.fault_of = FaultOf::grouped_weight_grad;
  const Fp8Shape shape{.m = p.m, .n = p.n, .k = (p.k + g.experts - 1) / g.experts, .experts = g.experts};
  if (g.experts == 1) queue_fp8<kFp8DenseWeightGrad>(p, shape, card, stream);
  else queue_fp8<kFp8WeightGrad>(p, shape, card, stream);
  return nullptr;
}

}  // namespace cachalot::cuda::hopper
