#include "backend/cuda/hopper/fp8_dispatch.cuh"

namespace cachalot::cuda::hopper {

const char* fp8_gemm(const Fp8Gemm& g, const Card& card, cudaStream_t stream) {
  if (const char* why = refused(card)) return why;
  if (const char* why = refused_operand(g.a, ScaleTile::row)) return why;
  if (const char* why = refused_output(g.d)) return why;
  if (g.a.rows == 0 || g.a.cols == 0) return "nothing to multiply";
  if (g.b.scale_tile == ScaleTile::row)
    return fp8_weight_grad({.dy = g.a, .x = g.b, .dw = g.d, .experts = 1, .add = g.add}, card, stream);
  if (const char* why = refused_operand(g.b, ScaleTile::block)) return why;
  if (const char* why = refused_blocks(g.b, g.b.rows, 1)) return why;
  Fp8Problem p = problem_of(g.a, g.b, g.d);
  p.early = g.b_is_constant, p.add = g.add;
  const Fp8Shape shape{.m = p.m, .n = p.n, .k = p.k};
  if (g.d.dtype == DType::f32) queue_fp8<kFp8DenseF32>(p, shape, card, stream);
  else if (g.add) queue_fp8<kFp8DenseAdd>(p, shape, card, stream);
  else queue_fp8<kFp8Dense>(p, shape, card, stream);
  return nullptr;
}

}  // namespace cachalot::cuda::hopper
